"""Log mel spectrograms against the published system's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error

from mmaudio_jax.data.mel import PRESETS, hann, log_mel, mel_filters


@pytest.mark.parametrize("mode", PRESETS)
def test_agrees_with_the_golden_vectors(golden, mode):
    expected = golden.expected(f"vae_{mode}")
    assert np.abs(expected["wave"]).max() > 1  # the clamp matters
    mel = jax.jit(log_mel, static_argnums=1)(expected["wave"], PRESETS[mode])
    assert relative_error(mel, expected["mel"].swapaxes(1, 2)) < 1e-5


def test_silence_is_the_floor_and_frames_are_hops():
    silent = log_mel(jnp.zeros((2, 2560)), PRESETS["16k"])
    assert silent.shape == (2, 10, 80)
    assert np.allclose(silent, -5)


def test_a_tone_lands_in_its_frame_and_bin():
    config = PRESETS["16k"]
    audio = np.zeros(16_000, np.float32)
    audio[8_000:8_512] = np.sin(2 * np.pi * 1000 / 16_000 * np.arange(512))
    mel = np.asarray(log_mel(audio[None], config)[0])
    frame, bin_ = np.unravel_index(mel.argmax(), mel.shape)
    assert abs((frame + 0.5) * config.mode.hop - 8_256) <= config.mode.hop
    assert mel_filters(config)[bin_, round(1000 / 16_000 * config.n_fft)] > 0


def test_window_is_periodic():
    window = hann(8)
    assert window[0] == 0 and window[4] == 1
    np.testing.assert_allclose(window + np.roll(window, 4), 1, atol=1e-6)
