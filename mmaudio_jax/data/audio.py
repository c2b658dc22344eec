"""Sound as arrays: peak normalisation, resampling, and sound files."""

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float
from scipy import signal

from mmaudio_jax.data.tags import checked
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_file

PEAK = 0.95
SILENCE = 1e-6  # a peak at or below this is silence

# The windowed sinc: zero crossings on each side, cut-off as a part of the lower Nyquist rate, Kaiser's β.
WIDTH = 64
ROLLOFF = 0.9475937167399596
BETA = 14.769656459379492


def is_silent(audio: Float[np.ndarray, " l"]) -> bool:
    """Whether no sample exceeds 1e-6."""
    return np.abs(audio).max(initial=0.0) <= SILENCE


def normalise_peak(audio: Float[np.ndarray, " l"], peak: float | None = None) -> Float[np.ndarray, " l"]:
    """The sound scaled so that `peak`, by default its own, becomes 0.95; it must not be silent."""
    return audio * (PEAK / (np.abs(audio).max() if peak is None else peak))


def resampled_length(length: int, rate: int, new_rate: int) -> int:
    """How many samples `resample` makes of `length`: ⌈length · new_rate / rate⌉."""
    return -(-length * new_rate // rate)


def resample(audio: Float[np.ndarray, " l"], rate: int, new_rate: int) -> Float[np.ndarray, " l2"]:
    """Band-limited interpolation with a Kaiser-windowed sinc; l2 = ⌈l · new_rate / rate⌉, zeros beyond both ends.

    With fc the cut-off in Hz, y(t) = Σₖ x[k] · h(t − k/rate), h(τ) = 2fc/rate · sinc(2fc·τ) · kaiser(2fc·τ / 64)
    (J. O. Smith, Digital Audio Resampling). The computation is in float64, the result float32.
    """
    if rate == new_rate:
        return audio.astype(np.float32)
    common = math.gcd(rate, new_rate)
    up, down = new_rate // common, rate // common
    crossings = ROLLOFF * min(rate, new_rate) / (rate * up)  # 2fc·τ from one tap to the next at rate · up
    reach = math.floor(WIDTH / crossings)
    x = crossings * np.arange(-reach, reach + 1)
    window = np.i0(BETA * np.sqrt(1 - (x / WIDTH) ** 2)) / np.i0(BETA)
    taps = crossings * np.sinc(x) * window  # resample_poly multiplies by `up`
    return signal.resample_poly(audio.astype(np.float64), up, down, window=taps).astype(np.float32)


def write_audio(
    path: str | os.PathLike, audio: Float[np.ndarray, " l"], sample_rate: int, tags: Mapping[str, str] | None = None
) -> None:
    """Writes mono sound as 16-bit .wav or .flac, by the suffix; values beyond ±1 are clipped.

    Args:
        path: of the result.
        audio: within ±1.
        sample_rate: Hz.
        tags: title and comment of the file: RIFF INFO in .wav, Vorbis comments in .flac.

    Raises:
        UserError: another suffix.
    """
    formats = {".wav": "WAV", ".flac": "FLAC"}
    suffix = Path(path).suffix.lower()
    if suffix not in formats:
        raise UserError(f"{path}: sound is written as {' or '.join(formats)}")
    encoded = io.BytesIO()  # libsndfile tells nothing of a full disk
    with soundfile.SoundFile(encoded, "w", sample_rate, channels=1, subtype="PCM_16", format=formats[suffix]) as file:
        for name, text in checked(tags).items():
            setattr(file, name, text)
        file.write(np.clip(np.asarray(audio, np.float32), -1.0, 1.0))
    with atomic_file(path) as temporary:
        temporary.write_bytes(encoded.getbuffer())
