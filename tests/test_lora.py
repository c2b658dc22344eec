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
CONFIG = lora.LoRAConfig(
    rank=4,
    alpha=8.0,
    rslora=False,
    dropout=0.5,
    targets=tuple(PATTERNS),
    patterns=PATTERNS,
    ranks={},
    alphas={},
    start=None,
)
OWN = dataclasses.replace(CONFIG, rslora=True, ranks={"qkv": 6, "ffn": 9}, alphas={"ffn": 3.0})


def build(config=CONFIG, preset="tiny"):
    """The adapted network: concrete adapter, abstract base."""
    network = nnx.eval_shape(lambda: MMAudio(PRESETS[preset], rngs=trees.UNDRAWN))
    return lora.insert(network, config, rngs=nnx.Rngs(1))


def adapt(golden, config):
    """(definition, base and adapter with B = 0, the base's definition)."""
    base = golden.weights("flow_tiny.pth")
    graphdef, leaves = trees.split(build(config))
    return graphdef, {**leaves, **base.params}, base.graphdef()


@pytest.fixture(scope="module")
def adapted(golden):
    return adapt(golden, CONFIG)


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


def test_merged_equals_unmerged(golden, inputs):
    graphdef, params, base_def = adapt(golden, OWN)
    params = with_random_b(params)
    merged = lora.merge(params, OWN)
    assert not any(".lora_" in path for path in merged)
    out, base = run(graphdef, params, *inputs), run(base_def, {k: params[k] for k in merged}, *inputs)
    assert relative_error(run(base_def, merged, *inputs), out) <= 1e-5
    assert relative_error(base, out) > 1e-2


@pytest.mark.parametrize(
    ("change", "qkv", "ffn"),
    [
        ({}, (4, 2.0), (4, 2.0)),
        ({"rslora": True}, (4, 4.0), (4, 4.0)),
        ({"ranks": {"ffn": 16}}, (4, 2.0), (16, 0.5)),
        ({"alphas": {"qkv": 2.0}}, (4, 0.5), (4, 2.0)),
        ({"rslora": True, "ranks": {"qkv": 9}, "alphas": {"qkv": 6.0, "ffn": 1.0}}, (9, 2.0), (4, 0.5)),
    ],
)
def test_a_target_s_rank_and_scale(change, qkv, ffn):
    network = build(dataclasses.replace(CONFIG, **change))
    layers = {trees.join(path): x for path, x in nnx.iter_modules(network) if isinstance(x, lora.LowRank)}
    for path, (rank, scale) in (("fused_blocks.0.attn.qkv", qkv), ("fused_blocks.0.ffn.w1", ffn)):
        layer = layers[path]
        assert (layer.lora_a.shape[-1], layer.lora_b.shape[0], layer.lora_scale) == (rank, rank, scale)


def test_a_layer_of_two_targets_has_the_first_one_s_rank():
    both = {"targets": ("fused", "qkv"), "patterns": {"fused": r"fused_blocks\.0\.attn\.qkv", **PATTERNS}}
    config = dataclasses.replace(CONFIG, **both, ranks={"fused": 1, "qkv": 2})
    leaves = trees.split(build(config))[1]
    ranks = {path.removesuffix(".lora_a"): leaf.shape[-1] for path, leaf in leaves.items() if path.endswith(".lora_a")}
    assert ranks.pop("fused_blocks.0.attn.qkv") == 1 and set(ranks.values()) == {2}


def test_a_grown_adapter_computes_what_it_began_as(golden, inputs):
    small = dataclasses.replace(CONFIG, targets=("qkv", "ffn"), alphas={"qkv": 5.0})
    small_def, params, base_def = adapt(golden, small)
    start = {path: leaf for path, leaf in with_random_b(params).items() if ".lora_" in path}
    large_def, large, _ = adapt(golden, OWN)
    drawn = {path: leaf for path, leaf in large.items() if ".lora_" in path}
    grown = lora.grow(drawn, OWN, start, small)
    assert {k: v.shape for k, v in grown.items()} == {k: v.shape for k, v in drawn.items()}
    before, after = run(small_def, params | start, *inputs), run(large_def, large | grown, *inputs)
    assert relative_error(after, before) < 1e-6
    assert relative_error(before, run(base_def, {k: v for k, v in params.items() if k not in start}, *inputs)) > 1e-2
    for layer in ("fused_blocks.0.attn.qkv", "fused_blocks.0.ffn.w1"):
        a, b = grown[f"{layer}.lora_a"], grown[f"{layer}.lora_b"]
        assert (a[..., :4] == start[f"{layer}.lora_a"]).all() and not b[4:].any()
        assert a[..., 4:].any() and (a[..., 4:] == drawn[f"{layer}.lora_a"][..., 4:]).all()
    fresh = [path for path in drawn if path not in start]
    assert fresh and all((grown[path] == drawn[path]).all() for path in fresh)


def test_what_has_the_same_rank_and_scale_begins_as_it_is(adapted):
    drawn = {path: leaf for path, leaf in adapted[1].items() if ".lora_" in path}
    start = with_random_b(drawn)
    grown = lora.grow(drawn, CONFIG, start, CONFIG)
    assert grown.keys() == start.keys() and all((grown[path] == start[path]).all() for path in start)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"targets": ("ffn",)},
            r"lora.start adapts fused_blocks\.0\.attn\.qkv, .* and 9 layers more, which lora.targets leaves out",
        ),
        (
            {"ranks": {"ffn": 3}},
            r"lora.start adapts \S+ffn\.w\d at rank 4, ffn has rank 3; an adapter can grow, not shr",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_in_is_refused_by_name(adapted, change, message):
    start = {path: leaf for path, leaf in adapted[1].items() if ".lora_" in path}
    config = dataclasses.replace(CONFIG, **change)
    drawn = {path: leaf for path, leaf in trees.split(build(config))[1].items() if ".lora_" in path}
    with pytest.raises(UserError, match=message):
        lora.grow(drawn, config, start, CONFIG)


def test_an_adapted_convolution_is_a_convolution_with_the_sum():
    plain, base = (nnx.Conv(6, 5, (3,), padding="SAME", rngs=nnx.Rngs(0)) for _ in range(2))
    adapted = lora.LoRAConv(base, rank=2, scale=1.5, dropout=0.5, rngs=nnx.Rngs(1))
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
    assert rows[1].split() == ["qkv", PATTERNS["qkv"], "64", "0.125", "20", "2,293,760"]


def test_table_shows_each_target_s_rank():
    rows = [row.split() for row in lora.table(build(OWN), OWN).splitlines()]
    assert [row[2:4] for row in rows[1:4]] == [["6", "3.266"], ["4", "4"], ["9", "1"]]


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
    layer = lora.LoRALinear(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), rank=4, scale=2.0, dropout=0.5, rngs=nnx.Rngs(1))
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
        ({"ranks": {"ffn": 0}}, "lora.ranks.ffn is 0; it must be at least 1"),
        ({"alphas": {"ffn": -1.0}}, "lora.alphas.ffn is -1.0; it must be positive"),
        ({"targets": ("qkv",), "ranks": {"ffn": 2}}, "lora.ranks names 'ffn', which is not in lora.targets: qkv"),
        ({"targets": ("qkv",), "alphas": {"mlp": 2.0}}, "lora.alphas names 'mlp', which is not in lora.targets: qkv"),
    ],
)
def test_impossible_settings(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **change)
