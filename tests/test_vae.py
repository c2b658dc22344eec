"""The VAE: its layers against the formulas, its presets against the published files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error
from flax import nnx

from mmaudio_jax import trees
from mmaudio_jax.models import vae
from mmaudio_jax.models.layers import Buffer
from mmaudio_jax.models.vae import PRESETS, VAE, VAEConfig

TINY = VAEConfig(mel_bins=12, latent_dim=4, width=16)
FILES = {"vae_16k": "v1-16.pth", "vae_44k": "v1-44.pth"}


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def drawn(build):
    """The definition of a network and random parameters of unit gain, from NumPy: nothing is compiled."""
    graphdef, shapes = trees.abstract(build)
    params = {
        path: draw(*leaf.shape, seed=i) / np.sqrt(np.prod(leaf.shape[:-1], dtype=np.float32))
        for i, (path, leaf) in enumerate(sorted(shapes.items()))
    }
    if "data_std" in params:
        params |= {"data_mean": draw(12, seed=98) - 5, "data_std": 1 + draw(12, seed=99) ** 2}
    return graphdef, params


def layer(cls, *sizes):
    return drawn(lambda: cls(*sizes, rngs=nnx.Rngs(0), dtype=jnp.float32, precision=None))


def apply(graphdef, params, x, method="__call__"):
    return jax.jit(lambda params, x: getattr(trees.merge(graphdef, params), method)(x))(params, x)


# The formulas in float64; p holds the parameters, `at` is a path in it.


def conv(x, p, at):
    w = np.asarray(p[f"{at}.kernel"], np.float64)
    k, n = len(w), x.shape[1]
    x = np.pad(x, ((0, 0), (k // 2, k // 2), (0, 0)))
    return sum(x[:, i : i + n] @ w[i] for i in range(k))


def unit(x):
    return x / (1e-4 + np.linalg.norm(x, axis=-1, keepdims=True) / np.sqrt(x.shape[-1]))


def silu(x):
    return x / (1 + np.exp(-x)) / 0.596


def residual_sum(a, b):
    return (0.7 * a + 0.3 * b) / np.sqrt(0.7**2 + 0.3**2)


def residual_block(x, p, at=""):
    x = unit(x)
    skip = conv(x, p, f"{at}nin_shortcut") if f"{at}nin_shortcut.kernel" in p else x
    return residual_sum(skip, conv(silu(conv(silu(x), p, f"{at}conv1")), p, f"{at}conv2"))


def attention_block(x, p, at=""):
    qkv = conv(x, p, f"{at}qkv")
    q, k, v = (unit(qkv[..., i::3]) for i in range(3))
    weights = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(x.shape[-1]))
    return residual_sum(x, conv(weights / weights.sum(-1, keepdims=True) @ v, p, f"{at}proj_out"))


def downsample(x, p, at=""):
    x = conv(x, p, f"{at}conv1")
    return conv((x[:, ::2] + x[:, 1::2]) / 2, p, f"{at}conv2")


def upsample(x, p, at=""):
    return conv(np.stack([x, x], axis=2).reshape(len(x), -1, x.shape[-1]), p, f"{at}conv")


def mid(x, p, at):
    return residual_block(
        attention_block(residual_block(x, p, f"{at}.block_1."), p, f"{at}.attn_1."), p, f"{at}.block_2."
    )


def encode(mel, p):
    x = conv((mel - p["data_mean"]) / p["data_std"], p, "encoder.conv_in")
    for level in range(3):
        for block in range(2):
            x = residual_block(x, p, f"encoder.down.{level}.block.{block}.")
        if level == 0:
            x = downsample(x, p, "encoder.down.0.downsample.")
    x = conv(silu(mid(x, p, "encoder.mid")), p, "encoder.conv_out")
    return x[..., :4], np.exp(x[..., 4:] / 2)


def decode(z, p):
    x = mid(conv(z, p, "decoder.conv_in"), p, "decoder.mid")
    for level in (2, 1, 0):
        for block in range(3):
            x = residual_block(x, p, f"decoder.up.{level}.block.{block}.")
        if level == 1:
            x = upsample(x, p, "decoder.up.1.upsample.")
    return conv(silu(x), p, "decoder.conv_out") * p["data_std"] + p["data_mean"]


@pytest.fixture(scope="module")
def tiny():
    return drawn(lambda: VAE(TINY, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_tensors(golden, name):
    manifest = golden.manifest(FILES[name])
    expected = {}
    for tensor, spec in manifest["tensors"].items():
        if tensor.startswith("data_"):
            expected[tensor] = (spec["shape"][1],)
        elif not tensor.endswith("learnable_gain"):  # folded into conv_out
            expected[tensor.removesuffix("weight") + "kernel"] = tuple(reversed(spec["shape"]))
    _, shapes = trees.abstract(lambda: VAE(PRESETS[name], rngs=nnx.Rngs(0)))
    assert {path: leaf.shape for path, leaf in shapes.items()} == expected
    assert trees.count(shapes) == manifest["elements"] - 2


def test_statistics_are_not_trainable(tiny):
    buffers = nnx.to_flat_state(nnx.state(trees.merge(*tiny), Buffer))
    assert sorted(path[-1] for path, _ in buffers) == ["data_mean", "data_std"]


@pytest.mark.parametrize(
    "graphdef_params, formula",
    [
        (layer(vae.ResidualBlock, 8, 8), residual_block),
        (layer(vae.ResidualBlock, 8, 12), residual_block),
        (layer(vae.AttentionBlock, 8), attention_block),
        (layer(vae.Downsample, 8), downsample),
        (layer(vae.Upsample, 8), upsample),
    ],
    ids=["residual", "residual_shortcut", "attention", "downsample", "upsample"],
)
def test_layer_is_its_formula(graphdef_params, formula):
    graphdef, params = graphdef_params
    x = 3 * draw(2, 10, 8)
    assert relative_error(apply(graphdef, params, x), formula(x.astype(np.float64), params)) < 1e-6


def test_network_is_its_formula(tiny):
    mel, z = draw(2, 8, 12) - 5, draw(2, 4, 4)
    mean, std = apply(*tiny, mel, "encode")
    expected_mean, expected_std = encode(mel, tiny[1])
    assert mean.dtype == std.dtype == jnp.float32
    assert relative_error(mean, expected_mean) < 1e-5
    assert relative_error(std, expected_std) < 1e-5
    decoded = apply(*tiny, z, "decode")
    assert decoded.dtype == jnp.float32
    assert relative_error(decoded, decode(z, tiny[1])) < 1e-5


def test_odd_number_of_frames_is_refused(tiny):
    with pytest.raises(TypeError):
        apply(*tiny, draw(1, 7, 12), "encode")


def test_log_variance_is_limited(tiny):
    graphdef, params = tiny
    path = "encoder.conv_out.kernel"
    _, std = apply(graphdef, {**params, path: params[path] * 1e4}, draw(2, 8, 12) - 5, "encode")
    assert np.isclose(std.max(), np.exp(10)) and np.isclose(std.min(), np.exp(-15))


def test_activations_are_limited(tiny):
    """With kernels that no conversion makes, the clamp after the mid stage bounds what leaves it."""
    graphdef, params = tiny
    huge = {k: v * 1e4 if "decoder.mid.block_2.conv2" in k else v for k, v in params.items()}
    x = jax.jit(lambda params, x: trees.merge(graphdef, params).decoder.mid(x))(huge, draw(1, 4, 64))
    assert float(jnp.abs(x).max()) == 256


def test_bfloat16_compute_stays_close(tiny):
    half, _ = trees.abstract(lambda: VAE(TINY, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    params = tiny[1] | {"data_mean": np.zeros(12, np.float32)}  # an offset would hide the error
    mel, z = draw(2, 8, 12), draw(2, 4, 4)
    for ours, expected in (
        (apply(half, params, mel, "encode")[0], encode(mel, params)[0]),
        (apply(half, params, z, "decode"), decode(z, params)),
    ):
        assert ours.dtype == jnp.float32
        assert 1e-4 < relative_error(ours, expected) < 0.03
