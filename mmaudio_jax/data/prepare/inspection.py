"""What is in a media file, found in one pass: how long it can be used, its scene cuts and onsets, and what is doubtful.

ffmpeg's own filters judge the picture, made small, and silence. Times are whole milliseconds.
"""

import collections
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Float

from mmaudio_jax.data.media import GAP
from mmaudio_jax.data.prepare.cutting import Span, covered, joined
from mmaudio_jax.data.prepare.onsets import OnsetFinder
from mmaudio_jax.data.prepare.scan import scan
from mmaudio_jax.data.streams import MPEG_TICK
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import sha256

PICTURE = (160, 90)  # pixels that the filters look at
CUT = "threshold=10"  # scdet: percent by which a frame differs from the one before, over the difference before that
BLACK = "black_min_duration=0:picture_black_ratio_th=0.98:pixel_black_th=0.1"  # blackdetect: of pixels, luma
STILL = "noise=0.001:duration=2"  # freezedetect: mean difference as a share of full scale, and for how many seconds
AUDIBLE = "frequency=20"  # highpass: a constant offset is silent
SILENT = "noise=0.001:duration=0.1"  # silencedetect: −60 dB of full scale, and for how many seconds
SOUND = 10  # ms that must be above it
FULL_SCALE = 0.999  # a sample at or beyond it is clipped
CLIPPED = 0.001  # share of the samples
MOSTLY = 0.5  # of a clip that is black or still
LOUD = 20.0  # dB: a loud onset is at most so far below the loudest of its file
RUN_UP = 1000  # ms before a clip that its extraction decodes, too


@dataclasses.dataclass(frozen=True, slots=True)
class Inspection:
    """What one file holds.

    Attributes:
        fault: why nothing of it can be used; empty if something can.
        sha256: the hash of the file, which copies of it share.
        video_end, audio_end: where each stream ends; None without one.
        damaged, black, still, silent: when it is so.
        clipped: (second, share of its samples at full scale), of the seconds that have any.
        cuts: the first frames of new scenes, ascending.
        onsets: (time, peak in dB of full scale), ascending.
    """

    fault: str = ""
    sha256: str = ""
    video_end: int | None = None
    audio_end: int | None = None
    damaged: Sequence[Span] = ()
    black: Sequence[Span] = ()
    still: Sequence[Span] = ()
    silent: Sequence[Span] = ()
    clipped: Sequence[tuple[int, float]] = ()
    cuts: Sequence[int] = ()
    onsets: Sequence[tuple[int, float]] = ()

    @property
    def end(self) -> int:
        """Where the first of its streams ends."""
        return min((end for end in (self.video_end, self.audio_end) if end is not None), default=0)

    @property
    def loud_onsets(self) -> list[int]:
        """Times of the onsets that are within 20 dB of the loudest."""
        loudest = max((level for _, level in self.onsets), default=0.0)
        return [time for time, level in self.onsets if level >= loudest - LOUD]

    def refusal(self, span: Span) -> tuple[str, str] | None:
        """Why this part cannot be used, in a word and in detail; None if it can."""
        if covered((max(span[0] - RUN_UP, 0), span[1]), self.damaged):
            return "undecodable", "it is damaged here, or in the second before"
        if covered(span, self.silent) > span[1] - span[0] - SOUND:
            return "silent", "nothing in it is louder than −60 dB of full scale"
        return None

    def doubts(self, span: Span) -> list[str]:
        """Which of `clipped`, `black` and `still` this part is."""
        share = sum(part * covered(span, [(1000 * at, 1000 * at + 1000)]) for at, part in self.clipped)
        length = span[1] - span[0]
        found = {
            "clipped": share > CLIPPED * length,
            "black": covered(span, self.black) > MOSTLY * length,
            "still": covered(span, self.still) > MOSTLY * length,
        }
        return [name for name, true in found.items() if true]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Inspection":
        """Of what `dataclasses.asdict` gave, through JSON."""
        return cls(**{name: value for name, value in content.items() if value != []})  # there may be a million of them


def inspect(path: str | os.PathLike) -> Inspection:
    """Looks at a file; whatever is wrong with its content becomes its `fault`.

    Raises:
        OSError: the system cannot read it all, which is no fault of the content and may pass.
    """
    digest = sha256(Path(path))
    try:
        return _inspect(path, digest)
    except UserError as error:
        return Inspection(fault=str(error).removeprefix(f"{path}: "))
    except Exception as error:  # a file that a decoder or a filter chokes on must not end the others
        return Inspection(fault=f"{type(error).__name__}: {error}")


def _inspect(path: str | os.PathLike, digest: str) -> Inspection:
    picture, sound = _Picture(), _Sound()
    found = scan(path, picture.see, sound.hear)
    video_end, audio_end = (
        None if end is None else math.floor(1000 * end) for end in (found.video_end, found.audio_end)
    )
    last = max(video_end or 0, audio_end or 0)
    return Inspection(
        sha256=digest,
        video_end=video_end,
        audio_end=audio_end,
        damaged=joined([(_ms(start), last if end == math.inf else _ms(end)) for start, end in found.damaged]),
        **picture.found(last),
        **sound.found(last),
    )


def _ms(seconds: float | Fraction) -> int:
    return round(1000 * seconds)


