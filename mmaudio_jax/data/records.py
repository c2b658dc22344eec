"""This project's own feature set: a folder of ArrayRecord files, `metadata.json` and `clips.tsv`.

A record holds the float32 arrays of one example in safetensors form; row i of clips.tsv belongs to record i.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from mmaudio_jax.data.example import Metadata, StoredFeatures, check_arrays, example_shapes
from mmaudio_jax.data.table import Row, read_table, write_table
from mmaudio_jax.data.tensordict import TensorDictFeatures
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_directory

SCHEMA_VERSION = 1
RECORDS = "examples-00000-of-00001.array_record"


def open_features(path: str | os.PathLike) -> StoredFeatures:
    """Opens a feature set, this project's own or a TensorDict memory-map folder, known by what lies in it.

    The table of a TensorDict folder is the TSV of the folder's name beside it.

    Raises:
        UserError: the folder or its table is missing, it is neither kind, or is damaged.
    """
    path = Path(path)
    if (path / "metadata.json").is_file():
        return RecordFeatures(path)
    if (path / "meta.json").is_file():
        return TensorDictFeatures(path)
    if not path.is_dir():
        raise UserError(
            f"there is no feature set {path}; make it with "
            f"`python -m mmaudio_jax.features --clips clips.tsv --root DIR --weights weights --out {path}`"
        )
    raise UserError(f"{path} is not a feature set: it has neither metadata.json nor the meta.json of a TensorDict")


class FeatureWriter(contextlib.AbstractContextManager):
    """Writes a feature set, whole or not at all: `with FeatureWriter(...) as w: w.append(row, arrays)`."""

    def __init__(
        self,
        path: str | os.PathLike,
        mode: str,
        duration: float,
        shapes: Mapping[str, tuple[int, int]],
        encoders: Mapping[str, str] | None = None,
    ):
        """Prepares a set.

        Args:
            path: the folder to make; it must not exist.
            mode, duration, shapes, encoders: as in `Metadata`.
        """
        self._target = path
        self._metadata = Metadata(mode, duration, dict(shapes), 0, dict(encoders or {}))
        self._rows: list[Row] = []

    def __enter__(self) -> "FeatureWriter":
        from array_record.python.array_record_module import ArrayRecordWriter

        self._stack = contextlib.ExitStack()
        self.directory = self._stack.enter_context(atomic_directory(self._target))
        # features are noise to a compressor; groups of one are what random access needs
        self._writer = ArrayRecordWriter(str(self.directory / RECORDS), "group_size:1,uncompressed")
        return self

    def append(self, row: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> None:
        """Adds one example.

        Args:
            row: `id`, `caption` and provenance, a line of clips.tsv.
            arrays: mean and std; clip_f and sync_f unless it has no video; text_f unless it has no caption; latents
                where it is padded.

        Raises:
            ValueError: as in `check_arrays`; nothing is added.
        """
        check_arrays(arrays, self._metadata.shapes)
        self._writer.write(safetensors.numpy.save({k: np.asarray(v, order="C") for k, v in arrays.items()}))
        self._rows.append(dict(row))

    def __len__(self) -> int:
        return len(self._rows)

    def __exit__(self, *error) -> bool | None:
        self._writer.close()
        if error[0] is None:
            metadata = dataclasses.replace(self._metadata, count=len(self._rows))
            content = {"schema_version": SCHEMA_VERSION, "dtype": "float32", **dataclasses.asdict(metadata)}
            (self.directory / "metadata.json").write_text(json.dumps(content, indent=2) + "\n")
            write_table(self.directory / "clips.tsv", self._rows, ["id", "caption"])
        return self._stack.__exit__(*error)


class RecordFeatures(StoredFeatures):
    """A feature set that `FeatureWriter` wrote."""

    def __init__(self, path: Path):
        """Opens the folder.

        Raises:
            UserError: metadata, table and records do not go together.
        """
        super().__init__(path, _metadata(path), read_table(path / "clips.tsv"))
        self._reader = None
        records = self._open().num_records()
        if records != len(self):
            raise UserError(
                f"{path / RECORDS} is damaged: {records} records can be read of the {len(self)} in "
                "metadata.json; copy it or extract the features again"
            )

    def read(self, index: int) -> dict[str, np.ndarray]:
        """Reads one record; safe to call from several threads."""
        try:
            return safetensors.numpy.load(self._open().read([index])[0])
        except (RuntimeError, IndexError, KeyError, safetensors.SafetensorError) as error:
            raise ValueError(f"its record in {RECORDS} cannot be read ({str(error).splitlines()[0]})") from None

    def _open(self):
        from array_record.python.array_record_module import ArrayRecordReader

        if self._reader is None:
            # without read-ahead the reader is made for random access
            self._reader = ArrayRecordReader(
                str(self.path / RECORDS), "readahead_buffer_size:0", file_reader_buffer_size=1 << 15
            )
        return self._reader

    def __getstate__(self):
        return {**self.__dict__, "_reader": None}  # a worker process opens the file itself


def _metadata(path: Path) -> Metadata:
    file = path / "metadata.json"
    try:
        content = json.loads(file.read_text())
        version = content.pop("schema_version")
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{file} has schema version {version}, this release reads {SCHEMA_VERSION}; extract the features again"
            )
        if content.pop("dtype") != "float32":
            raise ValueError("dtype must be float32")
        content["shapes"] = {name: tuple(shape) for name, shape in content["shapes"].items()}
        metadata = Metadata(**content)
        dims = {f"{name}_dim": metadata.shapes[f"{name}_f"][1] for name in ("clip", "sync", "text")}
        if metadata.shapes != example_shapes(metadata.mode, metadata.duration, **dims):
            raise ValueError(f"its shapes are not those of {metadata.duration:g} s at {metadata.mode}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} does not describe a feature set ({error}); extract the features again") from None
    return metadata
