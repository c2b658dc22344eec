"""What is decoded for the networks: clips and what sound is made for, ahead of them and in processes of their own."""

import collections
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, UInt8

from mmaudio_jax.data.clips import Clip
from mmaudio_jax.data.dataset import live_with_parent
from mmaudio_jax.errors import UserError
from mmaudio_jax.request import Request
from mmaudio_jax.sequence import (
    CLIP_FPS,
    MIN_DURATION,
    MODES,
    ROUNDING,
    SYNC_FPS,
    VAE_FACTOR,
    lengths,
    next_length,
)

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS
WORKERS = min(8, CORES)  # processes that decode, if nothing else is said
THREADS = min(4, os.cpu_count() or 1)  # that decode where there are no processes for it
TIME_LIMIT = 600.0  # seconds that a process has for one clip: a decoder may hang
SHORT = ("skip", "pad")  # what may become of clips that are too short

Item, Read = TypeVar("Item"), TypeVar("Read")


class NoProcess(UserError):
    """No fault of a clip's: a process that would have read it cannot start."""


class Media(NamedTuple):
    """What is read of one clip; frames are None where there is no video.

    Attributes:
        latents: how many latent frames are the clip's own, the others being padding.
    """

    audio: Float[np.ndarray, " l"]
    clip_frames: UInt8[np.ndarray, "c 384 384 3"] | None
    sync_frames: UInt8[np.ndarray, "f 224 224 3"] | None
    latents: int