class _Stretches:
    """The intervals whose starts and ends a filter tells in the metadata of its frames."""

    def __init__(self, start_key: str, end_key: str):
        self._keys = (start_key, end_key)
        self._spans: list[Span] = []
        self._since: int | None = None

    def add(self, span: Span) -> None:
        """Adds one that no filter tells."""
        self._spans.append(span)

    def take(self, told: Mapping[str, str]) -> None:
        """Takes the metadata of a frame."""
        start, end = (_ms(float(told[key])) if key in told else None for key in self._keys)
        if self._since is None:
            self._since, start = start, None
        if end is not None and self._since is not None:
            self._spans.append((self._since, end))
            self._since = start  # of the next one, within the same frame

    def found(self, last: int) -> list[Span]:
        """All, joined; one that has no end ends at `last`."""
        return joined([*self._spans, *([(self._since, last)] if self._since is not None else [])])


class _Picture:
    """Judges the frames of a video."""

    def __init__(self):
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._graph = av.filter.Graph()
        width, height = PICTURE
        self._graph.link_nodes(
            self._graph.add_buffer(width=width, height=height, format="rgb24", time_base=MPEG_TICK),
            self._graph.add("scdet", CUT),
            self._graph.add("blackdetect", BLACK),
            self._graph.add("freezedetect", STILL),
            self._graph.add("buffersink"),
        ).configure()
        self._cuts: list[int] = []
        self._black = _Stretches("lavfi.black_start", "lavfi.black_end")
        self._still = _Stretches("lavfi.freezedetect.freeze_start", "lavfi.freezedetect.freeze_end")

    def see(self, time: Fraction, end: Fraction, frame: av.VideoFrame) -> None:
        """Takes the next frame."""
        small = self._reformatter.reformat(frame, *PICTURE, format="rgb24", interpolation="FAST_BILINEAR")
        small.pts, small.time_base = round(time / MPEG_TICK), MPEG_TICK
        self._graph.vpush(small)
        told = self._graph.vpull().metadata
        if "lavfi.scd.time" in told:
            self._cuts.append(_ms(time))
        self._black.take(told)
        self._still.take(told)

    def found(self, last: int) -> dict[str, Any]:
        """The fields of an `Inspection`; `last` is the end of the file."""
        return {"cuts": sorted(set(self._cuts)), "black": self._black.found(last), "still": self._still.found(last)}


class _Sound:
    """Judges the frames of a sound."""

    def __init__(self):
        self._rate = 0
        self._position = 0  # of the next sample
        self._offset: float | None = None
        # as it is, and without an offset; the filter for that rings after what is loud and low
        self._silent = [_Stretches("lavfi.silence_start", "lavfi.silence_end") for _ in range(2)]
        self._full: collections.Counter[int] = collections.Counter()  # samples at full scale, by second

    def hear(self, time: Fraction, frame: av.AudioFrame) -> None:
        """Takes the next frame; a UserError if its rate is another than that of those before."""
        rate = frame.sample_rate
        if not self._rate:
            self._begin(rate)
        if rate != self._rate:
            raise UserError(f"the sound changes from {self._rate} Hz to {rate} Hz at {float(time):.2f} s")
        stated = math.floor(time * rate + Fraction(1, 2))
        if abs(stated - self._position) > GAP * rate:
            if stated > self._position:
                self._silent[0].add((1000 * self._position // rate, 1000 * stated // rate))
            self._position = stated
        samples = _samples(frame)
        if not samples.size:
            return
        full = np.flatnonzero((np.abs(samples) >= FULL_SCALE).any(axis=0))
        self._full.update(((self._position + full) // rate).tolist())
        mono = samples.mean(axis=0)
        self._listen(mono)
        self._onsets.offer(self._position, mono)
        self._position += len(mono)

    def _begin(self, rate: int) -> None:
        self._rate, self._onsets = rate, OnsetFinder(rate)
        self._graphs = [_detector_of_silence(rate), _detector_of_silence(rate, highpass=AUDIBLE)]

    def _listen(self, mono: Float[np.ndarray, " l"]) -> None:
        """Learns of the silences that begin or end in these samples."""
        if self._offset is None:
            self._offset = mono[0]  # which is there from the start, and no step
        for graph, silent, samples in zip(self._graphs, self._silent, (mono, mono - self._offset), strict=True):
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = self._rate, self._position, Fraction(1, self._rate)
            graph.push(frame)
            silent.take(graph.pull().metadata)

    def found(self, last: int) -> dict[str, Any]:
        """The fields of an `Inspection`; `last` is the end of the file."""
        if not self._rate:
            return {}
        self._onsets.finish()
        return {
            "silent": joined([span for silent in self._silent for span in silent.found(last)]),
            "clipped": [(second, round(count / self._rate, 6)) for second, count in sorted(self._full.items())],
            "onsets": self._onsets.found,
        }


def _detector_of_silence(rate: int, **filters: str) -> av.filter.Graph:
    """A graph that tells silences in the metadata of its frames, behind other filters with their options."""
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_abuffer(sample_rate=rate, format="fltp", layout="mono", time_base=Fraction(1, rate)),
        *(graph.add(name, options) for name, options in filters.items()),
        graph.add("silencedetect", SILENT),
        graph.add("abuffersink"),
    ).configure()
    return graph


def _samples(frame: av.AudioFrame) -> Float[np.ndarray, "channels l"]:
    """A frame's samples; the number of channels and the format may change from frame to frame."""
    parts = [part.to_ndarray() for part in av.AudioResampler(format="fltp").resample(frame)]
    return np.concatenate(parts, axis=1) if parts else np.zeros((1, 0), np.float32)
