"""This project's own feature set: a folder of parts, each written by one process, one after another.

It opens when all of its parts are there, and says which are not.
"""

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mmaudio_jax.data import part
from mmaudio_jax.data.example import CONDITIONS, Batch, Metadata, StoredFeatures, widened
from mmaudio_jax.data.part import WHOLE, Layout, Part, PartName, PartWriter
from mmaudio_jax.data.shard import Records
from mmaudio_jax.data.table import Row, Table, read_table
from mmaudio_jax.data.tensordict import TensorDictFeatures
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_directory

COMMAND = "python -m mmaudio_jax.features --clips clips.tsv --root DIR --weights weights --out"


def open_features(path: str | os.PathLike, *, damaged: bool = False) -> StoredFeatures:
    """Opens a feature set, this project's own or a TensorDict memory-map folder, known by what lies in it.

    The table of a TensorDict folder is the TSV of the folder's name beside it.

    Args:
        path: the folder.
        damaged: open it also where files of a part are missing or too short, or the table is another than was written,
            to read what can be read.

    Raises:
        UserError: the folder, one of its parts or its table is missing, it is neither kind, or is damaged.
    """
    path = Path(path)
    if (path / "meta.json").is_file():
        return TensorDictFeatures(path, damaged=damaged)
    if path.is_file():
        raise UserError(f"{path} is a file and no feature set; `{COMMAND} data/mine` makes one of a table of clips")
    if not path.is_dir():
        if any(Path(word).is_dir() for word in re.split(r"[\s,*]+", str(path)) if word):
            raise UserError(f"there is no feature set {path}; where a command takes several, write `SET*3, SET, SET`")
        raise UserError(f"there is no feature set {path}; make it with `{COMMAND} {path}`")
    if PartName.parse(path.absolute().name):
        raise UserError(f"{path} is one part of a feature set; give the folder that holds it, {path.parent}")
    if (path / part.METADATA).is_file():
        raise UserError(
            f"{path} has schema version 1, this release reads {part.OLDEST} to {part.SCHEMA_VERSION}; extract the "
            "features again"
        )
    if not parts_in(path):
        raise UserError(f"{path} is not a feature set: it has neither parts nor the meta.json of a TensorDict")
    return RecordFeatures(path, damaged=damaged)


def parts_in(path: Path) -> set[PartName]:
    """The parts of a set that are there, or on their way."""
    names = (entry.name.removeprefix(".").removesuffix(".work") for entry in path.iterdir())
    return {name for name in map(PartName.parse, names) if name}


