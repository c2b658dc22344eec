"""Media files in and out with PyAV: what a file holds, its frames, its sound, and videos with a new sound track.

Times are seconds of presentation time. A file whose clock does not begin at zero (MPEG streams) or that holds sound
alone is counted from its first frame or sample.
"""

import contextlib
import dataclasses
import functools
import heapq
import itertools
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import Float, UInt8

from mmaudio_jax.data import audio as sound
from mmaudio_jax.data import frames
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_file

GAP = Fraction(1, 50)  # seconds: sound packets further apart than this leave a gap of silence
AUDIO_PREROLL = 1  # seconds decoded before an interval, for decoders that need a run-up
MPEG_TICK = Fraction(1, 90_000)  # seconds

# PyAV 18 refuses a file whose tags are not UTF-8, unless told otherwise; PyAV 19 has no such argument.
LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


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


class Streams(NamedTuple):
    """An open file, its first video stream that is not a cover picture, its first sound stream, and its time 0."""

    container: av.container.InputContainer
    video: av.VideoStream | None
    audio: av.AudioStream | None
    zero: Fraction


def probe(path: str | os.PathLike) -> MediaInfo:
    """Looks at a file's streams.

    Raises:
        UserError: no such file, no media file, corrupt.
    """
    with _open(path) as container:
        video, audio = _video_stream(container), _audio_stream(container)
        return MediaInfo(
            video_start=float(_start(container, video)) if video else 0.0,
            audio_start=float(_start(container, audio)) if audio else 0.0,
            video_duration=float(_end(container, video, path)) if video else 0.0,
            audio_duration=float(_end(container, audio, path)) if audio else 0.0,
            has_video=video is not None,
            has_audio=audio is not None,
            is_image=video is not None and _is_image(container),
            width=video.width if video else 0,
            height=video.height if video else 0,
            sample_rate=audio.sample_rate if audio else 0,
        )


def has_video(path: str | os.PathLike) -> bool:
    """Whether a file has a video stream, of which a cover picture is none; errors as of `probe`."""
    with _open(path) as container:
        return _video_stream(container) is not None


def read_frames(
    path: str | os.PathLike, start: float, duration: float
) -> tuple[UInt8[np.ndarray, "c 384 384 3"], UInt8[np.ndarray, "f 224 224 3"]]:
    """The frames of an interval for both encoders: c = int(8 · duration), f = int(25 · duration).

    Tick k is at start + k/fps and takes the first frame at or after that time; the last frame serves the ticks that
    fall within its own duration. `probe(path).duration` says how much there is.

    Raises:
        UserError: no such file, no media file, no video stream, too short, corrupt.
    """
    origin = _exact(start)
    clip, sync = frames.clip_ticks(origin, duration), frames.sync_ticks(origin, duration)
    with _open(path) as container:
        stream = _need_video(container, path)
        frame = None
        for frame in _video_frames(container, stream, path, origin):
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
    with _open(path) as container:
        stream = _need_video(container, path)
        for frame in _video_frames(container, stream, path, Fraction(0)):
            return frames.clip_frame(frame.image)
    raise UserError(f"{path}: no picture in it")


def read_audio(
    path: str | os.PathLike, start: float, duration: float, sample_rate: int, samples: int
) -> Float[np.ndarray, " {samples}"]:
    """The sound of a clip for training: mean of the channels, peak 0.95, resampled, cut to `samples`.

    The clip is [start, start + duration), or longer where `samples`, which are whole latents, need more: if the file
    ends within these last milliseconds, they are silent. The peak is taken over all of it.

    Raises:
        UserError: no such file, no media file, no audio track, too short, silent, corrupt.
    """
    seconds = max(_exact(duration), Fraction(samples, sample_rate))
    audio, rate = _mono(path, _exact(start), seconds)
    if sound.resampled_length(len(audio), rate, sample_rate) < min(samples, int(duration * sample_rate)):
        raise UserError(_too_short(path, "sound", start + len(audio) / rate, start, duration))
    if sound.is_silent(audio):
        raise UserError(f"{path}: the sound is silent from {start:g} s to {start + float(seconds):g} s")
    resampled = sound.resample(sound.normalise_peak(audio), rate, sample_rate)[:samples]
    return np.pad(resampled, (0, samples - len(resampled)))


