"""What sounds are told apart by."""

import numpy as np
import pytest

from mmaudio_jax import measures
from mmaudio_jax.data import mel

CONFIG = mel.PRESETS["16k"]
RATE = 16_000


def clicks(*times):
    """Short bursts of noise, at these seconds of two, over a faint hiss."""
    rng = np.random.default_rng(0)
    wave = 1e-4 * rng.standard_normal(2 * RATE)
    for time in times:
        start = round(time * RATE)
        wave[start : start + 800] += 0.3 * rng.standard_normal(800) * np.exp(-np.arange(800) / 200)
    return wave.astype(np.float32)


@pytest.mark.parametrize("mode", ["16k", "44k"])
def test_the_log_mel_distance_of_half_the_amplitude_is_six_decibels(mode):
    config = mel.PRESETS[mode]
    wave = 0.1 * np.random.default_rng(0).standard_normal(64 * config.mode.hop).astype(np.float32)
    assert measures.log_mel_distance(wave, wave, config) == 0
    assert measures.log_mel_distance(wave / 2, wave, config) == pytest.approx(6.02, abs=0.05)


def test_onsets_agree_within_fifty_milliseconds():
    true = clicks(0.5, 1.0, 1.5)
    assert measures.onset_f1(true, true, CONFIG) == 1
    assert measures.onset_f1(clicks(0.52, 1.02, 1.52), true, CONFIG) == 1
    assert measures.onset_f1(clicks(0.5, 1.0, 1.8), true, CONFIG) == pytest.approx(2 / 3)
    nothing = np.zeros(2 * RATE, np.float32)
    assert measures.onset_f1(nothing, true, CONFIG) == 0 and measures.onset_f1(nothing, nothing, CONFIG) == 1


def test_shares_of_silence_and_of_clipped_values():
    wave = clicks(0.5)
    wave[: RATE // 2] = 0
    half = measures.silence(np.concatenate([0.1 * np.ones(RATE), np.zeros(RATE)]).astype(np.float32), CONFIG.mode.hop)
    assert half == pytest.approx(0.5, abs=0.01)
    clipped = np.array([0, 1, -1, 0.9] * 4096, np.float32)
    found = measures.compare(clipped, clipped, CONFIG)
    assert found["clipping"] == 0.5 and found["silence"] == 0 and found["log_mel_distance"] == 0
