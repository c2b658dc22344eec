"""The feature example: what one clip becomes, what must hold of it, and what a set of them offers."""

import abc
import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import tqdm

from mmaudio_jax.data.table import Row, Table
from mmaudio_jax.errors import UserError
from mmaudio_jax.sequence import MODES, lengths

TEXT_LENGTH = 77
SIDES = ("train", "val", "test")
VIDEO = ("clip_f", "sync_f")
CONDITIONS = (*VIDEO, "text_f")
CAPTION_COLUMNS = ("caption", "label")
SOURCE_COLUMNS = ("original_video", "title_folder", "video_path", "id")
KEY = "record_key"  # column of an extracted set's table: all that decides an example, as the extraction names it

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}  # that conditions are stored in

Example = dict[str, np.ndarray]
"""mean, std (n, z) float32; clip_f (c, ·), sync_f (s, ·), text_f (t, ·) of the set's dtype; has_video, has_text bool;
latents int32: how many of the n latent frames are the clip's own, before the padding."""

Batch = dict[str, np.ndarray]
"""Examples stacked along a first axis."""


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What all examples of a set share.

    Attributes:
        mode: audio representation, '16k' or '44k'.
        duration: seconds.
        shapes: {array: (length, channels)} of mean, std, clip_f, sync_f and text_f.
        count: number of examples.
        encoders: {network: fingerprint of its weights}, where known.
        dtype: that clip_f, sync_f and text_f are stored in and reach the devices in, a key of `DTYPES`.
    """

    mode: str
    duration: float
    shapes: dict[str, tuple[int, int]]
    count: int
    encoders: dict[str, str] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"


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


def widened(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays, those in bfloat16 as float32, of which it is the upper half.

    ml_dtypes' own conversion takes several times as long.
    """
    return {name: _widened(array) if array.dtype == ml_dtypes.bfloat16 else array for name, array in arrays.items()}


def _widened(array: np.ndarray) -> np.ndarray:
    return np.left_shift(array.view(np.uint16), 16, dtype=np.uint32).view(np.float32)


def check_shapes(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, int]], dtype: str = "float32"
) -> None:
    """Checks what an example has: mean and std always; clip_f and sync_f both or not; text_f and latents or not.

    Args:
        arrays: of the example.
        shapes: that they must have.
        dtype: that clip_f, sync_f and text_f must have; mean and std are float32.

    Raises:
        ValueError: naming the array that is missing, does not belong there, has another shape or type, or is no number
            of latent frames.
    """
    if "latents" in arrays:
        latents, length = arrays["latents"], shapes["mean"][0]
        if latents.dtype != np.int32 or latents.shape != () or not 1 <= latents <= length:
            raise ValueError(f"latents is {latents.dtype} {latents.tolist()}, not an int32 from 1 to {length}")
        arrays = {name: array for name, array in arrays.items() if name != "latents"}
    video = [name for name in VIDEO if any(other in arrays for other in VIDEO)]
    for name in dict.fromkeys(["mean", "std", *video, *arrays]):
        if name not in arrays:
            raise ValueError(f"{name} is missing")
        if name not in shapes:
            raise ValueError(f"{name} does not belong to a feature example")
        array, wanted = arrays[name], dtype if name in CONDITIONS else "float32"
        if array.dtype != DTYPES[wanted] or array.shape != tuple(shapes[name]):
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {wanted} {tuple(shapes[name])}")


def check_arrays(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, int]]) -> None:
    """Checks one example: what arrays it has, and what is in them.

    Raises:
        ValueError: as of `check_shapes`; naming the array that is not finite, has an all-zero row, or is a standard
            deviation that is not positive.
    """
    check_shapes(arrays, shapes)
    for name, array in ((name, array) for name, array in arrays.items() if name in shapes):
        energy = np.einsum("nc,nc->n", array, array)
        if ((energy > 0) & (energy < np.inf)).all():
            continue  # one pass tells that all is well; only where it may not be, others tell what
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
        """The example; absent conditions are zeros with has_video or has_text false, absent latents all.

        Raises:
            UserError: it cannot be read, or its arrays are not those of the set (names set, row, id and array).
        """

    def read_into(self, index: int, batch: Batch, place: int) -> None:
        """Reads the example to its place in a batch, as of `__getitem__`; several threads may read at once."""
        for name, value in self[index].items():
            batch[name][place] = value

    @abc.abstractmethod
    def check_example(self, index: int) -> None:
        """Looks at what reading each time would take too long for: the values, and the hash, if one was kept.

        Raises:
            UserError: the example is damaged, as of `__getitem__`.
        """

    def check(self, indices: Sequence[int] | None = None) -> None:
        """Reads these examples, or all, once, so that a run need not stop for a damaged one in its middle.

        Raises:
            UserError: as of `check_example`, for the first damaged example.
        """
        indices = range(len(self)) if indices is None else indices
        for index in tqdm.tqdm(
            indices, desc=f"checking {self.path}", unit=" examples", delay=2, leave=False, disable=None
        ):
            self.check_example(index)

    @property
    @abc.abstractmethod
    def state(self) -> str:
        """A hash of the sizes and times of change of all its files: while it is the same, so are they."""

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
    def recipes(self) -> list[str]:
        """What decided the features of each example, but for a video's time of change; empty where it is not known."""

    @property
    @abc.abstractmethod
    def sides(self) -> list[str]:
        """One of `SIDES` an example, as the column `split` of its table says; empty where it says nothing.

        Raises:
            UserError: it says something else.
        """


