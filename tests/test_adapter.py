"""Adapters to PEFT's form and back, and merged into the published layout."""

import json
import re
import sys

import jax
import numpy as np
import pytest
from conftest import relative_error
from flax import nnx
from safetensors.numpy import load_file, save_file

from convert import adapter as tool
from convert import matching
from convert.checkpoint_file import read
from mmaudio_jax import adapters, lora, trees, weights
from mmaudio_jax.checkpoint import Progress, RunCheckpoints, load_adapter
from mmaudio_jax.models.mmaudio import MMAudio

SETTINGS = {"rank": 3, "alpha": 6.0, "rslora": False, "dropout": 0.1, "targets": ["qkv", "ffn"]}
SETTINGS |= {"patterns": {"qkv": r".*\.attn\.qkv", "ffn": r".*_blocks\..*\.ffn\.w[123]"}}
SETTINGS |= {"ranks": {}, "alphas": {}, "start": None}
OWN = SETTINGS | {"rslora": True, "ranks": {"ffn": 4}, "alphas": {"qkv": 5.0}}


@pytest.fixture(scope="module")
def base(golden, tmp_path_factory):
    """The tiny network as a weights folder; its layers are linear and convolutions."""
    loaded = golden.weights("flow_tiny.pth")
    folder = tmp_path_factory.mktemp("base") / "tiny"
    weights.save(folder, "mmaudio", loaded.config, loaded.params)
    return weights.load(folder, "mmaudio")


def make_run(base, workdir, settings):
    """A run whose adapter has values in both halves."""
    network = nnx.eval_shape(lambda: MMAudio(base.config, rngs=trees.UNDRAWN))
    leaves = trees.split(lora.insert(network, lora.LoRAConfig(**settings), rngs=nnx.Rngs(0)))[1]
    drawn = {k: leaf for k, leaf in leaves.items() if ".lora_" in k}
    rng = np.random.default_rng(0)
    params = {k: jax.numpy.asarray(rng.standard_normal(leaf.shape), np.float32) for k, leaf in drawn.items()}
    about = {"path": str(base.directory), "fingerprint": base.metadata["fingerprint"]}
    checkpoints = RunCheckpoints(workdir, {"config": {"model": "tiny", "lora": settings}, "base": about})
    checkpoints.save(7, {"params": params}, Progress())
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    return make_run(base, tmp_path_factory.mktemp("runs") / "run", SETTINGS)


@pytest.fixture(scope="module")
def own_run(base, tmp_path_factory):
    """A run whose targets have ranks and alphas of their own."""
    return make_run(base, tmp_path_factory.mktemp("runs") / "run", OWN)


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["adapter", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        tool.main()
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "form"), [("run", "peft"), ("run", "safetensors"), ("own_run", "peft"), ("own_run", "safetensors")]
)
def test_there_and_back_is_the_same_adapter(base, kind, request, monkeypatch, capsys, tmp_path, form):
    run, out = request.getfixturevalue(kind), tmp_path / "exported"
    assert command(monkeypatch, capsys, run, "--to", form, "--out", out)[0] == 0
    assert (
        command(monkeypatch, capsys, out, "--from", "peft", "--base", base.directory, "--out", tmp_path / "b")[0] == 0
    )
    first, again = load_adapter(run), load_adapter(tmp_path / "b")
    assert first.params.keys() == again.params.keys()
    for path, leaf in first.params.items():
        np.testing.assert_array_equal(leaf, again.params[path])
    merged = [adapters.load_flow_network(base.directory, adapter).params for adapter in (first, again)]
    assert weights.fingerprint(merged[0]) == weights.fingerprint(merged[1])


