"""The demo's promise in small: the picture says when, the words say what; and the check notices when they do not."""

import dataclasses
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error

from mmaudio_jax import Pipeline, weights
from mmaudio_jax.data import records
from mmaudio_jax.data.clips import read_clips
from mmaudio_jax.demo import evaluate, poster, ruler
from mmaudio_jax.demo.__main__ import BASE
from mmaudio_jax.demo.render import render_clips
from mmaudio_jax.demo.stand_ins import FOLDERS, save_stand_ins
from mmaudio_jax.demo.world import BASE_MATERIALS, KINDS
from mmaudio_jax.encoders import Encoders
from mmaudio_jax.errors import UserError
from mmaudio_jax.extraction import extract

SEEN, MOVED = (-0.13878, 0.03160, 0.16571), (-1.42368, 2.43079, 2.80187)  # of frames of noise
SCENES = len(KINDS) * len(BASE_MATERIALS)  # every kind of every material


@pytest.fixture(scope="module")
def held_out(demo_weights, tmp_path_factory):
    """(features, truth) of scenes that the base never saw."""
    folder = tmp_path_factory.mktemp("held_out")
    table = render_clips(folder / "clips", SCENES, seed=14, materials=BASE_MATERIALS)
    clips = read_clips(table, table.parent)
    extract(clips, Encoders(demo_weights), folder / "set", mode="16k", duration=8.0)
    features = records.open_features(folder / "set")
    return features, evaluate.read_scenes(table.with_name("scenes.json"), features.ids)


def command(monkeypatch, *arguments):
    """`python -m mmaudio_jax.demo.evaluate`: its exit code."""
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        evaluate.main()
    return stopped.value.code


@pytest.fixture(scope="module")
def scores(demo_weights, held_out, tmp_path_factory):
    """What the command writes: by condition, for the materials that the base knows and for the new one."""
    features, _ = held_out
    truth, out = features.path.parent / "clips" / "scenes.json", tmp_path_factory.mktemp("scores") / "scores.json"
    with pytest.MonkeyPatch.context() as monkeypatch:
        where = ("--weights", demo_weights, "--data", features.path, "--scenes", truth, "--out", out)
        assert command(monkeypatch, *where) == 0
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def pipeline(demo_weights):
    return Pipeline.from_pretrained(demo_weights, "demo_16k")


def test_the_picture_says_when_and_the_words_say_what(scores, held_out):
    assert list(scores) == list(evaluate.CONDITIONS)
    known = {name: evaluate.Score(**which["known"]) for name, which in scores.items()}
    assert known["as they are"].onset_f1 >= 0.7 and known["as they are"].material >= 0.85
    assert known["videos shuffled"].onset_f1 <= 0.35
    kept = np.mean([own["material"] == other["material"] for own, other in captions_shuffled(held_out[1])])
    assert abs(known["captions shuffled"].material - kept) <= 0.25  # it says what the words say
    assert scores["as they are"]["new"] == {"onset_f1": None, "material": None}


def captions_shuffled(scenes):
    return zip(scenes, [scenes[i] for i in evaluate.others(len(scenes), "captions shuffled")[1]], strict=True)


@pytest.mark.parametrize(
    ("stream", "measure", "bound"), [("(clip|sync)_input_proj", "onset_f1", 0.35), ("text_input_proj", "material", 0.7)]
)
def test_a_stream_that_is_cut_is_noticed(pipeline, held_out, monkeypatch, stream, measure, bound):
    base = pipeline.flow.base
    cut = {p: jnp.zeros_like(leaf) if re.match(stream, p) else leaf for p, leaf in base.params.items()}
    monkeypatch.setattr(pipeline.flow, "base", dataclasses.replace(base, params=cut))
    assert getattr(score(pipeline, held_out), measure) <= bound


def score(pipeline, held_out, **options):
    heard = evaluate.listen(pipeline, *held_out, "as they are", **options)
    return evaluate.score(heard, held_out[1], new=False)


def test_without_the_sync_stream_the_sound_is_out_of_time(pipeline, held_out):
    assert score(pipeline, held_out, sync=False).onset_f1 < 0.7


