"""Adapters are put into a base with a weight each, without touching it and without compiling again."""

import jax
import numpy as np
import pytest
from conftest import relative_error

from mmaudio_jax import adapters, checkpoint, lora, weights
from mmaudio_jax.errors import UserError
from mmaudio_jax.request import AdapterUse, parse_adapters

LAYER = "fused_blocks.0.attn.qkv"
SETTINGS = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": ["qkv"], "patterns": {"qkv": r".*\.attn\.qkv"}}
SETTINGS |= {"rslora": False, "ranks": {}, "alphas": {}, "start": None}


def trained(base, seed, layers=(LAYER,)):
    """A random adapter of a base."""
    leaves = {}
    for i, layer in enumerate(layers):
        a, b = (jax.random.normal(jax.random.key(seed + i), shape) for shape in ((64, 2), (2, 192)))
        leaves |= {f"{layer}.lora_a": a, f"{layer}.lora_b": b}
    about = {"path": "weights/small_16k", "fingerprint": base.metadata["fingerprint"]}
    return checkpoint.Adapter(leaves, 3, {"base": about, "config": {"lora": SETTINGS}})


@pytest.fixture(scope="module")
def base(small_weights):
    return weights.load(small_weights / "small_16k", "mmaudio")


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """Two adapters of the base and one that trained a leaf itself, as folders."""
    folder = tmp_path_factory.mktemp("runs")
    checkpoint.save_adapter(folder / "one", trained(base, 1))
    checkpoint.save_adapter(folder / "two", trained(base, 5, [LAYER, "joint_blocks.0.text_block.attn.qkv"]))
    about = trained(base, 1).run | {"config": {"lora": None}}
    leaf = base.params["final_layer.conv.kernel"] + 1
    checkpoint.save_adapter(folder / "whole", checkpoint.Adapter({"final_layer.conv.kernel": leaf}, 7, about))
    return folder


@pytest.fixture(scope="module")
def flow(small_weights):
    return adapters.FlowNetwork(small_weights / "small_16k")


def test_an_adapter_changes_the_network_and_belongs_to_its_base(small_weights, base):
    adapter = trained(base, 0)
    merged = adapters.load_flow_network(small_weights / "small_16k", adapter).params
    assert merged.keys() == base.params.keys()
    a, b = (adapter.params[f"{LAYER}.lora_{ab}"] for ab in "ab")
    assert relative_error(merged[f"{LAYER}.kernel"], base.params[f"{LAYER}.kernel"] + 2 * a @ b) < 1e-6
    adapter.run["base"]["fingerprint"] = "another"
    with pytest.raises(UserError, match="the run started from weights/small_16k, whose weights are not those of"):
        adapters.load_flow_network(small_weights / "small_16k", adapter)


def test_a_whole_weight_is_the_merged_adapter_and_none_the_base(flow, base, runs):
    adapter = checkpoint.load_adapter(runs / "one")
    expected = lora.merge({**base.params, **adapter.params}, adapter.lora)[f"{LAYER}.kernel"]
    assert relative_error(flow.params([AdapterUse(runs / "one")])[f"{LAYER}.kernel"], expected) < 1e-6
    assert flow.params([AdapterUse(runs / "one", 0.0)]) is flow.base.params


def test_ten_weights_compile_once_and_leave_the_base_alone(flow, runs, base):
    def leaf(weight):
        return np.asarray(flow.params([AdapterUse(runs / "one", weight)])[f"{LAYER}.kernel"])

    full, none = leaf(1.0), np.asarray(base.params[f"{LAYER}.kernel"])
    compiled = adapters.add._cache_size()
    for weight in np.linspace(0.1, 1, 10):
        assert relative_error(leaf(float(weight)), none + weight * (full - none)) < 1e-6
    assert adapters.add._cache_size() == compiled
    for path, value in flow.base.params.items():
        np.testing.assert_array_equal(value, base.params[path])


def test_several_at_once_add_up_in_any_order(flow, runs, base):
    uses = [AdapterUse(runs / "one", 0.5), AdapterUse(runs / "two", 0.25)]
    one, two = (np.asarray(flow.params([AdapterUse(use.run)])[f"{LAYER}.kernel"]) for use in uses)
    none = np.asarray(base.params[f"{LAYER}.kernel"])
    expected = none + 0.5 * (one - none) + 0.25 * (two - none)
    for order in (uses, uses[::-1]):
        assert relative_error(flow.params(order)[f"{LAYER}.kernel"], expected) < 1e-6


def test_whole_weights_are_blended(flow, runs, base):
    path = "final_layer.conv.kernel"
    assert relative_error(flow.params([AdapterUse(runs / "whole", 0.25)])[path], base.params[path] + 0.25) < 1e-6


def test_what_is_used_is_described_by_its_step_and_content(flow, runs, base):
    one, two = flow.described([AdapterUse(runs / "one", 0.5), AdapterUse(runs / "two")])
    assert one["run"].endswith("one@3") and one["weight"] == 0.5 and one["fingerprint"] != two["fingerprint"]
    assert {**one, "weight": 1} == {**checkpoint.identify(runs / "one"), "weight": 1}


def test_scale_is_part_of_what_an_adapter_is(runs, base, tmp_path):
    other = trained(base, 1)
    other.run["config"]["lora"] = SETTINGS | {"alpha": 8.0}
    checkpoint.save_adapter(tmp_path / "one", other)
    names = [checkpoint.identify(folder / "one")["fingerprint"] for folder in (runs, tmp_path)]
    assert names[0] != names[1]


def test_no_run_and_another_base_are_refused(flow, base, tmp_path):
    with pytest.raises(UserError, match="nowhere is no training run"):
        flow.params([AdapterUse(tmp_path / "nowhere")])
    other = trained(base, 1)
    other.run["base"]["fingerprint"] = "another"
    checkpoint.save_adapter(tmp_path / "other", other)
    with pytest.raises(UserError, match="name the base that it belongs to"):
        flow.params([AdapterUse(tmp_path / "other")])


def test_adapters_are_written_as_runs_with_weights():
    one, two = parse_adapters("runs/rain*0.5, runs/wind@best ")
    assert (str(one.run), one.weight, str(two.run), two.weight) == ("runs/rain", 0.5, "runs/wind@best", 1.0)
    assert parse_adapters(" ") == ()


@pytest.mark.parametrize("text", ["runs/a*2", "runs/a*-1", "runs/a*x", "*0.5", "runs/a*nan"])
def test_weights_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="write RUN or RUN"):
        parse_adapters(text)
