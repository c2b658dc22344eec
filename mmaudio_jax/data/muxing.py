"""Videos with a new sound track: the picture copied or encoded, the sound as AAC."""

import heapq
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float

from mmaudio_jax.data import frames, media, mp4, streams
from mmaudio_jax.data.tags import checked
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_file

PICTURE_RATE = 5  # frames a second of a still picture: enough to seek in
PICTURE_SIZE = 1920  # pixels of its longer side at most: photographs are larger than what plays as a video
ROUNDING = Fraction(1, 1000)  # seconds: a start so close to a frame is that frame


def write_video(
    path: str | os.PathLike,
    source: str | os.PathLike,
    audio: Float[np.ndarray, " l"],
    sample_rate: int,
    start: float = 0.0,
    duration: float | None = None,
    *,
    encode: bool = False,
    tags: Mapping[str, str] | None = None,
) -> str:
    """Writes an .mp4 of the source's video from `start` on with `audio` as its sound, both `duration` seconds long.

    The video is copied, packet by packet, with its times and its rotation. It begins with the frame that the source
    shows at `start` and ends with the sound; frames beyond, from which others are predicted, are there but not shown.
    What cannot be copied, a codec that mp4 cannot hold or a still picture, is encoded as H.264.

    Args:
        path: of the result.
        source: a video, or a still picture, which is shown all the time.
        audio: values beyond ±1 are clipped; if it is too short, silence follows.
        sample_rate: Hz.
        start: seconds.
        duration: seconds; by default that of the sound.
        encode: whether to encode a video that could be copied.
        tags: title and comment of the file.

    Returns:
        Why the video was encoded; empty if it was copied.

    Raises:
        UserError: another suffix than .mp4; the source is no video, ends before `start`, or is corrupt.
    """
    if Path(path).suffix.lower() != ".mp4":
        raise UserError(f"{path}: a video is written as .mp4")
    samples = len(audio) if duration is None else round(streams.exact(duration) * sample_rate)
    audio = np.clip(audio[:samples], -1.0, 1.0)
    audio = np.pad(audio, (0, samples - len(audio)))
    # A player reads how long tracks are in units of the whole file: samples, or the sound's length is rounded.
    options = {"movflags": "faststart", "movie_timescale": str(sample_rate)}
    with streams.open_container(source) as container, atomic_file(path) as temporary:
        stream = streams.need_video(container, source)
        try:
            with av.open(f"file:{temporary}", "w", format="mp4", options=options) as output:
                output.metadata.update(checked(tags))
                remark = _why_encoded(output, container, stream, encode)
                write = _encoded if remark else _copied
                video = write(output, container, stream, source, streams.exact(start), Fraction(samples, sample_rate))
                video = _to_the_end(video) if remark else video
                by_time = heapq.merge(
                    video, _aac(output, audio, sample_rate), key=lambda packet: float(packet.dts * packet.time_base)
                )
                for packet in by_time:
                    output.mux(packet)
        except av.FFmpegError as error:
            raise UserError(f"{path}: cannot be made from {source} ({error.strerror})") from None
        mp4.end_at(temporary, samples)
    return remark


def _why_encoded(
    output: av.container.OutputContainer,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    asked: bool,
) -> str:
    codec = stream.codec_context.codec
    if streams.is_image(container):
        return "encoded as H.264: the source is a still picture"
    if codec.name not in output.supported_codecs:
        return f"encoded as H.264: mp4 cannot hold {codec.canonical_name}"
    return "encoded as H.264, as asked" if asked else ""


def _ends_before(source: str | os.PathLike, start: Fraction) -> UserError:
    return UserError(f"{source}: the video has no frame from {float(start):g} s on")


# Copying