def write_video(
    path: str | os.PathLike,
    source: str | os.PathLike,
    audio: Float[np.ndarray, " l"],
    sample_rate: int,
    start: float = 0.0,
    duration: float | None = None,
) -> None:
    """Writes an .mp4 of the source's video from `start` on with `audio` as its sound, both `duration` seconds long.

    The video is copied as it is where mp4 can hold its codec, and encoded as H.264 elsewhere. A copy begins with the
    first frame at or after `start`, and may run over by the few frames that frames before the end are predicted from.
    `duration` is by default that of the sound.

    Raises:
        UserError: another suffix than .mp4; the source is no video, or corrupt.
    """
    if Path(path).suffix.lower() != ".mp4":
        raise UserError(f"{path}: a video is written as .mp4")
    duration = _exact(len(audio) / sample_rate if duration is None else duration)
    audio = np.clip(audio[: math.ceil(duration * sample_rate)], -1.0, 1.0)
    start = _exact(start)
    with _open(source) as container, atomic_file(path) as temporary:
        stream = _need_video(container, source)
        try:
            with av.open(f"file:{temporary}", "w", format="mp4", options={"movflags": "faststart"}) as output:
                has_place = start == 0 or not _is_mpeg(container)  # a copy begins at a key frame before `start`
                if stream.codec_context.name in output.supported_codecs and has_place:
                    video = _copied(output, container, stream, start, duration)
                else:
                    shown = _video_frames(container, stream, source, start)
                    video = _encoded(output, shown, stream.average_rate, start, duration)
                sound_track = _aac(output, audio, sample_rate)
                by_time = heapq.merge(video, sound_track, key=lambda packet: float(packet.dts * packet.time_base))
                for packet in by_time:
                    output.mux(packet)
        except av.FFmpegError as error:
            raise UserError(f"{path}: cannot be made from {source} ({error.strerror})") from None


# Opening, and times


@contextlib.contextmanager
def _open(path: str | os.PathLike) -> Iterator[av.container.InputContainer]:
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
    """Opens a file for whoever reads its packets; errors as of `probe`."""
    with _open(path) as container:
        yield Streams(container, _video_stream(container), _audio_stream(container), _zero(container))


def _video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The first video stream that is not a cover picture."""
    cover = av.stream.Disposition.attached_pic
    return next((s for s in container.streams.video if s.codec_context and not s.disposition & cover), None)


def _audio_stream(container: av.container.InputContainer) -> av.AudioStream | None:
    return next((s for s in container.streams.audio if s.codec_context), None)


def _need_video(container: av.container.InputContainer, path: str | os.PathLike) -> av.VideoStream:
    stream = _video_stream(container)
    if stream is None:
        raise UserError(f"{path}: no video stream in it")
    return stream


def _is_image(container: av.container.InputContainer) -> bool:
    return container.format.name == "image2" or container.format.name.endswith("_pipe")


def _exact(seconds: float) -> Fraction:
    """The rational number that a float stands for, so that 0.04 is a frame's time at 25 fps."""
    return Fraction(seconds).limit_denominator(1_000_000)


def _is_mpeg(container: av.container.InputContainer) -> bool:
    """Whether it is an MPEG stream: its clock begins anywhere, and it has no index."""
    return bool(container.format.flags & av.format.Flags.ts_discont.value)


def _zero(container: av.container.InputContainer) -> Fraction:
    """Where the file's clock stands at time 0."""
    from_first = _is_mpeg(container) or _video_stream(container) is None
    if from_first and container.start_time is not None:
        return Fraction(container.start_time, av.time_base)
    return Fraction(0)


def _start(container: av.container.InputContainer, stream: av.VideoStream | av.AudioStream) -> Fraction:
    """When a stream begins; 0 where its header does not say."""
    if stream.start_time is None:
        return Fraction(0)
    return stream.start_time * Fraction(stream.time_base) - _zero(container)


def _end(
    container: av.container.InputContainer, stream: av.VideoStream | av.AudioStream, path: str | os.PathLike
) -> Fraction:
    """When a stream ends: as its header says, else by its packets."""
    tick, zero = Fraction(stream.time_base), _zero(container)
    if stream.duration is not None:
        return ((stream.start_time or 0) + stream.duration) * tick - zero
    with _refusing(path, f"the {stream.type} is corrupt"):
        ends = [p.pts + (p.duration or 0) for p in container.demux(stream) if p.pts is not None]
    return max(ends) * tick - zero if ends else Fraction(0)


@contextlib.contextmanager
def _refusing(path: str | os.PathLike, fault: str) -> Iterator[None]:
    """Turns what PyAV cannot do with a file into a `UserError` that says `fault`."""
    try:
        yield
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"{path}: {fault} ({getattr(error, 'strerror', None) or error})") from None


def _too_short(path: str | os.PathLike, what: str, end: float, start: float, needed: float) -> str:
    there = max(float(end) - start, 0.0)
    return f"{path}: too short: from {start:g} s on, the {what} has {there:.3f} s, and {needed:.3f} s are needed"


# Decoding


def _decode(
    container: av.container.InputContainer, stream: av.VideoStream | av.AudioStream, path: str | os.PathLike
) -> Iterator[tuple[Fraction, av.VideoFrame | av.AudioFrame]]:
    """(time, frame) for every frame of a stream; corrupt data raises `UserError`."""
    tick, zero = Fraction(stream.time_base), _zero(container)
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


