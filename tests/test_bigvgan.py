"""The vocoder: its layers against the formulas, its presets against the published files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error
from flax import nnx

from mmaudio_jax import trees
from mmaudio_jax.models import bigvgan
from mmaudio_jax.models.bigvgan import PRESETS, BigVGAN, BigVGANConfig

TINY = BigVGANConfig(mel_bins=6, upsample_rates=(4, 2), channels=16, kernel_sizes=(3, 5), dilations=(1, 3))
TINY_V2 = BigVGANConfig(mel_bins=6, upsample_rates=(8,), channels=8, kernel_sizes=(3,), dilations=(1,), v2=True)
FILES = {"bigvgan_16k": "best_netG.pt", "bigvgan_44k": "bigvgan_generator.pt"}


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def drawn(build):
    """The definition of a module and random parameters, from NumPy: nothing is compiled."""
    graphdef, shapes = trees.abstract(build)
    return graphdef, {
        path: 0.3 * draw(*leaf.shape, seed=i)
        if leaf.ndim == 1
        else draw(*leaf.shape, seed=i) / np.sqrt(leaf.size / leaf.shape[-1])
        for i, (path, leaf) in enumerate(sorted(shapes.items()))
    }


def apply(graphdef, params, x):
    return jax.jit(lambda params, x: trees.merge(graphdef, params)(x))(params, x)


# The formulas in float64; p holds the parameters, `at` is a path in it.


def conv(x, p, at, dilation=1):
    w = np.asarray(p[f"{at}.kernel"], np.float64)
    reach, n = dilation * (len(w) // 2), x.shape[1]
    x = np.pad(x, ((0, 0), (reach, reach), (0, 0)))
    return sum(x[:, i * dilation : i * dilation + n] @ w[i] for i in range(len(w))) + p.get(f"{at}.bias", 0)


def transposed_conv(x, p, at, stride):
    """Each frame adds its kernel to the output at `stride` times its place; (k − stride)/2 is cut from both ends."""
    w = np.asarray(p[f"{at}.kernel"], np.float64)[::-1]
    k, n = len(w), x.shape[1]
    out = np.zeros((len(x), (n - 1) * stride + k, w.shape[-1]))
    for i in range(n):
        out[:, i * stride : i * stride + k] += np.einsum("bi,kio->bko", x[:, i], w)
    cut = (k - stride) // 2
    return out[:, cut : out.shape[1] - cut] + p[f"{at}.bias"]


def anti_aliased(x, p, at=""):
    """Up by a transposed convolution of stride 2, snake, down by a convolution of stride 2, as published."""
    taps = bigvgan.lowpass_filter().astype(np.float64)
    alpha, beta = np.exp(p[f"{at}act.alpha"]), np.exp(p[f"{at}act.beta"])
    n = x.shape[1]
    x = np.pad(x, ((0, 0), (5, 5), (0, 0)), mode="edge")
    up = np.zeros((len(x), 2 * x.shape[1] + 10, x.shape[2]))
    for i in range(x.shape[1]):
        up[:, 2 * i : 2 * i + 12] += 2 * x[:, i : i + 1] * taps[:, None]
    up = up[:, 15:-15]
    up = np.pad(up + np.sin(alpha * up) ** 2 / (beta + 1e-9), ((0, 0), (5, 6), (0, 0)), mode="edge")
    return np.stack([np.einsum("bkc,k->bc", up[:, 2 * i : 2 * i + 12], taps) for i in range(n)], axis=1)


def residual_block(x, p, at="", *, dilations):
    for i, dilation in enumerate(dilations):
        h = anti_aliased(x, p, f"{at}activations.{2 * i}.")
        h = anti_aliased(conv(h, p, f"{at}convs1.{i}", dilation), p, f"{at}activations.{2 * i + 1}.")
        x = x + conv(h, p, f"{at}convs2.{i}")
    return x


def vocoder(mel, p, config):
    """The network up to its last convolution."""
    x = conv(mel, p, "conv_pre")
    kinds = len(config.kernel_sizes)
    for i, rate in enumerate(config.upsample_rates):
        x = transposed_conv(x, p, f"ups.{i}.0", rate)
        blocks = [f"resblocks.{i * kinds + j}." for j in range(kinds)]
        x = np.mean([residual_block(x, p, block, dilations=config.dilations) for block in blocks], axis=0)
    return conv(anti_aliased(x, p, "activation_post."), p, "conv_post")[..., 0]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_tensors(golden, name):
    expected = {}
    for tensor, spec in golden.manifest(FILES[name])["tensors"].items():
        if tensor.endswith("weight_v"):
            a, b, k = spec["shape"]  # (out, in, k); a transposed convolution has (in, out, k)
            expected[tensor.removesuffix("weight_v") + "kernel"] = (k, a, b) if tensor.startswith("ups.") else (k, b, a)
        elif not tensor.endswith(("weight_g", "filter")):
            expected[tensor] = tuple(spec["shape"])
    _, shapes = trees.abstract(lambda: BigVGAN(PRESETS[name], rngs=nnx.Rngs(0)))
    assert {path: leaf.shape for path, leaf in shapes.items()} == expected
    assert trees.count(shapes) == {"bigvgan_16k": 112_199_473, "bigvgan_44k": 122_152_752}[name]
    assert PRESETS[name].hop == {"bigvgan_16k": 256, "bigvgan_44k": 512}[name]


def test_filter_is_the_published_one(golden):
    published = golden.manifest("best_netG.pt")["tensors"]["activation_post.upsample.filter"]["value"]
    np.testing.assert_allclose(bigvgan.lowpass_filter(), published, atol=1e-7)


@pytest.mark.parametrize("n", [1, 9])
def test_activation_is_its_formula(n):
    graphdef, params = drawn(lambda: bigvgan.AntiAliased(bigvgan.SnakeBeta(5)))
    x = 3 * draw(2, n, 5)
    assert relative_error(apply(graphdef, params, x), anti_aliased(x, params)) < 1e-6


def test_residual_block_is_its_formula():
    graphdef, params = drawn(
        lambda: bigvgan.ResidualBlock(4, 5, (1, 3, 5), rngs=nnx.Rngs(0), dtype=jnp.float32, precision=None)
    )
    x = draw(2, 24, 4)
    assert relative_error(apply(graphdef, params, x), residual_block(x, params, dilations=(1, 3, 5))) < 1e-6


@pytest.mark.parametrize("config", [TINY, TINY_V2], ids=["v1", "v2"])
def test_network_is_its_formula(config):
    graphdef, params = drawn(lambda: BigVGAN(config, rngs=nnx.Rngs(0)))
    mel = 2 * draw(2, 5, 6)
    audio, expected = apply(graphdef, params, mel), vocoder(mel, params, config)
    assert audio.dtype == jnp.float32 and audio.shape == (2, 5 * config.hop)
    assert np.abs(expected).max() > 1
    assert relative_error(audio, np.clip(expected, -1, 1) if config.v2 else np.tanh(expected)) < 1e-5


def test_bfloat16_compute_stays_close():
    graphdef, params = drawn(lambda: BigVGAN(TINY_V2, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    mel = 0.3 * draw(2, 5, 6)
    audio = apply(graphdef, params, mel)
    assert audio.dtype == jnp.float32
    assert 1e-4 < relative_error(audio, np.clip(vocoder(mel, params, TINY_V2), -1, 1)) < 0.05
