import os
import sys

import jax
import numpy as np
import pytest

from mmaudio_jax import distributed, features
from mmaudio_jax.data import mel
from mmaudio_jax.data.captions import tokenize
from mmaudio_jax.data.media import read_audio, read_frames
from mmaudio_jax.data.part import WHOLE
from mmaudio_jax.data.records import open_features
from mmaudio_jax.data.table import read_table, write_table
from mmaudio_jax.encoders import Encoders
from mmaudio_jax.errors import UserError

DURATION = 1.0
SAMPLES = 16_384  # one second is 31.25 latent frames, rounded up to 32


@pytest.fixture(scope="module")
def encoders(small_weights):
    return Encoders(small_weights)


def row(id, video, **changes):
    return {"id": id, "video_path": video, "start_time": "0", "end_time": "1.1", "caption": f"sound {id}"} | changes


@pytest.fixture
def extract(tmp_path, small_weights, small_videos, monkeypatch, capsys):
    """Runs the command on a table with these rows; returns (exit code, what it printed)."""
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])

    def run(*rows, out="set", weights=small_weights, **options):
        write_table(tmp_path / "clips.tsv", rows)
        options = {"duration": DURATION, "workers": 0} | options
        places = {"clips": tmp_path / "clips.tsv", "root": small_videos, "weights": weights, "out": tmp_path / out}
        flags = [f"--{name}={value}" for name, value in (places | options).items()]
        monkeypatch.setattr(sys, "argv", ["features", *flags])
        with pytest.raises(SystemExit) as end:
            features.main()
        return end.value.code, "".join(capsys.readouterr())

    return run


def test_clips_become_a_feature_set(extract, tmp_path, encoders, small_videos):
    rows = [row("b", "0.mp4", original_video="long.mp4"), row("a", "1.mp4"), row("c", "2.mp4", start_time="0.1")]
    code, _ = extract(*rows, workers=1)
    assert code == 0 and not list(tmp_path.glob("set/*/failed.tsv"))
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [f".{WHOLE}.lock", str(WHOLE)]
    found = open_features(tmp_path / "set")
    assert found.ids == ["b", "a", "c"] and found.sources == ["long.mp4", "1.mp4", "2.mp4"]
    assert found.captions == ["sound b", "sound a", "sound c"]
    assert found.metadata.mode == "16k" and found.metadata.duration == 1.0
    assert found.metadata.encoders == encoders.fingerprints("16k")
    assert found.metadata.shapes == encoders.shapes("16k", 1.0)

    # each example is what the networks say of that clip alone, here called without the batches and chunks
    clip, synchformer = encoders.clip.weights.module(), encoders.synchformer.weights.module()
    vae = encoders.vae("16k").weights.module()
    clip_frames, sync_frames = read_frames(small_videos / "2.mp4", 0.1, 1.0)
    audio = read_audio(small_videos / "2.mp4", 0.1, 1.0, 16_000, SAMPLES)
    segments = np.stack([sync_frames[:16], sync_frames[8:24]])[None].astype(np.float32)
    mean, std = jax.jit(vae.encode)(mel.log_mel(audio[None], mel.PRESETS["16k"]))
    expected = {
        "mean": mean[0],
        "std": std[0],
        "clip_f": jax.jit(clip.encode_image)(clip_frames.astype(np.float32) / 255),
        "sync_f": jax.jit(synchformer)((segments / 255 - 0.5) / 0.5).reshape(16, -1),
        "text_f": jax.jit(clip.encode_text)(tokenize(["sound c"]))[0],
    }
    for name, array in expected.items():
        np.testing.assert_allclose(found[2][name], array, rtol=2e-4, atol=2e-5, err_msg=name)
    assert abs(found[0]["mean"] - found[1]["mean"]).mean() > 0.01  # other sounds, other latents


def test_what_cannot_be_used_is_listed_and_the_rest_is_written(extract, tmp_path):
    rows = [
        row("good", "0.mp4"),
        row("missing", "nowhere.mp4", title_folder="Storm"),
        row("mute", "mute.mp4"),
        row("silent", "silent.mp4"),
        row("short", "short.mp4"),
        row("text", "text.mp4"),
        row("brief", "1.mp4", end_time="0.5"),
        row("fine", "1.mp4"),
        row("last", "2.mp4"),
    ]
    code, printed = extract(*rows)
    assert code == 1
    assert "error: 6 of 9 clips could not be used; the reasons are in" in printed and "Traceback" not in printed
    assert open_features(tmp_path / "set").ids == ["good", "fine", "last"]
    failed = read_table(tmp_path / "set" / str(WHOLE) / "failed.tsv")
    reasons = {entry["id"]: entry["reason"] for entry in failed.rows}
    assert list(reasons) == ["missing", "mute", "silent", "short", "text", "brief"]
    assert failed.rows[0]["title_folder"] == "Storm" and failed.rows[0]["video_path"] == "nowhere.mp4"
    for id, reason in {
        "missing": "no such file",
        "mute": "no audio track",
        "silent": "silent",
        "short": "too short",
        "text": "not a media file|a text file",
        "brief": "the clip lasts 0.5 s, 1 s are needed",
    }.items():
        assert any(part in reasons[id] for part in reason.split("|")), (id, reasons[id])


