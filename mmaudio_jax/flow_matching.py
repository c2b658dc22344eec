"""Flow matching: the straight path from noise (t = 0) to data (t = 1), and its loss.

arXiv 2210.02747 with σ = 0; the draws and reductions are those of arXiv 2412.15322.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key


def interpolate(x0: Float[Array, "b n z"], x1: Float[Array, "b n z"], t: Float[Array, " b"]) -> Float[Array, "b n z"]:
    """The point at time t on the straight path from noise x0 to data x1."""
    t = t[:, None, None]
    return (1 - t) * x0 + t * x1


def target_velocity(x0: Float[Array, "b n z"], x1: Float[Array, "b n z"]) -> Float[Array, "b n z"]:
    """The path's velocity, the regression target."""
    return x1 - x0


def squared_error(
    predicted: Float[Array, "b n z"], target: Float[Array, "b n z"], where: Bool[Array, "b n 1"] | None = None
) -> Float[Array, " b"]:
    """Mean over time and channels, one value a sample; `where`: over these frames alone."""
    return jnp.mean(jnp.square(predicted - target), axis=(1, 2), where=where)


T_DISTRIBUTIONS = {
    "logit_normal": lambda key: jax.nn.sigmoid(jax.random.normal(key)),
    "uniform": jax.random.uniform,
}


def sample_t(key: Key[Array, ""], distribution: str) -> Float[Array, ""]:
    """One training time in (0, 1): `logit_normal` is sigmoid(N(0, 1)), `uniform` is U(0, 1)."""
    return T_DISTRIBUTIONS[distribution](key)
