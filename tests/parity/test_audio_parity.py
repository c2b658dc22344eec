"""The audio networks at full size against the golden vectors."""

import jax
import numpy as np
import pytest
from conftest import relative_error

from convert.folding import fold_magnitude, fold_weight_norm
from mmaudio_jax import trees
from mmaudio_jax.models import bigvgan, vae
from mmaudio_jax.weights import Weights

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4
RATES = ["16k", "44k"]
VAE_FILES = {"16k": "v1-16.pth", "44k": "v1-44.pth"}
BIGVGAN_FILES = {"16k": "best_netG.pt", "44k": "bigvgan_generator.pt"}
MEL_SCALES = {"16k": (-2, 0.5), "44k": (-5, 2)}  # offset and factor of the recorded vocoder inputs


def load_converted(golden, name: str) -> Weights:
    tensors = golden.state_dict(name)
    rate = "44k" if name in (VAE_FILES["44k"], BIGVGAN_FILES["44k"]) else "16k"
    if name in VAE_FILES.values():
        config, params = vae.PRESETS[f"vae_{rate}"], {}
        for tensor, value in tensors.items():
            half, leaf = tensor.split(".")[0], tensor.split(".")[-1]
            if half in ("data_mean", "data_std"):
                params[tensor] = value.reshape(-1)
            elif leaf == "weight":
                gain = 1 + tensors[f"{half}.learnable_gain"] if "conv_out" in tensor else 1.0
                params[tensor.removesuffix("weight") + "kernel"] = fold_magnitude(value, gain).transpose(2, 1, 0)
        return Weights(None, "vae", config, params, {})
    config, params = bigvgan.PRESETS[f"bigvgan_{rate}"], {}
    for tensor, value in tensors.items():
        if tensor.endswith("weight_v"):
            kernel = fold_weight_norm(tensors[tensor.removesuffix("v") + "g"], value)
            kernel = kernel.transpose(2, 0, 1)[::-1] if tensor.startswith("ups.") else kernel.transpose(2, 1, 0)
            params[tensor.removesuffix("weight_v") + "kernel"] = kernel
        elif tensor.endswith(("bias", "alpha", "beta")):
            params[tensor] = value
    return Weights(None, "bigvgan", config, params, {})


def apply(weights: Weights, method: str, x: np.ndarray):
    """One of the network's methods, jitted."""
    graphdef = weights.graphdef()
    run = jax.jit(lambda params, x: getattr(trees.merge(graphdef, params), method)(x))
    return run({path: np.ascontiguousarray(leaf) for path, leaf in weights.params.items()}, x)


@pytest.mark.parametrize("rate", RATES)
def test_vae(golden, rate):
    expected = golden.expected(f"vae_{rate}")
    weights = load_converted(golden, VAE_FILES[rate])
    mean, std = apply(weights, "encode", expected["mel"].swapaxes(1, 2))
    assert relative_error(mean, expected["mean"]) < TOLERANCE
    assert relative_error(std, expected["std"]) < TOLERANCE
    decoded = apply(weights, "decode", golden.input("z", expected["mean"].shape))
    assert relative_error(decoded, expected["decoded_mel"].swapaxes(1, 2)) < TOLERANCE


@pytest.mark.parametrize("rate", RATES)
def test_bigvgan(golden, rate):
    expected = golden.expected(f"bigvgan_{rate}")["audio"]
    weights = load_converted(golden, BIGVGAN_FILES[rate])
    frames = expected.shape[-1] // weights.config.hop
    offset, factor = MEL_SCALES[rate]
    mel = offset + factor * golden.input("mel", (1, weights.config.mel_bins, frames))
    assert relative_error(apply(weights, "__call__", mel.swapaxes(1, 2))[:, None], expected) < TOLERANCE
