"""Videos with a new sound track: the picture copied or encoded, the sound as AAC."""

import heapq
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float

from mmaudio_jax.data import frames, media, streams
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_file


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
    duration = streams.exact(len(audio) / sample_rate if duration is None else duration)
    audio = np.clip(audio[: math.ceil(duration * sample_rate)], -1.0, 1.0)
    start = streams.exact(start)
    with streams.open_container(source) as container, atomic_file(path) as temporary:
        stream = streams.need_video(container, source)
        try:
            with av.open(f"file:{temporary}", "w", format="mp4", options={"movflags": "faststart"}) as output:
                has_place = start == 0 or not streams.is_mpeg(container)  # a copy begins at a key frame before `start`
                if stream.codec_context.name in output.supported_codecs and has_place:
                    video = _copied(output, container, stream, start, duration)
                else:
                    shown = media.video_frames(container, stream, source, start)
                    video = _encoded(output, shown, stream.average_rate, start, duration)
                sound_track = _aac(output, audio, sample_rate)
                by_time = heapq.merge(video, sound_track, key=lambda packet: float(packet.dts * packet.time_base))
                for packet in by_time:
                    output.mux(packet)
        except av.FFmpegError as error:
            raise UserError(f"{path}: cannot be made from {source} ({error.strerror})") from None


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
    begin = int((start + streams.zero(container)) / tick)
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
    target.codec_context.time_base = streams.MPEG_TICK
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
        picture.pts, picture.time_base = round(max(frame.time - start, 0) / streams.MPEG_TICK), streams.MPEG_TICK
        yield from target.encode(picture)
    yield from target.encode(None)


def _aac(output: av.container.OutputContainer, audio: Float[np.ndarray, " l"], sample_rate: int) -> Iterator[av.Packet]:
    stream = output.add_stream("aac", rate=sample_rate, layout="mono")
    stream.bit_rate = min(192_000, 6 * sample_rate)  # AAC allows six bits a sample
    frame = av.AudioFrame.from_ndarray(np.asarray(audio, np.float32)[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = sample_rate, 0, Fraction(1, sample_rate)
    yield from stream.encode(frame)
    yield from stream.encode(None)