def _copied(
    output: av.container.OutputContainer,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    source: str | os.PathLike,
    start: Fraction,
    duration: Fraction,
) -> Iterator[av.Packet]:
    """The stream's packets as they are, with `start` as time 0; what is before it has negative times."""
    target = output.add_stream_from_template(stream, opaque=True)  # also of a codec that has no encoder here
    if stream.codec_context.codec.canonical_name == "hevc":
        target.codec_context.codec_tag = "hvc1"  # of its two names the one that all players know
    lead, packets, tick = _until(container, stream, start)
    begin = math.floor((start + streams.zero(container)) / tick)
    if max((packet.pts + (packet.duration or 0) for packet in lead), default=-math.inf) < begin:
        raise _ends_before(source, start)
    begin = _show_first(lead, begin, int(ROUNDING / tick))
    end = begin + math.ceil(duration / tick)
    if min((packet.pts for packet in lead), default=math.inf) >= end:
        raise _ends_before(source, start)
    for packet in itertools.chain(lead, packets):
        is_last = packet.dts >= end  # later than what is shown, and seen by none: the frame before it lasts until `end`
        packet.pts, packet.dts, packet.stream = packet.pts - begin, packet.dts - begin, target
        yield packet
        if is_last:
            return


def _until(
    container: av.container.InputContainer, stream: av.VideoStream, start: Fraction
) -> tuple[list[av.Packet], Iterator[av.Packet], Fraction]:
    """The packets from the last key frame at or before `start` to the first decoded after it; all that follow; tick."""
    begin = start + streams.zero(container)
    split = math.ceil(stream.time_base / streams.MPEG_TICK)  # AVI counts in frames
    tick = Fraction(stream.time_base) / split
    packets = _timed(container.demux(stream), split)
    if start > 0 and not streams.is_mpeg(container):  # which has no index: it is read from its beginning
        try:
            container.seek(math.floor(begin / stream.time_base), stream=stream)
            first = next(packets, None)
        except av.FFmpegError:
            first = None
        if first is None or first.pts * tick > begin:  # an index that leads too far
            container.seek(0)
            packets = _timed(container.demux(stream), split)
        else:
            packets = itertools.chain([first], packets)
    lead: list[av.Packet] = []
    for packet in packets:
        if packet.is_keyframe and packet.pts * tick <= begin:
            lead.clear()
        if not lead and not packet.is_keyframe:  # a stream that is cut in between: nothing can be seen yet
            continue
        lead.append(packet)
        if packet.dts * tick > begin:
            break
    return lead, packets, tick


def _timed(packets: Iterator[av.Packet], split: int) -> Iterator[av.Packet]:
    """Non-empty packets, their ticks split, and the times that Matroska (decoding) and AVI (showing) leave out."""
    undated: list[av.Packet] = []
    for packet in packets:
        if packet.size == 0:
            continue
        undated.append(packet)
        if packet.dts is not None:
            dts, step = packet.dts, packet.duration or 1
            for earlier in reversed(undated):
                pts, duration = dts if earlier.pts is None else earlier.pts, earlier.duration or 0
                earlier.pts, earlier.dts, earlier.duration = pts * split, dts * split, duration * split
                earlier.time_base /= split
                dts -= step
            yield from undated
            undated.clear()


def _show_first(lead: list[av.Packet], begin: int, rounding: int) -> int:
    """Makes the frame that is shown at `begin` one that begins there; returns where, at most `rounding` later."""
    shown = max((packet for packet in lead if packet.pts <= begin + rounding), key=lambda p: p.pts, default=None)
    if shown is None:  # the video begins later
        return begin
    shown.pts = max(shown.pts, begin)
    return shown.pts


# Encoding


