"""Which source videos train, validate and test: a side for each, drawn from its name."""

import collections
import hashlib
import os
from collections.abc import Iterable, Mapping

from mmaudio_jax.errors import UserError


def draw_sides(sources: Iterable[str], seed: int, val: float, test: float) -> dict[str, str]:
    """{source: train, val or test}, each by a number in [0, 1) that its name and the seed give alone.

    The lowest numbers test, the next validate, the others train; so another source moves none. The exception: where
    none would train, or be on a side that was asked for, the source of the lowest number on the largest side stands in,
    as long as another is left there; a source that is alone trains.
    """
    numbers = {source: _number(source, seed) for source in sources}
    sides = {
        source: "test" if number < test else "val" if number < test + val else "train"
        for source, number in numbers.items()
    }
    for side, share in (("train", 1.0), ("val", val), ("test", test)):
        if share and side not in sides.values():
            counts = collections.Counter(sides.values())
            largest = max(counts, key=lambda name: (counts[name], name), default="")
            if counts[largest] > (side != "train"):
                sides[min((source for source in sides if sides[source] == largest), key=numbers.get)] = side
    return sides


def told_sides(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """{source: side}, of (source, side) of every clip; the side is empty where nothing is told.

    Raises:
        UserError: a source is told to be on two sides.
    """
    sides: dict[str, str] = {}
    for source, side in pairs:
        before = sides.setdefault(source, side)
        if before and side and before != side:
            raise UserError(
                f"clips of the source {source} are on two sides of the split, {before} and {side}; what trains must "
                "not be measured: put all clips of a source on one side"
            )
        sides[source] = before or side
    return sides


def join_copies(
    files: Iterable[tuple[str, str, str]], told: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Joins the sources of files that are copies of each other, so that no side has what is on another.

    Args:
        files: name, hash of the content, and source of each.
        told: {source: side}, as of `told_sides`, of every source.

    Returns:
        {source: the one that stands for it, that of the first copy in the order of names}, {the latter: side}.

    Raises:
        UserError: sources of one content are told to be on two sides.
    """
    joined, sides = {source: source for source in told}, dict(told)

    def standing_for(source: str) -> str:
        while joined[source] != source:
            source = joined[source]
        return source

    firsts: dict[str, tuple[str, str]] = {}
    for name, content, source in sorted(files, key=lambda file: os.path.splitext(file[0])):  # a before a copy
        first_name, first_source = firsts.setdefault(content, (name, source))
        first, other = standing_for(first_source), standing_for(source)
        if first == other or name == first_name:  # of parts of one file, a list may tell several sources
            continue
        side = sides.pop(other)
        if side and sides[first] not in ("", side):
            raise UserError(
                f"{name} is a copy of {first_name}, and they, or clips of the same source as one of them, are on two "
                f"sides of the split, {side} and {sides[first]}; what trains must not be measured: put them on one "
                "side, or leave one of the files out"
            )
        joined[other], sides[first] = first, sides[first] or side
    return {source: standing_for(source) for source in joined}, sides


def complete(told: Mapping[str, str], seed: int, val: float, test: float) -> dict[str, str]:
    """A side for every source. If none is told, all are drawn. Else what is told holds and the others train; where none
    is told to validate, the share `val` of those that train does.
    """
    if not any(told.values()):
        return draw_sides(told, seed, val, test)
    sides = {source: side or "train" for source, side in told.items()}
    if "val" not in sides.values():
        sides |= draw_sides([source for source in sides if sides[source] == "train"], seed, val, 0.0)
    return sides


def _number(source: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}\n{source}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48
