"""What is said of a generated sound."""

import json
import re

import numpy as np
import pytest

from mmaudio_jax.data import audio as sound
from mmaudio_jax.demo import sounds, world
from mmaudio_jax.generation.quality import inspect

RATES = (16_000, 44_100)


def noise(samples: int, level: float = 0.1) -> np.ndarray:
    return np.random.default_rng(0).normal(0, level, samples).astype(np.float32)


def coloured(samples: int, exponent: float) -> np.ndarray:
    """Noise whose power falls with that power of the frequency."""
    spectrum, bins = np.fft.rfft(noise(samples)), np.arange(samples // 2 + 1)
    audible = bins > samples // 500  # 32 Hz and 88 Hz
    return np.fft.irfft(spectrum * audible * np.maximum(bins, 1) ** (-exponent / 2), samples).astype(np.float32)


def tone(samples: int, rate: int, frequency: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(samples) / rate)).astype(np.float32)


@pytest.mark.parametrize("material", sounds.PARTIALS)
def test_the_demo_s_sounds_are_in_order(material):
    for index in range(6):
        scene = world.make_scene(0, index, [material], 4.0)
        wave = sounds.play(scene, np.random.default_rng(index), 4 * sounds.RATE)
        for rate in RATES:
            found = inspect(sound.resample(wave, sounds.RATE, rate), rate, 4 * rate)
            assert found["warnings"] == [] and found["finite"]
            assert 0.5 < found["peak"] <= 0.81 and -60 < found["loudness_lufs"] < -8


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_noise_that_is_not_white_is_in_order(exponent):
    wave = coloured(8 * 16_000, exponent)
    assert inspect(0.5 * wave / np.abs(wave).max(), 16_000, 8 * 16_000)["warnings"] == []


def test_the_numbers():
    wave = tone(44_100, 44_100, 1000.0) + 0.5 * tone(44_100, 44_100, 5000.0)
    found = inspect(wave, 44_100, 44_100)
    assert found["samples"] == 44_100 and found["clipping"] == found["silence"] == 0
    assert found["rms_db"] == pytest.approx(10 * np.log10(0.3**2 / 2 * 1.25), abs=0.01)
    assert found["centroid_hz"] == pytest.approx((1000 + 0.25 * 5000) / 1.25, abs=5)
    assert found["rolloff_hz"] == pytest.approx(5000, abs=20)
    assert found["strongest_line"] == pytest.approx(0.8, abs=0.01) and found["flatness"] < 0.01
    wave[22_050:] = 0
    assert inspect(wave, 44_100, 44_100)["silence"] == pytest.approx(0.5, abs=0.01)
    assert inspect(np.zeros(0, np.float32), 44_100, 10)["warnings"] == ["wrong length: 0 samples, not 10"]


def bad(kind: str, rate: int) -> np.ndarray:
    wave = coloured(2 * rate, 1.0)
    wave *= 0.3 / np.abs(wave).max()
    return {
        "not finite": np.where(np.arange(2 * rate) == 77, np.nan, wave),
        "silent": 1e-5 * wave,
        "zero": 0 * wave,
        "clipped": np.clip(12 * wave, -1, 1),
        "short": wave[:-1],
        "offset": np.full(2 * rate, 0.2) + 0.001 * wave,
        "tone": tone(2 * rate, rate, 440.0),
        "tone between lines": tone(2 * rate, rate, 1234.5),
        "white": noise(2 * rate),
    }[kind]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("not finite", "not finite: it holds NaN or infinity"),
        ("silent", "silent: nowhere above -60 dB"),
        ("zero", "silent: nowhere above -60 dB"),
        ("clipped", r"clipped: \d+\.\d% of the samples are at full scale"),
        ("short", r"wrong length: \d+ samples, not \d+"),
        ("offset", "nothing but one tone or an offset"),
        ("tone", "nothing but one tone or an offset"),
        ("tone between lines", "nothing but one tone or an offset"),
        ("white", "white noise"),
    ],
)
def test_each_fault_is_one_sentence(rate, kind, words):
    found = inspect(bad(kind, rate), rate, 2 * rate)
    assert len(found["warnings"]) == 1
    assert re.match(words, found["warnings"][0])
    json.loads(json.dumps(found, allow_nan=False))
