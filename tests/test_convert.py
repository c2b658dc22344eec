"""The converter: published files in, weights folders out, each whole or not at all."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch_zip
from safetensors.numpy import save_file

import mmaudio_jax
from convert import matching, released, rules
from convert.__main__ import main
from convert.checkpoint_file import Checkpoint
from convert.conversion import convert
from mmaudio_jax import weights
from mmaudio_jax.errors import UserError
from mmaudio_jax.models import bigvgan, clip, synchformer, vae

REPOSITORY = Path(__file__).parents[1]
PRESETS = {
    "mmaudio_small_16k.pth": "small_16k",
    "mmaudio_small_44k.pth": "small_44k",
    "mmaudio_medium_44k.pth": "medium_44k",
    "mmaudio_large_44k.pth": "large_44k",
    "mmaudio_large_44k_v2.pth": "large_44k_v2",
    "flow_tiny.pth": "tiny",
    "flow_tiny_v2.pth": "tiny_v2",
    "v1-16.pth": "vae_16k",
    "v1-44.pth": "vae_44k",
    "best_netG.pt": "bigvgan_16k",
    "bigvgan_generator.pt": "bigvgan_44k",
    "open_clip_pytorch_model.bin": "clip",
    "synchformer_state_dict.pth": "synchformer",
}
TINY_BIGVGAN = bigvgan.BigVGANConfig(
    mel_bins=6, upsample_rates=(4, 2), channels=16, kernel_sizes=(3, 5), dilations=(1, 3)
)


class Shaped:
    """A tensor of which only the shape matters."""

    def __init__(self, shape):
        self.shape = tuple(shape)


def published_name(path: str) -> str:
    """The tensor that a parameter of the flow network or an encoder is."""
    path = re.sub(
        r"\.in_proj\.(?:kernel|bias)$", lambda m: ".in_proj_" + ("weight" if "kernel" in m[0] else "bias"), path
    )
    return re.sub(r"\.(kernel|scale|embedding)$", ".weight", path)


def published_layout(path: str, array: np.ndarray) -> np.ndarray:
    """A parameter as the published file has it: kernels are (out, in, …)."""
    return array.transpose(-1, -2, *range(array.ndim - 2)) if path.endswith(".kernel") else array


def write(path, tensors, **kw):
    return torch_zip.write(path, {name: torch_zip.tensor(array) for name, array in tensors.items()}, **kw)


def assert_holds(converted: weights.Weights, tensors):
    """Every parameter equals its tensor, bit for bit."""
    for name, leaf in converted.params.items():
        array = published_layout(name, np.asarray(leaf))
        np.testing.assert_array_equal(array, tensors[published_name(name)].astype(np.float32), err_msg=name)


def drawn(golden, network: str, preset: str) -> dict[str, np.ndarray]:
    """Random values for the tensors that a preset's file holds."""
    table = next(table for table in rules.TABLES if table.network == network)
    shapes = {
        name: s
        for path, leaf in table.parameters(preset).items()
        for name, s in matching.sources(table, path, leaf.shape)
    }
    return {name: np.asarray(golden.recipe.tensor(name, shape, 1), np.float32) for name, shape in shapes.items()}


# Recognition


@pytest.mark.parametrize("filename", PRESETS)
def test_every_published_file_fits_its_preset(golden, filename):
    """Every tensor is used or ignored for a reason, every parameter filled; the file's name plays no part."""
    manifest = golden.manifest(filename)
    prefix = "".join(f"{key}." for key in manifest.get("nested_under", []))
    tensors = {f"{prefix}{name}": Shaped(spec["shape"]) for name, spec in manifest["tensors"].items()}
    recognised = matching.recognise(Checkpoint(Path("unnamed"), tensors, {}))
    assert recognised.preset == PRESETS[filename]
    used = {
        name
        for path, leaf in recognised.table.parameters(recognised.preset).items()
        for name, _ in matching.sources(recognised.table, path, leaf.shape)
    }
    ignored = {recognised.table.canonical(name) for names in recognised.ignored.values() for name in names}
    assert not used & ignored
    assert used | ignored == manifest["tensors"].keys()


