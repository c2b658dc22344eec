"""Compute dtype and matrix-product precision, as entry points name them."""

import jax
import jax.numpy as jnp

DTYPES = ("auto", "float32", "bfloat16")
PRECISIONS = ("default", "high", "highest")


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype of a name in `DTYPES`; `auto` is bfloat16 on an accelerator, float32 on a CPU."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)
