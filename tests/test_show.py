"""`mmaudio_jax.data.show` tells of one example and makes it heard and seen."""

import difflib
import sys
import types

import numpy as np
import pytest
import soundfile
from media_files import tone, write_media

from mmaudio_jax import plots
from mmaudio_jax.data import media, show
from mmaudio_jax.data.records import FeatureWriter, open_features
from mmaudio_jax.errors import UserError


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, demo_weights):
    """`python -m mmaudio_jax.data.show SET ID --out out …`: (exit code, what it printed)."""

    def call(path, id, *options):
        places = ["--weights", str(demo_weights), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["show", str(path), id, *places, *map(str, options)])
        with pytest.raises(SystemExit) as end:
            show.main()
        printed = capsys.readouterr()
        return end.value.code, printed.out + printed.err

    return call


def test_an_example_is_described_and_heard(run, small_features, tmp_path):
    code, printed = run(small_features, "clip3")
    assert code == 0 and "clips.tsv" in printed
    for line in (
        "caption             a sound",
        "source              video1",
        "1 s of its own (32 of 32 latent frames)",
    ):
        assert line in printed
    mean = open_features(small_features)[3]["mean"]
    (line,) = (line for line in printed.splitlines() if line.startswith("  mean"))
    values = (mean.min(), mean.mean(), mean.max(), mean.std())
    assert line.split() == ["mean", "32×20", *(f"{value:.3g}" for value in values)]
    sound, rate = soundfile.read(tmp_path / "out/clip3.wav")
    assert rate == 16_000 and len(sound) == 16_000 and np.abs(sound).max() > 0
    assert plots.read_picture(tmp_path / "out/clip3.png").shape == (600, 1200, 3)


def test_an_unknown_id_names_the_nearest(run, small_features, tmp_path):
    code, printed = run(small_features, "Clip11")
    assert code == 1 and "has no example 'Clip11'; the nearest of its 12 ids: clip11, " in printed
    assert not (tmp_path / "out").exists()


def test_an_id_that_begins_with_a_dash_is_asked_for_after_two(run, small_features):
    code, printed = run(small_features, "-x")
    assert code == 2 and "[--] ID" in printed
    code, printed = run(small_features, "--weights=nowhere", "--", "-x")
    assert code == 1 and "has no example '-x'" in printed


def test_among_many_ids_the_nearest_are_found_soon(monkeypatch):
    compared, get_close_matches = [], difflib.get_close_matches

    def count(id, ids, *rest, **options):
        compared.append(len(ids))
        return get_close_matches(id, ids, *rest, **options)

    monkeypatch.setattr(difflib, "get_close_matches", count)
    ids = [f"{i * 7919 % 65_536:04x}_film_{i:06d}" for i in range(20_000)]
    features = types.SimpleNamespace(ids=ids, path="set")
    for meant in (ids[0], ids[12_345], ids[-1]):
        for mistyped in (f"x{meant[1:]}", f"{meant[:-1]}x", meant.replace("film", "flim"), meant.replace("_", "", 1)):
            with pytest.raises(UserError, match=f"the nearest of its 20000 ids: {meant}, "):
                show.find(features, mistyped)
    assert max(compared) == show.LIKELY


def test_with_its_video_an_example_is_seen(run, small_features, tmp_path):
    write_media(tmp_path / "a.mp4", count=40, size=(256, 256), audio=tone(1.6, 44_100))
    features = open_features(small_features)
    row = {"id": "a/b", "caption": "a tone", "video_path": "a.mp4", "start_time": "0.2", "end_time": "1.4"}
    with FeatureWriter(tmp_path / "set", "16k", 1.0, features.metadata.shapes) as writer:
        writer.append(row, {name: features[0][name] for name in features.metadata.shapes})
        writer.append({**row, "id": "bare"}, {name: features[1][name] for name in ("mean", "std")})
    code, _ = run(tmp_path / "set", "a/b", "--root", tmp_path)
    assert code == 0 and (tmp_path / "out/a_b.wav").exists()
    code, printed = run(tmp_path / "set", "bare", "--root", tmp_path)
    assert code == 0 and printed.count("none stored") == 3
    for name in ("bare.wav", "bare.png", "bare_frames.png", "bare.mp4"):
        assert (tmp_path / "out" / name).exists() and str(tmp_path / "out" / name) in printed
    assert media.probe(tmp_path / "out/bare.mp4").duration == pytest.approx(1.0, abs=0.1)


def test_a_video_that_is_not_there_or_no_video_leaves_nothing_half_shown(run, small_features, tmp_path):
    features = open_features(small_features)
    row = {"id": "a", "caption": "a tone", "video_path": "a.mp4", "start_time": "0", "end_time": "1"}
    with FeatureWriter(tmp_path / "set", "16k", 1.0, features.metadata.shapes) as writer:
        writer.append(row, {name: features[0][name] for name in features.metadata.shapes})
    code, printed = run(tmp_path / "set", "a", "--root", tmp_path)
    assert code == 1 and f"there is no file {tmp_path / 'a.mp4'}; --root must name the folder" in printed
    (tmp_path / "a.mp4").write_bytes(bytes(99))
    code, printed = run(tmp_path / "set", "a", "--root", tmp_path)
    assert code == 1 and f"error: {tmp_path / 'a.mp4'}: " in printed and not (tmp_path / "out").exists()


def test_a_sound_alone_is_heard(run, small_features, tmp_path):
    write_media(tmp_path / "a.wav", codec=None, audio=tone(1.6, 44_100), audio_codec="pcm_s16le")
    features = open_features(small_features)
    row = {"id": "a", "caption": "a tone", "video_path": "a.wav", "start_time": "0.2", "end_time": "1.4"}
    with FeatureWriter(tmp_path / "set", "16k", 1.0, features.metadata.shapes) as writer:
        writer.append(row, {name: features[1][name] for name in ("mean", "std")})
    code, _ = run(tmp_path / "set", "a", "--root", tmp_path)
    assert code == 0 and sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "a.wav"]


def test_a_contact_sheet_has_frames_beside_the_spectrogram(tmp_path):
    frames = np.zeros((40, 32, 32, 3), np.uint8)
    frames[:, :, :, 0] = np.linspace(60, 255, 40, dtype=np.uint8)[:, None, None]
    audio = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    plots.save_contact_sheet(tmp_path / "a.png", frames, np.arange(40) / 40, audio, 16_000)
    image = plots.read_picture(tmp_path / "a.png").astype(int)
    assert image.shape == (600, 1400, 3)
    red = (image[..., 0] > 50) & (image[..., 1] < 20) & (image[..., 2] < 20)
    assert len(np.unique(image[red][:, 0])) >= 16 and red[:, :700].sum() > 50_000  # sixteen frames, on the left
    assert image[:, 700:].sum(axis=-1).min() < 30  # the spectrogram on the right
