"""Renders scenes of the small world: mp4 files with sound, clips.tsv beside them, and what is true of each.

python -m mmaudio_jax.demo.render --count 1200 --seed 0 --materials wood metal drum --out demo_base/clips
"""

import argparse
import functools
import json
import math
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import tqdm

from mmaudio_jax import errors
from mmaudio_jax.data.table import write_table
from mmaudio_jax.data.workers import live_with_parent
from mmaudio_jax.demo import pictures, sounds
from mmaudio_jax.demo.world import MATERIALS, Contact, Scene, make_scene
from mmaudio_jax.files import atomic_file

FPS = 25


def render_clips(
    folder: str | os.PathLike,
    count: int,
    seed: int,
    duration: float = 8.0,
    materials: Sequence[str] = MATERIALS,
) -> Path:
    """Renders `count` mp4 files, 224×224 at 25 fps with sound at 44.1 kHz, and clips.tsv and scenes.json beside them.

    Each file is up to two frames longer than `duration` seconds, so that there is sound for whole latents at 44.1 kHz
    too. scenes.json holds each clip's kind, material and the times of its contacts, which nothing but the measures
    reads. Returns the path of clips.tsv.

    Args:
        folder: where.
        count: how many.
        seed: of the world; the same (seed, index) is the same scene.
        duration: seconds.
        materials: that take turns.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows, truth = [], {}
    paths = [folder / f"scene_{index:05d}.mp4" for index in range(count)]
    render = functools.partial(_render, seed=seed, materials=materials, duration=duration)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=spawn, initializer=live_with_parent) as pool:
        done = pool.map(render, range(count), paths)
        scenes = list(tqdm.tqdm(done, desc="rendering", total=count, unit=" clips", disable=None))
    for path, (kind, material, caption, contacts) in zip(paths, scenes, strict=True):
        times = {"start_time": "0", "end_time": f"{duration:g}"}
        original = {f"original_{name}": value for name, value in {"video": path.name, **times}.items()}
        rows.append({"id": path.stem, "video_path": path.name, **times, "caption": caption, **original})
        truth[path.stem] = {"kind": kind, "material": material, "contacts": [round(c.time, 4) for c in contacts]}
    table = folder / "clips.tsv"
    with atomic_file(folder / "scenes.json") as temporary:
        temporary.write_text(json.dumps(truth) + "\n")
    write_table(table, [{**row, "title_folder": "rendered"} for row in rows])
    return table


def _render(
    index: int, path: Path, seed: int, materials: Sequence[str], duration: float
) -> tuple[str, str, str, list[Contact]]:
    """Renders one scene; says its kind, material, caption and contacts."""
    scene = make_scene(seed, index, materials, duration)
    _write(path, scene, np.random.default_rng((seed, index, 1)), math.ceil(duration * FPS) + 1)
    return scene[:4]


def _write(path: Path, scene: Scene, rng: np.random.Generator, frames: int) -> None:
    with atomic_file(path) as temporary, av.open(f"file:{temporary}", "w", format="mp4") as output:
        video = output.add_stream("libx264", rate=FPS, options={"crf": "20", "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = pictures.SIZE, pictures.SIZE, "yuv420p"
        audio = output.add_stream("aac", rate=sounds.RATE, layout="mono")
        audio.bit_rate = 128_000
        for packet in sorted(_packets(video, audio, scene, rng, frames), key=lambda p: float(p.dts * p.time_base)):
            output.mux(packet)


def _packets(
    video: av.VideoStream, audio: av.AudioStream, scene: Scene, rng: np.random.Generator, frames: int
) -> Iterator[av.Packet]:
    palette = pictures.Palette(rng)
    for i in range(frames):
        picture = av.VideoFrame.from_ndarray(pictures.draw(scene, palette, i / FPS), format="rgb24")
        picture.pts, picture.time_base = i, Fraction(1, FPS)
        yield from video.encode(picture)
    yield from video.encode(None)
    track = sounds.play(scene, rng, frames * sounds.RATE // FPS)
    sound = av.AudioFrame.from_ndarray(track[None], format="fltp", layout="mono")
    sound.sample_rate, sound.pts, sound.time_base = sounds.RATE, 0, Fraction(1, sounds.RATE)
    yield from audio.encode(sound)
    yield from audio.encode(None)


@errors.main
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m mmaudio_jax.demo.render", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, required=True, help="scenes")
    parser.add_argument("--seed", type=int, required=True, help="of the world; (seed, index) is a scene")
    parser.add_argument("--materials", nargs="+", choices=MATERIALS, default=MATERIALS, help="that take turns")
    parser.add_argument("--out", type=Path, required=True, help="folder of the mp4 files, clips.tsv and scenes.json")
    args = parser.parse_args()
    for name, least in (("count", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise errors.UserError(f"--{name} is {getattr(args, name)}; it must be {least} or more")
    render_clips(args.out, args.count, args.seed, materials=args.materials)


if __name__ == "__main__":
    main()
