"""Where arrays lie: the device mesh, and one rule by which parameters, optimizer state and averages are split.

The mesh has two axes. A batch is shared out over both; a large array is split over `fsdp` alone, so that every device
of an `fsdp` group holds its part and gathers the whole where it computes (arXiv 2304.11277); `data` holds copies.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmaudio_jax.errors import UserError

FSDP = "fsdp"
AXES = ("data", FSDP)
SMALL = 1 << 14  # elements: what is smaller is not worth gathering, every device holds it whole


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh's axes.

    Attributes:
        data: groups of devices that each hold all of the weights; 0 takes as many as the devices make.
        fsdp: devices that share the weights of a group.
    """

    data: int
    fsdp: int

    def __post_init__(self):
        if self.data < 0:
            raise UserError(f"mesh.data is {self.data}; it must be 0 (all devices) or more")
        if self.fsdp < 1:
            raise UserError(f"mesh.fsdp is {self.fsdp}; it must be at least 1")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over these devices; None: over all devices of all processes.

    Raises:
        UserError: the sizes do not make the number of devices.
    """
    count = len(devices) if devices else jax.device_count()
    data = config.data or count // config.fsdp
    if data * config.fsdp != count:
        asked = f"mesh.data {config.data} × mesh.fsdp" if config.data else "mesh.fsdp"
        raise UserError(f"{asked} {config.fsdp} does not fit {count} device(s); their product must be {count}")
    return jax.make_mesh((data, config.fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """How an array of this shape is split: along its longest axis that `fsdp` divides, if it is not small."""
    fitting = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if fsdp == 1 or not fitting or np.prod(shape) < SMALL:
        return PartitionSpec()
    longest = max(fitting, key=lambda axis: shape[axis])
    return PartitionSpec(*(FSDP if axis == longest else None for axis in range(longest + 1)))


def param_shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf of a tree of arrays (or of their shapes)."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec(leaf.shape, mesh.shape[FSDP])), tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding of a batch whose examples lie along `axis`."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXES))


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raises a UserError if a batch cannot be shared out evenly."""
    if batch_size % mesh.size:
        raise UserError(
            f"batch_size {batch_size} cannot be shared out among {mesh.size} devices; give a multiple of {mesh.size}"
        )


def shard(tree: Any, mesh: Mesh) -> Any:
    """The same values on the devices that `param_shardings` says; every process must have them all, or there already.

    Arrays that lie there are returned as they are, not copied.
    """

    def put(leaf, where):
        if isinstance(leaf, jax.Array) and (leaf.sharding == where or where.is_fully_addressable):
            return jax.device_put(leaf, where)
        return jax.device_put(np.asarray(leaf), where)

    return jax.tree.map(put, tree, param_shardings(tree, mesh))


def gather(params: Any, mesh: Mesh) -> Any:
    """The leaves whole on every device; their gradients are split again, as `param_shardings` says."""
    return jax.tree.map(
        lambda leaf, where: _gather(leaf, where, replicated(mesh)), params, param_shardings(params, mesh)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(leaf, split, whole):
    return jax.lax.with_sharding_constraint(leaf, whole)


_gather.defvjp(
    lambda leaf, split, whole: (_gather(leaf, split, whole), None),
    lambda split, whole, _, cotangent: (jax.lax.with_sharding_constraint(cotangent, split),),
)
