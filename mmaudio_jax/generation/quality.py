"""A look at a generated sound: numbers, and sentences where something is out of the ordinary."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import signal

from mmaudio_jax import measures
from mmaudio_jax.generation.loudness import decibels, integrated

FRAMES = 50  # a second, of which each is silent or not
LINES = 10  # Hz from one line of the spectrum to the next
SPREAD = 2  # lines to each side that a pure tone covers (Hann window)
ROLL_OFF = 0.85  # share of the power below the roll-off

# What is out of the ordinary. The demo's sounds and recorded ones lie far from it: wood, metal, glass and drums have at
# most three quarters of their power in one line, and heavy rain has a flatness of about 0.5.
CLIPPED = 0.001  # share of the samples
ONE_LINE = 0.98  # share of the power
WHITE = 0.9  # flatness

Wave = Float[np.ndarray, " l"]


def inspect(audio: Wave, rate: int, expected_samples: int) -> dict[str, Any]:
    """What can be said of a sound without a network, ready for JSON.

    Returns:
        finite: whether all samples are; the other numbers are there only then, and None where silence has none.
        samples: how many.
        peak: the highest magnitude.
        rms_db: root mean square, of full scale.
        loudness_lufs: integrated (EBU R 128).
        silence: share of the time below −60 dB.
        clipping: share of the samples at full scale.
        centroid_hz, rolloff_hz: mean frequency of the power, and the one below which 85% of it lie.
        flatness: geometric by arithmetic mean of the power spectrum: 0 for lines, 1 for white noise.
        strongest_line: share of the power in the strongest line of the spectrum.
        warnings: sentences; empty if the sound is in order.
    """
    found: dict[str, Any] = {"finite": bool(np.isfinite(audio).all()), "samples": len(audio)}
    if found["finite"] and len(audio) >= rate // LINES:
        audio = np.asarray(audio, np.float32)
        found |= _levels(audio, rate) | _spectrum(audio, rate)
    return {**found, "warnings": list(_warnings(found, expected_samples))}


def _levels(audio: Wave, rate: int) -> dict[str, float | None]:
    loudness, rms = integrated(audio, rate), decibels(math.sqrt(np.mean(np.square(audio, dtype=np.float64))))
    return {
        "peak": round(float(np.abs(audio).max()), 5),
        "rms_db": round(rms, 2) if math.isfinite(rms) else None,
        "loudness_lufs": round(loudness, 2) if math.isfinite(loudness) else None,
        "silence": round(measures.silence(audio, rate // FRAMES), 4),
        "clipping": round(float(np.mean(np.abs(audio) >= measures.FULL_SCALE)), 6),
    }


def _spectrum(audio: Wave, rate: int) -> dict[str, float | None]:
    """Of the mean power spectrum of tenths of a second."""
    frequency, power = signal.welch(audio.astype(np.float64), rate, nperseg=rate // LINES, detrend=False)
    total = power.sum()
    if not total:
        return dict.fromkeys(("centroid_hz", "rolloff_hz", "flatness", "strongest_line"))
    strongest = int(power.argmax())
    line = power[max(strongest - SPREAD, 0) : strongest + SPREAD + 1].sum() / total
    return {
        "centroid_hz": round(float((frequency * power).sum() / total), 1),
        "rolloff_hz": round(float(frequency[np.searchsorted(power.cumsum(), ROLL_OFF * total)]), 1),
        "flatness": round(float(np.exp(np.log(power + 1e-12 * total).mean()) / power.mean()), 4),
        "strongest_line": round(float(line), 4),
    }


def _warnings(found: Mapping[str, Any], expected_samples: int) -> Iterator[str]:
    if found["samples"] != expected_samples:
        yield f"wrong length: {found['samples']} samples, not {expected_samples}"
    if not found["finite"]:
        yield "not finite: it holds NaN or infinity"
    if "peak" not in found:
        return
    if found["silence"] == 1:
        yield f"silent: nowhere above {measures.SILENT_DB:g} dB"
        return
    if found["clipping"] > CLIPPED:
        yield f"clipped: {found['clipping']:.1%} of the samples are at full scale"
    if found["strongest_line"] > ONE_LINE:
        share = f"{found['strongest_line']:.1%}"
        yield f"nothing but one tone or an offset: one line of the spectrum has {share} of the power"
    if found["flatness"] > WHITE:
        yield f"white noise: its spectrum is flat to {found['flatness']:.2f} of 1"
