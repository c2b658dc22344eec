"""Small media files for the tests: every video frame carries its own number as stripes, every sound is known."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 10


def numbered_frame(number: int, width: int = 128, height: int = 128) -> np.ndarray:
    """(height, width, 3) uint8: the bits of `number` as black and white stripes, the lowest leftmost; grey below."""
    stripe = np.arange(width) * BITS // width
    row = np.where(number >> stripe & 1, 235, 20).astype(np.uint8)
    image = np.broadcast_to(row[None, :, None], (height, width, 3)).copy()
    image[height * 7 // 8 :] = 100
    return image


def frame_number(image: np.ndarray) -> int:
    """The number that a (height, width, 3) image of whole width carries."""
    height, width = image.shape[:2]
    centres = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    bits = image[height // 2, centres].mean(axis=-1) > 128
    return int((bits << np.arange(BITS)).sum())


def tone(seconds: float, rate: int, channels: int = 1, frequency: float = 440.0) -> np.ndarray:
    """(channels, n) float32; channel c has amplitude 0.5 / (c + 1)."""
    wave = np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)
    return np.stack([0.5 / (c + 1) * wave for c in range(channels)]).astype(np.float32)


def write_media(
    path: Path,
    *,
    fps: Fraction | int = 25,
    count: int = 25,
    times: list[Fraction] | None = None,
    size: tuple[int, int] = (128, 128),
    codec: str | None = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict | None = None,
    audio: np.ndarray | None = None,
    rate: int = 44_100,
    audio_codec: str = "aac",
    audio_first: bool = False,
    audio_start: Fraction = Fraction(0),
    container_options: dict | None = None,
    title: str = "",
    picture: Callable[[int, int, int], np.ndarray] = numbered_frame,
) -> Path:
    """Writes numbered frames (at `times`, or `count` of them at `fps`) and the sound `audio` (channels, n).

    `picture(i, width, height)` draws other frames.
    """
    layout = {1: "mono", 2: "stereo", 6: "5.1"}
    with av.open(f"file:{path}", "w", options=container_options or {}) as output:
        output.metadata["title"] = title
        order = ("audio", "video") if audio_first else ("video", "audio")
        for kind in order:
            if kind == "audio" and audio is not None:
                sound = output.add_stream(audio_codec, rate=rate, layout=layout[len(audio)])
            if kind == "video" and codec is not None:
                video = output.add_stream(codec, rate=Fraction(fps), options={"crf": "18", **(options or {})})
                video.width, video.height, video.pix_fmt = *size, pix_fmt
                if times is not None:
                    video.codec_context.time_base = Fraction(1, 90_000)
        packets = []
        if codec is not None:
            tick = Fraction(1, 90_000) if times is not None else 1 / Fraction(fps)
            for i, time in enumerate(times if times is not None else [k * tick for k in range(count)]):
                frame = av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")
                frame.pts, frame.time_base = round(time / tick), tick
                packets += video.encode(frame)
            packets += video.encode(None)
        if audio is not None:
            frame = av.AudioFrame.from_ndarray(audio, format="fltp", layout=layout[len(audio)])
            frame.sample_rate, frame.pts, frame.time_base = rate, round(audio_start * rate), Fraction(1, rate)
            resampler = av.AudioResampler(format=sound.format.name, layout=sound.layout.name, rate=rate)
            for part in resampler.resample(frame):
                packets += sound.encode(part)
            packets += sound.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)
    return path


def set_display_matrix(path: Path, matrix: list[list[int]]) -> None:
    """Writes the 2×2 part of the display matrix into the first track of an .mp4 (rows (a, b) and (c, d))."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    (a, b), (c, d) = matrix
    data[place : place + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def decoded(path: Path) -> tuple[list[Fraction], Fraction, list[np.ndarray]]:
    """All frames' times, the end of the last, and the images, as PyAV gives them."""
    with av.open(str(path)) as container:
        all_frames = list(container.decode(video=0))
        times = [f.pts * Fraction(f.time_base) for f in all_frames]
        end = times[-1] + all_frames[-1].duration * Fraction(all_frames[-1].time_base)
        return times, end, [f.to_ndarray(format="rgb24") for f in all_frames]


def numbers(images: np.ndarray) -> list[int]:
    return [frame_number(image) for image in images]


def save_small_videos(root: Path) -> Path:
    """Three videos of 1.28 s that can be used, and others that cannot, or not by all; returns the folder."""
    root.mkdir()
    for i in range(3):
        write_media(root / f"{i}.mp4", count=32, audio=tone(1.28, 44_100, channels=2, frequency=200.0 * (i + 1)))
    write_media(root / "mute.mp4", count=32)
    write_media(root / "silent.mp4", count=32, audio=0 * tone(1.28, 44_100))
    write_media(root / "short.mp4", count=20, audio=tone(1.28, 44_100))
    write_media(root / "sound.wav", codec=None, audio=tone(1.28, 44_100), audio_codec="pcm_s16le")
    write_media(root / "brief.wav", codec=None, audio=tone(0.7, 44_100), audio_codec="pcm_s16le")
    (root / "text.mp4").write_text("no video")
    return root
