"""Media files in: what a file holds, its frames, its sound. Times are as of `streams`."""

import contextlib
import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from jaxtyping import Float, UInt8

from mmaudio_jax.data import audio as sound
from mmaudio_jax.data import frames, streams
from mmaudio_jax.errors import UserError

GAP = Fraction(1, 50)  # seconds: sound packets further apart than this leave a gap of silence
AUDIO_PREROLL = 1  # seconds decoded before an interval, for decoders that need a run-up
FILTER_REACH = 1  # seconds resampled beyond what is needed, so that its end is as within the whole: more than enough


@dataclasses.dataclass(frozen=True)
class MediaInfo:
    """What a media file holds; a stream that is not there has duration and start 0.

    Attributes:
        video_start, audio_start: seconds from time 0 to the beginning of each stream, as the file states them.
        video_duration, audio_duration: seconds from time 0 to the end of each stream, as the file states them.
        width, height: pixels as stored, before any rotation.
        is_image: the file is one still picture.
    """

    video_start: float
    audio_start: float
    video_duration: float
    audio_duration: float
    has_video: bool
    has_audio: bool
    is_image: bool
    width: int
    height: int
    sample_rate: int

    @property
    def duration(self) -> float:
        """Seconds that can be used: of the video, or of the sound in a file without video."""
        return self.video_duration if self.has_video else self.audio_duration


def probe(path: str | os.PathLike) -> MediaInfo:
    """Looks at a file's streams.

    Raises:
        UserError: no such file, no media file, corrupt.
    """
    with streams.open_container(path) as container:
        video, audio = streams.video_stream(container), streams.audio_stream(container)
        return MediaInfo(
            video_start=float(streams.start_of(container, video)) if video else 0.0,
            audio_start=float(streams.start_of(container, audio)) if audio else 0.0,
            video_duration=float(streams.end_of(container, video, path)) if video else 0.0,
            audio_duration=float(streams.end_of(container, audio, path)) if audio else 0.0,
            has_video=video is not None,
            has_audio=audio is not None,
            is_image=video is not None and streams.is_image(container),
            width=video.width if video else 0,
            height=video.height if video else 0,
            sample_rate=audio.sample_rate if audio else 0,
        )


def has_video(path: str | os.PathLike) -> bool:
    """Whether a file has a video stream, of which a cover picture is none; errors as of `probe`."""
    with streams.open_container(path) as container:
        return streams.video_stream(container) is not None


def read_frames(
    path: str | os.PathLike, start: float, duration: float
) -> tuple[UInt8[np.ndarray, "c 384 384 3"], UInt8[np.ndarray, "f 224 224 3"]]:
    """The frames of an interval for both encoders: c = int(8 · duration), f = int(25 · duration).

    Tick k is at start + k/fps and takes the first frame at or after that time; the last frame serves the ticks that
    fall within its own duration. `probe(path).duration` says how much there is.

    Raises:
        UserError: no such file, no media file, no video stream, too short, corrupt.
    """
    origin = streams.exact(start)
    clip, sync = frames.clip_ticks(origin, duration), frames.sync_ticks(origin, duration)
    with streams.open_container(path) as container:
        stream = streams.need_video(container, path)
        frame = None
        for frame in video_frames(container, stream, path, origin):
            clip.offer(frame)
            sync.offer(frame)
            if clip.complete and sync.complete:
                return clip.frames, sync.frames
        if frame is not None:
            clip.offer_last(frame)
            sync.offer_last(frame)
    if not (clip.complete and sync.complete):
        raise UserError(_too_short(path, "video", frame.end if frame else 0, start, duration))
    return clip.frames, sync.frames


def read_image(path: str | os.PathLike) -> UInt8[np.ndarray, "384 384 3"]:
    """A still picture (or the first frame of a video) for the CLIP encoder.

    Raises:
        UserError: no such file, no picture, corrupt.
    """
    with streams.open_container(path) as container:
        stream = streams.need_video(container, path)
        for frame in video_frames(container, stream, path, Fraction(0)):
            return frames.clip_frame(frame.image)
    raise UserError(f"{path}: no picture in it")


