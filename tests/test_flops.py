"""Counts of floating-point operations against those by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmaudio_jax import flops, trees

B, N, H = 32, 256, 512


class Two(nnx.Module):
    """Two matrix products."""

    def __init__(self):
        self.first = nnx.Linear(N, H, use_bias=False, rngs=nnx.Rngs(0))
        self.second = nnx.Linear(H, N, use_bias=False, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.second(self.first(x))


def loss(model, batch, key):
    return jnp.sum(jnp.square(model(batch["x"]))), {}


@pytest.mark.parametrize(
    ("trained", "products"),
    # both forward; each kernel's gradient; the first kernel's goes through the second layer
    [(["first.kernel", "second.kernel"], 2 + 2 + 1), (["second.kernel"], 2 + 1), (["first.kernel"], 2 + 1 + 1)],
    ids=str,
)
def test_the_products_of_a_gradient(trained, products):
    graphdef, params = trees.split(Two())
    trained, frozen = trees.partition(params, {path: path in trained for path in params})
    batch = {"x": jax.ShapeDtypeStruct((B, N), np.float32)}
    assert flops.of_gradient(graphdef, loss, trained, frozen, batch) == pytest.approx(
        products * 2 * B * N * H, rel=0.01
    )


def test_the_peak_is_what_a_product_reaches():
    factor = jnp.ones((512, 512))
    product = jax.jit(jnp.matmul)
    product(factor, factor)
    reached = 2 * 512**3 / min(flops._seconds(lambda x: product(x, x), factor) for _ in range(5))
    assert flops.peak(jnp.float32, "default") > reached / 5
