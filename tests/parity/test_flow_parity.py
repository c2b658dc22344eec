"""Every released flow network at full size, through the converter, against the golden vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error

from mmaudio_jax import sampling, solvers, trees
from mmaudio_jax.models import mmaudio

pytestmark = pytest.mark.parity

LENGTHS = {"16k": (250, 20), "44k": (345, 40)}


def inputs(golden, batch, latent_shape):
    shapes = {"latent": latent_shape, "clip": (64, 1024), "sync": (192, 768), "text": (77, 1024)}
    return tuple(golden.input(key, (batch, *shape)) for key, shape in shapes.items())


def velocity(weights, latent, t, *features):
    graphdef = weights.graphdef()
    run = jax.jit(lambda params, *args: trees.merge(graphdef, params)(*args))
    return run(weights.params, latent, np.array(t, np.float32), *features)


@pytest.mark.parametrize("name", ["small_44k", "medium_44k", "large_44k", "large_44k_v2"])
def test_velocity(golden, name, monkeypatch):
    weights, expected = golden.weights(f"mmaudio_{name}.pth"), golden.expected(f"flow_{name}")
    given = inputs(golden, 1, LENGTHS["44k"])
    if "t_freqs" in expected:
        assert relative_error(velocity(weights, given[0], [0.15], *given[1:]), expected["flow"]) <= 2e-4
        monkeypatch.setattr(mmaudio.TimestepEmbedder, "frequencies", lambda self: expected["t_freqs"])
    assert relative_error(velocity(weights, given[0], [0.15], *given[1:]), expected["flow"]) <= 1e-5


def test_small_16k(golden):
    weights, expected = golden.weights("mmaudio_small_16k.pth"), golden.expected("flow_small_16k")
    latent, clip, sync, text = inputs(golden, 2, LENGTHS["16k"])
    t = [0.15, 0.85]
    assert relative_error(velocity(weights, latent, t, clip, sync, text), expected["flow"]) <= 1e-5
    n, c, s = map(int, expected["lens_5s"])
    flow = velocity(weights, latent[:, :n], t, clip[:, :c], sync[:, :s], text)
    assert relative_error(flow, expected["flow_5s"]) <= 1e-5
    empty = {key: jnp.asarray(weights.params[f"empty_{key}_feat"]) for key in ("clip", "sync", "string")}
    no_clip, no_sync = jnp.broadcast_to(empty["clip"], clip.shape), jnp.broadcast_to(empty["sync"], sync.shape)
    assert relative_error(velocity(weights, latent, t, no_clip, no_sync, text), expected["flow_text_only"]) <= 1e-5


@pytest.mark.parametrize(
    ("name", "strength", "steps"),
    [("sample_unnormalized", 4.5, 25), ("sample_negative_8", 3.0, 8), ("sample_nocfg_8", 0.5, 8)],
)
def test_sampler(golden, name, strength, steps):
    weights, expected = golden.weights("mmaudio_small_16k.pth"), golden.expected("flow_small_16k")
    latent, clip, sync, text = inputs(golden, 2, LENGTHS["16k"])
    empty = np.broadcast_to(weights.params["empty_string_feat"], text.shape)
    negative = golden.input("negative_text", text.shape) if "negative" in name else empty
    given = (clip, sync, text)
    guided = sampling.guided(weights.params, *given, negative, strength)
    rows = guided if strength >= 1 else sampling.plain(*given)
    table = solvers.stack([solvers.table("euler", steps)] * len(latent))
    out = sampling.sample(weights.graphdef(), weights.params, latent, rows, table, steps)
    if name != "sample_unnormalized":
        out = (out - weights.params["latent_mean"]) / weights.params["latent_std"]
    assert relative_error(out, expected[name]) <= 2e-5
