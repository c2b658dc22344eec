"""An open media file: its streams, and its times.

Times are seconds of presentation time. A file whose clock does not begin at zero (MPEG streams) or that holds sound
alone is counted from its first frame or sample.
"""

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av

from mmaudio_jax.errors import UserError

MPEG_TICK = Fraction(1, 90_000)  # seconds

# PyAV 18 refuses a file whose tags are not UTF-8, unless told otherwise; PyAV 19 has no such argument.
LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


class Streams(NamedTuple):
    """An open file, its first video stream that is not a cover picture, its first sound stream, and its time 0."""

    container: av.container.InputContainer
    video: av.VideoStream | None
    audio: av.AudioStream | None
    zero: Fraction


@contextlib.contextmanager
def open_container(path: str | os.PathLike) -> Iterator[av.container.InputContainer]:
    """Opens a file.

    Raises:
        UserError: no such file, no media file, corrupt.
    """
    if not Path(path).exists():
        raise UserError(f"{path}: no such file")
    try:
        container = av.open(f"file:{os.fspath(path)}", **LENIENT)  # a colon in the name means nothing
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"{path}: not a media file, or only a part of one ({error.strerror})") from None
    with container:
        if container.format.name == "tty":  # plain text passes as "ANSI art"
            raise UserError(f"{path}: a text file, not a media file")
        yield container


@contextlib.contextmanager
def open_streams(path: str | os.PathLike) -> Iterator[Streams]:
    """Opens a file for whoever reads its packets; errors as of `open_container`."""
    with open_container(path) as container:
        yield Streams(container, video_stream(container), audio_stream(container), zero(container))


def video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The first video stream that is not a cover picture."""
    cover = av.stream.Disposition.attached_pic
    return next((s for s in container.streams.video if s.codec_context and not s.disposition & cover), None)


def audio_stream(container: av.container.InputContainer) -> av.AudioStream | None:
    """The first sound stream."""
    return next((s for s in container.streams.audio if s.codec_context), None)


def need_video(container: av.container.InputContainer, path: str | os.PathLike) -> av.VideoStream:
    """As `video_stream`; a UserError if there is none."""
    stream = video_stream(container)
    if stream is None:
        raise UserError(f"{path}: no video stream in it")
    return stream


def need_audio(container: av.container.InputContainer, path: str | os.PathLike) -> av.AudioStream:
    """As `audio_stream`; a UserError if there is none."""
    stream = audio_stream(container)
    if stream is None:
        raise UserError(f"{path}: no audio track in it")
    return stream


def is_image(container: av.container.InputContainer) -> bool:
    """Whether it is one still picture."""
    return container.format.name == "image2" or container.format.name.endswith("_pipe")


def exact(seconds: float) -> Fraction:
    """The rational number that a float stands for, so that 0.04 is a frame's time at 25 fps."""
    return Fraction(seconds).limit_denominator(1_000_000)


def is_mpeg(container: av.container.InputContainer) -> bool:
    """Whether it is an MPEG stream: its clock begins anywhere, and it has no index."""
    return bool(container.format.flags & av.format.Flags.ts_discont.value)


def zero(container: av.container.InputContainer) -> Fraction:
    """Where the file's clock stands at time 0."""
    from_first = is_mpeg(container) or video_stream(container) is None
    if from_first and container.start_time is not None:
        return Fraction(container.start_time, av.time_base)
    return Fraction(0)


def start_of(container: av.container.InputContainer, stream: av.VideoStream | av.AudioStream) -> Fraction:
    """When a stream begins; 0 where its header does not say."""
    if stream.start_time is None:
        return Fraction(0)
    return stream.start_time * Fraction(stream.time_base) - zero(container)


def end_of(
    container: av.container.InputContainer, stream: av.VideoStream | av.AudioStream, path: str | os.PathLike
) -> Fraction:
    """When a stream ends: as its header says, else by its packets."""
    tick, begin = Fraction(stream.time_base), zero(container)
    if stream.duration is not None:
        return ((stream.start_time or 0) + stream.duration) * tick - begin
    with refusing(path, f"the {stream.type} is corrupt"):
        ends = [p.pts + (p.duration or 0) for p in container.demux(stream) if p.pts is not None]
        with contextlib.suppress(av.FFmpegError):  # back, so that another stream can be looked at
            container.seek(0)
    return max(ends) * tick - begin if ends else Fraction(0)


@contextlib.contextmanager
def refusing(path: str | os.PathLike, fault: str) -> Iterator[None]:
    """Turns what PyAV cannot do with a file into a `UserError` that says `fault`."""
    try:
        yield
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"{path}: {fault} ({getattr(error, 'strerror', None) or error})") from None