def test_peft_s_names_and_shapes(base, run, monkeypatch, capsys, tmp_path):
    assert command(monkeypatch, capsys, run, "--to", "peft", "--out", tmp_path / "out")[0] == 0
    tensors = load_file(tmp_path / "out" / tool.TENSORS)
    shapes = {name.removeprefix("base_model.model."): tensor.shape for name, tensor in tensors.items()}
    assert shapes["fused_blocks.0.attn.qkv.lora_A.weight"] == (3, 64)
    assert shapes["fused_blocks.0.attn.qkv.lora_B.weight"] == (192, 3)
    assert shapes["fused_blocks.0.ffn.w1.lora_A.weight"] == (3, 64, 3)  # a convolution: (r, in, k)
    assert shapes["fused_blocks.0.ffn.w1.lora_B.weight"] == (256, 3, 1)
    config = json.loads((tmp_path / "out" / tool.CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (3, 6.0, "LORA")
    assert (config["use_rslora"], config["rank_pattern"], config["alpha_pattern"]) == (False, {}, {})
    assert "fused_blocks.0.attn.qkv" in config["target_modules"]


def update(config, tensors, layer):
    """What PEFT adds to a layer's weight, (out, in) or (out, in, k): by its documentation, on its own names."""
    fits = {
        key: [value for path, value in config[key].items() if re.fullmatch(rf"(.*\.)?{path}", layer)]
        for key in ("rank_pattern", "alpha_pattern")
    }
    rank = (*fits["rank_pattern"], config["r"])[0]
    alpha = (*fits["alpha_pattern"], config["lora_alpha"])[0]
    a, b = (tensors[f"{tool.PREFIX}{layer}.lora_{x}.weight"] for x in "AB")
    assert a.shape[0] == b.shape[1] == rank
    product = np.einsum("or,r...->o...", b.reshape(b.shape[:2]), a)
    return alpha / (rank**0.5 if config["use_rslora"] else rank) * product


def test_peft_s_settings_give_the_merged_weights(base, own_run, golden, monkeypatch, capsys, tmp_path):
    for form, name in (("peft", "peft"), ("merged", "merged.safetensors")):
        assert command(monkeypatch, capsys, own_run, "--to", form, "--out", tmp_path / name)[0] == 0
    config = json.loads((tmp_path / "peft" / tool.CONFIG).read_text())
    tensors, merged = load_file(tmp_path / "peft" / tool.TENSORS), load_file(tmp_path / "merged.safetensors")
    assert config["use_rslora"] and set(config["rank_pattern"].values()) == {4}
    assert set(config["alpha_pattern"].values()) == {5.0}
    published = golden.state_dict("flow_tiny.pth")
    for layer in config["target_modules"]:
        changed = merged[f"{layer}.weight"] - published[f"{layer}.weight"]
        assert relative_error(changed, update(config, tensors, layer)) < 1e-5, layer


def test_peft_s_patterns_are_read_as_peft_reads_them(base, own_run, monkeypatch, capsys, tmp_path):
    assert command(monkeypatch, capsys, own_run, "--to", "peft", "--out", tmp_path / "out")[0] == 0
    short = {"rank_pattern": {r"ffn\.w\d": 4, "w1": 9}, "alpha_pattern": {"qkv": 5, "nothing": 7}}
    folder = edited(tmp_path / "out", tmp_path / "edited", short)
    where = ("--from", "peft", "--base", base.directory, "--out", tmp_path / "new")
    assert command(monkeypatch, capsys, folder, *where) == (0, "")
    first, again = (adapters.load_flow_network(base.directory, load_adapter(x)) for x in (own_run, tmp_path / "new"))
    assert weights.fingerprint(first.params) == weights.fingerprint(again.params)


def test_merged_is_the_published_layout(base, run, golden, monkeypatch, capsys, tmp_path):
    assert command(monkeypatch, capsys, run, "--to", "merged", "--out", tmp_path / "m.safetensors")[0] == 0
    published = golden.state_dict("flow_tiny.pth")
    stored = load_file(tmp_path / "m.safetensors")
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        name: tensor.shape for name, tensor in published.items() if not name.endswith(("freqs", "_rot"))
    }
    again = matching.recognise(read(tmp_path / "m.safetensors")).parameters()
    merged = adapters.load_flow_network(base.directory, load_adapter(run)).params
    assert weights.fingerprint(again) == weights.fingerprint(merged)
    changed = {name for name in stored if not np.array_equal(stored[name], published[name])}
    assert len(changed) == len(load_adapter(run).params) // 2


def test_what_was_converted_comes_back_bit_for_bit(base, golden):
    published = golden.state_dict("flow_tiny.pth")
    for name, tensor in tool.MMAUDIO.published(base.params).items():
        np.testing.assert_array_equal(tensor, published[name])


def edited(folder, tmp_path, config=None, tensors=None):
    """A copy of a PEFT folder with another config and other tensors."""
    tmp_path.mkdir(exist_ok=True)
    settings = [] if config == [] else json.loads((folder / tool.CONFIG).read_text()) | (config or {})
    (tmp_path / tool.CONFIG).write_text(json.dumps(settings))
    stored = load_file(folder / tool.TENSORS)
    save_file((tensors or dict)(stored), tmp_path / tool.TENSORS)
    return tmp_path


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"use_dora": True}, None, "the adapter's use_dora is True; only False can be imported"),
        ({"rank_pattern": {"qkv": 2}}, None, "which does not fit a layer of (64, 192) at rank 2"),
        ({"rank_pattern": {"qkv": 2.5}}, None, "must give numbers as r and rank_pattern; it has 3 and {'qkv': 2.5}"),
        ({"alpha_pattern": {"qkv": "x"}}, None, "must give numbers as lora_alpha and alpha_pattern"),
        ({"alpha_pattern": {"qkv": -2}}, None, "it must be positive"),
        ({"alpha_pattern": {"(": 2}}, None, "has a key in alpha_pattern that is not a regular expression"),
        ({"r": None}, None, "must give numbers as r and rank_pattern; it has None and {}"),
        ({"r": 4}, None, "which does not fit a layer of (64, 192) at rank 4"),
        ([], None, "must give numbers as r and rank_pattern"),
        ({"init_lora_weights": "pissa"}, None, "init_lora_weights is 'pissa'"),
        (None, lambda t: {k: v for k, v in t.items() if "w1.lora_A" not in k}, "has one half only"),
        (None, lambda t: {k: v * np.float32("nan") for k, v in t.items()}, "has values that are not finite"),
        (None, lambda t: t | {"base_model.model.nothing.lora_A.weight": np.zeros((3, 4), np.float32)}, "no layer of"),
    ],
)
def test_what_does_not_fit_is_refused(base, run, monkeypatch, capsys, tmp_path, config, tensors, message):
    assert command(monkeypatch, capsys, run, "--to", "peft", "--out", tmp_path / "out")[0] == 0
    folder = edited(tmp_path / "out", tmp_path / "edited", config, tensors)
    where = ("--from", "peft", "--base", base.directory, "--out", tmp_path / "new")
    code, error = command(monkeypatch, capsys, folder, *where)
    assert code == 1 and message in error and not (tmp_path / "new").exists()


