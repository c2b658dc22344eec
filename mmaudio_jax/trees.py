"""Parameters as one flat dict, path patterns over it, and masks made from patterns.

A network's parameters are `{dotted path: array}`, the path being the attribute path of the leaf
(`joint_blocks.0.latent_block.attn.qkv.kernel`). One such dict serves gradients, optimizer, sharding,
checkpoints and tables; a mask is a dict of bools with the same keys.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from mmaudio_jax.errors import UserError

Params = dict[str, jax.Array]
Mask = dict[str, bool]


def split(module: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """Splits a module into its static definition and its flat parameters; `merge` is the inverse."""
    graphdef, state = nnx.split(module)
    return graphdef, {join(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def merge(graphdef: nnx.GraphDef, params: Mapping[str, Any]) -> nnx.Module:
    """The module with these parameters; cheap enough to call inside a traced function."""
    return nnx.merge(graphdef, nnx.from_flat_state({parse(path): leaf for path, leaf in params.items()}))


class _OneKey:
    """Stands in for `nnx.Rngs` where nothing is drawn: tracing thousands of real draws takes JAX many seconds."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


UNDRAWN: Any = _OneKey()  # `rngs` for a module whose values nobody looks at, as under `abstract`


def abstract(build: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    """The definition, shapes and dtypes of the module that `build` would make, without allocating it."""
    graphdef, state = nnx.split(nnx.eval_shape(build))
    return graphdef, {join(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def compute_dtypes(module: nnx.Module) -> dict[str, Any]:
    """What each leaf is computed in: the dtype of its linear layer or convolution, which casts it; else its own.

    A leaf that is stored in this dtype gives the same bits as one that the layer casts.
    """
    layers = {path: layer.dtype for path, layer in nnx.iter_modules(module) if isinstance(layer, nnx.Linear | nnx.Conv)}
    leaves = nnx.to_flat_state(nnx.state(module))
    return {join(path): layers.get(path[:-1]) or leaf.get_value().dtype for path, leaf in leaves}


def trainable(module: nnx.Module) -> Mask:
    """True for the leaves that may be trained, the `nnx.Param`s; false for stored statistics."""
    return {join(path): isinstance(leaf, nnx.Param) for path, leaf in nnx.to_flat_state(nnx.state(module))}


def match(pattern: str, paths: Iterable[str]) -> list[str]:
    """The paths that the regular expression matches whole.

    Raises:
        UserError: no path matches (the message names the nearest ones), or the pattern is not valid.
    """
    paths = list(paths)
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise UserError(f"the pattern {pattern!r} is not a regular expression: {error}") from None
    found = [path for path in paths if regex.fullmatch(path)]
    if not found:
        near = difflib.get_close_matches(re.sub(r"\\|\.\*|[\[\]()|?+^$]", "", pattern), paths, n=3, cutoff=0.0)
        raise UserError(f"the pattern {pattern!r} matches nothing; the nearest paths are {', '.join(near)}")
    return found


def mask(patterns: Sequence[str], paths: Iterable[str]) -> Mask:
    """True for the paths that at least one pattern matches; every pattern must match something."""
    paths = list(paths)
    chosen = {path for pattern in patterns for path in match(pattern, paths)}
    return {path: path in chosen for path in paths}


def partition(tree: Mapping[str, Any], mask: Mask) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a flat tree into (where the mask is true, the rest); `{**a, **b}` puts them together again."""
    return {k: v for k, v in tree.items() if mask[k]}, {k: v for k, v in tree.items() if not mask[k]}


def count(tree: Mapping[str, Any]) -> int:
    """Number of elements."""
    return sum(leaf.size for leaf in tree.values())


def join(path: tuple) -> str:
    """('blocks', 0, 'kernel') → 'blocks.0.kernel'."""
    return ".".join(map(str, path))


def parse(path: str) -> tuple:
    """The inverse of `join`."""
    return tuple(int(part) if part.isdigit() else part for part in path.split("."))
