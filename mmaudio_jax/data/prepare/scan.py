"""One pass over a whole media file, which goes on behind what is damaged in it."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from fractions import Fraction

import av

from mmaudio_jax.data.streams import Streams, open_streams


@dataclasses.dataclass(frozen=True)
class Scan:
    """What a pass has found; times in seconds.

    Attributes:
        video_end, audio_end: of the last frame and the last sample that can be decoded; None without such a stream.
        damaged: intervals that cannot be decoded; one that lasts to the end of the file ends at infinity.
    """

    video_end: float | None
    audio_end: float | None
    damaged: list[tuple[float, float]]


def scan(
    path: str | os.PathLike,
    see: Callable[[Fraction, Fraction, av.VideoFrame], None],
    hear: Callable[[Fraction, av.AudioFrame], None],
) -> Scan:
    """Decodes the first video and the first sound stream of a file together.

    Calls `see(time, end, frame)` and `hear(time, frame)` for every frame, in the order of the file.

    Raises:
        UserError: no such file, no media file.
    """
    with open_streams(path) as streams:
        tracks = {track.index: _Track(track, streams.zero) for track in (streams.video, streams.audio) if track}
        for packet, decoded in _decoded(streams):
            track = tracks[packet.stream.index]
            if decoded is None:
                track.lose()
                continue
            for frame in decoded:
                if frame.pts is None:
                    continue
                time, end = track.follow(frame)
                if isinstance(frame, av.VideoFrame):
                    see(time, end, frame)
                else:
                    hear(time, frame)
        ends = [float(tracks[track.index].stop()) if track else None for track in (streams.video, streams.audio)]
        damaged = [(float(start), float(end)) for track in tracks.values() for start, end in track.damaged]
        return Scan(*ends, sorted(damaged))


def _decoded(streams: Streams) -> Iterator[tuple[av.Packet, list[av.VideoFrame] | list[av.AudioFrame] | None]]:
    """Every packet with its frames, None where it cannot be decoded; ends where the file cannot be read on."""
    packets = streams.container.demux([track for track in (streams.video, streams.audio) if track])
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return
        if packet.size == 0 and packet.dts is not None:  # "the same frame again", in Ogg
            continue
        try:
            decoded = packet.decode()
        except av.FFmpegError:
            decoded = None
        yield packet, decoded


class _Track:
    """Follows the frames of one stream: where it ends, and which of it is damaged.

    Damage to a video lasts until its next key frame. What precedes the first lacks its references, and is no damage.
    """

    def __init__(self, stream: av.VideoStream | av.AudioStream, zero: Fraction):
        self._stream, self._tick, self._zero = stream, Fraction(stream.time_base), zero
        self._end = Fraction(0)
        self._started = False
        self._lost: Fraction | None = None  # since when nothing can be decoded
        self.damaged: list[tuple[Fraction, float | Fraction]] = []

    def lose(self) -> None:
        """A packet cannot be decoded."""
        if self._lost is None:
            self._lost = self._end

    def follow(self, frame: av.VideoFrame | av.AudioFrame) -> tuple[Fraction, Fraction]:
        """When a frame begins and ends."""
        time = frame.pts * self._tick - self._zero
        if isinstance(frame, av.VideoFrame):
            stands_alone, rate = frame.key_frame, self._stream.average_rate
            length = frame.duration * self._tick or (1 / Fraction(rate) if rate else 0)
        else:
            stands_alone, length = True, Fraction(frame.samples, frame.sample_rate)
        self._started |= stands_alone
        if frame.is_corrupt and self._started:
            self.lose()
        elif self._lost is not None and stands_alone:
            self.damaged.append((self._lost, time))
            self._lost = None
        self._end = max(self._end, time + length)
        return time, time + length

    def stop(self) -> Fraction:
        """The end of the stream; the padding of the last packet of sound does not count."""
        if self._lost is not None:
            self.damaged.append((self._lost, math.inf))
        stream = self._stream
        if isinstance(stream, av.AudioStream) and stream.duration is not None:
            return min(self._end, ((stream.start_time or 0) + stream.duration) * self._tick - self._zero)
        return self._end
