"""Floating-point operations: how many a step needs, and how many a device can do.

Their quotient is the model FLOPs utilisation, MFU (arXiv 2204.02311, appendix B): what a step needs counts once,
however often a device computes it.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmaudio_jax import train_step, trees

SIZES = {"cpu": 1024}  # of the squares that are multiplied: large enough that nothing but the products counts
SIZE = 8192  # on an accelerator
REPEATS = 5


def of_gradient(
    graphdef: nnx.GraphDef,
    loss: train_step.Loss,
    trained: Mapping[str, jax.ShapeDtypeStruct],
    frozen: Mapping[str, jax.ShapeDtypeStruct],
    batch: Mapping[str, jax.ShapeDtypeStruct],
) -> float:
    """Of a micro-batch's loss and its gradient, as XLA counts them in the program before it is compiled or split.

    Args:
        graphdef: of the network.
        loss: as `mmaudio_jax.train_step` says.
        trained: shapes of the leaves that have a gradient.
        frozen: shapes of the others.
        batch: shapes of a micro-batch.

    Returns:
        The number; nan where JAX_PLATFORMS leaves the CPU out, as other platforms count compiled programs alone.
    """

    def objective(trained, frozen, batch, key):
        return loss(trees.merge(graphdef, {**frozen, **trained}), batch, key)[0]

    return of(jax.grad(objective), dict(trained), dict(frozen), dict(batch), jax.eval_shape(jax.random.key, 0))


def of(function: Callable, *arguments: Any) -> float:
    """Of a function of arrays, for arguments of these shapes; counted as `of_gradient` says, a loop's body once."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return float("nan")
    with jax.default_device(cpu):
        return jax.jit(function).lower(*shapes).cost_analysis()["flops"]


def peak(dtype, precision: str) -> float:
    """Floating-point operations a second that the first device of this process does in a large matrix product.

    Args:
        dtype: of the factors.
        precision: JAX's precision of matrix products.
    """
    device = jax.local_devices()[0]
    size = SIZES.get(device.platform, SIZE)
    with jax.default_device(device):
        factor = jax.random.normal(jax.random.key(0), (size, size), dtype)  # zeros would be faster than numbers
        product = jax.jit(lambda x: jnp.matmul(x, x, precision=precision))
        product(factor).block_until_ready()
        fastest = min(_seconds(product, factor) for _ in range(REPEATS))
    return 2 * size**3 / fastest


def _seconds(function, argument) -> float:
    begin = time.perf_counter()
    function(argument).block_until_ready()
    return time.perf_counter() - begin
