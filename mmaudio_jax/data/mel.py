"""Log mel spectrograms as the VAE was trained on them."""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmaudio_jax.sequence import MODES, AudioMode

MAGNITUDE_EPSILON = 1e-9
MEL_FLOOR = 1e-5


@dataclasses.dataclass(frozen=True)
class MelConfig:
    """STFT and mel filters: rate, hop and bins are the mode's, the window is `n_fft` long, frequencies are in Hz."""

    mode: AudioMode
    n_fft: int
    fmin: float
    fmax: float
    log: Literal["log10", "ln"]


PRESETS = {
    "16k": MelConfig(MODES["16k"], n_fft=1024, fmin=0, fmax=8_000, log="log10"),
    "44k": MelConfig(MODES["44k"], n_fft=2048, fmin=0, fmax=22_050, log="ln"),
}


def log_mel(audio: Float[Array, "b l"], config: MelConfig) -> Float[Array, "b f m"]:
    """Log mel spectrogram of a waveform, one frame a hop (frame i is centred on sample (i + ½)·hop).

    Args:
        audio: float32 at the mode's rate, clamped to ±1 here; l ≥ n_fft, a whole number of hops.
        config: a value of `PRESETS`.
    """
    hop, n_fft = config.mode.hop, config.n_fft
    pad = (n_fft - hop) // 2
    audio = jnp.pad(jnp.clip(audio, -1, 1), ((0, 0), (pad, pad)), mode="reflect")
    starts = np.arange(0, audio.shape[1] - n_fft + 1, hop)
    spectrum = jnp.fft.rfft(audio[:, starts[:, None] + np.arange(n_fft)] * hann(n_fft))
    magnitude = jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + MAGNITUDE_EPSILON)
    mel = jnp.matmul(magnitude, mel_filters(config).T, precision=jax.lax.Precision.HIGHEST)
    return {"log10": jnp.log10, "ln": jnp.log}[config.log](jnp.maximum(mel, MEL_FLOOR))


@functools.partial(jax.jit, static_argnums=1)
def decibels(audio: Float[Array, "b l"], config: MelConfig) -> Float[Array, "b f m"]:
    """`log_mel` in dB, whatever its logarithm."""
    return 20 / {"log10": 1.0, "ln": math.log(10)}[config.log] * log_mel(audio, config)


@functools.cache
def mel_filters(config: MelConfig) -> Float[np.ndarray, "m bins"]:
    """Triangular filters on Slaney's mel scale, each of unit area."""
    import librosa.filters  # heavy: loads numba

    mode = config.mode
    return librosa.filters.mel(
        sr=mode.sample_rate, n_fft=config.n_fft, n_mels=mode.mel_bins, fmin=config.fmin, fmax=config.fmax
    )


def hann(length: int) -> Float[np.ndarray, " length"]:
    """Periodic Hann window, float32."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)
