import json
import math

import av
import numpy as np
import pytest
import soundfile

from mmaudio_jax.data import audio
from mmaudio_jax.errors import UserError

SOURCES = [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000]
RATES = [(rate, new_rate) for new_rate in (16_000, 44_100) for rate in SOURCES if rate != new_rate]


def direct_resample(x: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """The windowed sinc evaluated at every output time, in float64."""
    cutoff = 0.9475937167399596 * min(rate, new_rate)
    times = np.arange(math.ceil(len(x) * new_rate / rate)) / new_rate
    out = np.empty(len(times))
    for n, t in enumerate(times):
        low = max(math.ceil((t - 64 / cutoff) * rate), 0)
        high = min(math.floor((t + 64 / cutoff) * rate), len(x) - 1)
        u = cutoff * (t - np.arange(low, high + 1) / rate)
        window = np.i0(14.769656459379492 * np.sqrt(np.maximum(1 - (u / 64) ** 2, 0))) / np.i0(14.769656459379492)
        out[n] = np.sum(x[low : high + 1] * np.sinc(u) * window) * cutoff / rate
    return out


@pytest.mark.parametrize(("rate", "new_rate"), RATES)
def test_resample_is_the_windowed_sinc(rate, new_rate):
    x = np.random.default_rng(0).standard_normal(1500).astype(np.float32)
    result = audio.resample(x, rate, new_rate)
    assert result.dtype == np.float32
    expected = direct_resample(x, rate, new_rate)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, atol=2e-6)


@pytest.mark.parametrize("length", [1, 2, 159, 441, 1000, 44_101])
def test_resampled_length_is_rounded_up(length):
    for rate, new_rate in RATES:
        expected = math.ceil(length * new_rate / rate)
        assert audio.resampled_length(length, rate, new_rate) == expected
        assert len(audio.resample(np.ones(length, np.float32), rate, new_rate)) == expected


def level(x: np.ndarray) -> float:
    middle = x[len(x) // 4 : -len(x) // 4]
    return 20 * math.log10(np.sqrt(np.mean(np.square(middle, dtype=np.float64))) + 1e-12)


@pytest.mark.parametrize(("rate", "new_rate"), [rates for rates in RATES if rates[0] > rates[1]])
def test_what_is_above_the_new_band_is_90_db_down_and_what_is_below_stays(rate, new_rate):
    t = np.arange(rate) / rate
    for frequency in np.linspace(new_rate / 2 * 1.02, rate / 2 * 0.99, 9):
        tone = np.sin(2 * np.pi * frequency * t).astype(np.float32)
        assert level(audio.resample(tone, rate, new_rate)) < level(tone) - 90
    for frequency in (50.0, new_rate / 2 * 0.5, new_rate / 2 * 0.87):
        tone = np.sin(2 * np.pi * frequency * t).astype(np.float32)
        assert abs(level(audio.resample(tone, rate, new_rate)) - level(tone)) < 0.01


def test_resample_at_the_same_rate_changes_nothing():
    x = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    np.testing.assert_array_equal(audio.resample(x, 16_000, 16_000), x)


def test_peak_and_silence():
    x = np.array([0.1, -0.5, 0.2], np.float32)
    np.testing.assert_allclose(audio.normalise_peak(x), x * 1.9, rtol=1e-6)
    np.testing.assert_allclose(audio.normalise_peak(x, 0.95), x, rtol=1e-6)
    assert audio.normalise_peak(x).dtype == np.float32
    assert audio.is_silent(np.full(5, -1e-6))
    assert audio.is_silent(np.zeros(0))
    assert not audio.is_silent(np.array([0.0, -2e-6]))


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
def test_written_sound_reads_back(tmp_path, suffix):
    x = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    path = tmp_path / f"sound{suffix}"
    audio.write_audio(path, x, 16_000)
    result, rate = soundfile.read(path, dtype="float32")
    assert rate == 16_000
    assert soundfile.info(path).subtype == "PCM_16"
    np.testing.assert_allclose(result, x, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing half-written beside it


def test_too_loud_sound_is_clipped_not_wrapped(tmp_path):
    x = np.array([0.0, 1.0, 1.5, 40.0, -1.0, -1.5, -40.0], np.float32)
    for suffix in (".wav", ".flac"):
        audio.write_audio(tmp_path / f"loud{suffix}", x, 44_100)
        result, _ = soundfile.read(tmp_path / f"loud{suffix}")
        np.testing.assert_allclose(result, np.clip(x, -1, 1), atol=1e-4)


def test_only_wav_and_flac_are_written(tmp_path):
    with pytest.raises(UserError, match=r"a\.mp3: sound is written as \.wav or \.flac"):
        audio.write_audio(tmp_path / "a.mp3", np.zeros(10), 16_000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_title_and_comment_are_kept(tmp_path, suffix):
    tags = {"title": "Regen – 雨", "comment": json.dumps({"prompt": "雨 🌧 " + "x" * 900}, ensure_ascii=False)}
    path = tmp_path / f"a{suffix}"
    audio.write_audio(path, np.zeros(100), 16_000, tags)
    with soundfile.SoundFile(path) as file:
        assert (file.title, file.comment, file.frames) == (*tags.values(), 100)
    with av.open(str(path)) as container:
        assert {name: container.metadata[name] for name in tags} == tags
    with pytest.raises(ValueError, match="files keep title and comment, not prompt"):
        audio.write_audio(path, np.zeros(100), 16_000, {"prompt": "rain"})
