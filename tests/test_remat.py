"""What the backward pass computes again changes memory, and nothing else."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import lora_16k
from mmaudio_jax import config, experiment, lora, trees, weights
from mmaudio_jax.models.mmaudio import MMAudio, MMAudioConfig

DEEP = MMAudioConfig(20, 64, 2, 1, 2, clip_dim=16, sync_dim=16, text_dim=16, text_len=8)
# XLA for a CPU drops the barriers that keep it from merging what is computed twice; on a GPU it heeds them
HEED = {"xla_disable_hlo_passes": "cse_barrier_expander"}


@pytest.fixture(scope="module")
def settings():
    """The shipped adapter's, whose dropout must be the same when a block is computed again."""
    values = lora_16k.get_config("medium").to_dict()
    values["lora"] |= {"rank": 2, "dropout": 0.5, "targets": ("qkv",)}
    return config.from_mapping(experiment.TrainConfig, values)


@pytest.fixture(scope="module")
def compiled(settings):
    """{remat: (gradient of everything, as compiled; its arguments but the key)}."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    shapes = trees.abstract(lambda: MMAudio(DEEP, rngs=trees.UNDRAWN))[1]
    base = weights.Weights(Path("deep"), "mmaudio", DEEP, {k: 0.1 * normal(*v.shape) for k, v in shapes.items()}, {})
    inputs = (normal(8, 64, 20), rng.random(8, np.float32), normal(8, 16, 16), normal(8, 48, 16), normal(8, 8, 16))
    params, found = None, {}
    for remat in ("none", "dots", "blocks"):
        with_remat = dataclasses.replace(settings, remat=remat)
        network = experiment.build(with_remat, base, jax.random.key(0), None)
        if params is None:
            params = {**network.frozen, **network.trained}
            params |= {k: jnp.asarray(0.1 * normal(*v.shape)) for k, v in params.items() if k.endswith("lora_b")}

        def loss(params, key, graphdef=network.graphdef):
            model = trees.merge(graphdef, params)
            lora.set_dropout(model, key)
            return jnp.mean(jnp.square(model(*inputs)))

        lowered = jax.jit(jax.value_and_grad(loss)).lower(params, jax.random.key(0))
        found[remat] = (lowered.compile(compiler_options=HEED), params)
    return found


@pytest.mark.parametrize("remat", ["dots", "blocks"])
def test_loss_and_gradients_are_those_without_it_dropout_included(compiled, remat):
    (plain, params), (again, _) = compiled["none"], compiled[remat]
    loss, gradients = plain(params, jax.random.key(1))
    assert plain(params, jax.random.key(2))[0] != loss  # dropout is on
    loss_again, gradients_again = again(params, jax.random.key(1))
    assert float(loss_again) == pytest.approx(float(loss), rel=1e-6)
    for path, gradient in gradients.items():
        scale = float(jnp.abs(gradient).max())
        np.testing.assert_allclose(gradients_again[path], gradient, rtol=0, atol=2e-5 * scale, err_msg=path)


def test_memory_falls_the_more_is_computed_again(compiled):
    none, dots, blocks = (
        compiled[remat][0].memory_analysis().temp_size_in_bytes for remat in ("none", "dots", "blocks")
    )
    assert blocks < dots < none and blocks < 0.6 * none
