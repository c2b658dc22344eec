"""`mmaudio_jax.data.check` with --root and --weights: what is stored against the videos, the VAE and CLIP."""

import re
from fractions import Fraction

import numpy as np
import pytest
from checked_sets import crash_at_clip3, named, rows_and_examples
from media_files import tone, write_media

from convert.features import to_tensordict
from mmaudio_jax.data import media
from mmaudio_jax.data.check import recordings
from mmaudio_jax.data.check.findings import NEEDS_WEIGHTS, Rows
from mmaudio_jax.data.records import FeatureWriter, open_features
from mmaudio_jax.data.table import read_table, write_table
from mmaudio_jax.encoders import Encoders

WORDS = "text features of another caption"
PICTURES, MOTION = "pictures of another video than the clip's", "motion of another video than the clip's"


@pytest.fixture(scope="module")
def encoders(demo_weights):
    return Encoders(demo_weights)


@pytest.fixture
def filmed(tmp_path, encoders):
    """Twelve clips of noise bursts, and what the encoders make of them: (root, rows, examples)."""
    root = tmp_path / "videos"
    root.mkdir()
    rng = np.random.default_rng(0)
    rows, examples = rows_and_examples()
    for i, (row, arrays) in enumerate(zip(rows, examples, strict=True)):
        burst = np.zeros(44_100 * 6 // 5)
        start = rng.integers(10_000, 30_000)
        burst[start : start + 8_000] = 0.3 * rng.standard_normal(8_000)
        stripes = (200 * (rng.random((1, 8, 3)) > 0.5)).astype(np.uint8)
        write_media(
            root / f"{i}.mp4",
            count=30,
            size=(64, 64),
            audio=(burst + 1e-3)[None].astype(np.float32),
            picture=lambda k, *_, stripes=stripes: np.roll(np.tile(stripes, (64, 8, 1)), k, axis=1),
        )
        row.update(video_path=f"{i}.mp4", start_time="0", end_time="1")
        sound = media.read_audio(root / f"{i}.mp4", 0.0, 1.0, 16_000, 16_384)
        mean, std = encoders.encode_audio(sound[None], "16k")
        frames, motion = media.read_frames(root / f"{i}.mp4", 0.0, 1.0)
        arrays.update(mean=mean[0], std=std[0], text_f=encoders.encode_captions([row["caption"]])[0])
        arrays.update(clip_f=encoders.encode_clip_frames(frames[None])[0])
        arrays.update(sync_f=encoders.encode_sync_frames(motion[None])[0])
    return root, rows, examples


@pytest.fixture
def write(tmp_path):
    def call(rows, examples, dtype="float32"):
        shapes = {name: array.shape for name, array in examples[0].items()}
        with FeatureWriter(tmp_path / "set", "16k", 1.0, shapes, dtype=dtype) as writer:
            for row, arrays in zip(rows, examples, strict=True):
                writer.append(row, arrays)
        return tmp_path / "set"

    return call


def test_clips_whose_latents_are_theirs(filmed, write, run_check, demo_weights):
    root, rows, examples = filmed
    path = write(rows, examples)
    _, found, _ = run_check(path, "--root", root, "--recordings", 4)
    assert found["clips that cannot be read again"]["note"] == "0 of 4 clips"
    assert found["latents that are early or late"]["note"] == NEEDS_WEIGHTS
    code, found, printed = run_check(path, "--root", root, "--weights", demo_weights, "--workers", 0)
    assert code == 0 and not named(found, "fault"), printed
    assert named(found, "left out") == {"encoders other than those in --weights"}  # which this set does not tell
    assert found["latents that are early or late"]["note"] == "0 of 12 clips"
    assert found[WORDS]["note"] == "0 of 12 captions"
    assert found[PICTURES]["note"] == found[MOTION]["note"] == "0 of 12 clips"


def test_encoders_that_are_not_there_leave_their_checks_out(filmed, write, run_check, demo_weights, tmp_path):
    root, rows, examples = filmed
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/demo_16k").symlink_to(demo_weights / "demo_16k")
    code, found, printed = run_check(write(rows, examples), "--root", root, "--weights", tmp_path / "weights")
    compared = {"latents of another sound than the clip's", "latents that are early or late", PICTURES, MOTION}
    assert code == 0 and named(found, "left out") == compared | {"encoders other than those in --weights"}, printed
    assert found["latent channels unlike the released model's"]["note"].startswith("mean off by")


def test_offsets_between_picture_and_sound(filmed, write, run_check, demo_weights):
    root, rows, examples = filmed
    write_media(root / "3.mp4", count=40, audio=tone(1.2, 44_100), audio_start=Fraction(2, 5))
    examples[5]["mean"] = np.roll(examples[5]["mean"], 6, axis=0)
    examples[6]["mean"] = examples[0]["mean"][::-1].copy()
    (root / "7.mp4").unlink()
    examples[8]["clip_f"] = examples[10]["clip_f"]
    examples[9]["sync_f"] = examples[1]["sync_f"]
    code, found, _ = run_check(write(rows, examples), "--root", root, "--weights", demo_weights, "--workers", 0)
    assert code == 1
    (place,) = found["picture and sound that begin apart"]["places"]
    assert place["id"] == "clip3"
    assert re.search(r"begins 0\.3\d\d s after the picture", place["what"])  # 0.4 s less the run-up of AAC
    (place,) = found["latents that are early or late"]["places"]
    assert place["id"] == "clip5" and place["what"] == "0.192 s late"
    others = found["latents of another sound than the clip's"]["places"]
    assert [place["id"] for place in others] == ["clip3", "clip6"]
    assert [place["id"] for place in found[PICTURES]["places"]] == ["clip3", "clip8"]
    assert "clip9" in [place["id"] for place in found[MOTION]["places"]] and found[MOTION]["count"] <= 2  # and clip3
    (place,) = found["clips that cannot be read again"]["places"]
    assert place["id"] == "clip7" and "no such file" in place["what"]


def test_a_decoder_that_crashes_costs_its_clip_alone(filmed, write, run_check, monkeypatch):
    root, rows, examples = filmed
    path = write(rows, examples)
    monkeypatch.setattr(recordings, "_read", crash_at_clip3)
    code, found, printed = run_check(path, "--root", root, "--workers", 1)
    (place,) = found["clips that cannot be read again"]["places"]
    assert code == 1 and place["id"] == "clip3" and place["what"] == "its decoder crashed"
    assert named(found, "fault") == {"clips that cannot be read again"}, printed
    code, _, printed = run_check(path, "--root", root, "--workers", -1)
    assert code == 1 and printed == "error: --workers is -1; it must be at least 0\n"


def test_a_steady_tone_is_no_silence(filmed, write, run_check, encoders, demo_weights):
    _, rows, examples = filmed
    time = np.arange(16_384) / 16_000
    for arrays, sound in ((examples[1], 0 * time), (examples[2], 0.5 * np.sin(2 * np.pi * 1000 * time))):
        arrays["mean"] = encoders.encode_audio(sound.astype(np.float32)[None], "16k")[0][0]
    path = write(rows, examples)
    code, found, _ = run_check(path, "--weights", demo_weights)
    assert code == 1 and [place["id"] for place in found["latents of silence"]["places"]] == ["clip1"]
    assert [place["id"] for place in found["latents that never change"]["places"]] == ["clip2"]
    _, found, printed = run_check(path)
    assert [place["id"] for place in found["latents of silence"]["places"]] == ["clip1", "clip2"]
    assert "--weights would tell one steady tone from silence" in printed


def test_what_hardly_changes_is_not_looked_for(filmed, write):
    root, rows, examples = filmed
    rng = np.random.default_rng(0)

    def steady():
        return (3 + 1e-3 * rng.standard_normal((32, 20))).astype(np.float32)

    for arrays in examples[:6] + examples[7:]:
        arrays["mean"] = steady()
    features = open_features(write(rows, examples))
    checks, _ = recordings.check_recordings(
        features,
        root,
        12,
        recordings.Encode(lambda audio: steady()[None]),
        typical=1.0,
        rows=Rows(features.table),
        workers=0,
    )
    found = {check.name: check for check in checks}
    assert [place.id for place in found[recordings.STORED].places] == ["clip6"]
    assert found[recordings.STORED].note == "1 of 1 clips" and found[recordings.LATE].note == "0 of 1 clips"


@pytest.mark.parametrize("late", [0, 4, -7])
def test_a_sound_that_repeats_itself_is_as_late_as_it_must_be(late):
    """Clicks every 30 frames, as their latents are."""
    click = np.random.default_rng(0).standard_normal((30, 20)).astype(np.float32)
    heard = np.tile(click, (9, 1))[:250]
    stored = np.roll(click, late, axis=0)
    assert recordings.best_lag(np.tile(stored, (9, 1))[:250], heard, 31) == (pytest.approx(1.0), late)


def test_captions_that_were_exchanged(filmed, write, run_check, demo_weights, tmp_path):
    """In a set of the published tools no hash tells, CLIP does."""
    _, rows, examples = filmed
    path, table = tmp_path / "theirs", tmp_path / "theirs.tsv"
    to_tensordict(open_features(write(rows, examples, "bfloat16")), path)
    assert read_table(table).columns[1] == "label"
    _, found, printed = run_check(path, "--weights", demo_weights)
    assert found[WORDS]["note"] == "0 of 12 captions" and not named(found, "fault"), printed
    told = read_table(table).rows
    told[2]["label"], told[7]["label"] = told[7]["label"], told[2]["label"]
    write_table(table, told)
    _, found, _ = run_check(path)
    assert found[WORDS]["verdict"] == "left out" and found[WORDS]["note"] == NEEDS_WEIGHTS
    code, found, printed = run_check(path, "--weights", demo_weights)
    assert code == 1 and [place["id"] for place in found[WORDS]["places"]] == ["clip2", "clip7"]
    assert "those stored are not of 'a door, near'" in printed and "2 of 12 captions" in printed


def test_a_set_of_the_published_tools_is_compared_with_its_videos(filmed, write, run_check, demo_weights, tmp_path):
    root, rows, examples = filmed
    path, table = tmp_path / "theirs", tmp_path / "theirs.tsv"
    to_tensordict(open_features(write(rows, examples)), path)
    _, found, printed = run_check(path, "--root", root, "--weights", demo_weights, "--workers", 0)
    assert found["latents of another sound than the clip's"]["note"] == "0 of 12 clips", printed
    write_table(table, reversed(read_table(table).rows))  # as a table that was sorted otherwise
    code, found, _ = run_check(path, "--root", root, "--weights", demo_weights, "--workers", 0)
    assert code == 1 and found["latents of another sound than the clip's"]["count"] == found[WORDS]["count"] == 12
    write_table(table, read_table(table).rows[1:])
    code, found, _ = run_check(path)
    (place,) = found["a table that does not fit the examples"]["places"]
    assert code == 1 and "has 12 examples but" in place["what"]
