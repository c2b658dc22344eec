"""The pipeline on small networks: what it makes, from what, and how often it compiles."""

import dataclasses
import json
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from conftest import relative_error
from hypothesis import given
from hypothesis import strategies as st

from convert.conversion import convert
from mmaudio_jax import Pipeline, Request, sampling, trees, weights
from mmaudio_jax.data import media
from mmaudio_jax.decoding import fitted, read_pictures
from mmaudio_jax.demo.render import render_clips
from mmaudio_jax.errors import UserError
from mmaudio_jax.models import mmaudio
from mmaudio_jax.models.vae import VAEConfig
from mmaudio_jax.pipeline import Features, pack
from mmaudio_jax.request import AdapterUse

SHORT = dict(duration=1.0, steps=2)
WORDS = ("rain", "a dog barks", "thunder")


@pytest.fixture(scope="module")
def pipe(small_weights):
    return Pipeline.from_pretrained(small_weights, "small_16k")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A rendered video, a little over one second long."""
    table = render_clips(tmp_path_factory.mktemp("clips"), 1, seed=3, duration=1.2)
    return next(table.parent.glob("*.mp4"))


def make(pipe, *requests, features=None, capacity=None):
    """The waves of a batch; without features those of the words."""
    features = features or [pipe.features(None, request) for request in requests]
    return [sound.audio for sound in pipe.generate(requests, features, capacity).sounds()]


def compiled():
    return sampling.sample._cache_size(), sampling.decode._cache_size()


def test_a_seed_gives_the_same_sound_in_any_batch(pipe):
    requests = [
        Request(prompt=words, seed=6 + i, **SHORT) for i, words in enumerate(["rain", "a dog barks", "thunder"])
    ]
    (alone,) = make(pipe, requests[1])
    together = make(pipe, *requests, capacity=8)
    for wave in together:
        assert wave.shape == (16_000,) and np.isfinite(wave).all() and 0 < np.abs(wave).max() <= 1
    assert relative_error(together[1], alone) < 1e-4 and relative_error(together[0], together[1]) > 0.1
    assert relative_error(make(pipe, *requests[::-1], capacity=8)[1], alone) < 1e-4


def test_a_length_and_capacity_compile_once_whatever_else_is_asked(pipe):
    plain = Request(prompt="rain", **SHORT)
    make(pipe, plain, capacity=8)
    count = compiled()
    changes = [{"seed": 3}, {"steps": 7}, {"solver": "midpoint"}, {"solver": "adams_bashforth"}, {"shift": 3.0}]
    changes += [{"cfg_strength": 2.0}, {"cfg_strength": 0.0}, {"negative_prompt": "speech"}]
    waves = [make(pipe, dataclasses.replace(plain, **change), plain, capacity=8) for change in changes]
    assert compiled() == count
    for change, (changed, same) in zip(changes, waves, strict=True):
        assert relative_error(changed, same) > 1e-4, change
        assert relative_error(same, waves[0][1]) < 1e-5


CASES = {
    "sample_unnormalized": dict(steps=25),
    "sample_negative_8": dict(steps=8, cfg_strength=3.0),
    "sample_nocfg_8": dict(steps=8, cfg_strength=0.5),
}


@pytest.mark.parametrize("name", ["flow_tiny", "flow_tiny_v2"])
def test_the_golden_latents_come_out_of_a_batch(golden, small_weights, tmp_path, monkeypatch, name):
    """Through all that a batch of requests becomes: rows, tables, padding."""
    expected = golden.expected(name)
    if "t_freqs" in expected:
        monkeypatch.setattr(mmaudio.TimestepEmbedder, "frequencies", lambda self: expected["t_freqs"])
    folder = convert(golden.checkpoint(f"{name}.pth"), tmp_path, quiet=True).directory
    for part in ("vae_16k", "bigvgan_16k"):
        (tmp_path / part).symlink_to(small_weights / part)
    pipe = Pipeline.from_pretrained(tmp_path, folder.name)
    shapes = dict(latent=(2, 250, 20), clip=(2, 64, 1024), sync=(2, 192, 768), text=(2, 77, 1024))
    latent, *given = (golden.input(key, shape) for key, shape in shapes.items())
    monkeypatch.setattr(sampling, "initial_noise", lambda *_: jnp.concatenate([latent, jnp.zeros((4, 250, 20))]))
    params = pipe.flow.base.params
    for case, options in CASES.items():
        negative = golden.input("negative_text", shapes["text"]) if "negative" in case else [None] * 2
        features = [Features(*values) for values in zip(*given, negative, strict=True)]
        sounds = pipe.generate([Request(prompt="x", **options)] * 2, features, 6).sounds()
        made = np.stack([sound.latent for sound in sounds])
        if case != "sample_unnormalized":
            made = (made - params["latent_mean"]) / params["latent_std"]
        assert relative_error(made, expected[case]) <= 2e-5, case


def test_a_batch_that_is_not_full_is_served_by_the_same_program(pipe):
    one, other = (Request(prompt=words, cfg_strength=0.0, seed=1, **SHORT) for words in WORDS[:2])
    make(pipe, one, other, capacity=2)
    count = compiled()
    make(pipe, other, capacity=2)
    assert compiled() == count


def test_guidance_by_video_and_words_apart(pipe, video):
    """Equal strengths are the one guidance; the words' own at 0 leave the video's alone."""
    request = Request(video=video, prompt="rain", cfg_strength=3.0, **SHORT)
    features = [pipe.features(read_pictures(request), request)]

    def sound(features=features, **change):
        return make(pipe, dataclasses.replace(request, **change), features=features, capacity=8)[0]

    assert dataclasses.replace(request, video_strength=5.0).branches == 3
    whole = sound()
    assert relative_error(sound(video_strength=3.0), whole) < 1e-6
    assert relative_error(sound(video_strength=5.0), whole) > 1e-3
    wordless = [features[0]._replace(text_f=None)]
    assert relative_error(sound(cfg_strength=0.0, video_strength=3.0), sound(wordless)) < 1e-4


def test_videos_pictures_and_words_are_seen(pipe, video, tmp_path):
    save_picture(video, tmp_path / "still.png")
    requests = [
        Request(video=video, prompt="rain", **SHORT),
        Request(video=video, prompt="rain", use_clip=False, **SHORT),
        Request(image=tmp_path / "still.png", prompt="rain", **SHORT),
        Request(prompt="rain", **SHORT),
    ]
    features = [pipe.features(read_pictures(fitted(request)), request) for request in requests]
    assert [(f.clip_f is not None, f.sync_f is not None) for f in features] == [(1, 1), (0, 1), (1, 0), (0, 0)]
    assert (features[2].clip_f == features[2].clip_f[0]).all() and len(features[2].clip_f) == 8
    waves = make(pipe, *requests, features=features, capacity=8)
    for i, one in enumerate(waves):
        assert all(relative_error(one, other) > 1e-4 for other in waves[:i])


def test_the_sound_is_as_long_as_a_video_that_ends_before(pipe, video):
    there = media.probe(video).video_duration
    request = fitted(Request(video=video, duration=8.0, steps=2))
    assert request.duration == there and request.made == pytest.approx(1.28) and there < 1.28
    pictures = read_pictures(request)
    assert [len(frames) for frames in pictures] == [int(8 * 1.28), 32]
    held = int(25 * there)
    assert (pictures.sync_frames[held:] == pictures.sync_frames[held - 1]).all()
    with pytest.warns(UserWarning, match=f"{video} has 1.24 s, not 8 s; its sound is as short"):
        sound = pipe(Request(video=video, duration=8.0, steps=2))
    assert len(sound.audio) == round(there * 16_000) and len(sound.latent) == 40


def test_lists_are_batches_in_the_order_that_was_asked_for(pipe, video, tmp_path):
    sounds = pipe(prompt=["rain", "wind"], video=[video, None], seed=[1, 2], duration=1.0, steps=2)
    assert [sound.request.prompt for sound in sounds] == ["rain", "wind"]
    alone = pipe(prompt="wind", seed=2, **SHORT)
    assert relative_error(sounds[1].audio, alone.audio) < 1e-4
    mixed = [Request(prompt="a", duration=d, steps=2, seed=i) for i, d in enumerate([1.0, 0.64, 1.0, 0.64, 1.0])]
    assert [sound.request for sound in pipe(mixed, batch_size=1)] == mixed
    sounds[0].save(tmp_path / "new" / "a.wav")
    sounds[0].save(tmp_path / "a.mp4")
    with soundfile.SoundFile(tmp_path / "new" / "a.wav") as file:
        assert file.title == "rain" and json.loads(file.comment)["seed"] == 1
    assert len(soundfile.read(tmp_path / "new" / "a.wav")[0]) == 16_000 and media.probe(tmp_path / "a.mp4").has_audio
    before = video.read_bytes()
    with pytest.raises(UserError, match="is what the sound was made for"):
        sounds[0].save(video)
    assert video.read_bytes() == before
    with pytest.raises(UserError, match="for no video"):
        alone.save(tmp_path / "b.mp4")
    provenance = alone.provenance
    assert provenance["model"] == "small_16k" and len(provenance["weights"]["small_16k"]) == 64


def test_a_video_is_seen_once_for_all_that_is_made_for_it(pipe, video, monkeypatch):
    seen = []
    encode = pipe.encoders.encode_clip_frames
    monkeypatch.setattr(pipe.encoders, "encode_clip_frames", lambda frames: [seen.append(1), encode(frames)][1])
    several = pipe(video=video, prompt=["rain", "rain", "thunder"], seed=[1, 2, 1], **SHORT)
    alone = [pipe(video=video, prompt="rain", seed=2, **SHORT), pipe(video=video, prompt="thunder", seed=1, **SHORT)]
    assert len(seen) == 3
    for sound, same in zip(several[1:], alone, strict=True):
        assert relative_error(sound.latent, same.latent) < 1e-5
        assert np.array_equal(sound.features.text_f, same.features.text_f)
    pipe(video=video, start=[0.0, 0.1], **SHORT)
    assert len(seen) == 5


def test_a_prompt_that_is_cut_is_told(pipe):
    with pytest.warns(UserWarning, match="CLIP reads the prompt up to “….*rain rain”, not “rain"):
        pipe(prompt="rain " * 80, **SHORT)


def test_several_devices_make_the_same_sounds(pipe, small_weights):
    shared = Pipeline.from_pretrained(small_weights, "small_16k", devices=jax.devices()[:2])
    requests = [
        Request(prompt=words, seed=6 + i, **SHORT) for i, words in enumerate(["rain", "a dog barks", "thunder"])
    ]
    for one, other in zip(make(shared, *requests, capacity=8), make(pipe, *requests, capacity=8), strict=True):
        assert relative_error(one, other) < 1e-4


def test_weights_stored_in_bfloat16_give_the_same_bits(small_weights):
    stored, cast_on_use = (Pipeline.from_pretrained(small_weights, dtype="bfloat16") for _ in range(2))
    cast_on_use.flow.base = weights.load(small_weights / "small_16k", "mmaudio")
    sizes = [sum(leaf.nbytes for leaf in pipe.flow.base.params.values()) for pipe in (stored, cast_on_use)]
    assert sizes[0] < 0.9 * sizes[1] and stored.flow.base.params["latent_mean"].dtype == jnp.float32
    np.testing.assert_array_equal(*(make(each, Request(prompt="rain", **SHORT))[0] for each in (stored, cast_on_use)))


def test_the_wrong_vae_is_refused(small_weights, tmp_path):
    for path in small_weights.iterdir():
        if path.name != "vae_16k":
            (tmp_path / path.name).symlink_to(path)
    config = VAEConfig(mel_bins=80, latent_dim=40, width=8)
    module = weights.network_class("vae")(config, rngs=trees.UNDRAWN)
    weights.save(tmp_path / "vae_16k", "vae", config, trees.split(module)[1])
    with pytest.raises(UserError, match="has 40 latent channels, small_16k needs 20: it is another model's"):
        Pipeline.from_pretrained(tmp_path, "small_16k")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "nothing to make sound for"),
        ({"prompt": " "}, "nothing to make sound for"),
        ({"prompt": "x", "steps": 0}, "steps is 0; it must be a whole number from 1 to 1000"),
        ({"prompt": "x", "steps": 2.5}, "steps is 2.5"),
        ({"prompt": "x", "steps": 1, "solver": "midpoint"}, "steps is 1; it must be a whole number from 2"),
        ({"prompt": "x", "solver": "heun"}, "solver is 'heun'; it must be one of euler, midpoint, adams_bashforth"),
        ({"prompt": "x", "seed": -1}, "seed is -1"),
        ({"prompt": "x", "shift": 0.0}, "shift is 0"),
        ({"prompt": "x", "cfg_strength": float("nan")}, "cfg_strength is nan"),
        ({"prompt": "x", "video_strength": 101.0}, "video_strength is 101"),
        ({"prompt": "x", "start": 1.0}, "there is none"),
        ({"prompt": "x", "made": 0.7}, "made is 0.7"),
        ({"prompt": "x", "adapters": "runs/a*2"}, "write RUN or RUN"),
        ({"image": "b.png", "use_clip": False}, "which only CLIP sees"),
        ({"video": "a.mp4", "image": "b.png"}, "for one of them"),
        *(({"prompt": "x", "duration": d}, f"duration is {d:g}; it must lie in") for d in (0.0, -1.0, 36000.0)),
    ],
)
def test_what_cannot_be_asked_for(fields, message):
    with pytest.raises(UserError, match=message):
        Request(**fields)


def test_numbers_and_adapters_may_come_in_other_forms():
    request = Request(prompt="x", seed=np.int64(3), adapters="runs/a*0.5, runs/b")
    assert type(request.seed) is int and request.adapters == (
        AdapterUse(Path("runs/a"), 0.5),
        AdapterUse(Path("runs/b")),
    )
    assert Request(prompt="x", adapters=list(request.adapters)).adapters == request.adapters


def test_guidance_of_one_is_none():
    strengths = {0.0: 1, 1.0: 1, 1.5: 2}
    assert {s: Request(prompt="x", cfg_strength=s).branches for s in strengths} == strengths


def test_what_cannot_be_seen(video, tmp_path):
    for request, message in (
        (Request(video=tmp_path / "nowhere.mp4"), "no such file"),
        (Request(video=video, start=1.0), "too short: from 1 s on"),
        (Request(image=video), "not one still picture"),
    ):
        with pytest.raises(UserError, match=message):
            fitted(request)


def test_fields_and_lists_that_do_not_fit(pipe):
    with pytest.raises(UserError, match="a request has no promt"):
        pipe(promt="rain")
    with pytest.raises(UserError, match="prompt has 2, seed has 1"):
        pipe(prompt=["a", "b"], seed=[1])
    with pytest.raises(UserError, match="not both, nor neither"):
        pipe()


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3), st.integers(1, 3)), max_size=40), st.integers(3, 12)
)
def test_batches_hold_everything_once_and_are_even(asked, most):
    class Asked:
        def __init__(self, key, branches, steps):
            self.key, self.branches, self.steps = key, branches, steps

    requests = [Asked(*each) for each in asked]
    batches = pack(requests, lambda request: (1.0, request.key), most)  # of one length
    assert sorted(i for batch in batches for i in batch.places) == list(range(len(requests)))
    for key in "ab":
        own = [batch for batch in batches if requests[batch.places[0]].key == key]
        assert all(requests[i].key == key for batch in own for i in batch.places)
        rows = [sum(requests[i].branches for i in batch.places) for batch in own]
        assert len(own) <= 1 + 2 * (sum(rows) // max(most - 2, 1))  # few, each as full as the others
        assert all(count <= batch.capacity <= most for count, batch in zip(rows, own, strict=True))
    assert len({batch.capacity for batch in batches}) <= 1


def save_picture(video, path):
    """The first frame of a video as a file of its own."""
    with av.open(str(video)) as container:
        next(container.decode(video=0)).to_image().save(path)
