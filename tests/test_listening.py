"""The sounds that a run makes on its way."""

import dataclasses
import json

import av
import jax
import numpy as np
import pytest
import random_networks
import soundfile
from conftest import relative_error
from random_networks import WIDTH
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import lora_16k
from mmaudio_jax import Pipeline, Request, config, experiment, listening, sampling, sharding, weights
from mmaudio_jax.data import clips, media, mixture
from mmaudio_jax.data.example import example_shapes
from mmaudio_jax.data.records import FeatureWriter
from mmaudio_jax.demo.render import render_clips
from mmaudio_jax.errors import UserError
from mmaudio_jax.models.bigvgan import BigVGANConfig
from mmaudio_jax.pipeline import Features

SAMPLES = listening.SamplesConfig(every=4, count=2, num_steps=2, cfg_strength=4.5, root=None)
ROWS = (7, 3, 5)  # that validate
MEASURES = {"log_mel_distance", "onset_f1", "silence", "clipping"}


@pytest.fixture(scope="module")
def quick_weights(small_weights, tmp_path_factory):
    """The small networks, with a vocoder that compiles in no time."""
    folder = tmp_path_factory.mktemp("weights")
    for part in small_weights.iterdir():
        if part.name != "bigvgan_16k":
            (folder / part.name).symlink_to(part)
    vocoder = BigVGANConfig(80, upsample_rates=(16, 16), channels=16, kernel_sizes=(3,), dilations=(1,))
    params = random_networks._random("bigvgan", vocoder, np.random.default_rng(0))
    weights.save(folder / "bigvgan_16k", "bigvgan", vocoder, params)
    return folder


@pytest.fixture(scope="module")
def settings(quick_weights, small_features):
    values = lora_16k.get_config().to_dict()
    values |= {"weights": str(quick_weights), "data": str(small_features), "workers": 0, "ema": None}
    values |= {"batch_size": 2, "accumulation": 1, "num_steps": 6, "eval_every": 6, "log_every": 3}
    values["lora"] |= {"rank": 4, "targets": ("qkv",)}
    values["samples"] = dataclasses.asdict(SAMPLES)
    return config.from_mapping(experiment.TrainConfig, values)


class Heard:
    """A writer that keeps what it is told."""

    def __init__(self):
        self.values, self.sounds, self.pictures = {}, {}, {}

    def write(self, step, values):
        self.values[step] = values

    def sound(self, step, tag, audio, sample_rate):
        assert sample_rate == 16_000
        self.sounds[step, tag] = audio

    def picture(self, step, tag, path):
        assert path.is_file()
        self.pictures[step, tag] = path


class Bench:
    """The small network with an adapter, and listeners to it."""

    def __init__(self, settings, mesh):
        base = weights.load(f"{settings.weights}/small_16k", "mmaudio", mesh=mesh)
        self.network = experiment.build(settings, base, jax.random.key(0), None)
        self.decoder = sampling.Decoder.load(base.directory.parent, "small_16k", 20, mesh=mesh)
        self.mesh, self.features = mesh, mixture.open_mixture(settings.data)

    def hear(self, workdir, trained=None, features=None, rows=ROWS, **changes):
        """What the writer is told at step 300."""
        samples, features = dataclasses.replace(SAMPLES, **changes), features or self.features
        listener = listening.Listener(samples, self.network, self.decoder, features, rows, workdir, self.mesh)
        heard = Heard()
        listener.act(300, sharding.shard(trained or self.network.trained, self.mesh), heard)
        return heard


@pytest.fixture(scope="module")
def bench(settings, one_device):
    return Bench(settings, one_device)


@pytest.fixture(scope="module")
def heard(bench, tmp_path_factory):
    """(workdir, what the writer was told) of the untrained adapter."""
    workdir = tmp_path_factory.mktemp("heard")
    return workdir, bench.hear(workdir)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def generated(heard, name="clip7"):
    return heard.sounds[300, f"samples/{name}/generated"]


