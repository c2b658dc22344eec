"""The laws of LoRA on the flow network."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error
from flax import nnx

from mmaudio_jax import lora, trees
from mmaudio_jax.errors import UserError
from mmaudio_jax.models.mmaudio import PRESETS, MMAudio

PATTERNS = {"qkv": r".*\.attn\.qkv", "attention_output": r".*\.linear1", "ffn": r".*_blocks\..*\.ffn\.w[123]"}
CONFIG = lora.LoRAConfig(rank=4, alpha=8.0, dropout=0.5, targets=tuple(PATTERNS), patterns=PATTERNS)


def build(config=CONFIG, preset="tiny"):
    """The adapted network: concrete adapter, abstract base."""
    network = nnx.eval_shape(lambda: MMAudio(PRESETS[preset], rngs=trees.UNDRAWN))
    return lora.insert(network, config, rngs=nnx.Rngs(1))


@pytest.fixture(scope="module")
def adapted(golden):
    """(definition, base and adapter with B = 0, the base's definition)."""
    base = golden.weights("flow_tiny.pth")
    graphdef, leaves = trees.split(build())
    return graphdef, {**leaves, **base.params}, base.graphdef()


@pytest.fixture(scope="module")
def inputs(golden):
    shapes = {"latent": (1, 32, 20), "clip": (1, 8, 1024), "sync": (1, 16, 768), "text": (1, 77, 1024)}
    latent, *features = (golden.input(key, shape) for key, shape in shapes.items())
    return latent, np.array([0.3], np.float32), *features


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, params, *inputs, key=None):
    model = trees.merge(graphdef, params)
    if key is not None:
        lora.set_dropout(model, key)
    return model(*inputs)


def with_random_b(params):
    key = jax.random.key(2)
    return {k: 0.1 * jax.random.normal(key, v.shape) if k.endswith("lora_b") else v for k, v in params.items()}


def test_a_fresh_adapter_changes_nothing(adapted, inputs):
    graphdef, params, base_def = adapted
    base = {k: v for k, v in params.items() if ".lora_" not in k}
    # operation by operation: two different programs may be fused, and so rounded, differently
    assert (trees.merge(graphdef, params)(*inputs) == trees.merge(base_def, base)(*inputs)).all()
    assert sum(".lora_b" in k for k in params) == 27 and all(not v.any() for k, v in params.items() if "lora_b" in k)


def test_merged_equals_unmerged(adapted, inputs):
    graphdef, params, base_def = adapted
    params = with_random_b(params)
    merged = lora.merge(params, CONFIG)
    assert not any(".lora_" in path for path in merged)
    out, base = run(graphdef, params, *inputs), run(base_def, {k: params[k] for k in merged}, *inputs)
    assert relative_error(run(base_def, merged, *inputs), out) <= 1e-5
    assert relative_error(base, out) > 1e-2


def test_an_adapted_convolution_is_a_convolution_with_the_sum():
    plain, base = (nnx.Conv(6, 5, (3,), padding="SAME", rngs=nnx.Rngs(0)) for _ in range(2))
    adapted = lora.LoRAConv(base, dataclasses.replace(CONFIG, rank=2, alpha=3.0), rngs=nnx.Rngs(1))
    adapted.lora_b[...] = jax.random.normal(jax.random.key(0), (2, 5))
    plain.kernel[...] += 1.5 * jnp.einsum("kir,ro->kio", adapted.lora_a[...], adapted.lora_b[...])
    x = jax.random.normal(jax.random.key(1), (2, 11, 6))
    assert relative_error(adapted(x), plain(x)) < 1e-6


@pytest.mark.parametrize(
    ("rank", "targets", "layers", "parameters"),
    [(64, ("qkv",), 20, "2,293,760"), (64, ("qkv", "ffn"), 74, "12,443,648"), (64, tuple(PATTERNS), 92, "14,336,000")],
)
def test_table_counts_the_parameters_of_small_16k(rank, targets, layers, parameters):
    config = dataclasses.replace(CONFIG, rank=rank, targets=targets)
    rows = lora.table(build(config, "small_16k"), config).splitlines()
    assert rows[-1].split() == ["total", str(layers), parameters]
    assert rows[1].split() == ["qkv", PATTERNS["qkv"], "20", "2,293,760"]


def test_dropout_is_on_only_with_a_key_and_differs_between_layers(adapted, inputs):
    graphdef, params, _ = adapted
    params = with_random_b(params)
    without = run(graphdef, params, *inputs)
    one, again, other = (run(graphdef, params, *inputs, key=jax.random.key(seed)) for seed in (0, 0, 1))
    assert (one == again).all()
    assert relative_error(one, without) > 1e-4 and relative_error(one, other) > 1e-4
    model = trees.merge(graphdef, params)
    lora.set_dropout(model, jax.random.key(0))
    layers = [layer for _, layer in nnx.iter_modules(model) if isinstance(layer, lora.LowRank)]
    assert len({tuple(jax.random.key_data(layer.dropout_key).tolist()) for layer in layers}) == 27


def test_dropout_keeps_the_mean():
    layer = lora.LoRALinear(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), CONFIG, rngs=nnx.Rngs(1))
    x = jnp.ones((4096, 4))
    layer.dropout_key = jax.random.key(0)
    dropped = layer._dropped(x)
    assert set(np.unique(dropped)) == {0.0, 2.0} and abs(dropped.mean() - 1) < 0.05


def test_the_fork_s_targets_are_an_error_that_names_real_layers():
    config = dataclasses.replace(CONFIG, targets=("fork",), patterns={"fork": r".*\.ffn\.linear1"})
    with pytest.raises(UserError, match=r"ffn.*linear1.*matches nothing; the nearest paths are .*linear1"):
        build(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "lora.rank is 0"),
        ({"dropout": 1.0}, "lora.dropout is 1.0"),
        ({"targets": ()}, "lora.targets is empty"),
        ({"targets": ("mlp",)}, "names 'mlp', which is not in lora.patterns: qkv"),
    ],
)
def test_impossible_settings(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **change)