def _video_frames(
    container: av.container.InputContainer, stream: av.VideoStream, path: str | os.PathLike, start: Fraction
) -> Iterator[frames.Frame]:
    """The frames from a key frame at or before `start` on."""
    stream.thread_type = "AUTO"
    tick = Fraction(stream.time_base)
    usual = 1 / Fraction(stream.average_rate) if stream.average_rate else Fraction(0)
    decoded = _decode(container, stream, path)
    if start > 0:
        with contextlib.suppress(av.FFmpegError):
            container.seek(int((start + _zero(container)) / tick), stream=stream)
        first = next(decoded, None)
        if first is None or first[0] > start:  # an index that leads too far
            with _refusing(path, "the video cannot be read from its beginning again"):
                container.seek(0)
            decoded = _decode(container, stream, path)
        else:
            decoded = itertools.chain([first], decoded)
    for time, frame in decoded:
        end = time + (frame.duration * tick if frame.duration else usual)
        yield frames.Frame(time, end, functools.partial(_rgb, frame, path))


def _rgb(frame: av.VideoFrame, path: str | os.PathLike) -> frames.Image:
    """The frame as (height, width, 3) uint8, turned as its display matrix says."""
    with _refusing(path, f"pictures of the kind {frame.format.name} cannot be used"):
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
    with _open(path) as container:
        stream = _audio_stream(container)
        if stream is None:
            raise UserError(f"{path}: no audio track in it")
        rate = stream.sample_rate
        first = math.floor(start * rate + Fraction(1, 2))
        audio = np.zeros(math.ceil(seconds * rate), np.float32)
        position = None  # of the next sample in `audio`
        seekable = Fraction(stream.time_base) == Fraction(1, rate)  # elsewhere times are too coarse to begin in between
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
            with _refusing(path, f"the sound cannot be used at {float(time):.2f} s"):
                block = _channel_mean(frame)
            low, high = max(position, 0), min(position + len(block), len(audio))
            if low < high:
                audio[low:high] = block[low - position : high - position]
            position += len(block)
            if position >= len(audio):
                break
        end = position or 0
        if seekable and stream.duration is not None:  # the last packet's padding does not count
            end = min(end, (stream.start_time or 0) + stream.duration - first)
        return audio[: max(end, 0)], rate


def _channel_mean(frame: av.AudioFrame) -> Float[np.ndarray, " l"]:
    """The mean of a frame's channels; their number and the sample format may change from frame to frame."""
    parts = [part.to_ndarray().mean(axis=0) for part in av.AudioResampler(format="fltp").resample(frame)]
    return np.concatenate([np.zeros(0, np.float32), *parts])


# Encoding


def _copied(
    output: av.container.OutputContainer,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    start: Fraction,
    duration: Fraction,
) -> Iterator[av.Packet]:
    """The stream's packets as they are, with `start` as time 0; what is before it is there but not shown."""
    target = output.add_stream_from_template(stream)
    tick = Fraction(stream.time_base)
    begin = int((start + _zero(container)) / tick)
    end = begin + int(duration / tick)
    if start > 0:
        container.seek(begin, stream=stream)
    late: list[av.Packet] = []  # they start after the end, but an earlier frame may be predicted from them
    for packet in _dated(container.demux(stream)):
        if packet.dts >= end:
            break
        late.append(packet)
        if packet.pts < end:
            for kept in late:
                kept.pts, kept.dts, kept.stream = kept.pts - begin, kept.dts - begin, target
                yield kept
            late.clear()


def _dated(packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    """Non-empty packets; the decoding times that Matroska leaves out at the beginning are filled in."""
    undated: list[av.Packet] = []
    for packet in packets:
        if packet.size == 0:
            continue
        undated.append(packet)
        if packet.dts is not None:
            for step, earlier in enumerate(reversed(undated)):
                earlier.dts = packet.dts - step * (packet.duration or 1)
            yield from undated
            undated.clear()


def _encoded(
    output: av.container.OutputContainer,
    shown: Iterator[frames.Frame],
    rate: Fraction,
    start: Fraction,
    duration: Fraction,
) -> Iterator[av.Packet]:
    """The frames shown in the interval, upright, as H.264, with `start` as time 0."""
    target = output.add_stream("libx264", rate=rate, options={"crf": "18"})
    target.pix_fmt = "yuv420p"
    target.codec_context.time_base = MPEG_TICK
    target.width = 0
    for frame in shown:
        if frame.time >= start + duration:
            break
        if frame.end <= start:
            continue
        image = frame.image
        image = np.ascontiguousarray(image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2])
        if not target.width:
            target.height, target.width = image.shape[:2]
        picture = av.VideoFrame.from_ndarray(image, format="rgb24")
        picture.pts, picture.time_base = round(max(frame.time - start, 0) / MPEG_TICK), MPEG_TICK
        yield from target.encode(picture)
    yield from target.encode(None)


def _aac(output: av.container.OutputContainer, audio: Float[np.ndarray, " l"], sample_rate: int) -> Iterator[av.Packet]:
    stream = output.add_stream("aac", rate=sample_rate, layout="mono")
    stream.bit_rate = min(192_000, 6 * sample_rate)  # AAC allows six bits a sample
    frame = av.AudioFrame.from_ndarray(np.asarray(audio, np.float32)[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = sample_rate, 0, Fraction(1, sample_rate)
    yield from stream.encode(frame)
    yield from stream.encode(None)
