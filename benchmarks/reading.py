"""How fast feature sets reach a step: `python benchmarks/reading.py [--batch 512] [--examples 1536] [--workers 0 2]`.

Makes sets of random examples of full size (8 s at 16 kHz), one after the other: ours in float32 and in bfloat16, and
the published memory maps. Epochs of the stream are timed and counted in stored bytes: one from its opening with the
files out of the page cache, if the system lets them go; then, from the page cache, those of a stream that has come to
speed. Beside them stand plain reads of the same files one after the other: into one block of 16 MB, over and over, and
into memory of their own, as a batch needs it.
"""

import argparse
import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import workload  # noqa: F401 - puts the repository on the path
from load import evict, files, read

import numpy as np  # isort: skip

from mmaudio_jax.data.dataset import training_batches
from mmaudio_jax.data.example import FeatureSet, example_shapes
from mmaudio_jax.data.records import FeatureWriter, open_features
from mmaudio_jax.data.table import write_table
from mmaudio_jax.data.tensordict import PUBLISHED, file_of, table_of

MODE, SECONDS = "16k", 8.0
SHAPES = example_shapes(MODE, SECONDS)
PLAIN, KEPT = "plain read", "plain read, kept"


def examples(count: int) -> Iterator[dict[str, np.ndarray]]:
    """Random examples: one, turned by as many frames as its number says."""
    rng = np.random.default_rng(0)
    arrays = {name: 0.1 + np.abs(rng.standard_normal(shape, np.float32)) for name, shape in SHAPES.items()}
    return ({name: np.roll(array, i, axis=0) for name, array in arrays.items()} for i in range(count))


def write_records(folder: Path, count: int, dtype: str) -> None:
    """A set of this project."""
    with FeatureWriter(folder, MODE, SECONDS, SHAPES, dtype=dtype) as writer:
        for i, arrays in enumerate(examples(count)):
            writer.append({"id": str(i), "caption": "a sound"}, arrays)


def write_maps(folder: Path, count: int) -> None:
    """A set of the published tools."""
    folder.mkdir()
    meta = {
        PUBLISHED[name]: {"dtype": "torch.float32", "shape": [count, *shape], "device": "cpu"}
        for name, shape in SHAPES.items()
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    maps = {name: np.memmap(file_of(folder, name), "<f4", "w+", shape=(count, *SHAPES[name])) for name in SHAPES}
    for i, arrays in enumerate(examples(count)):
        for name, array in arrays.items():
            maps[name][i] = array
    for stored in maps.values():
        stored.flush()
    write_table(table_of(folder), [{"id": str(i), "label": "a sound"} for i in range(count)])


SETS: dict[str, Callable[[Path, int], None]] = {
    "records, float32": lambda folder, count: write_records(folder, count, "float32"),
    "records, bfloat16": lambda folder, count: write_records(folder, count, "bfloat16"),
    "memory maps, float32": write_maps,
}


def read_and_keep(folder: Path) -> None:
    """Reads all files in turn, each into memory of its own."""
    for path in files(folder):
        np.fromfile(path, np.uint8)


def stream(features: FeatureSet, batch_size: int, workers: int, epochs: int) -> list[float]:
    """Seconds until the batches of an epoch are there, of each of the epochs of a stream from its opening."""
    start = time.perf_counter()
    batches = training_batches(features, range(len(features)), batch_size=batch_size, seed=0, workers=workers)
    ends = [start]
    for _ in range(epochs):
        for _ in range(len(features) // batch_size):
            next(batches)
        ends.append(time.perf_counter())
    batches.close()
    return np.diff(ends).tolist()


def seconds_of(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--examples", type=int, default=1536)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=3, help="from the page cache; the fastest of each counts")
    args = parser.parse_args()
    if args.examples % args.batch:
        parser.error("--examples must be a multiple of --batch")
    print(f"| set | files | | MB/s | examples/s | by {PLAIN} | by {KEPT} |\n|---|---|---|---|---|---|---|")
    for name, write in SETS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "set"
            write(folder, args.examples)
            features = open_features(folder)
            size = sum(path.stat().st_size for path in files(folder)) / 1e6
            for pages, rounds in (("cold", 1), ("cached", args.rounds)):
                seconds = dict.fromkeys((PLAIN, KEPT), float("inf"))
                for way, run in ((PLAIN, read), (KEPT, read_and_keep)) * rounds:
                    if pages == "cold":
                        evict(folder)
                    seconds[way] = min(seconds[way], seconds_of(functools.partial(run, folder)))
                for workers in args.workers:
                    if pages == "cold":
                        evict(folder)
                    epochs = stream(features, args.batch, workers, 1 if pages == "cold" else 1 + rounds)
                    seconds[f"stream, {workers} workers"] = min(epochs[-rounds:])
                for way, found in seconds.items():
                    rates = [f"{size / found:.0f}", f"{args.examples / found:.0f}"]
                    shares = [f"{seconds[plain] / found:.2f}" for plain in (PLAIN, KEPT)]
                    print(f"| {' | '.join([name, pages, way, *rates, *shares])} |", flush=True)


if __name__ == "__main__":
    main()