def test_another_base_is_told(base, run, golden, monkeypatch, capsys, tmp_path):
    assert command(monkeypatch, capsys, run, "--to", "peft", "--out", tmp_path / "out")[0] == 0
    other = tmp_path / "other"
    weights.save(other, "mmaudio", base.config, base.params | {"latent_mean": base.params["latent_mean"] + 1})
    where = ("--from", "peft", "--base", other, "--out", tmp_path / "new")
    code, error = command(monkeypatch, capsys, tmp_path / "out", *where)
    assert code == 1 and f"the adapter was made for other weights than those of {other}" in error
    code, error = command(monkeypatch, capsys, run, "--to", "merged", "--base", other, "--out", tmp_path / "new")
    assert code == 1 and f"whose weights are not those of {other}" in error and not (tmp_path / "new").exists()


def test_mistakes(base, run, monkeypatch, capsys, tmp_path):
    code, error = command(monkeypatch, capsys, run, "--from", "peft", "--out", tmp_path / "x")
    assert code == 1 and "--from needs --base" in error
    code, error = command(monkeypatch, capsys, run, "--from", "peft", "--base", base.directory, "--out", tmp_path / "x")
    assert code == 1 and "is no adapter of PEFT's" in error
    (tmp_path / "there").mkdir()
    code, error = command(monkeypatch, capsys, run, "--to", "peft", "--out", tmp_path / "there")
    assert code == 1 and "exists already" in error
