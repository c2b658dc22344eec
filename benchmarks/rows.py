"""What many rows cost: `python benchmarks/rows.py [--counts 1000 10000 100000 1000000]`; a million need 4 GB of disk.

Makes sets of so many of the smallest examples (0.64 s of sound alone, 3.5 kB each) and times, each in a process of its
own: the opening with the split by source; the opening up to the first batch of 8 of the shuffled stream; the whole
check; and an extraction that finds all of its clips done. Beside seconds and peak memory stand their ratios to those of
the count before: with tenfold rows, above 10 means that it grows faster than the set.
"""

import argparse
import contextlib
import io
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import workload  # noqa: F401 - puts the repository on the path

import numpy as np  # isort: skip

from mmaudio_jax.data.check.__main__ import check_features
from mmaudio_jax.data.clips import Clip
from mmaudio_jax.data.dataset import split, training_batches
from mmaudio_jax.data.example import Metadata, example_shapes
from mmaudio_jax.data.part import WHOLE, PartWriter, hash_values
from mmaudio_jax.data.records import open_features
from mmaudio_jax.extraction import KEY, extract, record_key
from mmaudio_jax.sequence import MIN_DURATION

MODE = "16k"
SHAPES = example_shapes(MODE, MIN_DURATION, clip_dim=1, sync_dim=1, text_dim=1)
METADATA = Metadata(MODE, MIN_DURATION, SHAPES, 0)
ENCODERS = SimpleNamespace(shapes=lambda *_: SHAPES, fingerprints=lambda _: {}, numerics="none")
SETTINGS = {**asdict(METADATA), "numerics": ENCODERS.numerics}
GIB = 2**30


def clips_of(folder: Path, count: int) -> list[Clip]:
    """A table's rows, ten of a source video; their files are gone."""
    rows = (
        {
            "id": f"{i:07d}",
            "caption": f"a sound, number {i}",
            "video_path": f"{i // 10:06d}.mp4",
            "start_time": str(i % 10),
            "end_time": str(i % 10 + 1),
        }
        for i in range(count)
    )
    return [
        Clip(row["id"], folder / row["video_path"], i % 10, i % 10 + 1, row["caption"], i + 2, row)
        for i, row in enumerate(rows)
    ]


def write(folder: Path, count: int) -> None:
    """A set as an extraction of these clips leaves it."""
    clips = clips_of(folder, count)
    ids = hash_values(clip.id for clip in clips)
    (folder / str(WHOLE)).mkdir(parents=True)
    rng = np.random.default_rng(0)
    with PartWriter(folder / str(WHOLE), METADATA, ids) as writer:
        for clip in clips:
            mean = rng.standard_normal(SHAPES["mean"], np.float32)
            row = {**clip.columns, KEY: record_key(clip, SETTINGS)}
            writer.append(row, {"mean": mean, "std": np.abs(mean) + 0.1})


def opening(folder: Path, count: int) -> None:
    split(open_features(folder), 0.1, 0)


def first_batch(folder: Path, count: int) -> None:
    next(training_batches(open_features(folder), range(count), batch_size=8, seed=0))


def checking(folder: Path, count: int) -> None:
    check_features(open_features(folder, damaged=True))


def extracting(folder: Path, count: int) -> None:
    extract(clips_of(folder, count), ENCODERS, folder, mode=MODE, duration=MIN_DURATION)


WORK: dict[str, Callable[[Path, int], None]] = {
    "write": write,
    "open and split": opening,
    "open, first batch": first_batch,
    "check": checking,
    "extract again": extracting,
}


def measure(function: Callable[[Path, int], None], folder: Path, count: int) -> tuple[float, float]:
    """(seconds, GiB at the peak of this process)."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        function(folder, count)
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - start, unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6])
    args = parser.parse_args()
    print("| rows | | s | by those before | GiB | by those before |\n|---|---|---|---|---|---|")
    before: dict[str, tuple[float, float]] = {}
    for count in args.counts:
        with tempfile.TemporaryDirectory() as temporary:
            for name, function in WORK.items():
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    found = pool.submit(measure, function, Path(temporary) / "set", count).result()
                ratios = [f"{now / then:.1f}" for now, then in zip(found, before.get(name, ()), strict=False)]
                before[name] = found
                (seconds, gib), (of_seconds, of_gib) = found, ratios or ["", ""]
                print(f"| {count} | {name} | {seconds:.3g} | {of_seconds} | {gib:.2f} | {of_gib} |", flush=True)


if __name__ == "__main__":
    main()
