"""Golden checkpoints taken through the real converter."""

import functools
import tempfile

from convert.conversion import convert
from mmaudio_jax import weights


@functools.lru_cache(maxsize=1)
def load_converted(golden, filename: str) -> weights.Weights:
    """The published file of this name, written, converted and loaded; nothing stays on disk, the last one in memory."""
    with tempfile.TemporaryDirectory() as folder:
        source = golden.recipe.write_checkpoint(filename, folder, golden.seed)
        report = convert(source, folder, quiet=True)
        source.unlink()
        return weights.load(report.directory, report.network)
