"""Flow matching: the straight path from noise (t = 0) to data (t = 1), its loss, guidance and Euler's method.

arXiv 2210.02747 with σ = 0; the draws and reductions are those of arXiv 2412.15322.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

Velocity = Callable[[Float[Array, "b n z"], Float[Array, " b"]], Float[Array, "b n z"]]

MAX_GUIDANCE = 100.0  # of strength; what is asked for beyond it is a slip of the hand


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


def guide(
    conditional: Float[Array, "b n z"], unconditional: Float[Array, "b n z"], strength: Float[Array, ""]
) -> Float[Array, "b n z"]:
    """Classifier-free guidance: w · v(cond) + (1 − w) · v(empty) (arXiv 2207.12598)."""
    return strength * conditional + (1 - strength) * unconditional


def time_grid(num_steps: int) -> Float[np.ndarray, " k"]:
    """num_steps + 1 times from 0 to 1, float32.

    Counted from both ends, as the published grid is: the v2 network turns a last bit of t into 1e-5 of its output.
    """
    k, step = np.arange(num_steps + 1), np.float32(1) / np.float32(num_steps)
    from_start, from_end = k.astype(np.float32) * step, 1 - (num_steps - k).astype(np.float32) * step
    return np.where(k < (num_steps + 1) // 2, from_start, from_end)


def euler(velocity: Velocity, x0: Float[Array, "b n z"], num_steps: int) -> Float[Array, "b n z"]:
    """Integrates dx/dt = velocity(x, t) from t = 0 to t = 1 in equal steps: one scan, so the network compiles once."""
    times = time_grid(num_steps)

    def step(x, now):
        t, dt = now
        return x + dt * velocity(x, jnp.full(x.shape[0], t)), None

    return jax.lax.scan(step, x0, (times[:-1], np.diff(times)))[0]
