"""sample.py and its pipeline on small networks and rendered clips."""

import sys

import av
import numpy as np
import pytest
import soundfile

import sample
from mmaudio_jax import sampling
from mmaudio_jax.demo.render import render_clips

DURATION = 1.0


@pytest.fixture(scope="module")
def pipeline(small_weights):
    return sampling.Pipeline.load(small_weights, "small_16k")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """The table of two rendered videos, a little over one second long."""
    return render_clips(tmp_path_factory.mktemp("clips"), 2, seed=3, duration=1.2)


@pytest.fixture
def run(small_weights, tmp_path, monkeypatch, capsys):
    """Runs sample.py; returns (exit code, stderr)."""

    def call(*arguments):
        flags = ["--weights", str(small_weights), "--out", str(tmp_path / "out"), "--steps", "2", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", ["sample.py", *flags])
        with pytest.raises(SystemExit) as end:
            sample.main()
        return end.value.code, capsys.readouterr().err

    return call


def seconds(path):
    with av.open(str(path)) as container:
        return {stream.type: float(stream.duration * stream.time_base) for stream in container.streams}


def test_videos_get_sound_picture_and_spectrogram(run, clips, tmp_path):
    videos = sorted(clips.parent.glob("*.mp4"))
    code, _ = run("--video", videos[0], "--video", videos[1], "--prompt", "a ball", "--duration", DURATION)
    assert code == 0
    out = tmp_path / "out"
    for video in videos:
        audio, rate = soundfile.read(out / f"{video.stem}.wav")
        assert rate == 16_000 and len(audio) == 16_000 and np.abs(audio).max() > 0
        assert (out / f"{video.stem}.png").read_bytes().startswith(b"\x89PNG")
        assert seconds(out / f"{video.stem}.mp4") == pytest.approx({"video": DURATION, "audio": DURATION}, abs=0.1)
    code, error = run("--video", videos[0], "--duration", DURATION)
    assert code == 1 and error.startswith("error: ") and "exists already; choose another --out" in error


def test_a_table_is_a_batch_and_a_bad_row_costs_itself_alone(run, clips, tmp_path):
    (clips.parent / "broken.mp4").write_text("no video")
    rows = clips.read_text().splitlines()
    table = clips.with_name("with_broken.tsv")
    table.write_text("\n".join([*rows, rows[1].replace("scene_00000", "broken")]) + "\n")
    code, error = run("--clips", table, "--root", clips.parent, "--duration", DURATION, "--format", "flac")
    assert code == 1 and "broken.mp4" in error and "1 of 3 could not be made: broken" in error
    assert sorted(path.name for path in (tmp_path / "out").glob("*.flac")) == ["scene_00000.flac", "scene_00001.flac"]


def test_a_shorter_video_shortens_the_sound_with_a_warning(run, clips, tmp_path):
    video = sorted(clips.parent.glob("scene_*.mp4"))[0]
    code, error = run("--video", video, "--duration", "1.5")
    there = seconds(video)["video"]  # whole frames at 25 a second, as the demo renders
    assert code == 0 and f"warning: {video} has {there:.2f} s, not 1.5 s" in error
    assert len(soundfile.read(tmp_path / "out" / f"{video.stem}.wav")[0]) == round(there * 16_000)


def test_a_source_is_never_overwritten(run, clips):
    video = sorted(clips.parent.glob("scene_*.mp4"))[0]
    before = video.read_bytes()
    code, error = run("--video", video, "--out", clips.parent, "--overwrite")
    assert code == 1 and "is one of the videos themselves" in error and video.read_bytes() == before


def test_a_length_is_what_is_asked_for_or_whole_frames_of_what_is_there():
    assert sample.capped(8.2 - 0.2, 8.0) == sample.capped(9.0, 8.0) == 8.0
    assert sample.capped(7.97, 8.0) == sample.capped(7.99, 8.0) == 7.96


def test_words_alone_make_sound(run, tmp_path):
    assert run("--prompt", "Rain, on a tin roof!", "--duration", DURATION)[0] == 0
    assert len(soundfile.read(tmp_path / "out" / "rain_on_a_tin_roof.wav")[0]) == 16_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to make sound for"),
        (["--prompt", "x", "--duration", "0.1"], "--duration is 0.1; it must lie in [0.64, 60] seconds"),
        (["--prompt", "x", "--duration", "nan"], "--duration is nan"),
        (["--prompt", "x", "--duration", "1000"], "--duration is 1000"),
        (["--prompt", "x", "--seed", "-1"], "--seed is -1; it must lie in [0, 2³¹)"),
        (["--prompt", "x", "--cfg_strength", "nan"], "--cfg_strength is nan"),
        (["--prompt", "  "], "there is nothing to make sound for"),
        (["--video", "nowhere.mp4"], "nowhere.mp4"),
        (["--prompt", "x", "--model", "large_44k"], "there are no weights in"),
        (["--prompt", "x", "--adapter", "nowhere"], "nowhere is no training run"),
        (["--prompt", "x", "--steps", "0"], "--steps is 0"),
    ],
)
def test_mistakes(run, arguments, message, tmp_path):
    code, error = run(*arguments)
    assert code == 1 and message in error and "Traceback" not in error and not (tmp_path / "out").exists()
