"""How fast weights load: `python benchmarks/load.py [--model large_44k_v2]`, as a share of a plain read of the bytes.

Makes a weights folder of random values, then reads its files one after the other, and loads it in float32 and in
bfloat16: first with the files out of the page cache, then from it.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint  # noqa: F401 - its import takes seconds that are not reading

from mmaudio_jax import trees, weights
from mmaudio_jax.models.mmaudio import PRESETS, MMAudio

CHUNK = 16 << 20


def files(folder: Path) -> list[Path]:
    """Every file below."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def evict(folder: Path) -> None:
    """Asks the system to forget the files' contents."""
    for path in files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read(folder: Path) -> None:
    """Reads all files, one after the other."""
    for path in files(folder):
        with open(path, "rb", buffering=0) as file:
            while file.read(CHUNK):
                pass


def load(folder: Path, dtype) -> None:
    """Loads the network and waits for it."""
    jax.block_until_ready(weights.load(folder, "mmaudio", dtype).params)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(PRESETS), default="large_44k_v2")
    config = PRESETS[parser.parse_args().model]
    rng = np.random.default_rng(0)
    shapes = trees.abstract(lambda: MMAudio(config, rngs=trees.UNDRAWN))[1]
    params = {path: rng.standard_normal(leaf.shape, np.float32) for path, leaf in shapes.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "weights"
        weights.save(folder, "mmaudio", config, params)
        del params
        size = sum(path.stat().st_size for path in files(folder)) / 1e9
        print(f"{size:.2f} GB in {len(files(folder))} files, on {jax.devices()[0].device_kind}")
        for state in ("from the disk", "from the page cache"):
            rates = {}
            for what, function in (
                ("plain read", lambda: read(folder)),
                ("load, float32", lambda: load(folder, jnp.float32)),
                ("load, bfloat16", lambda: load(folder, jnp.bfloat16)),
            ):
                if state == "from the disk":
                    evict(folder)
                start = time.perf_counter()
                function()
                rates[what] = size / (time.perf_counter() - start)
                share = rates[what] / rates["plain read"]
                print(f"{state:<22}{what:<16}{rates[what]:6.2f} GB/s  {share:5.2f} of the plain read", flush=True)


if __name__ == "__main__":
    main()