class FeatureWriter(contextlib.AbstractContextManager):
    """Writes a feature set of one part, whole or not at all: `with FeatureWriter(...) as w: w.append(row, arrays)`."""

    def __init__(
        self,
        path: str | os.PathLike,
        mode: str,
        duration: float,
        shapes: Mapping[str, tuple[int, int]],
        encoders: Mapping[str, str] | None = None,
        dtype: str = "float32",
    ):
        """Prepares a set.

        Args:
            path: the folder to make; it must not exist.
            mode, duration, shapes, encoders, dtype: as in `Metadata`.
        """
        self._path = path
        self._metadata = Metadata(mode, duration, dict(shapes), 0, dict(encoders or {}), dtype)

    def __enter__(self) -> "FeatureWriter":
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(atomic_directory(self._path)) / str(WHOLE)
            folder.mkdir()
            self._writer = stack.enter_context(PartWriter(folder, self._metadata))
            self._stack = stack.pop_all()
        return self

    def append(self, row: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> None:
        """Adds one example, as `PartWriter.append` does."""
        self._writer.append(row, arrays)

    def __len__(self) -> int:
        return len(self._writer)

    def __exit__(self, *error) -> bool | None:
        return self._stack.__exit__(*error)


class RecordFeatures(StoredFeatures):
    """A feature set that `FeatureWriter` or the extraction wrote."""

    def __init__(self, path: Path, *, damaged: bool = False):
        """Opens the folder; neither records nor the table are read yet.

        Args:
            path: the folder.
            damaged: the files of a part need not be there and whole, nor its captions those that were encoded.

        Raises:
            UserError: a part is missing, metadata and files do not go together, or the parts do not.
        """
        self._parts, self._damaged = _open_parts(path), damaged
        if not damaged:
            _check_files(self._parts)
        count = sum(found.metadata.count for found in self._parts)
        super().__init__(path, dataclasses.replace(self._parts[0].metadata, count=count))
        self._records = Records([(found.path / s.name, s.count) for found in self._parts for s in found.shards])

    def read_into(self, index: int, batch: Batch, place: int) -> None:
        """As of `FeatureSet`, straight from the file where the record is one that this release writes."""
        if not self._read_straight(range(len(self))[index], batch, place):
            super().read_into(index, batch, place)  # or says what is wrong

    def _read_straight(self, index: int, batch: Batch, place: int) -> bool:
        """Reads a record's bytes to where the arrays of such records go; whether it was such a record.

        Parsing a record and copying its arrays takes longer than reading it.
        """
        try:
            header, names, _ = self._layouts[self._records.size(index)]
            found = bytearray(len(header))
            self._records.read_into(index, [found, *(_bytes(batch[name][place : place + 1]) for name in names)])
        except (ValueError, KeyError):
            return False
        for name in CONDITIONS:
            if name not in names:
                batch[name][place] = 0
        batch["has_video"][place], batch["has_text"][place] = "clip_f" in names, "text_f" in names
        return found == header and 1 <= batch["latents"][place] <= self.metadata.shapes["mean"][0]

    @functools.cached_property
    def _layouts(self) -> dict[int, Layout]:
        """Of the set's records, by their size."""
        return {layout.size: layout for layout in part.layouts(self.metadata)}

    def read(self, index: int) -> dict[str, np.ndarray]:
        """Reads one record; several threads may read at once."""
        return widened(self.read_stored(index))

    def read_stored(self, index: int) -> dict[str, np.ndarray]:
        """As of `StoredFeatures`."""
        return part.unpack(self._records[index])

    def read_guarded(self, index: int) -> dict[str, np.ndarray]:
        """As of `StoredFeatures`, by the hash in the shard."""
        return widened(part.unpack(self._records.guarded(index)))

    def files(self) -> Iterator[tuple[range, str | None]]:
        """As of `StoredFeatures`, by size and SHA-256."""
        first = 0
        for found in self._parts:
            for shard in found.shards:
                yield range(first, first + shard.count), shard.fault(found.path, whole=True)
                first += shard.count

    @property
    def paths(self) -> list[Path]:
        """As of `StoredFeatures`."""
        return [
            found.path / name
            for found in self._parts
            for name in (part.METADATA, part.TABLE, *(shard.name for shard in found.shards))
        ]

    def read_table(self) -> Table:
        """The tables of all parts, one after another."""
        tables = [read_table(found.path / part.TABLE) for found in self._parts]
        if len(tables) == 1:
            return tables[0]
        columns = list(dict.fromkeys(name for table in tables for name in table.columns))
        rows, lines = ([x for table in tables for x in getattr(table, name)] for name in ("rows", "lines"))
        return Table(self.path / part.TABLE, columns, rows, lines)

    def check_rows(self, rows: Sequence[Row]) -> None:
        """By the hashes of ids and, unless the set may be damaged, captions that each part has."""
        for found, own in self._own(rows):
            found.check_rows(own)
            if not self._damaged:
                found.check_captions(own)

    def check_captions(self) -> bool:
        """As of `StoredFeatures`, by the hash that each part has."""
        for found, own in self._own(self.table.rows):
            found.check_captions(own)
        return all(found.captions for found in self._parts)

    def _own(self, rows: Sequence[Row]) -> Iterator[tuple[Part, Sequence[Row]]]:
        """Each part with its rows."""
        first = 0
        for found in self._parts:
            yield found, rows[first : first + found.metadata.count]
            first += found.metadata.count

    def table_name(self, index: int) -> str:
        """The file that the row of an example stands in."""
        return str((self._records.file(index).parent / part.TABLE).relative_to(self.path))


def _bytes(array: np.ndarray) -> memoryview:
    """Of an array's own memory; a ValueError if they do not lie one after another."""
    return memoryview(array.reshape(-1, copy=False).view(np.uint8))


def _open_parts(path: Path) -> list[Part]:
    """All parts, checked against each other."""
    names = parts_in(path)
    (count, *others) = {name.count for name in names}
    if others:
        raise UserError(f"{path} has parts of a set of {count} and of {others[0]}; remove those that do not belong")
    missing = [name for name in (PartName(i, count) for i in range(count)) if not (path / str(name)).is_dir()]
    if missing:
        shard = f" --shard {missing[0].index}/{count}" if count > 1 else ""
        raise UserError(
            f"the feature set {path} lacks {', '.join(map(str, missing))}; go on with `{COMMAND} {path}{shard}`"
        )
    parts = [part.read_part(path / str(name)) for name in sorted(names)]
    for found in parts:
        mine, theirs = _traits(parts[0]), _traits(found)
        if differ := [what for what in mine if mine[what] != theirs[what]]:
            raise UserError(
                f"{found.path} has another {', '.join(differ)} than {parts[0].path}: start its extraction again, or "
                "remove it first"
            )
    return parts


def _check_files(parts: Iterable[Part]) -> None:
    """Raises a UserError if a file of a part is missing or has another size than was written."""
    for found in parts:
        if not (found.path / part.TABLE).is_file():
            raise UserError(f"there is no table {found.path / part.TABLE}; start its extraction again")
        if fault := next(filter(None, (shard.fault(found.path, whole=False) for shard in found.shards)), None):
            raise UserError(f"{fault}; copy it again, or start its extraction again")


def _traits(found: Part) -> dict[str, object]:
    """What must be the same in all parts, by what it is called."""
    traits = dataclasses.asdict(dataclasses.replace(found.metadata, count=0))
    return traits | {"clips.tsv": found.clips}
