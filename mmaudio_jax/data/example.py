"""The feature example: what one clip becomes, what must hold of it, and what a set of them offers."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tqdm

from mmaudio_jax.data.table import Row, Table
from mmaudio_jax.errors import UserError
from mmaudio_jax.sequence import MODES, lengths

TEXT_LENGTH = 77
SIDES = ("train", "val", "test")
VIDEO = ("clip_f", "sync_f")
SOURCE_COLUMNS = ("original_video", "title_folder", "video_path", "id")

Example = dict[str, np.ndarray]
"""mean, std (n, z), clip_f (c, ·), sync_f (s, ·), text_f (t, ·) float32; has_video, has_text bool."""


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What all examples of a set share.

    Attributes:
        mode: audio representation, '16k' or '44k'.
        duration: seconds.
        shapes: {array: (length, channels)} of mean, std, clip_f, sync_f and text_f.
        count: number of examples.
        encoders: {network: fingerprint of its weights}, where known.
    """

    mode: str
    duration: float
    shapes: dict[str, tuple[int, int]]
    count: int
    encoders: dict[str, str] = dataclasses.field(default_factory=dict)


def example_shapes(
    mode: str, duration: float, *, clip_dim: int = 1024, sync_dim: int = 768, text_dim: int = 1024
) -> dict[str, tuple[int, int]]:
    """(length, channels) of every array of an example that lasts `duration` seconds."""
    length = lengths(duration, MODES[mode])
    return {
        "mean": (length.latent, MODES[mode].latent_dim),
        "std": (length.latent, MODES[mode].latent_dim),
        "clip_f": (length.clip, clip_dim),
        "sync_f": (length.sync, sync_dim),
        "text_f": (TEXT_LENGTH, text_dim),
    }


def check_arrays(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, int]]) -> None:
    """Checks one example: mean and std always; clip_f and sync_f together or not at all; text_f or not.

    Raises:
        ValueError: naming the array that is missing, has another shape or type, is not finite, has an
            all-zero row, or is a standard deviation that is not positive.
    """
    video = [name for name in VIDEO if any(other in arrays for other in VIDEO)]
    for name in dict.fromkeys(["mean", "std", *video, *arrays]):
        if name not in arrays:
            raise ValueError(f"{name} is missing")
        if name not in shapes:
            raise ValueError(f"{name} does not belong to a feature example")
        array = arrays[name]
        if array.dtype != np.float32 or array.shape != tuple(shapes[name]):
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not float32 {tuple(shapes[name])}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has values that are not finite")
        if not array.any(axis=-1).all():
            raise ValueError(f"{name} has a row of zeros ({int(np.argmin(array.any(axis=-1)))})")
    if not (arrays["std"] > 0).all():
        raise ValueError("std has values that are not positive")


class FeatureSet(abc.ABC):
    """A sequence of feature examples.

    Attributes:
        path: the set's folder, or what else tells a reader which set it is.
        metadata: what the examples share.
    """

    def __init__(self, path: Path | str, metadata: Metadata):
        self.path, self.metadata = path, metadata

    def __len__(self) -> int:
        return self.metadata.count

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Example:
        """The example, checked; absent conditions are zeros with has_video or has_text false.

        Raises:
            UserError: the example is damaged (names set, row, id and array).
        """

    def check(self, indices: Sequence[int] | None = None) -> None:
        """Reads these examples, or all, once, so that a run need not stop for a damaged one in its middle.

        Raises:
            UserError: as of `__getitem__`, for the first damaged example.
        """
        indices = range(len(self)) if indices is None else indices
        for index in tqdm.tqdm(
            indices, desc=f"checking {self.path}", unit=" examples", delay=2, leave=False, disable=None
        ):
            self[index]

    @property
    @abc.abstractmethod
    def ids(self) -> list[str]:
        """One id an example."""

    @property
    @abc.abstractmethod
    def captions(self) -> list[str]:
        """One caption an example; empty where there is none."""

    @property
    @abc.abstractmethod
    def sources(self) -> list[str]:
        """The video that each example was cut from: the first of `SOURCE_COLUMNS` that its row fills."""

    @property
    @abc.abstractmethod
    def sides(self) -> list[str]:
        """One of `SIDES` an example, as the column `split` of its table says; empty where it says nothing.

        Raises:
            UserError: it says something else.
        """


class StoredFeatures(FeatureSet):
    """A folder of examples and the table that goes with it, row by row.

    Attributes:
        table: id and provenance of every example.
    """

    caption_column = "caption"

    def __init__(self, path: Path, metadata: Metadata, table: Table):
        super().__init__(path, metadata)
        self.table = table
        table.require("id")
        if len(table.rows) != metadata.count:
            raise UserError(
                f"the feature set {path} has {metadata.count} examples but {table.path} has "
                f"{len(table.rows)} rows; they must go together line by line"
            )
        if not metadata.count:
            raise UserError(f"the feature set {path} is empty")

    def __getitem__(self, index: int) -> Example:
        """As of `FeatureSet`."""
        row = self.table.rows[index]
        try:
            arrays = self.read(index)
            check_arrays(arrays, self.metadata.shapes)
        except ValueError as error:
            raise UserError(
                f"the feature set {self.path} is damaged at row {self.table.lines[index]} of "
                f"{self.table.path.name} (id {row['id']!r}): {error}; extract that clip again or leave it out"
            ) from None
        zeros = {k: np.zeros(shape, np.float32) for k, shape in self.metadata.shapes.items() if k not in arrays}
        has_text = "text_f" in arrays and bool(row.get(self.caption_column, "").strip())
        return arrays | zeros | {"has_video": np.bool_("clip_f" in arrays), "has_text": np.bool_(has_text)}

    @abc.abstractmethod
    def read(self, index: int) -> dict[str, np.ndarray]:
        """The arrays that are stored for one example; a ValueError if they cannot be read."""

    @property
    def ids(self) -> list[str]:
        """As of `FeatureSet`."""
        return [row["id"] for row in self.table.rows]

    @property
    def captions(self) -> list[str]:
        """As of `FeatureSet`."""
        return [row.get(self.caption_column, "") for row in self.table.rows]

    @property
    def sources(self) -> list[str]:
        """As of `FeatureSet`."""
        return [_source(row) for row in self.table.rows]

    @property
    def sides(self) -> list[str]:
        """As of `FeatureSet`."""
        sides = [row.get("split", "").strip() for row in self.table.rows]
        for side, line in zip(sides, self.table.lines, strict=True):
            if side not in ("", *SIDES):
                raise UserError(f"{self.table.path} row {line}: the split is {side!r}; it must be {', '.join(SIDES)}")
        return sides


def _source(row: Row) -> str:
    return next(row[name] for name in SOURCE_COLUMNS if row.get(name, "").strip())
