"""Which source videos train, validate and test: a side for each, drawn from its name."""

import collections
import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

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


class Joined(NamedTuple):
    """Sources whose files are copies of each other as one, so that no side has what is on another.

    Attributes:
        sources: {source: the one that stands for it}, of those that are joined the first by the names of their files.
        sides: {one that stands for itself or for others: its side}, empty where nothing is told.
        apart: {(file, source): the file that it is a copy of}, where the two are told to be on different sides.
    """

    sources: dict[str, str]
    sides: dict[str, str]
    apart: dict[tuple[str, str], str]


def join_copies(files: Iterable[tuple[str, str, str]], told: Mapping[str, str]) -> Joined:
    """Joins the sources of files that are copies of each other.

    Args:
        files: name, hash of the content, and source; of the parts of one file a list may tell several sources, which
            are joined if there is a copy of the file.
        told: {source: side}, as of `told_sides`, of every source.
    """
    joined, sides, apart = {source: source for source in told}, dict(told), {}

    def standing_for(source: str) -> str:
        while joined[source] != source:
            source = joined[source]
        return source

    contents: dict[str, dict[str, list[str]]] = {}
    for name, content, source in sorted(set(files), key=lambda file: (os.path.splitext(file[0]), file)):
        contents.setdefault(content, {}).setdefault(name, []).append(source)  # a.mp4 before a copy.mp4
    for names in contents.values():
        (first, own), *copies = names.items()
        for name, source in ((name, source) for name, sources in copies for source in sources):
            group = list(dict.fromkeys(standing_for(one) for one in (*own, source)))
            if len({sides[one] for one in group} - {""}) > 1:
                apart[name, source] = first
                continue
            for other in group[1:]:
                side = sides.pop(other)
                joined[other], sides[group[0]] = group[0], sides[group[0]] or side
    return Joined({source: standing_for(source) for source in joined}, sides, apart)


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
