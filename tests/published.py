"""The encoders' published tensor names and layouts, for tests that fill a network from them."""

import re

import jax.numpy as jnp
import numpy as np

from mmaudio_jax import trees

NAMES = [
    (r"\.in_proj\.(kernel|bias)$", lambda m: ".in_proj_" + {"kernel": "weight", "bias": "bias"}[m[1]]),
    (r"\.(kernel|scale|embedding)$", ".weight"),
]


def name(path: str) -> str:
    """The published name of one of our parameters."""
    for pattern, replacement in NAMES:
        path, found = re.subn(pattern, replacement, path)
        if found:
            break
    return path


def shape(path: str, ours: tuple[int, ...]) -> tuple[int, ...]:
    """The published shape of one of our parameters: a kernel is stored (out, in, …)."""
    return (ours[-1], ours[-2], *ours[:-2]) if path.endswith(".kernel") else ours


def fill(shapes, tensor) -> trees.Params:
    """Our parameters from `tensor(published name, published shape)`."""

    def leaf(path, ours):
        array = np.asarray(tensor(name(path), shape(path, ours.shape)))
        if path.endswith(".kernel"):
            array = array.transpose(*range(2, array.ndim), 1, 0)
        assert array.shape == ours.shape, path
        return jnp.asarray(array)

    return {path: leaf(path, ours) for path, ours in shapes.items()}
