"""Layers that several networks share."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float


class Buffer(nnx.Variable):
    """A leaf that is stored with the parameters and never trained (dataset statistics, fixed features)."""


def attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    *,
    mask: Bool[Array, "#b #h #n m"] | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "b n h d"]:
    """Scaled dot-product attention with the softmax in float32; `mask` is true where a key may be seen."""
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, precision=precision, preferred_element_type=jnp.float32)
    logits = logits / math.sqrt(q.shape[-1])
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v, precision=precision)


def torch_conv_init(fan_in: int) -> dict[str, nnx.Initializer]:
    """Uniform ±1/sqrt(fan_in) for kernel and bias of a convolution, the default that the recipe trains from."""
    bound = 1 / math.sqrt(fan_in)

    def uniform(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return {"kernel_init": uniform, "bias_init": uniform}
