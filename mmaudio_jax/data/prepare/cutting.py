"""Where a file is cut into clips: intervals in whole milliseconds; nothing is read, and nothing encoded again."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from mmaudio_jax.errors import UserError

MARGIN = 100  # ms that a clip ends before a scene cut: the encoders may take the first frame after its end
LEAD = 200  # ms that a clip begins before an onset

Span = tuple[int, int]
"""[start, end) in milliseconds."""

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How long clips are, in milliseconds.

    Attributes:
        duration: of a clip.
        stride: from the start of one to that of the next.
        least: of a last, shorter piece; `duration` keeps none.
    """

    duration: int
    stride: int
    least: int

    def __post_init__(self):
        for name in ("duration", "stride", "least"):
            if getattr(self, name) < 1:
                raise UserError(f"the {name} of clips is {getattr(self, name) / 1000:g} s; it must be above 0")
        if self.least > self.duration:
            raise UserError(
                f"the shortest clip, {self.least / 1000:g} s, is longer than a clip, {self.duration / 1000:g} s"
            )


def regularly(span: Span, lengths: Lengths) -> list[Span]:
    """Clips one stride apart, and what is left at the end if that is long enough and in no other clip."""
    start, end = span
    starts = range(start, end - lengths.duration + 1, lengths.stride)
    clips = [(at, at + lengths.duration) for at in starts]
    rest = start + len(starts) * lengths.stride
    if end - rest >= lengths.least and (not clips or end > clips[-1][1]):
        clips.append((rest, end))
    return clips


def within_scenes(span: Span, cuts: Sequence[int], lengths: Lengths) -> list[Span]:
    """Clips as of `regularly` within each scene; `cuts` are the times of scene cuts, ascending. None crosses a cut."""
    start, end = span
    inside = [cut for cut in cuts if start < cut < end]
    stops = [*(cut - MARGIN for cut in inside), end]
    return [clip for scene in zip([start, *inside], stops, strict=True) for clip in regularly(scene, lengths)]


def at_onsets(span: Span, onsets: Sequence[int], lengths: Lengths) -> list[Span]:
    """Clips that begin just before an onset, at least one stride apart; `onsets` are times, ascending."""
    (start, end), clips = span, []
    for onset in onsets:
        at = max(onset - LEAD, start)
        stop = min(at + lengths.duration, end)
        apart = not clips or (at >= clips[-1][0] + lengths.stride and stop > clips[-1][1])
        if onset >= start and apart and stop - at >= lengths.least:
            clips.append((at, stop))
    return clips


def covered(span: Span, spans: Sequence[Span]) -> int:
    """How many milliseconds of a span lie in any of the others, which do not overlap each other."""
    return sum(max(min(span[1], end) - max(span[0], start), 0) for start, end in spans)


def joined(spans: Sequence[Span]) -> list[Span]:
    """The same time, in order, as spans that neither overlap nor touch."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, the first and others spread evenly."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.arange(most) * len(items) // most]
