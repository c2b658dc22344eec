"""Several processes as one run: `jax.distributed`, told by flags, by the environment, or by SLURM.

Every process sees the devices of all; process 0 alone prints and writes logs.
"""

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator

import jax
import numpy as np

from mmaudio_jax.data.part import PartName
from mmaudio_jax.errors import UserError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
LOST = 30  # seconds without a sign of a process until all end
LAST = 45  # seconds that a process waits at its end for the others to come to theirs


def initialize(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the other processes of the run, if there are any; to be called before anything touches a device.

    Args:
        coordinator: host:port that process 0 listens at, reached by all; None: from the environment, or SLURM.
        num_processes: how many there are; None likewise.
        process_id: this one, from 0; None likewise.

    Raises:
        UserError: some of the three are given and some are not, or the others do not come.
    """
    told = (coordinator, num_processes, process_id)
    if told == (None, None, None):
        told = tuple(os.environ.get(name) for name in VARIABLES)
    given = [value is not None for value in told]
    if not any(given):
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
            return
        told = (None, None, None)  # JAX reads SLURM's variables
    elif not all(given):
        raise UserError(
            "coordinator address, number of processes and process id go together: give all three flags, or set "
            f"{', '.join(VARIABLES)}"
        )
    address, count, index = told
    try:
        jax.distributed.initialize(
            address,
            None if count is None else int(count),
            None if index is None else int(index),
            heartbeat_timeout_seconds=LOST,
            shutdown_timeout_seconds=LAST,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of the run did not find together: {str(error).splitlines()[0]}") from None


def share() -> tuple[int, int]:
    """(i, n): this is the i-th of n processes that share work out, of which none waits for another.

    The environment tells: elements of a SLURM array, tasks of a SLURM step, or JAX's variables. Nothing is joined, so
    that the end of one process ends no other. One of several tasks takes a GPU of its own, as when they train; so this
    is to be called before anything touches a device.

    Raises:
        UserError: the variables do not go together.
    """
    environ = os.environ
    element, elements = 0, 1
    try:
        if "SLURM_STEP_NUM_TASKS" in environ:
            task, tasks = int(environ["SLURM_PROCID"]), int(environ["SLURM_STEP_NUM_TASKS"])
        else:
            task, tasks = int(environ.get("JAX_PROCESS_ID", 0)), int(environ.get("JAX_NUM_PROCESSES", 1))
        if "SLURM_ARRAY_TASK_ID" in environ:
            number, elements, first = (int(environ[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "COUNT", "MIN"))
            element = (number - first) // int(environ.get("SLURM_ARRAY_TASK_STEP", 1))
    except (KeyError, ValueError) as error:
        raise UserError(f"the environment does not say which process of how many this is ({error})") from None
    if not 0 <= element < elements or not 0 <= task < tasks:
        raise UserError(
            f"the environment says element {element} of {elements} and task {task} of {tasks}, counted from 0; a SLURM "
            "array must be numbered without gaps: --array=0-15"
        )
    if tasks > 1 and (own := environ.get("JAX_LOCAL_DEVICE_IDS", environ.get("SLURM_LOCALID"))):
        jax.config.update("jax_cuda_visible_devices", own)
    return element * tasks + task, elements * tasks


def part_name(shard: str | None) -> PartName:
    """The part that `I/N` asks for; without it, the one that the environment says, as of `share`.

    Raises:
        UserError: it is no such pair.
    """
    if shard is None:
        return PartName(*share())
    found = re.fullmatch(r"(\d{1,5})/(\d{1,5})", shard)
    name = PartName(int(found[1]), int(found[2])) if found else None
    if name is None or name.index >= name.count:
        raise UserError(f"--shard is {shard!r}; it must be I/N with I from 0 to N - 1: 0/4, 1/4, 2/4 and 3/4")
    return name


def is_main() -> bool:
    """True in the process that prints and writes logs."""
    return jax.process_index() == 0


def anywhere(flag: bool) -> bool:
    """Whether it is true in any process; all must ask together."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(flag)).any())


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What fails within in any process fails in all, where the others would wait for it in vain; no barrier within."""
    found = None
    try:
        yield
    except (UserError, OSError) as error:
        found = error
    if anywhere(found is not None):
        raise found or UserError("another process of the run has failed, and says why")


def wait_for_all(what: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Within, SIGTERM ends nothing: it makes the function that is yielded answer true, in all processes at one step.

    Every process must ask after every step.
    """
    if jax.process_count() > 1:  # JAX has taken the signal over, and agrees on the step
        from jax.experimental import multihost_utils

        yield multihost_utils.reached_preemption_sync_point
        return
    asked = False

    def ask(*_) -> None:
        nonlocal asked
        asked = True

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield lambda step: asked
    finally:
        signal.signal(signal.SIGTERM, before)


def say(*words: object) -> None:
    """Prints, in the main process."""
    if is_main():
        print(*words, flush=True)