def test_the_folder_of_a_step_says_all(heard):
    folder = heard[0] / "samples" / "000300"
    kinds = ("generated/{}.wav", "pictures/{}.png", "true/{}.wav")
    names = [kind.format(name) for kind in kinds for name in ("clip3", "clip7")]
    assert files(folder) == sorted([*names, "samples.json"]) and files(heard[0]) == [
        f"samples/000300/{name}" for name in files(folder)
    ]
    first, second = json.loads((folder / "samples.json").read_text())
    assert (first["id"], first["seed"], second["id"], second["seed"]) == ("clip7", 0, "clip3", 1)
    assert first["prompt"] == "a sound" and first["step"] == 300 and first["measures"].keys() == MEASURES
    audio, rate = soundfile.read(folder / "generated" / "clip7.wav", dtype="float32")
    assert rate == 16_000 and np.abs(audio - generated(heard[1])).max() < 1e-4 and len(audio) == 16_000


def test_measures_are_told_of_each_and_of_all(heard):
    values = heard[1].values[300]
    for name in MEASURES:
        each = [values[f"samples/{clip}/{name}"] for clip in ("clip7", "clip3")]
        assert values[f"samples/{name}"] == pytest.approx(np.mean(each)) and np.isfinite(each).all()
    assert len(values) == 3 * len(MEASURES)
    assert set(heard[1].pictures) == {(300, "samples/clip7"), (300, "samples/clip3")}


def test_an_untrained_adapter_sounds_as_sample_py_makes_the_base_sound(heard, bench, settings):
    pipe = Pipeline.from_pretrained(settings.weights, "small_16k")
    examples = [bench.features[row] for row in ROWS[:2]]
    conditions = [Features(e["clip_f"], e["sync_f"], e["text_f"], None) for e in examples]
    requests = [Request(prompt="a sound", duration=1.0, seed=seed, steps=2) for seed in (0, 1)]
    sounds = pipe.generate(requests, conditions).sounds()
    assert relative_error(generated(heard[1]), sounds[0].audio) < 1e-4
    assert relative_error(generated(heard[1], "clip3"), sounds[1].audio) < 1e-4


def test_the_true_sound_is_the_stored_latent_decoded(heard, bench):
    decoder, mean = bench.decoder, bench.features[7]["mean"][None]
    expected = sampling.decode(decoder.vae_def, decoder.vae, decoder.vocoder_def, decoder.vocoder, mean)[0, :16_000]
    assert relative_error(heard[1].sounds[300, "samples/clip7/true"], expected) < 1e-4


def test_what_is_trained_is_heard_and_nothing_compiles_again(heard, bench, tmp_path):
    listener = listening.Listener(SAMPLES, bench.network, bench.decoder, bench.features, ROWS, tmp_path, bench.mesh)
    trained = {path: leaf + 0.3 * path.endswith("lora_b") for path, leaf in bench.network.trained.items()}
    writer = Heard()
    listener.act(0, sharding.shard(bench.network.trained, bench.mesh), writer)
    compiled = listening._latents._cache_size(), listening._decode._cache_size()
    listener.act(300, sharding.shard(trained, bench.mesh), writer)
    assert (listening._latents._cache_size(), listening._decode._cache_size()) == compiled
    np.testing.assert_array_equal(writer.sounds[0, "samples/clip7/generated"], generated(heard[1]))  # the same seed
    assert relative_error(generated(writer), generated(heard[1])) > 1e-2
    np.testing.assert_array_equal(writer.sounds[300, "samples/clip7/true"], writer.sounds[0, "samples/clip7/true"])


@pytest.mark.parametrize("change", [{"num_steps": 3}, {"cfg_strength": 3.0}, {"cfg_strength": 0.0}], ids=str)
def test_each_key_of_the_sampler_changes_the_sound(heard, bench, tmp_path, change):
    assert relative_error(generated(bench.hear(tmp_path, **change)), generated(heard[1])) > 1e-3


def test_count_is_how_many_and_no_more_than_there_are(bench, tmp_path):
    for count, expected in ((1, ["clip7"]), (9, ["clip7", "clip3"])):
        told = bench.hear(tmp_path, rows=ROWS[:2], count=count)
        assert [path.stem for path in told.pictures.values()] == expected
        assert len(json.loads((tmp_path / "samples" / "000300" / "samples.json").read_text())) == len(expected)