def read_audio(
    path: str | os.PathLike,
    start: float,
    duration: float,
    sample_rate: int,
    samples: int,
    end: float | None = None,
) -> Float[np.ndarray, " {samples}"]:
    """The sound of a clip for training: mean of the channels, peak 0.95, resampled, cut to `samples`.

    What is needed is [start, start + duration), or more where `samples`, which are whole latents, are more: if the
    file ends within these last milliseconds, they are silent. Of a video, the peak is that of the whole clip, which is
    resampled and then cut; of a file of sound alone it is that of the whole file, and what is needed is cut out before
    it is resampled.

    Args:
        path: a video or a file of sound alone.
        start: seconds.
        duration: seconds that must be there.
        sample_rate: Hz, of the result.
        samples: how many the result has.
        end: of the clip, seconds, where it is longer than what is needed.

    Raises:
        UserError: no such file, no media file, no audio track, too short, silent, corrupt.
    """
    begin, needed = streams.exact(start), max(streams.exact(duration), Fraction(samples, sample_rate))
    whole = needed if end is None else max(needed, streams.exact(end) - begin)
    of_video = has_video(path)
    audio, rate = _mono(path, begin, min(whole, needed + FILTER_REACH) if of_video else needed)
    if sound.resampled_length(len(audio), rate, sample_rate) < min(samples, int(duration * sample_rate)):
        raise UserError(_too_short(path, "sound", start + len(audio) / rate, start, duration))
    if sound.is_silent(audio[: math.ceil(needed * rate)]):
        raise UserError(f"{path}: the sound is silent from {start:g} s to {start + float(needed):g} s")
    peak = _peak(path, begin, whole) if of_video else _whole_peak(path)
    resampled = sound.resample(sound.normalise_peak(audio, peak), rate, sample_rate)[:samples]
    return np.pad(resampled, (0, samples - len(resampled)))


def _too_short(path: str | os.PathLike, what: str, end: float, start: float, needed: float) -> str:
    there = max(float(end) - start, 0.0)
    return f"{path}: too short: from {start:g} s on, the {what} has {there:.3f} s, and {needed:.3f} s are needed"


def _decode(
    container: av.container.InputContainer, stream: av.VideoStream | av.AudioStream, path: str | os.PathLike
) -> Iterator[tuple[Fraction, av.VideoFrame | av.AudioFrame]]:
    """(time, frame) for every frame of a stream; corrupt data raises `UserError`."""
    tick, zero = Fraction(stream.time_base), streams.zero(container)
    time, after_key = None, False
    try:
        for packet in container.demux(stream):
            if packet.size == 0 and packet.dts is not None:  # "the same frame again", in Ogg
                continue
            for frame in packet.decode():
                if frame.pts is None:
                    continue
                time = frame.pts * tick - zero
                after_key |= bool(getattr(frame, "key_frame", True))  # what precedes a key frame lacks its references
                if frame.is_corrupt and after_key:
                    raise UserError(f"{path}: corrupt at {float(time):.2f} s")
                yield time, frame
    except av.FFmpegError:
        place = "from its beginning" if time is None else f"after {float(time):.2f} s"
        raise UserError(f"{path}: the {stream.type} is corrupt {place}") from None


def video_frames(
    container: av.container.InputContainer, stream: av.VideoStream, path: str | os.PathLike, start: Fraction
) -> Iterator[frames.Frame]:
    """The frames from a key frame at or before `start` on."""
    stream.thread_type = "AUTO"
    tick = Fraction(stream.time_base)
    usual = 1 / Fraction(stream.average_rate) if stream.average_rate else Fraction(0)
    decoded = _decode(container, stream, path)
    if start > 0:
        with contextlib.suppress(av.FFmpegError):
            container.seek(int((start + streams.zero(container)) / tick), stream=stream)
        first = next(decoded, None)
        if first is None or first[0] > start:  # an index that leads too far
            with streams.refusing(path, "the video cannot be read from its beginning again"):
                container.seek(0)
            decoded = _decode(container, stream, path)
        else:
            decoded = itertools.chain([first], decoded)
    for time, frame in decoded:
        end = time + (frame.duration * tick if frame.duration else usual)
        yield frames.Frame(time, end, functools.partial(_rgb, frame, path))


