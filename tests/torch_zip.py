"""Writes files in the form of torch.save, sound and unsound ones, without torch."""

import dataclasses
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

STORAGE_TYPES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class Global:
    """A class or function, by name alone."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """`function(*arguments)`, and then the attributes `state`."""

    function: Global
    arguments: tuple = ()
    state: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """A one-dimensional array; the pickle says `size` elements, by default as many as there are."""

    data: np.ndarray
    size: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    metadata: tuple = ()


def tensor(array) -> Tensor:
    """A contiguous tensor with a storage of its own."""
    array = np.asarray(array)
    strides = tuple(int(np.prod(array.shape[i + 1 :], dtype=np.int64)) for i in range(array.ndim))
    return Tensor(Storage(array.reshape(-1)), 0, array.shape, strides)


def ordered_dict(items: dict, **attributes) -> Call:
    """An OrderedDict with attributes, as `Module.state_dict()` returns one with `_metadata`."""
    return Call(Global("collections", "OrderedDict"), ([[k, v] for k, v in items.items()],), attributes or None)


def parameter(value: Tensor) -> Call:
    return Call(Global("torch._utils", "_rebuild_parameter"), (value, True, Call(Global("collections", "OrderedDict"))))


class _Pickler(pickle._Pickler):
    def __init__(self, file, protocol):
        super().__init__(file, protocol)
        self.storages: list[Storage] = []

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            if self.proto < 4:
                self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
            else:
                self.save(obj.module)
                self.save(obj.name)
                self.write(pickle.STACK_GLOBAL)
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        elif isinstance(obj, Storage):
            if obj not in self.storages:
                self.storages.append(obj)
            kind = Global("torch", STORAGE_TYPES[obj.data.dtype.name])
            size = obj.data.size if obj.size is None else obj.size
            self.save(("storage", kind, str(self.storages.index(obj)), "cpu", size))
            self.write(pickle.BINPERSID)
        elif isinstance(obj, Tensor):
            hooks = Call(Global("collections", "OrderedDict"))
            view = (obj.storage, obj.offset, obj.shape, obj.strides, False, hooks, *obj.metadata)
            self.save(Call(Global("torch._utils", "_rebuild_tensor_v2"), view))
        else:
            super().save(obj, save_persistent_id)


def dump(tree: Any, protocol: int = 2) -> tuple[bytes, list[bytes]]:
    """The pickle, and the bytes of each storage."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, protocol)
    pickler.dump(tree)
    return buffer.getvalue(), [storage.data.tobytes() for storage in pickler.storages]


def write(path: Path, tree: Any, *, protocol: int = 2, **archive) -> Path:
    """What torch.save(tree, path) writes; `archive` as for `write_archive`."""
    return write_archive(path, *dump(tree, protocol), **archive)


def write_archive(
    path: Path,
    pickled: bytes,
    storages: list[bytes] = (),
    *,
    top: str = "archive",
    byteorder: bytes = b"little",
    extra: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """The zip archive around a pickle; `extra` entries besides."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{top}/data.pkl", pickled)
        archive.writestr(f"{top}/byteorder", byteorder)
        for key, data in enumerate(storages):
            archive.writestr(f"{top}/data/{key}", data)
        for name, data in (extra or {}).items():
            archive.writestr(name, data)
        archive.writestr(f"{top}/version", "3\n")
    return path