def _encoded(
    output: av.container.OutputContainer,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    source: str | os.PathLike,
    start: Fraction,
    duration: Fraction,
) -> Iterator[av.Packet]:
    """The frames shown in the interval, upright, as H.264, with `start` as time 0."""
    is_picture = streams.is_image(container)
    rate = PICTURE_RATE if is_picture else stream.average_rate
    target = output.add_stream("libx264", rate=rate, options={"crf": "18", "flags": "+frame_duration"})
    target.codec_context.time_base = streams.MPEG_TICK
    target.width = 0
    shown = media.video_frames(container, stream, source, Fraction(0) if is_picture else start)
    before = None
    for begin, end, frame in (_held if is_picture else _within)(shown, start, start + duration):
        if frame is not before:
            largest = PICTURE_SIZE if is_picture else math.inf
            picture = _picture(frame.image, _colorspace(stream.codec_context), largest)
            before = frame
        if not target.width:
            target.width, target.height = picture.width, picture.height
            _describe(target, stream, frame.image)
        picture.time_base = streams.MPEG_TICK
        picture.pts, until = (round((time - start) / streams.MPEG_TICK) for time in (begin, end))
        picture.duration = until - picture.pts
        yield from target.encode(picture)
    if not target.width:
        raise _ends_before(source, start)
    yield from target.encode(None)


def _to_the_end(packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    """The packets, the last of which is said to last as long as the track does.

    The file tells how long a track is by its decoding times, whose last need not be the last that is shown.
    """
    last = next(packets)
    begin, end, decoded = last.pts, last.pts + last.duration, last.dts
    for packet in packets:
        yield last
        begin, end, last = min(begin, packet.pts), max(end, packet.pts + packet.duration), packet
    last.duration = (end - begin) - (last.dts - decoded)
    yield last


def _within(
    shown: Iterator[frames.Frame], start: Fraction, end: Fraction
) -> Iterator[tuple[Fraction, Fraction, frames.Frame]]:
    """(from, until, frame) of what is seen within an interval: a frame stays until the next one comes."""
    now = start  # the clock of a broken file may go back
    for frame, following in itertools.pairwise(itertools.chain(shown, [None])):
        if frame.time >= end:
            return
        begin, until = max(frame.time, now), min(following.time if following else frame.end, end)
        if until > begin:
            yield begin, until, frame
            now = until


def _held(
    shown: Iterator[frames.Frame], start: Fraction, end: Fraction
) -> Iterator[tuple[Fraction, Fraction, frames.Frame]]:
    """As `_within` of a still picture, which is seen all the time."""
    for frame in itertools.islice(shown, 1):
        for count in range(math.ceil((end - start) * PICTURE_RATE)):
            begin = start + Fraction(count, PICTURE_RATE)
            yield begin, min(begin + Fraction(1, PICTURE_RATE), end), frame


def _picture(image: frames.Image, colorspace: int, largest: float) -> av.VideoFrame:
    """The frame as the encoder takes it: YUV, of even size by one more row or column like the last, or made smaller."""
    image = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")
    scale = min(1, largest / max(image.shape))
    height, width = (2 * round(scale * size / 2) for size in image.shape[:2])
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return frame.reformat(width, height, "yuv420p", dst_colorspace=colorspace)


def _colorspace(source: av.VideoCodecContext) -> int:
    """Which matrix makes YUV of RGB: that of the source, so that colours come back as they were."""
    return av.video.reformatter.Colorspace.ITU709 if source.format.is_rgb else source.colorspace


def _describe(target: av.VideoStream, stream: av.VideoStream, image: frames.Image) -> None:
    """What the numbers of the encoded frames mean, and the shape of their pixels."""
    context, source = target.codec_context, stream.codec_context
    context.colorspace = _colorspace(source)
    context.color_primaries, context.color_trc = source.color_primaries, source.color_trc
    if aspect := stream.sample_aspect_ratio:
        upright = image.shape[:2] == (stream.height, stream.width)
        context.sample_aspect_ratio = aspect if upright else 1 / aspect


def _aac(output: av.container.OutputContainer, audio: Float[np.ndarray, " l"], sample_rate: int) -> Iterator[av.Packet]:
    stream = output.add_stream("aac", rate=sample_rate, layout="mono")
    stream.bit_rate = min(192_000, 6 * sample_rate)  # AAC allows six bits a sample
    frame = av.AudioFrame.from_ndarray(np.asarray(audio, np.float32)[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = sample_rate, 0, Fraction(1, sample_rate)
    yield from stream.encode(frame)
    yield from stream.encode(None)