class StoredFeatures(FeatureSet):
    """A folder of examples and the table that goes with it, row by row."""

    def __init__(self, path: Path, metadata: Metadata):
        super().__init__(path, metadata)
        if not metadata.count:
            raise UserError(f"the feature set {path} is empty")

    @functools.cached_property
    def table(self) -> Table:
        """Id and provenance of every example, read when they are first asked for; a UserError if they do not fit."""
        table = self.read_table()
        table.require("id")
        if len(table.rows) != len(self):
            raise UserError(
                f"the feature set {self.path} has {len(self)} examples but {table.path} has "
                f"{len(table.rows)} rows; they must go together line by line"
            )
        self.check_rows(table.rows)
        return table

    def __getstate__(self):
        # the examples themselves need no table: a worker process reads it again for the sake of a message
        return {name: value for name, value in self.__dict__.items() if name != "table"}

    def __getitem__(self, index: int) -> Example:
        """As of `FeatureSet`."""
        index = range(len(self))[index]
        with self._naming(index):
            arrays = self.read_stored(index)
            check_shapes(arrays, self.metadata.shapes, self.metadata.dtype)
        dtype = DTYPES[self.metadata.dtype]
        zeros = {name: np.zeros(self.metadata.shapes[name], dtype) for name in CONDITIONS if name not in arrays}
        latents = np.int32(arrays.get("latents", self.metadata.shapes["mean"][0]))
        has_video, has_text = np.bool_("clip_f" in arrays), np.bool_("text_f" in arrays)
        return arrays | zeros | {"has_video": has_video, "has_text": has_text, "latents": latents}

    def check_example(self, index: int) -> None:
        """As of `FeatureSet`."""
        with self._naming(index):
            check_arrays(self.read_guarded(index), self.metadata.shapes)

    @contextlib.contextmanager
    def _naming(self, index: int) -> Iterator[None]:
        """Raises a UserError that names the example for a ValueError within."""
        try:
            yield
        except ValueError as error:
            raise UserError(
                f"the feature set {self.path} is damaged at row {self.table.lines[index]} of "
                f"{self.table_name(index)} (id {self.ids[index]!r}): {error}; extract that clip again or leave it out"
            ) from None

    @abc.abstractmethod
    def read(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of one example in float32, without what it lacks; a ValueError if they cannot be read."""

    def read_stored(self, index: int) -> dict[str, np.ndarray]:
        """As of `read`, clip_f, sync_f and text_f in the dtype that they are stored in."""
        return self.read(index)

    def read_guarded(self, index: int) -> dict[str, np.ndarray]:
        """As of `read`, also a ValueError if they are not those that a hash was kept of, where one was."""
        return self.read(index)

    def files(self) -> Iterator[tuple[range, str | None]]:
        """The examples of each file in turn, and what is wrong with it by the hash that was kept, if one was."""
        yield range(len(self)), None

    @property
    def state(self) -> str:
        """As of `FeatureSet`."""
        found = ((path.name, path.stat()) for path in self.paths)
        said = [[name, about.st_size, about.st_mtime_ns] for name, about in found]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    @property
    @abc.abstractmethod
    def paths(self) -> list[Path]:
        """All files that it is made of, in a fixed order."""

    @abc.abstractmethod
    def read_table(self) -> Table:
        """Reads the table, as it lies in files."""

    def check_rows(self, rows: Sequence[Row]) -> None:
        """Raises a UserError if as many rows as examples are others than were written, where something tells."""

    def check_captions(self) -> bool:
        """Whether hashes of the captions that were encoded have been kept; a UserError if those of the table differ."""
        return False

    @abc.abstractmethod
    def table_name(self, index: int) -> str:
        """The file, within the set, that the row of an example stands in."""

    @property
    def ids(self) -> list[str]:
        """As of `FeatureSet`."""
        return [row["id"] for row in self.table.rows]

    @property
    def captions(self) -> list[str]:
        """As of `FeatureSet`."""
        return [caption_of(row) for row in self.table.rows]

    @property
    def sources(self) -> list[str]:
        """As of `FeatureSet`."""
        return [source_of(row) for row in self.table.rows]

    @property
    def recipes(self) -> list[str]:
        """As of `FeatureSet`."""
        return [recipe_of(row) for row in self.table.rows]

    @property
    def sides(self) -> list[str]:
        """As of `FeatureSet`."""
        sides = [row.get("split", "").strip() for row in self.table.rows]
        for i, side in enumerate(sides):
            if side not in ("", *SIDES):
                raise UserError(
                    f"the feature set {self.path} has the split {side!r} in row {self.table.lines[i]} of "
                    f"{self.table_name(i)} (id {self.ids[i]!r}); it must be {', '.join(SIDES)}"
                )
        return sides


def caption_of(row: Row) -> str:
    """What is heard in the example of a row: what stands in the first of `CAPTION_COLUMNS` that its table has."""
    return next((row[name] for name in CAPTION_COLUMNS if name in row), "")


def source_of(row: Row) -> str:
    """The video that the example of a row was cut from: what stands in the first of `SOURCE_COLUMNS` that is filled."""
    return next((row[name] for name in SOURCE_COLUMNS if row.get(name, "").strip()), "")


def recipe_of(row: Row) -> str:
    """What decided the features of a row's example: its `KEY`, which is HASH-SIZE-TIME, without the time."""
    digest, *about = row.get(KEY, "").split("-")
    return "-".join([digest, *about[:1], *about[2:]])
