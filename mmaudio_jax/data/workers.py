"""Processes that read ahead of who uses what is read; one that crashes or hangs ends nothing else."""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from multiprocessing.connection import Connection
from typing import TypeVar

import threadpoolctl

from mmaudio_jax.errors import UserError

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS
WORKERS = min(8, CORES)  # processes that decode, if nothing else is said
THREADS = min(4, os.cpu_count() or 1)  # that decode where there are no processes for it
TIME_LIMIT = 600.0  # seconds that a process has for one item, if nothing else is said

Item, Read = TypeVar("Item"), TypeVar("Read")


class NoProcess(UserError):
    """No fault of an item's: a process that would have read it cannot start."""


def live_with_parent(*_) -> None:
    """What a worker does first. It ends when the run that started it is gone, as after a kill, where Grain's workers
    would wait forever; and not before, on a SIGTERM to all of a job's processes: the run has examples to read until it
    has saved. Its products take one thread.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threadpoolctl.threadpool_limits(1)  # there are as many workers as cores; and threads of BLAS may wait for ever

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def read_ahead(
    items: Iterable[Item],
    read: Callable[[Item], Read],
    workers: int,
    *,
    in_order: bool = True,
    time_limit: Callable[[Item], float] = lambda _: TIME_LIMIT,
) -> Iterator[Iterator[tuple[Item, "Future[Read]"]]]:
    """Yields the items, each with what becomes of reading it; twice as many as `workers` are read meanwhile.

    Args:
        items: what is to be read.
        read: reads one; it and what it gives travel between processes.
        workers: processes that read. A decoder that ends its process, or that hangs, costs that item alone, its result
            being a UserError; that of a process that cannot start is a NoProcess. 0: threads of this process read,
            which is faster for a few, end with a decoder, and wait for it without a limit.
        in_order: yield them in their order; else as they are done, so that one that takes long holds up no other.
        time_limit: seconds that a process has for an item.
    """
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(workers or THREADS, thread_name_prefix="decode")
        stack.callback(pool.shutdown)
        if workers:
            # which end first: one that hangs would keep its thread
            read = stack.enter_context(_processes(read, time_limit))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        yield _submit_ahead(items, functools.partial(pool.submit, read), 2 * (workers or THREADS), in_order)


def _submit_ahead(
    items: Iterable[Item], submit: Callable, ahead: int, in_order: bool
) -> Iterator[tuple[Item, "Future[Read]"]]:
    waiting: dict[Future[Read], Item] = {}

    def take() -> tuple[Item, "Future[Read]"]:
        future = next(iter(waiting if in_order else wait(waiting, return_when=FIRST_COMPLETED).done))
        return waiting.pop(future), future

    for item in items:
        waiting[submit(item)] = item
        if len(waiting) > ahead:
            yield take()
    while waiting:
        yield take()


@contextlib.contextmanager
def _processes(read: Callable[[Item], Read], time_limit: Callable[[Item], float]) -> Iterator[Callable[[Item], Read]]:
    """`read` in a process of the calling thread's own: if that ends, it is known which item it was at."""
    local, processes, stopped = threading.local(), [], threading.Event()

    def call(item: Item) -> Read:
        if getattr(local, "process", None) is None:
            local.process = _Process(read)
            processes.append(local.process)
        if stopped.is_set():  # it came to work too late to be among those that were ended
            local.process.kill()
        try:
            return local.process(item, time_limit(item))
        finally:
            if not local.process.lives:
                processes.remove(local.process)
                local.process = None

    try:
        yield call
    finally:
        stopped.set()
        for process in [*processes]:
            process.kill()


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process that is started within by this thread never sees Ctrl-C, which a terminal sends to all."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Process:
    """A process that reads items for one thread.

    Attributes:
        lives: whether it can be given another one.
    """

    def __init__(self, read: Callable[[Item], Read]):
        """Starts it.

        Raises:
            NoProcess: it does not come to work.
        """
        spawn = multiprocessing.get_context("spawn")
        self._line, other = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(other, read), daemon=True)
        try:
            with _without_interrupts():
                self._process.start()
            other.close()
            self._line.recv()
        except (OSError, EOFError) as error:
            self.end()
            raise NoProcess(
                f"a process that decodes cannot start ({type(error).__name__}: {error}); what is printed above may say "
                "why; fewer --workers need less memory"
            ) from None
        self.lives = True

    def __call__(self, item: Item, time_limit: float) -> Read:
        """What is read of an item.

        Raises:
            UserError: the decoder crashed, or took longer.
        """
        try:
            self._line.send(item)
            if not self._line.poll(time_limit):
                self.end()
                raise UserError(f"its decoder has not come to an end in {time_limit:.0f} s")
            found, error = self._line.recv()
        except (OSError, EOFError):
            self.end()
            raise UserError("its decoder crashed") from None
        if error:
            raise error
        return found

    def end(self) -> None:
        """Ends it, whatever it is at, and waits for that."""
        self.lives = False
        self._line.close()
        self.kill()

    def kill(self) -> None:
        """Ends the process alone: who waits for it is told that it is gone."""
        if self._process.pid:
            self._process.kill()
            self._process.join()


def _serve(line: Connection, read: Callable[[Item], Read]) -> None:
    """What a process that decodes does; SIGTERM, as Ctrl-C, is for the process that started it."""
    live_with_parent()
    line.send(None)
    while True:
        try:
            item = line.recv()
        except EOFError:
            return
        try:
            found = read(item), None
        except UserError as error:
            found = None, error
        except Exception as error:  # some of a library's cannot travel
            found = None, RuntimeError(f"{type(error).__name__}: {error}")
        line.send(found)
