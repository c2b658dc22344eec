"""A small world of short videos with sound: things move, and every impact is heard when it is seen."""

import math
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import Float, UInt8

from mmaudio_jax.data.table import write_table
from mmaudio_jax.files import atomic_file

WIDTH, HEIGHT, FPS, RATE = 320, 240, 25, 44_100
RADIUS = 22  # of a ball, pixels
TOP, FLOOR = 40.0, HEIGHT - 30.0 - RADIUS  # between which a ball's centre moves
LEFT, RIGHT = 64.0 + RADIUS, WIDTH - 64.0 - RADIUS  # within the central square
ROD, SWING = 110.0, 0.55  # a pendulum's length in pixels and greatest angle in radians
COLOURS = {"red": (214, 64, 56), "green": (70, 170, 90), "blue": (66, 110, 210), "yellow": (232, 190, 60)}
SKY, GROUND = (38, 42, 54), (92, 84, 76)

Image = UInt8[np.ndarray, "240 320 3"]


class Scene(NamedTuple):
    """What is seen at a time, when something is heard, one sound of it, and the caption."""

    draw: Callable[[float], Image]
    impacts: list[float]
    sound: Float[np.ndarray, " n"]
    caption: str


def render_clips(folder: str | os.PathLike, count: int, seed: int, duration: float = 8.0) -> Path:
    """Renders `count` mp4 files, 320×240 at 25 fps with sound at 44.1 kHz, and clips.tsv beside them.

    The scenes take turns; the same seed gives the same scenes. Each file is up to two frames longer than `duration`
    seconds, so that there is sound for whole latents at 44.1 kHz too. Returns the path of clips.tsv.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        scene = SCENES[i % len(SCENES)](np.random.default_rng((seed, i)), duration)
        path = folder / f"clip_{i:03d}.mp4"
        _write(path, scene, math.ceil(duration * FPS) + 1)
        times = {"start_time": "0", "end_time": f"{duration:g}"}
        original = {f"original_{name}": value for name, value in {"video": path.name, **times}.items()}
        rows.append({"id": path.stem, "video_path": path.name, **times, "caption": scene.caption, **original})
    table = folder / "clips.tsv"
    write_table(table, [{**row, "title_folder": "rendered"} for row in rows])
    return table


def _bouncing_ball(rng: np.random.Generator, duration: float) -> Scene:
    """A ball falls and rises again and again: a thud at every touch of the floor."""
    name = _colour(rng)
    period, first = rng.uniform(0.7, 1.4), rng.uniform(0.2, 0.6)

    def draw(t: float) -> Image:
        phase = (t - first) / period % 1
        height = 4 * phase * (1 - phase)  # a parabola, 0 at both impacts
        return _ball(_stage(), WIDTH / 2, FLOOR + (TOP - FLOOR) * height, COLOURS[name])

    impacts = list(np.arange(first, duration, period))
    return Scene(draw, impacts, _thud(rng.uniform(70, 120)), f"a {name} ball bounces on the floor with a dull thud")


def _ball_between_walls(rng: np.random.Generator, duration: float) -> Scene:
    """A ball rolls from wall to wall: a hard knock at every wall."""
    name = _colour(rng)
    crossing, first = rng.uniform(0.6, 1.2), rng.uniform(0.1, 0.5)

    def draw(t: float) -> Image:
        phase = (t - first) / crossing % 2
        return _ball(_stage(), LEFT + (RIGHT - LEFT) * min(phase, 2 - phase), FLOOR, COLOURS[name])

    impacts = list(np.arange(first, duration, crossing))
    return Scene(draw, impacts, _knock(rng), f"a {name} ball knocks against the walls, left and right")


def _flashing_lamp(rng: np.random.Generator, duration: float) -> Scene:
    """A lamp lights up at irregular times: a beep with every flash."""
    name = _colour(rng)
    impacts = list(np.cumsum(rng.uniform(0.5, 1.5, size=int(2 * duration) + 1)) - 0.3)
    impacts = [t for t in impacts if t < duration - 0.3]

    def draw(t: float) -> Image:
        lit = any(0 <= t - impact < 0.24 for impact in impacts)
        shade = COLOURS[name] if lit else tuple(c // 4 for c in COLOURS[name])
        return _ball(_stage(), WIDTH / 2, HEIGHT / 2 - 10, shade, radius=60 if lit else 50)

    return Scene(draw, impacts, _beep(rng.uniform(600, 1200)), f"a {name} lamp flashes and beeps")


def _swinging_bell(rng: np.random.Generator, duration: float) -> Scene:
    """A pendulum strikes a bell at the right end of every swing."""
    name = _colour(rng)
    period, first = rng.uniform(1.0, 1.8), rng.uniform(0.3, 0.7)
    bell = (WIDTH / 2 + ROD * math.sin(SWING) + 2 * RADIUS, ROD * math.cos(SWING))

    def draw(t: float) -> Image:
        angle = SWING * math.cos(2 * math.pi * (t - first) / period)
        image = _rod(_ball(_stage(), *bell, (200, 170, 90)), angle)
        return _ball(image, WIDTH / 2 + ROD * math.sin(angle), ROD * math.cos(angle), COLOURS[name])

    impacts = list(np.arange(first, duration, period))
    return Scene(draw, impacts, _chime(rng.uniform(400, 700)), f"a {name} pendulum rings a bell at every swing")


SCENES = (_bouncing_ball, _ball_between_walls, _flashing_lamp, _swinging_bell)


# Pictures


def _colour(rng: np.random.Generator) -> str:
    return str(rng.choice(list(COLOURS)))


def _stage() -> Image:
    image = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    image[:] = SKY
    image[round(FLOOR + RADIUS) :] = GROUND
    image[:, : round(LEFT - RADIUS)] = image[:, round(RIGHT + RADIUS) :] = GROUND
    return image


def _ball(image: Image, x: float, y: float, colour: tuple[int, ...], radius: float = RADIUS) -> Image:
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    image[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] = colour
    return image


def _rod(image: Image, angle: float) -> Image:
    """A thin rod that hangs from the middle of the upper edge."""
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    x = x - WIDTH / 2
    along, across = x * math.sin(angle) + y * math.cos(angle), x * math.cos(angle) - y * math.sin(angle)
    image[(along < ROD) & (np.abs(across) < 1.5)] = (150, 150, 150)
    return image


# Sounds: one impact each, of at most a second


def _decaying(seconds: float, decay: float) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Times, and an envelope that falls by e every `decay` seconds, with its ends rounded off."""
    t = np.arange(round(seconds * RATE)) / RATE
    return t, np.exp(-t / decay) * np.minimum(t / 0.002, 1) * np.minimum((seconds - t) / 0.02, 1)


