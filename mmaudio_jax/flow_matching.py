"""Flow matching: the straight path from noise (t = 0) to data (t = 1), its loss, guidance and Euler's method.

arXiv 2210.02747 with σ = 0; the draws and reductions are those of arXiv 2412.15322.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Velocity = Callable[[Float[Array, "b n z"], Float[Array, " b"]], Float[Array, "b n z"]]


def interpolate(x0: Float[Array, "b n z"], x1: Float[Array, "b n z"], t: Float[Array, " b"]) -> Float[Array, "b n z"]:
    """The point at time t on the straight path from noise x0 to data x1."""
    t = t[:, None, None]
    return (1 - t) * x0 + t * x1


def target_velocity(x0: Float[Array, "b n z"], x1: Float[Array, "b n z"]) -> Float[Array, "b n z"]:
    """The path's velocity, the regression target."""
    return x1 - x0


def squared_error(predicted: Float[Array, "b n z"], target: Float[Array, "b n z"]) -> Float[Array, " b"]:
    """Mean over time and channels, one value a sample."""
    return jnp.mean(jnp.square(predicted - target), axis=(1, 2))


T_DISTRIBUTIONS = {
    "logit_normal": lambda key: jax.nn.sigmoid(jax.random.normal(key)),
    "uniform": jax.random.uniform,
}


def sample_t(key: Key[Array, ""], distribution: str) -> Float[Array, ""]:
    """One training time in (0, 1): `logit_normal` is sigmoid(N(0, 1)), `uniform` is U(0, 1)."""
    return T_DISTRIBUTIONS[distribution](key)


def guide(
    conditional: Float[Array, "b n z"], unconditional: Float[Array, "b n z"], strength: Float[Array, ""]
) -> Float[Array, "b n z"]:
    """Classifier-free guidance: w · v(cond) + (1 − w) · v(empty) (arXiv 2207.12598)."""
    return strength * conditional + (1 - strength) * unconditional


def euler(velocity: Velocity, x0: Float[Array, "b n z"], num_steps: int) -> Float[Array, "b n z"]:
    """Integrates dx/dt = velocity(x, t) from t = 0 to t = 1 in equal steps; the steps are one scan, compiled once."""
    dt = 1 / num_steps

    def step(x, i):
        t = jnp.full(x.shape[0], i * dt, x.dtype)
        return x + dt * velocity(x, t), None

    return jax.lax.scan(step, x0, jnp.arange(num_steps))[0]
