"""Loudness by ITU-R BS.1770-4 and EBU R 128, and sounds brought to it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from mmaudio_jax.errors import UserError
from mmaudio_jax.generation import loudness

RATES = (16_000, 44_100)


def tone(seconds: float, rate: int, db: float, frequency: float = 997.0) -> np.ndarray:
    wave = np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)
    return (10 ** (db / 20) * wave).astype(np.float32)


def bs1770(audio: np.ndarray, rate: int) -> float:
    """The recommendation step by step: two filters at 48 kHz, blocks of 400 ms, two gates."""
    assert rate == 48_000
    shelf = ([1.53512485958697, -2.69169618940638, 1.19839281085285], [1.0, -1.69065929318241, 0.73248077421585])
    high_pass = ([1.0, -2.0, 1.0], [1.0, -1.99004745483398, 0.99007225036621])
    weighted = signal.lfilter(*high_pass, signal.lfilter(*shelf, audio.astype(np.float64)))
    blocks = np.lib.stride_tricks.sliding_window_view(weighted**2, 19_200)[::4800].mean(axis=1)
    blocks = blocks[-0.691 + 10 * np.log10(blocks + 1e-30) > -70]
    blocks = blocks[10 * np.log10(blocks) > 10 * np.log10(blocks.mean()) - 10]
    return -0.691 + 10 * math.log10(blocks.mean())


@pytest.mark.parametrize("rate", [*RATES, 48_000])
@pytest.mark.parametrize("db", [0.0, -20.0, -50.0])
def test_a_tone_of_997_hz_is_three_below_its_peak(rate, db):
    assert loudness.integrated(tone(2.0, rate, db), rate) == pytest.approx(db - 3.01, abs=0.05)


def test_the_recommendation_step_by_step_says_the_same():
    rng = np.random.default_rng(0)
    quiet, loud = (rng.normal(0, level, 3 * 48_000) for level in (0.001, 0.1))
    for audio in (loud, np.concatenate([quiet, loud, quiet]), np.concatenate([loud, 0 * quiet, 0.3 * loud])):
        assert loudness.integrated(audio, 48_000) == pytest.approx(bs1770(audio, 48_000), abs=0.05)


def test_a_soft_part_does_not_count():
    """EBU Tech 3341, case 3, shortened: −36, −23 and −36 LUFS give −23."""
    parts = [tone(seconds, 16_000, level + 3.01) for seconds, level in ((2, -36), (12, -23), (2, -36))]
    assert loudness.integrated(np.concatenate(parts), 16_000) == pytest.approx(-23, abs=0.1)


def test_the_true_peak_lies_between_samples():
    audio = np.tile([0.5, 0.5, -0.5, -0.5], 4000).astype(np.float32)  # a sine of 1/√2, sampled 45° off its peaks
    assert loudness.true_peak(audio) == pytest.approx(0.7071, rel=0.02)
    assert loudness.true_peak(np.zeros(0)) == 0


@settings(max_examples=25)
@given(
    seed=st.integers(0, 100),
    db=st.floats(-60, 20),
    rate=st.sampled_from(RATES),
    how=st.sampled_from(loudness.HOWS),
    burst=st.booleans(),
)
def test_sounds_become_as_loud_as_asked_and_never_clip(seed, db, rate, how, burst):
    rng = np.random.default_rng(seed)
    audio = rng.normal(0, 0.1, rate).astype(np.float32)
    if burst:  # high peaks over little
        audio *= np.where(rng.random(rate) < 0.001, 20, 0.02).astype(np.float32)
    audio *= np.float32(10 ** (db / 20))
    result, gain, remark = loudness.normalise(audio, rate, how)
    assert result.dtype == np.float32 and len(result) == len(audio)
    np.testing.assert_allclose(result, audio * 10 ** (gain / 20), rtol=1e-5)  # louder or softer, nothing else
    if how == "none":
        assert result is audio and gain == 0 and not remark
    elif how == "peak":
        assert np.abs(result).max() == pytest.approx(10 ** (-1 / 20), rel=1e-4) and not remark
    else:
        found = loudness.integrated(result, rate)
        assert loudness.true_peak(result) <= 10 ** (-1 / 20) * 1.0001
        if "silent" in remark:  # nowhere above the gate
            assert result is audio and gain == 0 and found == -np.inf
            return
        if remark:
            assert found < -23 and loudness.true_peak(result) == pytest.approx(10 ** (-1 / 20), rel=1e-3)
            assert float(remark.split()[1]) == pytest.approx(found, abs=0.2)
        else:
            assert found == pytest.approx(-23, abs=0.15)
    again = loudness.normalise(result, rate, how)
    np.testing.assert_allclose(again.audio, result, rtol=0.02)


@pytest.mark.parametrize("how", loudness.HOWS)
def test_silence_stays_silence(how):
    for audio in (np.zeros(16_000, np.float32), np.zeros(0, np.float32)):
        result = loudness.normalise(audio, 16_000, how)
        np.testing.assert_array_equal(result.audio, audio)
        assert result.remark == ("" if how == "none" else "silent, and stays so")
    faint = tone(1.0, 16_000, -90)
    assert loudness.integrated(faint, 16_000) == -math.inf
    assert loudness.normalise(faint, 16_000, "lufs").audio is faint


def test_what_is_not_finite_stays_and_other_words_are_refused():
    audio = np.array([0.0, np.nan], np.float32)
    assert loudness.normalise(audio, 16_000, "lufs").audio is audio
    with pytest.raises(UserError, match="the loudness is 'loud'; it must be one of none, peak, lufs"):
        loudness.normalise(audio, 16_000, "loud")