def _thud(frequency: float) -> Float[np.ndarray, " n"]:
    t, envelope = _decaying(0.5, 0.08)
    return envelope * np.sin(2 * np.pi * frequency * (t + 0.03 * np.exp(-t / 0.03)))


def _knock(rng: np.random.Generator) -> Float[np.ndarray, " n"]:
    t, envelope = _decaying(0.2, 0.02)
    return envelope * (0.4 * rng.standard_normal(len(t)).clip(-2, 2) + 0.5 * np.sin(2 * np.pi * 900 * t))


def _beep(frequency: float) -> Float[np.ndarray, " n"]:
    t, envelope = _decaying(0.24, 10.0)
    return 0.6 * envelope * np.sin(2 * np.pi * frequency * t)


def _chime(frequency: float) -> Float[np.ndarray, " n"]:
    t, envelope = _decaying(1.0, 0.3)
    partials = ((1.0, 0.5), (2.76, 0.3), (5.40, 0.15))  # of a bar that is struck
    return envelope * sum(level * np.sin(2 * np.pi * ratio * frequency * t) for ratio, level in partials)


def _sound_track(scene: Scene, samples: int) -> Float[np.ndarray, " samples"]:
    track = np.zeros(samples + len(scene.sound))
    for impact in scene.impacts:
        start = round(impact * RATE)
        track[start : start + len(scene.sound)] += scene.sound
    return (0.8 * track[:samples] / max(np.abs(track).max(), 1e-9)).astype(np.float32)


# Files


def _write(path: Path, scene: Scene, frames: int) -> None:
    with atomic_file(path) as temporary, av.open(f"file:{temporary}", "w", format="mp4") as output:
        video = output.add_stream("libx264", rate=FPS, options={"crf": "20", "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = output.add_stream("aac", rate=RATE, layout="mono")
        audio.bit_rate = 128_000
        for packet in sorted(_packets(video, audio, scene, frames), key=lambda p: float(p.dts * p.time_base)):
            output.mux(packet)


def _packets(video: av.VideoStream, audio: av.AudioStream, scene: Scene, frames: int) -> Iterator[av.Packet]:
    for i in range(frames):
        picture = av.VideoFrame.from_ndarray(scene.draw(i / FPS), format="rgb24")
        picture.pts, picture.time_base = i, Fraction(1, FPS)
        yield from video.encode(picture)
    yield from video.encode(None)
    sound = av.AudioFrame.from_ndarray(_sound_track(scene, frames * RATE // FPS)[None], format="fltp", layout="mono")
    sound.sample_rate, sound.pts, sound.time_base = RATE, 0, Fraction(1, RATE)
    yield from audio.encode(sound)
    yield from audio.encode(None)
