"""The demo's promise in small: the picture says when, the words say what; and the check notices when they do not."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error

from mmaudio_jax import weights
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
from mmaudio_jax.sampling import Pipeline

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


def scores(pipeline, held_out, condition="as they are"):
    return evaluate.score(evaluate.listen(pipeline, *held_out, condition), held_out[1], new=False)


@pytest.fixture(scope="module")
def pipeline(demo_weights):
    return Pipeline.load(demo_weights, "demo_16k")


def test_the_picture_says_when_and_the_words_say_what(pipeline, held_out):
    own = scores(pipeline, held_out)
    assert own.onset_f1 >= 0.7 and own.material >= 0.85
    assert scores(pipeline, held_out, "videos shuffled").onset_f1 <= 0.35
    kept = np.mean([own["material"] == other["material"] for own, other in captions_shuffled(held_out[1])])
    assert abs(scores(pipeline, held_out, "captions shuffled").material - kept) <= 0.25  # it says what the words say


def captions_shuffled(scenes):
    return zip(scenes, [scenes[i] for i in evaluate.others(len(scenes), "captions shuffled")[1]], strict=True)


@pytest.mark.parametrize(
    ("stream", "measure", "bound"), [("(clip|sync)_input_proj", "onset_f1", 0.35), ("text_input_proj", "material", 0.7)]
)
def test_a_stream_that_is_cut_is_noticed(pipeline, held_out, monkeypatch, stream, measure, bound):
    cut = {p: jnp.zeros_like(leaf) if re.match(stream, p) else leaf for p, leaf in pipeline._flow.items()}
    monkeypatch.setattr(pipeline, "_flow", cut)
    assert getattr(scores(pipeline, held_out), measure) <= bound


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


def test_the_command_writes_its_scores(demo_weights, held_out, monkeypatch, capsys, tmp_path):
    features, _ = held_out
    truth = features.path.parent / "clips" / "scenes.json"
    arguments = ["--weights", demo_weights, "--data", features.path, "--without_sync", "--out", tmp_path / "s.json"]

    def run(scenes):
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments), "--scenes", str(scenes)])
        with pytest.raises(SystemExit) as stopped:
            evaluate.main()
        return stopped.value.code, *capsys.readouterr()

    code, printed, _ = run(truth)
    stored = json.loads((tmp_path / "s.json").read_text())
    assert code == 0 and list(stored) == list(evaluate.CONDITIONS) and all(name in printed for name in stored)
    assert stored["as they are"]["new"] == {"onset_f1": None, "material": None}
    assert stored["as they are"]["known"]["onset_f1"] < 0.7  # the base leans on the sync stream
    (tmp_path / "other.json").write_text("{}")
    code, _, error = run(tmp_path / "other.json")
    assert code == 1 and "says nothing of 'scene_00000'" in error


def test_the_poster_is_a_picture(tmp_path):
    wave = np.random.default_rng(0).uniform(-1, 1, 16_000).astype(np.float32)
    poster.save_poster(tmp_path / "p.png", [[poster.Panel("one", wave, [0.5])] * 2, [poster.Panel("two", wave, [])]])
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
