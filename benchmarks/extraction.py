"""How fast clips become features: `python benchmarks/extraction.py [--full] [--clips 8] [--workers 1 2 4]`.

Renders clips of 8 s (640 × 480 at 25 frames/s, H.264 and AAC) and times their decoding alone, by worker processes; each
encoder alone, on a decoded clip; and the whole extraction, of whose time it tells how much the encoders wait for
decoding. Ratios are to the first number of workers. Networks are random: of full size with --full (on a CPU, minutes a
clip: take --clips 1), else small ones, whose times say what the decoding, the storage and the program itself cost.
"""

import argparse
import contextlib
import functools
import io
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import workload  # puts the repository on the path
from workload import timed

sys.path.insert(0, str(workload.ROOT / "tests"))

import jax
import numpy as np
from media_files import tone, write_media
from random_networks import save_random_weights

from mmaudio_jax import extraction, numerics, weights
from mmaudio_jax.data.clips import Clip, read_clips
from mmaudio_jax.data.table import write_table
from mmaudio_jax.data.workers import read_ahead
from mmaudio_jax.decoding import read_media
from mmaudio_jax.encoders import Encoders
from mmaudio_jax.models import clip, synchformer, vae

MODE, SECONDS = "16k", 8.0
FULL = {
    "clip": clip.PRESETS["clip"],
    "synchformer": synchformer.PRESETS["synchformer"],
    "vae_16k": vae.PRESETS["vae_16k"],
}
read = functools.partial(read_media, mode=MODE, duration=SECONDS)


def render(folder: Path, count: int) -> list[Clip]:
    """Clips of a moving pattern with a tone."""
    down, across, colours = np.ogrid[:480, :640, :3]
    pattern = (127 + 100 * np.sin(2 * np.pi * down / 160) * np.sin(2 * np.pi * across / 128 + colours)).astype(np.uint8)
    for i in range(count):
        write_media(
            folder / f"{i}.mp4",
            count=round(25 * SECONDS),
            size=(640, 480),
            audio=tone(SECONDS, 44_100, channels=2, frequency=200.0 + i),
            picture=lambda k, *_: np.roll(pattern, 3 * k, axis=1),
        )
    times = {"start_time": "0", "end_time": f"{SECONDS:g}"}
    rows = [{"id": str(i), "video_path": f"{i}.mp4", "caption": "a tone"} | times for i in range(count)]
    write_table(folder / "clips.tsv", rows)
    return read_clips(folder / "clips.tsv", folder)


def save_weights(folder: Path, full: bool) -> None:
    """Random networks under the released names."""
    if not full:
        save_random_weights(folder, 0)
        return
    for name, config in FULL.items():
        network = name.partition("_")[0]
        weights.save(folder / name, network, config, workload.random_weights(network, config).params)


def decode(clips: Sequence[Clip], workers: int) -> float:
    """Seconds of decoding all, from when every worker has started and given a clip."""
    with read_ahead([clips[0]] * workers + list(clips), read, workers) as ahead:
        for _ in range(workers):
            next(ahead)[1].result()
        start = time.perf_counter()
        for _, media in ahead:
            media.result()
        return time.perf_counter() - start


class Waiting:
    """In the place of `read_ahead`: counts the seconds that are waited for what it gives."""

    def __init__(self):
        self.seconds = 0.0

    @contextlib.contextmanager
    def __call__(self, *args, **options) -> Iterator[Iterator]:
        """As of `read_ahead`."""
        with read_ahead(*args, **options) as ahead:
            yield self._counted(ahead)

    def _counted(self, ahead: Iterator) -> Iterator:
        start = time.perf_counter()
        for found in ahead:  # as they are done
            self.seconds += time.perf_counter() - start
            yield found
            start = time.perf_counter()


def whole(clips: Sequence[Clip], encoders: Encoders, out: Path, workers: int) -> tuple[float, float]:
    """(seconds of an extraction, how many of them it waits for decoding)."""
    waiting = extraction.read_ahead = Waiting()
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        extraction.extract(clips, encoders, out, mode=MODE, duration=SECONDS, workers=workers)
    return time.perf_counter() - start, waiting.seconds


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--full", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_weights(folder / "weights", args.full)
        (folder / "videos").mkdir()
        clips = render(folder / "videos", args.clips)
        dtype = numerics.compute_dtype("auto")
        encoders = Encoders(folder / "weights", dtype=dtype, devices=jax.local_devices())
        print(f"{jax.devices()[0].device_kind}, {dtype.name}, {'full' if args.full else 'small'} networks")
        print("| | workers | clips/s | by the first | waiting for decoding |\n|---|---|---|---|---|")

        def report(what: str, workers: int | str, rate: float, first: float, waits: str = "") -> None:
            print(f"| {what} | {workers} | {rate:.3g} | {rate / first:.2f} | {waits} |", flush=True)

        first = None
        for workers in args.workers:
            rate = 2 * len(clips) / decode(clips * 2, workers)
            first = first or rate
            report("decoding", workers, rate, first)
        media = read(clips[0])
        for what, encode in {
            "CLIP, frames": lambda: encoders.encode_clip_frames(media.clip_frames[None]),
            "Synchformer": lambda: encoders.encode_sync_frames(media.sync_frames[None]),
            "VAE": lambda: encoders.encode_audio(media.audio[None], MODE),
            "CLIP, caption": lambda: encoders.encode_captions([clips[0].caption]),
        }.items():
            rate = 1 / timed(encode, 1 if args.full else 5)[1]
            report(what, "", rate, rate)
        first = None
        for workers in args.workers:
            seconds, waits = whole(clips, encoders, folder / f"set_{workers}", workers)
            first = first or len(clips) / seconds
            report("all", workers, len(clips) / seconds, first, f"{waits / seconds:.0%}")


if __name__ == "__main__":
    main()