def _rgb(frame: av.VideoFrame, path: str | os.PathLike) -> frames.Image:
    """The frame as (height, width, 3) uint8, turned as its display matrix says."""
    with streams.refusing(path, f"pictures of the kind {frame.format.name} cannot be used"):
        image = frame.to_ndarray(format="rgb24")
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 does not know the kind EXIF
        return np.rot90(image, round(frame.rotation / 90))
    if matrix is None:
        return image
    (a, b, _), (c, d, _), _ = np.frombuffer(matrix, np.int32).reshape(3, 3).tolist()  # x' = ax + cy, y' = bx + dy
    if abs(a) + abs(d) < abs(b) + abs(c):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _mono(path: str | os.PathLike, start: Fraction, seconds: Fraction) -> tuple[Float[np.ndarray, " l"], int]:
    """The mean of the channels over [start, start + seconds), less where the sound ends before; and its rate."""
    with streams.open_container(path) as container:
        stream = streams.need_audio(container, path)
        rate = stream.sample_rate
        audio = np.zeros(math.ceil(seconds * rate), np.float32)
        end = 0
        for index, block in _mono_blocks(container, stream, path, start, len(audio)):
            end = index + len(block)
            audio[index:end] = block
        return audio[:end], rate


@functools.lru_cache(maxsize=16)  # the clips of a long file come one after the other
def _whole_peak(path: str | os.PathLike) -> float:
    """The largest magnitude in a file, of the mean of its channels."""
    return _peak(path, Fraction(0), math.inf)


def _peak(path: str | os.PathLike, start: Fraction, seconds: Fraction | float) -> float:
    """The largest magnitude over [start, start + seconds), of the mean of the channels; 0 where there is no sound."""
    with streams.open_container(path) as container:
        stream = streams.need_audio(container, path)
        length = seconds if seconds == math.inf else math.ceil(seconds * stream.sample_rate)
        blocks = _mono_blocks(container, stream, path, start, length)
        return max((float(np.abs(block).max(initial=0.0)) for _, block in blocks), default=0.0)


def _mono_blocks(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    path: str | os.PathLike,
    start: Fraction,
    length: float,
) -> Iterator[tuple[int, Float[np.ndarray, " l"]]]:
    """(index, the mean of the channels) of every block within `length` samples from `start` on; gaps are left out."""
    rate = stream.sample_rate
    first = math.floor(start * rate + Fraction(1, 2))
    position = None  # of the next block
    seekable = Fraction(stream.time_base) == Fraction(1, rate)  # elsewhere times are too coarse to begin in between
    if seekable and stream.duration is not None:  # the last packet's padding does not count
        length = max(min(length, (stream.start_time or 0) + stream.duration - first), 0)
    if seekable and start > AUDIO_PREROLL:
        with contextlib.suppress(av.FFmpegError):
            container.seek(int((start - AUDIO_PREROLL) * rate), stream=stream)
    for time, frame in _decode(container, stream, path):
        if frame.sample_rate != rate:
            change = f"the sound changes from {rate} Hz to {frame.sample_rate} Hz at {float(time):.2f} s"
            raise UserError(f"{path}: {change}; convert the file to one sample rate")
        stated = math.floor(time * rate + Fraction(1, 2)) - first
        if position is None or abs(stated - position) > GAP * rate:
            position = stated
        with streams.refusing(path, f"the sound cannot be used at {float(time):.2f} s"):
            block = _channel_mean(frame)
        low, high = (min(max(at, 0), length) for at in (position, position + len(block)))
        yield low, block[low - position : high - position]
        position += len(block)
        if position >= length:
            return


def _channel_mean(frame: av.AudioFrame) -> Float[np.ndarray, " l"]:
    """The mean of a frame's channels; their number and the sample format may change from frame to frame."""
    parts = [part.to_ndarray().mean(axis=0) for part in av.AudioResampler(format="fltp").resample(frame)]
    return np.concatenate([np.zeros(0, np.float32), *parts])
