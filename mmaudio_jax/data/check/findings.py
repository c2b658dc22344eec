"""What a check of a feature set found: verdicts, places and distributions, for people and for machines."""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mmaudio_jax.data.table import Table

MOST = 20  # places that a check keeps of all that it finds
MOST_TOGETHER = 3  # others that are named beside the first
BINS = 40  # of a histogram
LARGEST = 15  # shares that are shown
NEEDS_WEIGHTS = "needs --weights with the set's encoders"  # a reason to leave a check out


class Verdict(enum.StrEnum):
    """What became of a check."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    LEFT_OUT = "left out"


@dataclasses.dataclass(frozen=True)
class Place:
    """What was found, and at which row of which table, where it is of one."""

    what: str
    table: str | None = None
    row: int | None = None
    id: str | None = None

    def __str__(self) -> str:
        where = "" if self.row is None else f"{self.id!r} ({self.table} row {self.row})"
        return ": ".join(filter(None, [where, self.what]))


class Rows:
    """Tells the places of examples."""

    def __init__(self, table: Table | None = None, file: Callable[[int], str] = str):
        """Of the rows of a table; without one, examples are told by their number.

        Args:
            table: whose row i is that of example i.
            file: where that row stands.
        """
        self._table, self._file = table, file

    def place(self, index: int, what: str = "") -> Place:
        """The place of an example."""
        if self._table is None:
            return Place(": ".join(filter(None, [f"example {index}", what])))
        return Place(what, self._file(index), self._table.lines[index], self._table.rows[index].get("id"))

    def together(self, indices: Sequence[int], what: str = "") -> Place:
        """The place of several examples: that of the first, saying which the others are."""
        first, *others = map(int, indices)
        named = [str(self.place(i)) for i in others[:MOST_TOGETHER]]
        more = [f"{len(others) - MOST_TOGETHER} more"] if len(others) > MOST_TOGETHER else []
        return self.place(first, "; ".join([f"as {', '.join(named + more)}", *filter(None, [what])]))


@dataclasses.dataclass
class Check:
    """One check: what is looked for, how bad it is, how often it was found, and where.

    Attributes:
        name: what is looked for.
        severity: the verdict if it is found.
        note: a number that tells more than how often it was found, or why the check was left out.
        count: how often it was found.
        places: the first `MOST` of them.
    """

    name: str
    severity: Verdict
    note: str = ""
    count: int = 0
    places: list[Place] = dataclasses.field(default_factory=list)

    def add(self, place: Place) -> None:
        """Notes that it was found."""
        self.count += 1
        if len(self.places) < MOST:
            self.places.append(place)

    @property
    def verdict(self) -> Verdict:
        """`severity`, if anything was found."""
        return self.severity if self.count or self.severity == Verdict.LEFT_OUT else Verdict.OK

    @property
    def number(self) -> str:
        """What the table shows beside the name."""
        return self.note or str(self.count)

    def asdict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "verdict": str(self.verdict),
            "count": self.count,
            "note": self.note,
            "places": [dataclasses.asdict(place) for place in self.places],
        }


def fault(name: str) -> Check:
    """A check whose findings are faults."""
    return Check(name, Verdict.FAULT)


def warning(name: str) -> Check:
    """A check whose findings are warnings."""
    return Check(name, Verdict.WARNING)


def left_out(name: str, reason: str) -> Check:
    """A check that was not made."""
    return Check(name, Verdict.LEFT_OUT, reason)


def spread(indices: Sequence[int], most: int) -> list[int]:
    """At most so many of the indices, evenly spread."""
    chosen = np.unique(np.linspace(0, len(indices) - 1, min(most, len(indices))).round().astype(int))
    return [indices[i] for i in chosen]


@dataclasses.dataclass(frozen=True)
class Distribution:
    """A measure of each example, or of each of several things, as a histogram shows it."""

    title: str
    unit: str
    values: Float[np.ndarray, " n"]

    def asdict(self) -> dict[str, Any]:
        """For JSON."""
        counts, edges = np.histogram(self.values, BINS)
        quartiles = np.quantile(self.values, [0, 0.25, 0.5, 0.75, 1]).tolist()
        return {
            "unit": self.unit,
            "count": len(self.values),
            "mean": float(np.mean(self.values)),
            "quartiles": quartiles,
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        }


def largest(share: Mapping[str, int]) -> list[tuple[str, int]]:
    """The names that have most, with what they have."""
    return sorted(share.items(), key=lambda item: -item[1])[:LARGEST]


@dataclasses.dataclass(frozen=True)
class Channels:
    """Mean and standard deviation of each channel of the latents; of the released model's too, where it is known."""

    mean: Float[np.ndarray, " z"]
    std: Float[np.ndarray, " z"]
    released_mean: Float[np.ndarray, " z"] | None = None
    released_std: Float[np.ndarray, " z"] | None = None

    def asdict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: None if value is None else value.tolist() for name, value in vars(self).items()}


@dataclasses.dataclass(frozen=True)
class Report:
    """All that was found of a set.

    Attributes:
        path: of the set.
        facts: what is counted, by name.
        checks: in the order in which they are shown.
        shares: {what: {name: number of examples}}, e.g. of each split.
        distributions: the histograms.
        channels: of the latents; None if no example could be read.
    """

    path: str
    facts: Mapping[str, str]
    checks: Sequence[Check]
    shares: Mapping[str, Mapping[str, int]]
    distributions: Sequence[Distribution]
    channels: Channels | None

    def count(self, verdict: Verdict) -> int:
        """How many checks have a verdict."""
        return sum(check.verdict == verdict for check in self.checks)

    @property
    def summary(self) -> str:
        """How many faults and warnings there are."""
        faults, warnings = self.count(Verdict.FAULT), self.count(Verdict.WARNING)
        return f"{faults} of {len(self.checks)} checks found faults, {warnings} give warnings"

    def asdict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "set": self.path,
            "faults": self.count(Verdict.FAULT),
            "warnings": self.count(Verdict.WARNING),
            "facts": dict(self.facts),
            "checks": [check.asdict() for check in self.checks],
            "shares": {what: dict(largest(share)) for what, share in self.shares.items()},
            "distributions": {each.title: each.asdict() for each in self.distributions},
            "latent_channels": self.channels and self.channels.asdict(),
        }