def test_a_caption_that_is_cut_is_told_once(extract, tmp_path):
    captions = {"brief": "rain", "long": "rain on a tin roof " * 20, "fits": "rain " * 75}
    rows = [row(id, "0.mp4", caption=caption) for id, caption in captions.items()]
    code, printed = extract(*rows)
    told = [line for line in printed.splitlines() if "77 tokens" in line]
    assert code == 0 and len(told) == 1 and "long" in told[0]
    assert open_features(tmp_path / "set").ids == [*captions]


def test_at_a_lower_precision_the_latents_stay_as_they_are(extract, tmp_path):
    assert extract(row("a", "0.mp4"), out="auto")[0] == 0
    assert extract(row("a", "0.mp4"), out="half", compute_dtype="bfloat16", matmul_precision="highest")[0] == 0
    full, half = (open_features(tmp_path / name)[0] for name in ("auto", "half"))
    for name in ("mean", "std"):
        np.testing.assert_allclose(half[name], full[name], rtol=1e-5, atol=1e-6)
    for name in ("clip_f", "sync_f", "text_f"):
        error = np.linalg.norm(half[name] - full[name]) / np.linalg.norm(full[name])
        assert 1e-5 < error < 0.05, (name, error)


def test_when_no_clip_can_be_used_only_the_reasons_remain(extract, tmp_path):
    code, printed = extract(row("mute", "mute.mp4"), row("silent", "silent.mp4"))
    assert code == 1 and "none of the 2 clips could be used; the reasons are in" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips.tsv", "set.failed.tsv"]
    assert read_table(tmp_path / "set.failed.tsv").rows[1]["id"] == "silent"


def test_a_bad_command_is_one_sentence_before_any_work(extract, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "note.txt").touch()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metadata.json").write_text('{"schema_version": 1}')
    good = row("a", "0.mp4")
    for message, call in {
        "there exists already and is no feature set": lambda: extract(good, out="there"),
        "old exists already and is no feature set of this release; choose another": lambda: extract(good, out="old"),
        "there are no weights in": lambda: extract(good, weights=tmp_path / "none"),
        "rows 2 and 3 have the same id 'a'": lambda: extract(good, good),
        "a duration of 0.2 s is not possible": lambda: extract(good, duration=0.2),
        "--workers is -1": lambda: extract(good, workers=-1),
        "--shard is '4/4'; it must be I/N with I from 0 to N - 1": lambda: extract(good, shard="4/4"),
        "--shard is '1-4'": lambda: extract(good, shard="1-4"),
        "vae_44k": lambda: extract(good, mode="44k"),
    }.items():
        code, printed = call()
        assert code == 1 and message in printed and printed.count("\n") == 1, printed
        assert sorted(path.name for path in tmp_path.iterdir()) == ["clips.tsv", "old", "there"]


SLURM = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}


def array(number, count, first=0, **more):
    return {"SLURM_ARRAY_TASK_ID": number, "SLURM_ARRAY_TASK_COUNT": count, "SLURM_ARRAY_TASK_MIN": first} | more


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, (0, 1)),
        (SLURM, (0, 1)),
        (array(3, 4), (3, 4)),
        (array(4, 4, 1) | SLURM, (3, 4)),
        (array(6, 4, 0, SLURM_ARRAY_TASK_STEP="2"), (3, 4)),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5"}, (5, 8)),
        (array(1, 2) | {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5"}, (13, 16)),
        ({"JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"}, (2, 3)),
        (array(7, 2, 1), "number|a SLURM array must be numbered without gaps"),
        ({"SLURM_ARRAY_TASK_ID": "3"}, "does not say which process .*SLURM_ARRAY_TASK_COUNT"),
        ({"JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "3"}, "task 3 of 3, counted from 0"),
        ({"JAX_NUM_PROCESSES": "many"}, "does not say which process"),
    ],
)
def test_the_environment_says_which_part_it_is(environment, share, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "JAX_NUM_PROC", "JAX_PROCESS"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    if isinstance(share, str):
        with pytest.raises(UserError, match=share):
            distributed.part_name(None)
    else:
        assert distributed.part_name(None) == share
        assert distributed.part_name("1/5") == (1, 5)
