"""The kinds of checkpoint file, told apart by their first bytes."""

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from convert import torch_file
from mmaudio_jax.errors import UserError


class Tensor(Protocol):
    """A tensor in a file: its shape is known, its values are read on demand."""

    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """The values, in the dtype that they are stored in."""


@dataclasses.dataclass(frozen=True)
class SafeTensor:
    """A tensor of a .safetensors file; opened anew for each reading, since an open file stays mapped in memory."""

    path: Path
    name: str
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """The values, in the dtype that they are stored in."""
        with safe_open(self.path, "numpy") as file:
            return file.get_tensor(self.name)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a file holds: tensors by dotted name, and the names and types of the entries that are none."""

    path: Path
    tensors: dict[str, Tensor]
    others: dict[str, str]


def read(path: Path) -> Checkpoint:
    """Opens a .pth, .pt, .bin (torch.save's zip form) or .safetensors file, whatever its name.

    Raises:
        UserError: it is not there, or no whole checkpoint of these kinds.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if start.startswith(torch_file.ZIP_MAGIC):
        entries = torch_file.read(path)
    elif start.startswith(torch_file.LEGACY_MAGIC):
        raise UserError(
            f"{path} is in torch's legacy form, which only a pickle can read; with torch, save it again: "
            "torch.save(torch.load(FILE, map_location='cpu', weights_only=True), NEW_FILE)"
        )
    elif start[8:9] == b"{":
        entries = _read_safetensors(path)
    else:
        raise UserError(
            f"{path} is no checkpoint: neither torch.save's zip form nor safetensors (it begins with {start[:16]!r})"
        )
    tensors = {name: entry for name, entry in entries.items() if hasattr(entry, "read")}
    others = {name: type(entry).__name__ for name, entry in entries.items() if name not in tensors}
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    return Checkpoint(path, tensors, others)


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "numpy") as file:
            return {name: SafeTensor(path, name, tuple(file.get_slice(name).get_shape())) for name in file.keys()}
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or damaged ({error}); download it again") from None