def read_media(clip: Clip, mode: str, duration: float, short: str = "skip") -> Media:
    """Sound and frames of the first `duration` seconds of a clip.

    Args:
        clip: a row of clips.tsv; its file may hold sound alone.
        mode: '16k' or '44k'.
        duration: seconds.
        short: 'pad' fills up a clip of `MIN_DURATION` or more, with silence and its last frame; 'skip' refuses it.

    Raises:
        UserError: the clip cannot be used.
    """
    from mmaudio_jax.data import media

    there = _seconds(clip, from_file=short == "pad")
    whole = there >= duration - ROUNDING
    if not whole and short == "skip":
        raise UserError(
            f"the clip lasts {there:g} s, {duration:g} s are needed; --duration makes all clips shorter, --short pad "
            "fills up the short ones"
        )
    if not whole and there < MIN_DURATION:
        raise UserError(f"the clip lasts {there:g} s; from {MIN_DURATION} s on it can be filled up")
    rate, length = MODES[mode].sample_rate, lengths(duration, MODES[mode])
    if whole:
        own, seconds, samples = length.latent, duration, length.samples
    else:
        own = -int(-there * rate // (MODES[mode].hop * VAE_FACTOR))
        seconds, samples = there - ROUNDING, int((there - ROUNDING) * rate)
    audio = media.read_audio(clip.video, clip.start_time, seconds, rate, samples, clip.end_time)
    audio = np.pad(audio, (0, length.samples - samples))
    if not media.has_video(clip.video):
        return Media(audio, None, None, own)
    found = media.read_frames(clip.video, clip.start_time, duration if whole else there)
    counts = (length.clip, length.sync_frames)
    return Media(audio, *map(_held, found, counts), own)


def _seconds(clip: Clip, *, from_file: bool) -> float:
    """How long a clip is by its row and, if asked, by its file; 0 if the file ends before it."""
    from mmaudio_jax.data import media

    ends = [clip.end_time]
    if from_file:
        info = media.probe(clip.video)
        ends += [info.video_duration] * info.has_video + [info.audio_duration] * info.has_audio
    return max(min(ends) - clip.start_time, 0.0)


class Pictures(NamedTuple):
    """What is seen of a request; a still picture is one CLIP frame and no others."""

    clip_frames: UInt8[np.ndarray, "c 384 384 3"]
    sync_frames: UInt8[np.ndarray, "f 224 224 3"] | None


def fitted(request: Request) -> Request:
    """The request as its file allows: as short as a video that ends before, for an image if it is one still picture.

    The sound of a shorter video is as long as the video; the network makes it at the next of the lengths 0.64, 0.96, …,
    8.00 s, the last frame held, so that videos of a thousand durations compile few programs.

    Raises:
        UserError: no such file, no picture in it, too short from `start` on.
    """
    from mmaudio_jax.data import media

    source = request.video or request.image
    if source is None:
        return request
    info = media.probe(source)
    if not info.has_video:
        raise UserError(f"{source}: no video stream in it")
    if request.image is not None or info.is_image:
        if not info.is_image:
            raise UserError(f"{source}: a video, not one still picture; give it as video")
        return dataclasses.replace(request, video=None, image=source, start=0.0)
    there = info.video_duration - request.start
    if there >= request.duration - ROUNDING:
        return request
    if there < MIN_DURATION:
        raise UserError(
            f"{source}: too short: from {request.start:g} s on, the video has {max(there, 0):.3f} s; {MIN_DURATION} s "
            "are needed"
        )
    return dataclasses.replace(request, duration=there, made=min(next_length(there), request.duration))


def remark_of_length(asked: Request, request: Request) -> str:
    """What `fitted` changed of the length; empty if nothing."""
    if request.duration >= asked.duration - ROUNDING:
        return ""
    return f"{asked.video} has {request.duration:.2f} s, not {asked.duration:g} s; its sound is as short"


def read_pictures(request: Request) -> Pictures | None:
    """The frames of a request that is `fitted`; None for words alone.

    Raises:
        UserError: the file cannot be read.
    """
    from mmaudio_jax.data import media

    if request.image is not None:
        return Pictures(media.read_image(request.image)[None], None)
    if request.video is None:
        return None
    made = request.made or request.duration
    counts = (int(round(fps * made, 6)) for fps in (CLIP_FPS, SYNC_FPS))
    found = media.read_frames(request.video, request.start, request.duration)
    return Pictures(*(_held(frames, count) for frames, count in zip(found, counts, strict=True)))


def _held(frames: UInt8[np.ndarray, "f h w 3"], count: int) -> UInt8[np.ndarray, "{count} h w 3"]:
    """So many frames, the last one standing where there are no more."""
    return np.pad(frames, [(0, count - len(frames)), *[(0, 0)] * 3], mode="edge")


@contextlib.contextmanager
def read_ahead(
    items: Iterable[Item], read: Callable[[Item], Read], workers: int
) -> Iterator[Iterator[tuple[Item, "Future[Read]"]]]:
    """Yields the items in order, each with what becomes of reading it; twice as many as `workers` are read meanwhile.

    Args:
        items: what is to be read.
        read: reads one; it and what it gives travel between processes.
        workers: processes that read. A decoder that ends its process, or that hangs, costs that item alone, its result
            being a UserError; that of a process that cannot start is a NoProcess. 0: threads of this process read,
            which is faster for a few, and end with a decoder.
    """
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(workers or THREADS, thread_name_prefix="decode")
        stack.callback(pool.shutdown)
        if workers:
            read = stack.enter_context(_processes(read))  # which end first: one that hangs would keep its thread
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        yield _submit_ahead(items, functools.partial(pool.submit, read), 2 * (workers or THREADS))


def _submit_ahead(items: Iterable[Item], submit: Callable, ahead: int) -> Iterator[tuple[Item, "Future[Read]"]]:
    waiting: collections.deque[tuple[Item, Future[Read]]] = collections.deque()
    for item in items:
        waiting.append((item, submit(item)))
        if len(waiting) > ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


@contextlib.contextmanager
def _processes(read: Callable[[Item], Read]) -> Iterator[Callable[[Item], Read]]:
    """`read` in a process of the calling thread's own: if that ends, it is known which item it was at."""
    local, processes = threading.local(), []

    def call(item: Item) -> Read:
        if getattr(local, "process", None) is None:
            local.process = _Process(read)
            processes.append(local.process)
        try:
            return local.process(item)
        finally:
            if not local.process.lives:
                processes.remove(local.process)
                local.process = None

    try:
        yield call
    finally:
        for process in [*processes]:
            process.kill()


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

    def __call__(self, item: Item) -> Read:
        try:
            self._line.send(item)
            if not self._line.poll(TIME_LIMIT):
                self.end()
                raise UserError(f"its decoder has not come to an end in {TIME_LIMIT:g} s")
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
    """What a process that decodes does: Ctrl-C and SIGTERM are for the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
