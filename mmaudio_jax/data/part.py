"""A part of this project's feature set: the folder that one process writes, whole.

part-00000-of-00002/
  metadata.json              what its examples share, and its shards with their sizes and hashes
  clips.tsv                  row i belongs to record i, counted over the shards
  failed.tsv                 clips that could not be used, with the reason; only if there are some
  shard-00000.array_record   records, each the arrays of one example in safetensors form
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
from jaxtyping import UInt8

from mmaudio_jax.data.example import CONDITIONS, DTYPES, VIDEO, Metadata, check_arrays, example_shapes
from mmaudio_jax.data.table import Row, read_table, write_table
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import sha256

SCHEMA_VERSION, OLDEST = 3, 2  # what is written, and what is still read: without `ids` and `captions`
METADATA, TABLE, FAILED = "metadata.json", "clips.tsv", "failed.tsv"
STORED = {"F32": DTYPES["float32"], "BF16": DTYPES["bfloat16"], "I32": np.dtype(np.int32)}
SHARD_BYTES = 256 * 2**20  # of records in a shard at most; one that is larger has a shard of its own


class PartName(NamedTuple):
    """The `index`-th, from 0, of `count` parts."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"part-{self.index:05d}-of-{self.count:05d}"

    def block(self, total: int) -> range:
        """The rows of a table of `total` that the part takes; those of all parts follow one another."""
        return range(total * self.index // self.count, total * (self.index + 1) // self.count)

    @classmethod
    def parse(cls, name: str) -> "PartName | None":
        """The part that a folder of this name is, if it is one."""
        found = re.fullmatch(r"part-(\d{5})-of-(\d{5})", name)
        return cls(int(found[1]), int(found[2])) if found and int(found[1]) < int(found[2]) else None


WHOLE = PartName(0, 1)


def pack(arrays: Mapping[str, np.ndarray], dtype: str) -> bytes:
    """The record of an example: its conditions in `dtype`, one of `DTYPES`, the rest as it is."""
    kinds = dict.fromkeys(CONDITIONS, DTYPES[dtype] if dtype == "bfloat16" else None)
    return safetensors.numpy.save({k: np.asarray(v, kinds.get(k), order="C") for k, v in arrays.items()})


def unpack(record: bytes | UInt8[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    """The arrays of a record, as they are stored; `latents` is int32.

    They are views of the record: safetensors' own reader would copy each.

    Raises:
        ValueError: it is damaged.
    """
    try:
        data = memoryview(record)
        begin = _begin(data)
        header = json.loads(data[8:begin].tobytes())
        arrays, data = {}, data[begin:]
        for name, about in header.items():
            first, last = about["data_offsets"]
            arrays[name] = np.frombuffer(data[first:last], STORED[about["dtype"]]).reshape(about["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"its record holds no arrays ({type(error).__name__}: {error})") from None
    return arrays


class Layout(NamedTuple):
    """What all records have in common whose examples have the same conditions.

    Attributes:
        header: the bytes that they begin with.
        names: of the arrays that follow, in order.
        size: of the record, in bytes.
    """

    header: bytes
    names: tuple[str, ...]
    size: int


def layouts(metadata: Metadata) -> list[Layout]:
    """The layouts of a set: with video or not, with text or not."""
    found = []
    for video, text in itertools.product((True, False), repeat=2):
        names = ["mean", "std", *VIDEO * video, *["text_f"] * text]
        arrays = {name: np.zeros(metadata.shapes[name], np.float32) for name in names}
        record = pack(arrays | {"latents": np.int32(0)}, metadata.dtype)
        header = record[: _begin(record)]
        offsets = {name: about["data_offsets"] for name, about in json.loads(header[8:]).items()}
        found.append(Layout(header, tuple(sorted(offsets, key=offsets.get)), len(record)))
    return found


def _begin(record: bytes | memoryview) -> int:
    """Where the arrays of a record begin."""
    return 8 + int.from_bytes(record[:8], "little")


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of records, as metadata.json describes it."""

    name: str
    count: int
    bytes: int
    sha256: str

    def fault(self, folder: Path, *, whole: bool) -> str | None:
        """What is wrong with the file in `folder`: its size or, of the `whole`, its content; None if nothing is."""
        file = folder / self.name
        if not file.is_file():
            return f"{file} is missing"
        if (size := file.stat().st_size) != self.bytes:
            return f"{file} has {size} bytes, {self.bytes} were written"
        if whole and sha256(file) != self.sha256:
            return f"{file} has another content than was written"
        return None


@dataclasses.dataclass(frozen=True)
class Part:
    """What a part's metadata.json says.

    Attributes:
        path: its folder.
        metadata: what its examples share, and how many they are.
        shards: its files of records, in order.
        clips: hash of all ids of the clips.tsv that it is a part of; empty where that is not known.
        ids, captions: hashes of those of its own table, in order; empty in a set of an earlier release.
        schema_version: of metadata.json.
    """

    path: Path
    metadata: Metadata
    shards: tuple[Shard, ...]
    clips: str
    ids: str
    captions: str
    schema_version: int

    def read_rows(self) -> list[Row]:
        """The rows of its table, one a record; a UserError if it is missing or another than was written."""
        file = self.path / TABLE
        if not file.is_file():
            raise UserError(f"there is no table {file}; {self._advice}")
        rows = read_table(file).rows
        if len(rows) != self.metadata.count:
            raise UserError(f"{file} has {len(rows)} rows for {self.metadata.count} examples; {self._advice}")
        self.check_rows(rows)
        return rows

    @property
    def _advice(self) -> str:
        return f"put it back as it was, or move {self.path} away and start its extraction again"

    def check_rows(self, rows: Iterable[Row]) -> None:
        """Raises a UserError if the rows of its table are not those of its records, one by one."""
        if self.ids and hash_values(row.get("id", "") for row in rows) != self.ids:
            raise UserError(
                f"{self.path / TABLE} has other ids than were written, or in another order, so that its rows are not "
                f"those of the features; {self._advice}"
            )

    def check_captions(self, rows: Iterable[Row]) -> None:
        """Raises a UserError if the captions of its table are not those whose features are stored."""
        if self.captions and hash_values(row.get("caption", "") for row in rows) != self.captions:
            raise UserError(
                f"{self.path / TABLE} has other captions than those that were encoded; put them back as they were. To "
                "change captions, change them in the table that the features were made of, and start the extraction "
                "again: it encodes those clips anew"
            )


def hash_values(values: Iterable[str]) -> str:
    """Tells values in order from others."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{value}\n".encode())
    return digest.hexdigest()


def read_part(path: Path) -> Part:
    """Reads metadata.json.

    Raises:
        UserError: it is missing, damaged, or of another schema version.
    """
    file = path / METADATA
    try:
        content = json.loads(file.read_text())
        version = content.pop("schema_version")
        if version not in range(OLDEST, SCHEMA_VERSION + 1):
            raise UserError(
                f"{file} has schema version {version}, this release reads {OLDEST} to {SCHEMA_VERSION}; extract the "
                "features again"
            )
        shards = tuple(Shard(**shard) for shard in content.pop("shards"))
        clips, *hashes = content.pop("clips"), content.pop("ids", ""), content.pop("captions", "")
        content["shapes"] = {name: tuple(shape) for name, shape in content["shapes"].items()}
        metadata = Metadata(**content)
        dims = {f"{name}_dim": metadata.shapes[f"{name}_f"][1] for name in ("clip", "sync", "text")}
        if metadata.shapes != example_shapes(metadata.mode, metadata.duration, **dims):
            raise ValueError(f"its shapes are not those of {metadata.duration:g} s at {metadata.mode}")
        if metadata.dtype not in DTYPES:
            raise ValueError(f"its dtype is {metadata.dtype!r}")
        if [shard.name for shard in shards] != [_shard_name(i) for i in range(len(shards))]:
            raise ValueError("its shards have names of their own")
        if sum(shard.count for shard in shards) != metadata.count:
            raise ValueError(f"its shards have not {metadata.count} examples")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise UserError(
            f"{file} does not describe a part of a feature set ({reason}); copy it again, or move {path} away and "
            "start its extraction again"
        ) from None
    return Part(path, metadata, shards, clips, *hashes, version)


class PartWriter(contextlib.AbstractContextManager):
    """Fills an empty folder: `with PartWriter(...) as w: w.append(row, arrays)`; metadata.json comes last.

    Attributes:
        without_video: how many of the examples have none.
    """

    def __init__(self, folder: Path, metadata: Metadata, clips: str = ""):
        """Prepares a part.

        Args:
            folder: where to.
            metadata: what the examples will share; its count does not matter.
            clips: as in `Part`.
        """
        self.without_video = 0
        self._folder, self._metadata, self._clips = folder, metadata, clips
        self._rows: list[Row] = []
        self._shards: list[Shard] = []
        self._writer, self._count, self._bytes = None, 0, 0  # of the shard that is being written

    def append(self, row: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> None:
        """Adds one example.

        Args:
            row: `id`, `caption` and provenance, a line of clips.tsv.
            arrays: mean and std; clip_f and sync_f unless it has no video; text_f, which is left out where the row has
                no caption; latents where the example is padded.

        Raises:
            ValueError: as in `check_arrays`; nothing is added.
        """
        shapes = self._metadata.shapes
        check_arrays(arrays, shapes)
        stored = {"latents": np.int32(shapes["mean"][0])} | dict(arrays)
        if not row.get("caption", "").strip():
            stored.pop("text_f", None)
        record = pack(stored, self._metadata.dtype)
        if self._count and self._bytes + len(record) > SHARD_BYTES:
            self._close()
        if self._writer is None:
            self._writer = self._open()
        self._writer.write(record)
        self._count, self._bytes = self._count + 1, self._bytes + len(record)
        self._rows.append(dict(row))
        self.without_video += "clip_f" not in arrays

    def __len__(self) -> int:
        return len(self._rows)

    def __exit__(self, *error) -> None:
        if error[0] is not None:
            self._writer = None
            return
        self._close()
        write_table(self._folder / TABLE, self._rows, ["id", "caption"])
        content = {
            "schema_version": SCHEMA_VERSION,
            **dataclasses.asdict(dataclasses.replace(self._metadata, count=len(self._rows))),
            "clips": self._clips,
            "ids": hash_values(row["id"] for row in self._rows),
            "captions": hash_values(row.get("caption", "") for row in self._rows),
            "shards": [dataclasses.asdict(shard) for shard in self._shards],
        }
        (self._folder / METADATA).write_text(json.dumps(content, indent=2) + "\n")

    def _open(self):
        from array_record.python.array_record_module import ArrayRecordWriter

        # features are noise to a compressor; groups of one are what random access needs
        return ArrayRecordWriter(str(self._folder / _shard_name(len(self._shards))), "group_size:1,uncompressed")

    def _close(self) -> None:
        """Ends a shard, if one is being written."""
        if self._writer is None:
            return
        self._writer.close()
        file = self._folder / _shard_name(len(self._shards))
        self._shards.append(Shard(file.name, self._count, file.stat().st_size, sha256(file)))
        self._writer, self._count, self._bytes = None, 0, 0


def _shard_name(index: int) -> str:
    """Names are ours: metadata.json could otherwise point out of its folder."""
    return f"shard-{index:05d}.array_record"