def test_ignores_constants_that_a_file_may_hold_besides(golden, tmp_path):
    tensors = golden.state_dict("flow_tiny.pth")
    extra = {
        "t_embed.freqs": np.ones(128, np.float32),
        "latent_rot": np.ones((250, 16, 2), np.float32),
        "clip_rot": np.ones((64, 16, 2), np.float32),
    }
    report = convert(write(tmp_path / "x.pth", {**tensors, **extra}), tmp_path, quiet=True)
    assert sorted(name for names in report.ignored.values() for name in names) == sorted(extra)
    assert report.tensors == len(tensors) + 3
    assert_holds(weights.load(report.directory, "mmaudio"), tensors)


def test_lists_all_that_is_wrong(golden, tmp_path):
    tensors = golden.state_dict("flow_tiny.pth")
    del tensors["fused_blocks.0.ffn.w2.weight"], tensors["latent_std"]
    tensors["clip_cond_proj.weight"] = tensors["clip_cond_proj.weight"][:, :60]
    tensors["lora.a"] = np.ones((3, 2), np.float32)
    with pytest.raises(UserError) as error:
        convert(write(tmp_path / "x.pth", tensors), tmp_path / "out", quiet=True)
    assert str(error.value).splitlines() == [
        f"{tmp_path / 'x.pth'} is nearest to tiny (mmaudio), but does not fit:",
        "  missing: fused_blocks.0.ffn.w2.weight (64, 256, 3)",
        "  missing: latent_std (1, 1, 20)",
        "  misshapen: clip_cond_proj.weight has (64, 60), tiny has (64, 64)",
        "  unexpected: lora.a (3, 2)",
    ]
    assert not (tmp_path / "out").exists()


def test_refuses_files_of_no_known_network(tmp_path):
    with pytest.raises(UserError, match=r"belongs to no network known here \(its tensors begin with fc.weight\)"):
        convert(write(tmp_path / "x.pth", {"fc.weight": np.ones((3, 3))}), tmp_path, quiet=True)


def test_one_tensor_under_two_spellings_is_told(golden):
    manifest = golden.manifest("best_netG.pt")
    tensors = {name: Shaped(spec["shape"]) for name, spec in manifest["tensors"].items()}
    twice = {"generator.conv_pre.parametrizations.weight.original0": tensors["conv_pre.weight_g"]}
    with pytest.raises(UserError, match="under several names: conv_pre.weight_g, generator.conv_pre.param"):
        matching.recognise(Checkpoint(Path("x"), {**tensors, **twice}, {}))


# Values


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_other_precisions_become_float32(golden, tmp_path, dtype):
    tensors = {name: array.astype(dtype) for name, array in golden.state_dict("flow_tiny.pth").items()}
    report = convert(write(tmp_path / "half.pth", tensors), tmp_path, quiet=True)
    converted = weights.load(report.directory, "mmaudio")
    assert {leaf.dtype for leaf in converted.params.values()} == {np.dtype(np.float32)}
    assert_holds(converted, tensors)


def test_safetensors_and_torch_give_the_same_weights(golden, tmp_path):
    tensors = golden.state_dict("flow_tiny_v2.pth")
    save_file(tensors, tmp_path / "a.safetensors")
    a = convert(tmp_path / "a.safetensors", tmp_path / "a", quiet=True)
    b = convert(golden.checkpoint("flow_tiny_v2.pth"), tmp_path / "b", quiet=True)
    assert a.directory.name == b.directory.name == "tiny_v2"
    fingerprints = [weights.load(report.directory, "mmaudio").metadata["fingerprint"] for report in (a, b)]
    assert fingerprints[0] == fingerprints[1]


