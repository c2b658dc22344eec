"""What runs have trained, put into their base: adapters and whole weights, with a weight each, on the device."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from mmaudio_jax import lora, sharding, trees, weights
from mmaudio_jax.request import AdapterUse

if TYPE_CHECKING:  # it loads Orbax
    from mmaudio_jax.checkpoint import Adapter


def load_flow_network(directory: Path, trained: "Adapter | None" = None, dtype=jnp.float32) -> weights.Weights:
    """The flow network, with what a run has trained, if one is given: its adapter merged in, or all weights.

    Args:
        directory: of the base.
        trained: what `checkpoint.load_adapter` read of a run.
        dtype: see `weights.load`; an adapter is merged in float32.

    Raises:
        UserError: the run started from another base.
    """
    if trained is None:
        return weights.load(directory, "mmaudio", dtype)
    base = weights.load(directory, "mmaudio")
    trained.check_base(base.metadata["fingerprint"], directory)
    params = {**base.params, **trained.params}
    merged = lora.merge(params, trained.lora) if trained.lora else params
    return dataclasses.replace(base, params=merged).cast(dtype)


class Difference(NamedTuple):
    """What a run adds to its base, in leaves that `add` takes.

    Attributes:
        low_rank: layer → its A, its B, and what their product is scaled by.
        whole: leaves that were trained themselves.
    """

    low_rank: dict[str, tuple[Array, Array, Float[Array, ""]]]
    whole: trees.Params


def difference(trained: "Adapter") -> Difference:
    """What a run adds to its base."""
    if trained.lora is None:
        return Difference({}, trained.params)
    owner = lora.targeted(lora.adapted_layers(trained.params), trained.lora)
    leaves = {
        layer: (*(trained.params[f"{layer}.lora_{ab}"] for ab in "ab"), jnp.float32(trained.lora.scale_of(target)))
        for layer, target in owner.items()
    }
    whole = {path: leaf for path, leaf in trained.params.items() if not path.endswith((".lora_a", ".lora_b"))}
    return Difference(leaves, whole)


@jax.jit
def add(params: trees.Params, added: Difference, weight: Float[Array, ""]) -> trees.Params:
    """The leaves of a base that change, W + w · s · AB or (1 − w) · W + w · trained; they themselves stay.

    Args:
        params: those leaves of the base, or of the base with others added.
        added: what a run adds.
        weight: w, from 0 to 1.
    """
    changed = {path: (1 - weight) * params[path] + weight * leaf for path, leaf in added.whole.items()}
    for layer, (a, b, scale) in added.low_rank.items():
        update = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        changed[f"{layer}.kernel"] = params[f"{layer}.kernel"] + weight * scale * update
    return changed


class FlowNetwork:
    """A base and the adapters that are asked for; each is read once, and the base is never changed.

    Attributes:
        base: the network as it is without adapters, stored in what it is computed in.
    """

    def __init__(self, directory: Path, dtype=jnp.float32, mesh: Mesh | None = None):
        """Loads the base.

        Args:
            directory: its weights folder.
            dtype: compute dtype.
            mesh: where the leaves are to lie; None: on the first local device.

        Raises:
            UserError: see `weights.load`.
        """
        self.base = weights.load(directory, "mmaudio", dtype, mesh)
        self._dtype, self._mesh = dtype, mesh
        self._runs: dict[Path, tuple[Difference, dict[str, Any]]] = {}
        self._merged: tuple[tuple[AdapterUse, ...], trees.Params] | None = None

    def params(self, uses: Sequence[AdapterUse]) -> trees.Params:
        """The leaves with these adapters; those of the last call are kept.

        Raises:
            UserError: a run holds no adapter, or one of another base.
        """
        uses = tuple(use for use in uses if use.weight)
        if not uses:
            return self.base.params
        if self._merged is None or self._merged[0] != uses:
            self._merged = None  # before memory is taken for another
            params = self._masters
            for run, weight in uses:
                params = {**params, **self._add(params, self._load(run)[0], weight)}
            self._merged = uses, dataclasses.replace(self.base, params=params).cast(self._dtype).params
        return self._merged[1]

    def described(self, uses: Sequence[AdapterUse]) -> list[dict[str, Any]]:
        """Run with its step, fingerprint and weight of each, for the record; errors as of `params`."""
        return [{**self._load(run)[1], "weight": weight} for run, weight in uses]

    @staticmethod
    def _add(params: Mapping[str, Array], added: Difference, weight: float) -> trees.Params:
        paths = [*added.whole, *(f"{layer}.kernel" for layer in added.low_rank)]
        return add({path: params[path] for path in paths}, added, jnp.float32(weight))

    @functools.cached_property
    def _masters(self) -> trees.Params:
        """The base in float32, in which adapters are added; read when the first one is."""
        if self._dtype == jnp.float32:
            return self.base.params
        return weights.load(self.base.directory, "mmaudio", jnp.float32, self._mesh).params

    def _load(self, run: Path) -> tuple[Difference, dict[str, Any]]:
        if run not in self._runs:
            from mmaudio_jax import checkpoint

            about = checkpoint.identify(run)
            trained = checkpoint.load_adapter(Path(about["run"]))
            trained.check_base(self.base.metadata["fingerprint"], self.base.directory)
            added = difference(trained)
            self._runs[run] = (sharding.shard(added, self._mesh) if self._mesh else added), about
        return self._runs[run]
