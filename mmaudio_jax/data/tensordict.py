"""The published code's precomputed features: a TensorDict memory-map folder and the TSV beside it.

`meta.json` and raw little-endian float32 files `mean.memmap`, `std.memmap`, `text_features.memmap` and, for
video sets, `clip_features.memmap` and `sync_features.memmap`; the TSV has `id` and `label` (video sets) or
`caption` (audio sets).
"""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np

from mmaudio_jax.data.example import CAPTION_COLUMNS, TEXT_LENGTH, Metadata, StoredFeatures, example_shapes
from mmaudio_jax.data.table import Table, read_table
from mmaudio_jax.errors import UserError
from mmaudio_jax.sequence import CLIP_FPS, SYNC_FPS, VAE_FACTOR, AudioMode, lengths, mode_of

PUBLISHED = {
    "mean": "mean",
    "std": "std",
    "text_f": "text_features",
    "clip_f": "clip_features",
    "sync_f": "sync_features",
}
REQUIRED = ("mean", "std", "text_f")
META = "meta.json"


class TensorDictFeatures(StoredFeatures):
    """A memory-map folder as it lies, with the TSV of its name beside it; nothing is copied or converted."""

    def __init__(self, path: Path, *, damaged: bool = False):
        """Opens the folder with meta.json.

        Args:
            path: the folder.
            damaged: its table need not be there and fit; text features are read also where it has no caption.

        Raises:
            UserError: a file is missing or has another size than meta.json says, the lengths disagree, or the table is
                not one of its examples.
        """
        stored = _stored_shapes(path)
        mode, duration = _mode_and_duration(path, stored)
        dims = {f"{name}_dim": stored[f"{name}_f"][2] for name in ("clip", "sync", "text") if f"{name}_f" in stored}
        count = stored["mean"][0]
        super().__init__(path, Metadata(mode, duration, example_shapes(mode, duration, **dims), count))
        self._stored = stored
        self._maps: dict[str, np.ndarray] | None = None
        self._has_text = np.ones(count, bool)
        if not damaged:
            self._has_text[:] = [bool(caption.strip()) for caption in self.captions]

    def read(self, index: int) -> dict[str, np.ndarray]:
        """Copies one row of every file; text features of no words are left out."""
        if self._maps is None:
            self._maps = {
                name: np.memmap(file_of(self.path, name), "<f4", "r", shape=shape)
                for name, shape in self._stored.items()
            }
        there = {name: rows for name, rows in self._maps.items() if name != "text_f" or self._has_text[index]}
        return {name: np.array(rows[index], np.float32) for name, rows in there.items()}

    @property
    def paths(self) -> list[Path]:
        """As of `StoredFeatures`."""
        return [self.path / META, table_of(self.path), *(file_of(self.path, name) for name in self._stored)]

    def read_table(self) -> Table:
        """The TSV beside the folder."""
        table = table_of(self.path)
        if not table.is_file():
            raise UserError(f"the feature set {self.path} needs its table: put it at {table}")
        found = read_table(table)
        if not {*CAPTION_COLUMNS} & {*found.columns}:
            found.require("label")
        return found

    def table_name(self, index: int) -> str:
        """The TSV beside the folder."""
        return table_of(self.path).name

    def __getstate__(self):
        return {**super().__getstate__(), "_maps": None}  # a worker process maps the files itself


def table_of(path: Path) -> Path:
    """Where the table of a memory-map folder lies."""
    return path.parent / f"{path.name}.tsv"


def file_of(path: Path, name: str) -> Path:
    """Where an array lies; the names are ours, as meta.json could otherwise point out of its folder."""
    return path / f"{PUBLISHED[name]}.memmap"


def _stored_shapes(path: Path) -> dict[str, tuple[int, int, int]]:
    """{array: (count, length, channels)} by meta.json, the size of each file checked against it."""
    try:
        meta = json.loads((path / META).read_text())
        entries = {name: meta[key] for name, key in PUBLISHED.items() if key in meta}
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in entries.items()}
        dtypes = {name: entry["dtype"] for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / META} is not the description of a TensorDict memory map ({error})") from None
    missing = [PUBLISHED[name] for name in REQUIRED if name not in shapes]
    if missing or ("clip_f" in shapes) != ("sync_f" in shapes):
        missing = missing or [PUBLISHED[name] for name in ("clip_f", "sync_f") if name not in shapes]
        raise UserError(f"the feature set {path} lacks {', '.join(missing)}; extract the features again")
    for name, shape in shapes.items():
        if dtypes[name] != "torch.float32" or len(shape) != 3 or shape[0] != shapes["mean"][0]:
            raise UserError(
                f"the feature set {path} has {PUBLISHED[name]} as {dtypes[name]} {list(shape)}; it must be "
                f"torch.float32 with three axes, the first {shapes['mean'][0]} as in mean"
            )
        file = file_of(path, name)
        size = file.stat().st_size if file.is_file() else None
        if size != 4 * math.prod(shape):
            found = "is missing" if size is None else f"has {size} bytes"
            raise UserError(
                f"{file} {found} where meta.json says {4 * math.prod(shape)} bytes for {list(shape)}; copy it again"
            )
    return shapes


def _mode_and_duration(path: Path, shapes: dict[str, tuple[int, int, int]]) -> tuple[str, float]:
    """The duration is not stored: the roundest one that has these lengths."""
    _, latent, channels = shapes["mean"]
    mode = mode_of(channels)
    if mode is None:
        raise UserError(f"the feature set {path} has {channels} latent channels; 16k has 20 and 44k has 40")
    fitting = [duration for duration in _durations(latent, mode) if _fits(duration, mode, shapes)]
    if not fitting:
        found = ", ".join(f"{PUBLISHED[name]} {shape[1]}" for name, shape in shapes.items())
        raise UserError(f"the lengths in the feature set {path} do not belong to one duration: {found}")
    return mode.name, float(min(fitting, key=lambda duration: duration.denominator))


def _durations(latent: int, mode: AudioMode) -> list[Fraction]:
    """Durations that give `latent` frames, on the grid that tells all numbers of video frames apart."""
    grid = math.lcm(CLIP_FPS, SYNC_FPS)
    frame = Fraction(VAE_FACTOR * mode.hop, mode.sample_rate)
    return [
        Fraction(k, grid)
        for k in range(math.floor((latent - 1) * frame * grid) + 1, math.floor(latent * frame * grid) + 1)
    ]


def _fits(duration: Fraction, mode: AudioMode, shapes: dict[str, tuple[int, int, int]]) -> bool:
    try:
        length = lengths(float(duration), mode)
    except UserError:
        return False
    expected = {
        "mean": length.latent,
        "std": length.latent,
        "clip_f": length.clip,
        "sync_f": length.sync,
        "text_f": TEXT_LENGTH,
    }
    return all(shape[1] == expected[name] for name, shape in shapes.items())
