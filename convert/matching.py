"""Recognises a checkpoint from the names and shapes of its tensors, and makes the network's parameters of them."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from convert.checkpoint_file import Checkpoint, Tensor
from convert.rules import TABLES, Shape, Table
from mmaudio_jax import trees
from mmaudio_jax.errors import UserError

FLOATS = [np.dtype(kind) for kind in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)]
CONSTANT_TOLERANCE = 1e-6  # of a stored constant of the architecture, absolute


@dataclasses.dataclass(frozen=True)
class Recognised:
    """A checkpoint that fits one preset of one network exactly.

    Attributes:
        table: the network's rules.
        preset: name of the preset, and of the weights folder to be.
        config: the preset's config.
        tensors: the file's tensors by their name in the rules.
        ignored: reason → names of the tensors that are left out for it.
    """

    table: Table
    preset: str
    config: Any
    tensors: Mapping[str, Tensor]
    ignored: Mapping[str, list[str]]

    def parameters(self, progress: Callable[[int], None] = lambda elements: None) -> trees.Params:
        """Every parameter in float32, on the host; `progress` is told the elements of each one done.

        Raises:
            UserError: values that are not finite, not floating-point, or not those that the architecture has
                (names all of them).
        """
        wrong, params = self._wrong_constants(), {}
        host = jax.local_devices(backend="cpu")[0]
        for path, leaf in self.table.parameters(self.preset).items():
            names, layout = self.table.recipe(path)
            arrays = [self.tensors[name].read() for name in names]
            faults = [
                f"{name} {wrong_with}"
                for name, array in zip(names, arrays, strict=True)
                if (wrong_with := fault(array))
            ]
            if faults:
                wrong += faults
                continue
            built = layout.build(*(array.astype(np.float32, copy=False) for array in arrays))
            if not np.isfinite(built).all():
                wrong.append(f"{path}, made of {' and '.join(names)}, has values that are not finite")
                continue
            params[path] = jax.device_put(np.ascontiguousarray(built).reshape(leaf.shape), host)
            progress(built.size)
        if wrong:
            raise UserError("\n  ".join(["these tensors cannot be used:", *wrong]))
        return params

    def _wrong_constants(self) -> list[str]:
        checked = [
            (name, rule.value())
            for rule in self.table.ignored
            if rule.value
            for name in self.tensors
            if re.fullmatch(rule.tensors, name)
        ]
        return [
            f"{name} is not the constant of {self.preset}'s architecture"
            for name, value in checked
            if not is_constant(self.tensors[name].read().reshape(-1), value)
        ]


def is_constant(stored: np.ndarray, value: np.ndarray) -> bool:
    """Whether a stored constant has these values, to the rounding of its type."""
    if stored.dtype not in FLOATS or stored.size != value.size:
        return False
    tolerance = max(CONSTANT_TOLERANCE, float(ml_dtypes.finfo(stored.dtype).eps))
    return np.allclose(stored.astype(np.float64), value, rtol=0, atol=tolerance)


def fault(array: np.ndarray) -> str | None:
    """What makes a tensor useless as a weight."""
    if array.dtype not in FLOATS:
        return f"has type {array.dtype} where floating-point numbers are needed"
    return None if np.isfinite(array).all() else "has values that are not finite"


def recognise(checkpoint: Checkpoint) -> Recognised:
    """Finds the network and preset whose files hold just these tensors.

    Raises:
        UserError: no known network has such tensors, or some are missing, unexpected or misshapen (lists all).
    """
    table, preset = _nearest({name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    if table is None:
        some = ", ".join(list(checkpoint.tensors)[:3])
        raise UserError(
            f"{checkpoint.path} belongs to no network known here (its tensors begin with {some}); known are "
            + ", ".join(name for table in TABLES for name in table.presets())
        )
    by_name: dict[str, list[str]] = {}
    for name in checkpoint.tensors:
        by_name.setdefault(table.canonical(name), []).append(name)
    wanted = {
        name: shape
        for path, leaf in table.parameters(preset).items()
        for name, shape in sources(table, path, leaf.shape)
    }
    problems, ignored = [], {}
    for name, shape in wanted.items():
        if name not in by_name:
            problems.append(f"missing: {name} {shape}")
    for name, originals in by_name.items():
        original = originals[0]
        shape = checkpoint.tensors[original].shape
        reason = next((rule.reason for rule in table.ignored if re.fullmatch(rule.tensors, name)), None)
        if len(originals) > 1:
            problems.append(f"the same tensor under several names: {', '.join(originals)}")
        elif name in wanted and (shape or (1,)) != (wanted[name] or (1,)):  # some writers give a scalar an axis
            problems.append(f"misshapen: {original} has {shape}, {preset} has {wanted[name]}")
        elif name not in wanted and reason is None:
            problems.append(f"unexpected: {original} {shape}")
        elif name not in wanted:
            ignored.setdefault(reason, []).append(original)
    if problems:
        raise UserError(
            "\n  ".join([f"{checkpoint.path} is nearest to {preset} ({table.network}), but does not fit:", *problems])
        )
    tensors = {name: checkpoint.tensors[original] for name, (original,) in by_name.items()}
    return Recognised(table, preset, table.presets()[preset], tensors, ignored)


def sources(table: Table, path: str, shape: Shape) -> list[tuple[str, Shape]]:
    """Name and shape of each tensor that makes a parameter."""
    names, layout = table.recipe(path)
    return list(zip(names, layout.shapes(shape), strict=True))


def _nearest(shapes: Mapping[str, Shape]) -> tuple[Table, str] | tuple[None, None]:
    """The network and preset of whose telling tensors the most are there, by name first and then by shape."""
    best, found = (0.0, 0.0), (None, None)
    for table in TABLES:
        named = {table.canonical(name): shape for name, shape in shapes.items()}
        for preset, config in table.presets().items():
            signature = table.signature(config)
            present = sum(name in named for name in signature) / len(signature)
            equal = sum(named.get(name) == shape for name, shape in signature.items()) / len(signature)
            if (present, equal) > best:
                best, found = (present, equal), (table, preset)
    return found
