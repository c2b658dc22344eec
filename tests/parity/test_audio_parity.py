"""The audio networks at full size against the golden vectors."""

import jax
import numpy as np
import pytest
from conftest import relative_error

from mmaudio_jax import trees
from mmaudio_jax.weights import Weights

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4
RATES = ["16k", "44k"]
VAE_FILES = {"16k": "v1-16.pth", "44k": "v1-44.pth"}
BIGVGAN_FILES = {"16k": "best_netG.pt", "44k": "bigvgan_generator.pt"}
MEL_SCALES = {"16k": (-2, 0.5), "44k": (-5, 2)}  # offset and factor of the recorded vocoder inputs


def apply(weights: Weights, method: str, x: np.ndarray):
    """One of the network's methods, jitted."""
    graphdef = weights.graphdef()
    run = jax.jit(lambda params, x: getattr(trees.merge(graphdef, params), method)(x))
    return run(weights.params, x)


@pytest.mark.parametrize("rate", RATES)
def test_vae(golden, rate):
    expected = golden.expected(f"vae_{rate}")
    weights = golden.weights(VAE_FILES[rate])
    mean, std = apply(weights, "encode", expected["mel"].swapaxes(1, 2))
    assert relative_error(mean, expected["mean"]) < TOLERANCE
    assert relative_error(std, expected["std"]) < TOLERANCE
    decoded = apply(weights, "decode", golden.input("z", expected["mean"].shape))
    assert relative_error(decoded, expected["decoded_mel"].swapaxes(1, 2)) < TOLERANCE


@pytest.mark.parametrize("rate", RATES)
def test_bigvgan(golden, rate):
    expected = golden.expected(f"bigvgan_{rate}")["audio"]
    weights = golden.weights(BIGVGAN_FILES[rate])
    frames = expected.shape[-1] // weights.config.hop
    offset, factor = MEL_SCALES[rate]
    mel = offset + factor * golden.input("mel", (1, weights.config.mel_bins, frames))
    assert relative_error(apply(weights, "__call__", mel.swapaxes(1, 2))[:, None], expected) < TOLERANCE
