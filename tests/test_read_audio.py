"""The sound of a clip: its order of mean, peak, cut and resampling, with a picture and alone; its length."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from media_files import write_media

from mmaudio_jax.data import audio, media
from mmaudio_jax.errors import UserError
from mmaudio_jax.sequence import MODES, lengths

RATE = 22_050
LOUD = 0.9  # the peak of the mean of the channels, 2.5 s into the file


def save(folder: Path, kind: str, channels: int) -> tuple[Path, np.ndarray]:
    """3 s of quiet noise with one loud moment, with a picture or alone; the path, and the mean of the channels."""
    x = 0.05 * np.random.default_rng(channels).standard_normal((channels, 3 * RATE)).astype(np.float32)
    x[:, 5 * RATE // 2] = LOUD
    lossless = dict(audio=x, rate=RATE, audio_codec="pcm_f32le")
    video = None if kind == "alone" else "libx264"
    path = write_media(folder / f"{kind}.mkv", count=75, size=(64, 64), codec=video, **lossless)
    return path, x.mean(axis=0)


def part(x: np.ndarray, start: float, end: float) -> np.ndarray:
    return x[int(start * RATE) : int(end * RATE)]


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_of_a_video_the_whole_clip_is_scaled_and_resampled_and_then_cut(tmp_path, channels):
    path, x = save(tmp_path, "video", channels)
    expected = audio.resample(0.95 / LOUD * part(x, 0.5, 2.8), RATE, 16_000)[:16_000]
    np.testing.assert_allclose(media.read_audio(path, 0.5, 1.0, 16_000, 16_000, end=2.8), expected, atol=1e-6)
    expected = audio.resample(0.95 / LOUD * part(x, 0.5, 3.0), RATE, 16_000)[:16_000]  # the clip ends with the file
    np.testing.assert_allclose(media.read_audio(path, 0.5, 1.0, 16_000, 16_000, end=9.0), expected, atol=1e-6)
    quiet = part(x, 0.5, 1.5)
    expected = audio.resample(0.95 / np.abs(quiet).max() * quiet, RATE, 16_000)
    np.testing.assert_allclose(media.read_audio(path, 0.5, 1.0, 16_000, 16_000), expected, atol=1e-6)
    np.testing.assert_allclose(media.read_audio(path, 0.5, 1.0, 16_000, 16_000, end=1.5), expected, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("end", [None, 1.5, 2.8])
def test_sound_alone_is_scaled_by_the_file_s_peak_and_cut_before_it_is_resampled(tmp_path, channels, end):
    path, x = save(tmp_path, "alone", channels)
    expected = audio.resample(0.95 / LOUD * part(x, 0.5, 1.5), RATE, 16_000)
    np.testing.assert_allclose(media.read_audio(path, 0.5, 1.0, 16_000, 16_000, end), expected, atol=1e-6)


def test_a_silent_clip_of_a_loud_file_is_refused(tmp_path):
    x = np.zeros(3 * RATE, np.float32)
    x[-1] = LOUD
    soundfile.write(tmp_path / "a.wav", x, RATE)
    with pytest.raises(UserError, match=r"a\.wav: the sound is silent from 0 s to 1 s"):
        media.read_audio(tmp_path / "a.wav", 0, 1.0, 16_000, 16_000)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000])
def test_a_file_of_just_the_duration_is_just_long_enough(tmp_path, mode, rate):
    new_rate, samples = MODES[mode].sample_rate, lengths(1.0, MODES[mode]).samples
    soundfile.write(tmp_path / "a.wav", np.full(rate, 0.5), rate)
    result = media.read_audio(tmp_path / "a.wav", 0, 1.0, new_rate, samples)
    assert result.shape == (samples,)
    assert result[:new_rate].all() and not result[new_rate:].any()
    soundfile.write(tmp_path / "b.wav", np.full(rate - rate // 100, 0.5), rate)
    with pytest.raises(UserError, match=r"b\.wav: too short"):
        media.read_audio(tmp_path / "b.wav", 0, 1.0, new_rate, samples)
