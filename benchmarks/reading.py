"""How fast a feature set reaches a step: `python benchmarks/reading.py [--batch 512] [--examples 1536] [--workers 0 2]`.

Makes sets of random examples of full size (8 s at 16 kHz), one after the other: ours in float32 and in bfloat16, and the
published memory maps. The stream's batches are counted in stored bytes, first with the files out of the page cache, if
the system lets them go, then from it, beside plain reads of the same files one after the other: into one block of 16 MB,
which a processor's cache may hold, and into memory of their own, as a batch needs it. Ratios are to the latter.
"""

import argparse
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
    """Reads all files, each into memory of its own."""
    for path in files(folder):
        np.fromfile(path, np.uint8)


def stream(features: FeatureSet, batch_size: int, count: int, workers: int) -> tuple[float, float]:
    """(seconds to the first batch, seconds of the `count` batches with it)."""
    start = time.perf_counter()
    batches = training_batches(features, range(len(features)), batch_size=batch_size, seed=0, workers=workers)
    next(batches)
    first = time.perf_counter() - start
    for _ in range(count - 1):
        next(batches)
    seconds = time.perf_counter() - start
    batches.close()
    return first, seconds


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
    args = parser.parse_args()
    count = args.examples // args.batch
    print("| set | pages | | MB/s | of the plain read | examples/s | first batch, s |\n|---|---|---|---|---|---|---|")
    for name, write in SETS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "set"
            write(folder, args.examples)
            features = open_features(folder)
            size = sum(path.stat().st_size for path in files(folder)) / 1e6
            share = size * count * args.batch / args.examples
            for pages in ("cold", "cached"):
                rows: dict[str, tuple[float, float | None]] = {}
                for what, function in (("plain read", read), ("plain read, kept", read_and_keep)):
                    if pages == "cold":
                        evict(folder)
                    else:
                        function(folder)
                    rows[what] = size / seconds_of(lambda: function(folder)), None  # noqa: B023 - called at once
                for workers in args.workers:
                    if pages == "cold":
                        evict(folder)
                    first, seconds = stream(features, args.batch, count, workers)
                    rows[f"stream, {workers} workers"] = share / seconds, first
                for what, (rate, first) in rows.items():
                    ratio = rate / rows["plain read, kept"][0]
                    of_stream = ["", ""] if first is None else [f"{rate * args.examples / size:.0f}", f"{first:.2f}"]
                    cells = [name, pages, what, f"{rate:.0f}", f"{ratio:.2f}", *of_stream]
                    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
