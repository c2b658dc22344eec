"""Reads what torch.save writes (its zip form), without torch and without running the pickle inside.

The archive holds `TOP/data.pkl`, which describes the tensors, and one uncompressed entry `TOP/data/KEY` for each
storage. Tensors are read from their place in the file when they are asked for, so that no more than one need be
in memory.
"""

import dataclasses
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from convert import state_dict_pickle
from convert.state_dict_pickle import Refused, View
from mmaudio_jax.errors import UserError

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # pickle of 0x1950a86a20f9469cfc6c, torch's old marker
LOCAL_HEADER = struct.Struct("<26xHH")  # a zip entry's header: lengths of the name and of the extra field
MAX_PICKLE_BYTES = 64 << 20  # a state dict of ten thousand tensors has some 2 MiB


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor at a byte position of a file; `strides` are counted in elements."""

    path: Path
    position: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """Bytes from the first element to the end of the last."""
        if 0 in self.shape:
            return 0
        steps = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return (1 + steps) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The values, as a read-only view of what was read."""
        data = np.fromfile(self.path, np.uint8, self.span, offset=self.position)
        if data.size < self.span:
            raise UserError(f"{self.path} became shorter while it was read")
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(data.view(self.dtype), self.shape, strides, writeable=False)


def read(path: Path) -> dict[str, Any]:
    """The state dict in a file: tensors and other entries by dotted name, nested dicts opened.

    Every byte is checked against the archive's checksums, every tensor against the size of its storage.

    Returns:
        {name: StoredTensor, or whatever else stands there}.

    Raises:
        UserError: the file is damaged, is no state dict, or its pickle asks for more than a state dict needs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive)
    except Refused as refusal:
        raise UserError(f"{path} {refusal}") from None
    except (
        zipfile.BadZipFile,
        NotImplementedError,  # zipfile's answer to a compression that it does not know
        RuntimeError,
        ValueError,
        struct.error,
        EOFError,
        OSError,
    ) as error:
        raise UserError(f"{path} is truncated or damaged ({error}); download it again") from None


def _read(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    top = _top_folder(entries)
    damaged = archive.testzip()
    if damaged:
        raise Refused(
            f"fails its checksum at {damaged}: it is damaged (download it again), "
            "or was saved with torch's checksums switched off (save it again with them)"
        )
    pickled = entries[f"{top}/data.pkl"]
    if pickled.file_size > MAX_PICKLE_BYTES:
        raise Refused(f"has a pickle of {pickled.file_size:,} bytes, far more than a state dict needs")
    tree = state_dict_pickle.load(archive.read(pickled))
    byte_order = entries.get(f"{top}/byteorder")
    if byte_order and archive.read(byte_order) != b"little":
        raise Refused("was written on a big-endian machine; save it again on a little-endian one")

    def stored(name: str, view: View) -> StoredTensor:
        storage, itemsize = view.storage, view.storage.dtype.itemsize
        entry = entries.get(f"{top}/data/{storage.key}")
        if entry is None:
            raise Refused(f"is damaged: {top}/data/{storage.key}, the data of {name}, is not in it; download it again")
        position = _data_position(archive, entry)
        tensor = StoredTensor(path, position + view.offset * itemsize, storage.dtype, view.shape, view.strides)
        needed = max(storage.size * itemsize, view.offset * itemsize + tensor.span)
        if needed > entry.file_size:
            raise Refused(
                f"is damaged: {name} needs {needed:,} bytes of {entry.filename}, "
                f"which has {entry.file_size:,}; download it again"
            )
        return tensor

    return {name: stored(name, leaf) if isinstance(leaf, View) else leaf for name, leaf in _flatten(tree).items()}


def _top_folder(entries: dict[str, zipfile.ZipInfo]) -> str:
    """The folder that the archive's entries lie in."""
    tops = [name.removesuffix("/data.pkl") for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(tops) != 1:
        raise Refused("is a zip archive, but no checkpoint of torch.save: it has no data.pkl")
    top = tops[0]
    if any(name == f"{top}/constants.pkl" or name.startswith(f"{top}/code/") for name in entries):
        raise Refused(
            "is a TorchScript archive, a program and not weights; with torch, save its weights alone: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
        )
    for name, entry in entries.items():
        if not name.startswith(f"{top}/") or ".." in name.split("/"):
            raise Refused(f"holds the entry {name}, which points out of its folder; torch.save writes none such")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise Refused(
                "has compressed or encrypted entries, which torch.save never writes; save it again with torch"
            )
    return top


def _data_position(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    """Where an uncompressed entry's bytes begin in the file."""
    archive.fp.seek(entry.header_offset)
    name_length, extra_length = LOCAL_HEADER.unpack(archive.fp.read(LOCAL_HEADER.size))
    return entry.header_offset + LOCAL_HEADER.size + name_length + extra_length


def _flatten(tree: Any) -> dict[str, Any]:
    """The leaves of nested dicts by dotted name."""
    if not isinstance(tree, dict):
        what = f"one tensor of shape {tree.shape}" if isinstance(tree, View) else f"a {type(tree).__name__}"
        raise Refused(f"holds {what}, no state dict")
    leaves, opened = {}, set()

    def visit(prefix: str, branch: dict) -> None:
        if id(branch) in opened:
            raise Refused(f"holds the dict {prefix.removesuffix('.')} in two places")
        opened.add(id(branch))
        for key, value in branch.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict):
                visit(f"{name}.", value)
            elif name in leaves:
                raise Refused(f"holds two entries called {name}")
            else:
                leaves[name] = value

    visit("", tree)
    return leaves
