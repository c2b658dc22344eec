"""Solvers of dx/dt = v(x, t) from noise (t = 0) to data (t = 1), each a table of evaluations of v.

An evaluation at the point y makes the point of the next one from its velocity and the one before:

    y ← x + a · v(y, t) + b · v_before;   x ← y where it completes a step

Such tables are data, so that one compiled program serves all solvers and numbers of steps, also several in one batch.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

MAX_STEPS = 1000  # evaluations; a batch's tables have room for as many, whatever they hold


class Table(NamedTuple):
    """The evaluations of one sample, (k,), or of a batch, (k, b); see the top of the module.

    Attributes:
        t: when.
        a: factor of the velocity there, in units of t.
        b: factor of the velocity before.
        completes: whether the new point completes a step.
    """

    t: np.ndarray
    a: np.ndarray
    b: np.ndarray
    completes: np.ndarray


REST = Table(1.0, 0.0, 0.0, True)  # an evaluation that changes nothing
NONE = Table(*(np.zeros(0, np.float32) for _ in range(3)), np.zeros(0, bool))  # of a sample nobody looks at


class Solver(NamedTuple):
    """A method: how many evaluations a step of it takes, and its table for the times of its steps."""

    evaluations: int
    table: Callable[[np.ndarray], Table]


def _euler(times: np.ndarray) -> Table:
    step = np.diff(times)
    return Table(times[:-1], step, np.zeros_like(step), np.ones(len(step), bool))


def _midpoint(times: np.ndarray) -> Table:
    """The explicit midpoint method, of second order: half a step with the velocity here, all of it with that there."""
    half = np.diff(times) / 2
    t = np.stack([times[:-1], times[:-1] + half], axis=1).ravel()
    a = np.stack([half, 2 * half], axis=1).ravel()
    return Table(t, a, np.zeros_like(a), np.tile([False, True], len(half)))


def _adams_bashforth(times: np.ndarray) -> Table:
    """The two-step method of second order, for steps that may differ; its first step is one of Euler's."""
    step = np.diff(times)
    b = np.zeros_like(step)
    b[1:] = -(step[1:] ** 2) / (2 * step[:-1])
    return Table(times[:-1], step - b, b, np.ones(len(step), bool))


SOLVERS = {"euler": Solver(1, _euler), "midpoint": Solver(2, _midpoint), "adams_bashforth": Solver(1, _adams_bashforth)}


def times(num_steps: int, shift: float = 1.0) -> np.ndarray:
    """num_steps + 1 times from 0 to 1, float32.

    Equal steps are counted from both ends, as the published ones are: the v2 network turns a last bit of t into 1e-5 of
    its output. A `shift` s above 1 puts more of them near the noise, t ← t / (1 + (s − 1)(1 − t)) (arXiv 2403.03206,
    equation 23), one below 1 near the data.
    """
    k, step = np.arange(num_steps + 1), np.float32(1) / np.float32(num_steps)
    from_start, from_end = k.astype(np.float32) * step, 1 - (num_steps - k).astype(np.float32) * step
    equal = np.where(k < (num_steps + 1) // 2, from_start, from_end)
    return equal if shift == 1 else (equal / (1 + (shift - 1) * (1 - equal.astype(np.float64)))).astype(np.float32)


def table(solver: str, steps: int, shift: float = 1.0) -> Table:
    """The evaluations of one sample: `steps` of them, or one less where a step takes two and `steps` is odd.

    Args:
        solver: a key of `SOLVERS`.
        steps: evaluations, at least as many as a step takes.
        shift: see `times`.
    """
    method = SOLVERS[solver]
    return method.table(times(steps // method.evaluations, shift))


def stack(tables: Sequence[Table]) -> Table:
    """The evaluations of a batch, (MAX_STEPS, b): a sample whose own are over stays where it is."""

    def column(table: Table) -> Table:
        room = (0, MAX_STEPS - len(table.t))
        return Table(*(np.pad(values, room, constant_values=rest) for values, rest in zip(table, REST, strict=True)))

    return Table(*(np.stack(values, axis=1) for values in zip(*map(column, tables), strict=True)))