def test_split_weights_make_the_same_sound(heard, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "SMALL", 64)
    bench = Bench(settings, sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=2), jax.devices()[:2]))
    assert any(not leaf.sharding.is_fully_replicated for leaf in bench.network.frozen.values())
    assert relative_error(generated(bench.hear(tmp_path)), generated(heard[1])) < 1e-4


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    """(folder of videos, a feature set of their clips)."""
    folder = tmp_path_factory.mktemp("filmed")
    table, rng = render_clips(folder / "videos", 2, seed=3, duration=1.2), np.random.default_rng(0)
    shapes = example_shapes("16k", 1.0, clip_dim=WIDTH, sync_dim=WIDTH, text_dim=WIDTH)
    with FeatureWriter(folder / "set", "16k", 1.0, shapes) as writer:
        for clip in clips.read_clips(table, table.parent):
            arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
            writer.append(clip.columns, arrays | {"std": np.ones(shapes["std"], np.float32)})
    return table.parent, mixture.open_mixture(str(folder / "set"))


def test_root_brings_the_true_sound_and_the_videos(filmed, bench, tmp_path):
    root, features = filmed
    told = bench.hear(tmp_path, features=features, rows=[1], root=str(root), count=1)
    clip = clips.read_clips(features.sets[0].table.path, root)[1]
    true = media.read_audio(clip.video, clip.start_time, 1.0, 16_000, 16_384)[:16_000]
    np.testing.assert_array_equal(told.sounds[300, f"samples/{clip.id}/true"], true)
    with av.open(str(tmp_path / "samples" / "000300" / "videos" / f"{clip.id}.mp4")) as container:
        assert {stream.type for stream in container.streams} == {"video", "audio"}
        assert float(container.duration / av.time_base) == pytest.approx(1.0, abs=0.1)


def test_a_set_that_tells_of_no_videos_is_refused(bench, filmed, tmp_path):
    with pytest.raises(UserError, match="has no column video_path"):
        bench.hear(tmp_path, root=str(filmed[0]))
    with pytest.raises(UserError, match="there is no folder"):
        bench.hear(tmp_path, features=filmed[1], rows=[1], root=str(tmp_path / "videos"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"every": 0}, "samples.every is 0; it must be at least 1"),
        ({"count": 0}, "samples.count is 0; it must be at least 1"),
        ({"num_steps": 0}, "samples.num_steps is 0; it must be at least 1"),
        ({"cfg_strength": -1.0}, r"samples.cfg_strength is -1; it must lie in \[0, 100\]"),
    ],
)
def test_a_number_out_of_range_is_named(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SAMPLES, **change)


def test_without_the_codec_nothing_begins(settings, small_weights, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "small_16k").symlink_to(small_weights / "small_16k")
    without = dataclasses.replace(settings, weights=str(tmp_path / "weights"))
    with pytest.raises(UserError, match=r"there are no weights in .*vae_16k"):
        experiment.run(without, tmp_path / "run", dry_run=False, devices=jax.devices()[:1])
    assert not (tmp_path / "run").exists()


def test_a_run_makes_sound_before_on_the_way_and_at_the_end(settings, tmp_path):
    experiment.run(settings, tmp_path / "run", dry_run=False, devices=jax.devices()[:1])
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == ["000000", "000004", "000006"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "samples/log_mel_distance" in row] == [0, 4, 6]
    assert all(len(row["validation/loss_by_t"]) == 25 for row in rows if "validation/loss" in row)
    assert all(0 < row["train/mfu"] < 1 for row in rows if "train/mfu" in row)
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    (validates, *_) = json.loads((tmp_path / "run" / "samples" / "000006" / "samples.json").read_text())
    for tag in ("generated", "true"):
        assert [event.step for event in board.Audio(f"samples/{validates['id']}/{tag}")] == [0, 4, 6]
    assert [event.step for event in board.Images(f"samples/{validates['id']}")] == [0, 4, 6]