def test_vae_kernels_have_their_magnitude_folded_in(golden, tmp_path, monkeypatch):
    monkeypatch.setitem(vae.PRESETS, "vae_tiny", vae.VAEConfig(mel_bins=6, latent_dim=3, width=8))
    tensors = drawn(golden, "vae", "vae_tiny")
    converted = weights.load(convert(write(tmp_path / "x.pth", tensors), tmp_path, quiet=True).directory, "vae")
    for path, leaf in converted.params.items():
        if not path.endswith(".kernel"):
            np.testing.assert_array_equal(leaf, tensors[path].reshape(-1))
            continue
        w = tensors[path.replace(".kernel", ".weight")].astype(np.float64)
        fan_in = w[0].size
        w = w / (1e-4 + np.sqrt((w**2).sum(axis=(1, 2), keepdims=True) / fan_in)) / np.sqrt(fan_in)
        if "conv_out" in path:
            w *= 1 + tensors[path.split(".")[0] + ".learnable_gain"]
        np.testing.assert_allclose(leaf, w.transpose(2, 1, 0), rtol=1e-5, atol=1e-7, err_msg=path)


@pytest.mark.parametrize("spelling", ["weight_g", "original0"])
def test_bigvgan_kernels_have_their_weight_norm_folded_in(golden, tmp_path, monkeypatch, spelling):
    monkeypatch.setitem(bigvgan.PRESETS, "bigvgan_tiny", TINY_BIGVGAN)
    tensors = drawn(golden, "bigvgan", "bigvgan_tiny")
    filters = {"activation_post.upsample.filter": bigvgan.lowpass_filter().reshape(1, 1, 12).copy()}

    def spelled(name):
        if spelling == "original0":
            name = name.replace("weight_g", "parametrizations.weight.original0")
            name = name.replace("weight_v", "parametrizations.weight.original1")
        return name

    generator = {spelled(name): torch_zip.tensor(array) for name, array in {**tensors, **filters}.items()}
    source = torch_zip.write(tmp_path / "x.pt", {"generator": torch_zip.ordered_dict(generator), "steps": 5_000_000})
    report = convert(source, tmp_path, quiet=True)
    assert report.others == {"steps": "int"}
    assert list(report.ignored.values()) == [["generator.activation_post.upsample.filter"]]
    converted = weights.load(report.directory, "bigvgan")
    for path, leaf in converted.params.items():
        if not path.endswith(".kernel"):
            np.testing.assert_array_equal(leaf, tensors[path])
            continue
        g, v = (tensors[path.replace("kernel", part)].astype(np.float64) for part in ("weight_g", "weight_v"))
        w = np.stack([g[i] * v[i] / np.linalg.norm(v[i]) for i in range(len(v))])
        w = w.transpose(2, 0, 1)[::-1] if path.startswith("ups.") else w.transpose(2, 1, 0)
        np.testing.assert_allclose(leaf, w, rtol=1e-5, atol=1e-7, err_msg=path)
    filters["activation_post.upsample.filter"][...] += 0.01
    save_file({**tensors, **filters}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="activation_post.upsample.filter is not the constant"):
        convert(tmp_path / "x.pt", tmp_path / "out", quiet=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_filter_of_a_bigvgan_may_be_rounded_to_the_file_s_type_and_no_more(golden, tmp_path, monkeypatch, dtype):
    monkeypatch.setitem(bigvgan.PRESETS, "bigvgan_tiny", TINY_BIGVGAN)
    tensors = {name: array.astype(dtype) for name, array in drawn(golden, "bigvgan", "bigvgan_tiny").items()}
    name, taps = "activation_post.upsample.filter", bigvgan.lowpass_filter().reshape(1, 1, -1)

    def converted(taps):
        return convert(write(tmp_path / "x.pt", {**tensors, name: taps}), tmp_path, overwrite=True, quiet=True)

    assert converted(taps.astype(dtype)).directory.name == "bigvgan_tiny"
    for wrong in (
        (taps + 0.02).astype(dtype),
        taps[..., :-1].astype(dtype),
        taps[..., :1].astype(dtype),
        taps.astype(int),
    ):
        with pytest.raises(UserError, match=f"{name} is not the constant of bigvgan_tiny's architecture"):
            converted(wrong)


@pytest.mark.parametrize(
    "module, config",
    [
        (clip, clip.CLIPConfig(28, 14, 16, 2, 2, 12, 2, 2, 8, context_length=5, vocab_size=30)),
        (synchformer, synchformer.SynchformerConfig(32, 16, 4, 2, 16, 2, 2)),
    ],
)
def test_encoder_values_are_kept(golden, tmp_path, monkeypatch, module, config):
    network = module.__name__.rpartition(".")[2]
    monkeypatch.setitem(module.PRESETS, f"{network}_tiny", config)
    tensors = drawn(golden, network, f"{network}_tiny")
    report = convert(write(tmp_path / "x.bin", tensors), tmp_path, quiet=True)
    assert_holds(weights.load(report.directory, network), tensors)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refuses_values_that_are_not_finite(golden, tmp_path, value):
    tensors = golden.state_dict("flow_tiny.pth")
    for name in ("latent_mean", "final_layer.conv.weight"):
        tensors[name].reshape(-1)[-1] = value
    tensors["empty_sync_feat"] = np.ones((1, 768), np.int64)
    with pytest.raises(UserError) as error:
        convert(write(tmp_path / "x.pth", tensors), tmp_path / "out", quiet=True)
    assert sorted(line.strip() for line in str(error.value).splitlines()[1:]) == [
        "empty_sync_feat has type int64 where floating-point numbers are needed",
        "final_layer.conv.weight has values that are not finite",
        "latent_mean has values that are not finite",
    ]
    assert not (tmp_path / "out").exists()


# The command


def run(*arguments):
    command = [sys.executable, "-m", "convert", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_command_converts_each_file_whole_or_not_at_all(golden, tmp_path):
    source, out = golden.checkpoint("flow_tiny.pth"), tmp_path / "weights"
    broken = tmp_path / "broken.pth"
    broken.write_bytes(source.read_bytes()[:-1000])
    result = run(broken, source, "--out", out)
    assert result.returncode == 1
    assert f"error: {broken} is truncated or damaged" in result.stderr and "Traceback" not in result.stderr
    assert "tiny (mmaudio), 108 tensors; not byte for byte a published file" in result.stdout
    assert "2,276,476 elements" in result.stdout and "CC-BY-NC 4.0" in result.stdout
    assert sorted(path.name for path in out.iterdir()) == ["tiny"]
    metadata = json.loads((out / "tiny" / "metadata.json").read_text())
    content = source.read_bytes()
    expected = {
        "source": "flow_tiny.pth",
        "md5": hashlib.md5(content).hexdigest(),
        "sha256": hashlib.sha256(content).hexdigest(),
        "schema_version": weights.SCHEMA_VERSION,
        "mmaudio_jax_version": mmaudio_jax.__version__,
        "elements": 2276476,
    }
    assert {key: metadata[key] for key in expected} == expected and "licence" not in metadata  # no released network
    assert_holds(weights.load(out / "tiny", "mmaudio"), golden.state_dict("flow_tiny.pth"))


def test_command_succeeds_without_a_word_of_trouble(golden, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["convert", str(golden.checkpoint("flow_tiny.pth")), "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 0
    assert not re.search("error|warning", capsys.readouterr().err, re.IGNORECASE)


def test_replaces_only_when_told(golden, tmp_path, monkeypatch):
    source = golden.checkpoint("flow_tiny.pth")
    directory = convert(source, tmp_path, quiet=True).directory
    with pytest.raises(UserError, match=r"tiny exists already; .*--overwrite"):
        convert(source, tmp_path, quiet=True)
    monkeypatch.setitem(released.MD5, hashlib.md5(source.read_bytes()).hexdigest(), "as_published.pth")
    (directory / "stray").touch()
    assert convert(source, tmp_path, overwrite=True, quiet=True).published_as == "as_published.pth"
    assert not (directory / "stray").exists()


def test_leaves_nothing_behind_when_writing_fails(golden, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(weights.json, "dumps", full)
    source, occupied = golden.checkpoint("flow_tiny.pth"), tmp_path / "file"
    with pytest.raises(UserError, match="tiny cannot be written: no space left"):
        convert(source, tmp_path, quiet=True)
    assert list(tmp_path.iterdir()) == []
    occupied.touch()
    with pytest.raises(UserError, match="file is a file, not a folder to write something in"):
        convert(source, occupied, quiet=True)
