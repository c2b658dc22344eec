"""How loud a sound is, and sounds made equally loud."""

import math
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import Float
from scipy import signal

from mmaudio_jax.errors import UserError

HOWS = ("none", "peak", "lufs")
PEAK = -1.0  # dBFS: the highest sample of "peak"; of "lufs" the bound of the true peak (EBU R 128)
TARGET = -23.0  # LUFS (EBU R 128)
SILENT = -70.0  # LUFS: the absolute gate, below which nothing counts (ITU-R BS.1770-4)
OVERSAMPLING = 4  # of the true peak (ITU-R BS.1770-4, annex 2)

Wave = Float[np.ndarray, " l"]


class Normalised(NamedTuple):
    """A sound, by how many dB it was raised, and a remark where it is not as loud as asked for."""

    audio: Wave
    gain: float
    remark: str = ""


def normalise(audio: Wave, rate: int, how: str) -> Normalised:
    """Makes a sound as loud as asked for; it never clips by it.

    none: as it comes. peak: its highest sample at −1 dBFS. lufs: its integrated loudness at −23 LUFS, or less where its
    true peak would exceed −1 dBFS. What is silent, nowhere above −70 LUFS, or not finite stays as it is.

    Raises:
        UserError: another `how`.
    """
    if how not in HOWS:
        raise UserError(f"the loudness is {how!r}; it must be one of {', '.join(HOWS)}")
    if how == "none" or not np.isfinite(audio).all():
        return Normalised(audio, 0.0)
    room = PEAK - decibels(true_peak(audio) if how == "lufs" else np.abs(audio).max(initial=0.0))
    wanted = TARGET - integrated(audio, rate) if how == "lufs" else room
    if math.inf in (wanted, room):
        return Normalised(audio, 0.0, "silent, and stays so")
    gain = min(wanted, room)
    result = (audio * 10 ** (gain / 20)).astype(np.float32)
    remark = ""
    if wanted - gain > 0.05:  # measured again: what lay below the gate may lie above it now
        remark = f"at {integrated(result, rate):.1f} LUFS, not {TARGET:g}: louder it would clip"
    return Normalised(result, gain, remark)


def integrated(audio: Wave, rate: int) -> float:
    """The integrated loudness of mono sound in LUFS, by FFmpeg's EBU R 128; −inf where nothing is above −70 LUFS."""
    if not len(audio):
        return -math.inf
    graph = av.filter.Graph()
    tick = Fraction(1, rate)
    source = graph.add_abuffer(sample_rate=rate, format="flt", layout="mono", time_base=tick)
    graph.link_nodes(source, graph.add("ebur128", "metadata=1"), graph.add("abuffersink")).configure()
    frame = av.AudioFrame.from_ndarray(np.asarray(audio, np.float32)[None], format="flt", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, tick
    graph.push(frame)
    graph.push(None)
    loudness = SILENT
    try:
        while True:  # every tenth of a second says how loud all is so far; a part of one says nothing
            loudness = float(graph.pull().metadata.get("lavfi.r128.I", loudness))
    except EOFError:
        return loudness if loudness > SILENT else -math.inf


def true_peak(audio: Wave) -> float:
    """The highest magnitude between the samples as well as at them."""
    between = signal.resample_poly(audio, OVERSAMPLING, 1)
    return float(max(np.abs(between).max(initial=0.0), np.abs(audio).max(initial=0.0)))


def decibels(magnitude: float) -> float:
    """Of full scale; −inf for 0."""
    return 20 * math.log10(magnitude) if magnitude > 0 else -math.inf