def test_the_ruler_measures_the_true_sound_and_the_codec_s(held_out):
    scenes, true = ruler.true_sounds(ruler.TEST_SEED, 16)
    for waves in (true, ruler.round_trip(true)):
        f1 = np.mean([ruler.onset_f1(w, [c.time for c in s.contacts]) for w, s in zip(waves, scenes, strict=True)])
        right = np.mean([ruler.material(w) == s.material for w, s in zip(waves, scenes, strict=True)])
        assert f1 >= 0.95 and right >= 0.95
    assert ruler.material(np.zeros(16_000, np.float32)) is None and not len(ruler.onsets(np.zeros(16_000, np.float32)))


def test_a_stand_in_says_so_and_takes_no_other_s_place(demo_weights, capsys, tmp_path):
    loaded = weights.load(demo_weights / "clip", "clip")
    assert loaded.network == "glance" and "untrained stand-in for clip" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds a glance network where a synchformer one is needed"):
        weights.load(demo_weights / "clip", "synchformer")
    (tmp_path / "synchformer").symlink_to(demo_weights / "synchformer")
    with pytest.raises(UserError, match="there are no weights in .*clip .*; bring them with"):
        Encoders(tmp_path).clip  # noqa: B018 - one that is missing is never made up
    weights.save(tmp_path / "clip", "motion_energy", FOLDERS["synchformer"][1], loaded.params)
    with pytest.raises(UserError, match="clip is not the demo's; choose another folder"):
        save_stand_ins(tmp_path)


def test_stand_ins_and_other_networks_do_not_go_together(demo_weights, small_weights, tmp_path):
    for name in ("small_16k", "clip", "synchformer", "vae_16k"):
        (tmp_path / name).symlink_to(small_weights / name)
    (tmp_path / "bigvgan_16k").symlink_to(demo_weights / "bigvgan_16k")
    with pytest.raises(UserError, match=r"bigvgan_16k in .* are the demo's untrained stand-ins, the others there are"):
        Pipeline.from_pretrained(tmp_path, "small_16k")


def test_the_stand_ins_are_those_that_the_base_was_trained_with(demo_weights):
    base, rng = weights.load(BASE, "mmaudio"), np.random.default_rng(0)
    encoders = Encoders(demo_weights)
    np.testing.assert_allclose(encoders.encode_captions([""])[0], base.params["empty_string_feat"], atol=1e-6)
    frames = rng.integers(0, 256, (1, 16, 224, 224, 3), np.uint8)
    seen = encoders.encode_clip_frames(rng.integers(0, 256, (1, 1, 384, 384, 3), np.uint8))[0, 0]
    np.testing.assert_allclose(seen[:3], SEEN, atol=1e-4)
    np.testing.assert_allclose(encoders.encode_sync_frames(frames)[0, 0, :3], MOVED, atol=1e-4)


def test_a_sound_is_the_same_in_any_batch(demo_weights):
    vocode = jax.jit(weights.load(demo_weights / "bigvgan_16k", "bigvgan").module())
    mels = np.random.default_rng(0).uniform(-4, 0, (2, 40, 80)).astype(np.float32)
    waves = vocode(mels)
    assert waves.shape == (2, 40 * 256) and np.abs(waves).max() > 0.1
    for mel, wave in zip(mels, waves, strict=True):
        assert relative_error(vocode(mel[None])[0], wave) < 0.01  # random phases would make it 1


def test_scenes_of_other_clips_are_refused(demo_weights, held_out, monkeypatch, capsys, tmp_path):
    (tmp_path / "other.json").write_text("{}")
    where = ("--weights", demo_weights, "--data", held_out[0].path, "--scenes", tmp_path / "other.json")
    assert command(monkeypatch, *where) == 1 and "says nothing of 'scene_00000'" in capsys.readouterr().err


def test_the_poster_is_a_picture(tmp_path):
    wave = np.random.default_rng(0).uniform(-1, 1, 16_000).astype(np.float32)
    poster.save_poster(tmp_path / "p.png", [[poster.Panel("one", wave, [0.5])] * 2, [poster.Panel("two", wave, [])]])
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
