"""The flow network and the sampler against the golden vectors, at the small size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error
from flax import nnx

from mmaudio_jax import sampling, solvers, trees
from mmaudio_jax.models import mmaudio
from mmaudio_jax.models.mmaudio import PRESETS, MMAudio

T = np.array([0.15, 0.85], np.float32)
ELEMENTS = {
    "small_16k": (251, 157_283_644),
    "small_44k": (251, 157_409_144),
    "medium_44k": (251, 621_805_944),
    "large_44k": (416, 1_030_002_168),
    "large_44k_v2": (416, 1_030_575_608),
}


def inputs(golden):
    return tuple(
        golden.input(key, shape)
        for key, shape in (
            ("latent", (2, 250, 20)),
            ("clip", (2, 64, 1024)),
            ("sync", (2, 192, 768)),
            ("text", (2, 77, 1024)),
        )
    )


@pytest.fixture(params=["tiny", "tiny_v2"])
def case(request, golden, monkeypatch):
    """(network, params, expected) with the oracle's t frequencies where it recorded them."""
    expected = golden.expected(f"flow_{request.param}")
    if "t_freqs" in expected:
        monkeypatch.setattr(mmaudio.TimestepEmbedder, "frequencies", lambda self: expected["t_freqs"])
    weights = golden.weights(f"flow_{request.param}.pth")
    return weights.graphdef(), weights.params, expected


def apply(graphdef, params, *args):
    return jax.jit(lambda params, *args: trees.merge(graphdef, params)(*args))(params, *args)


@pytest.mark.parametrize("name", ELEMENTS)
def test_presets_have_the_released_paths_and_shapes(golden, name):
    _, shapes = trees.abstract(lambda: MMAudio(PRESETS[name], rngs=trees.UNDRAWN))
    assert (len(shapes), trees.count(shapes)) == ELEMENTS[name]
    published = {key: tuple(spec["shape"]) for key, spec in golden.manifest(f"mmaudio_{name}.pth")["tensors"].items()}
    ours = {
        path.replace(".kernel", ".weight").replace(".scale", ".weight"): leaf.shape[::-1]
        if path.endswith(".kernel")
        else leaf.shape
        for path, leaf in shapes.items()
    }
    assert ours == published


def test_velocity(golden, case):
    graphdef, params, expected = case
    latent, clip, sync, text = inputs(golden)
    assert relative_error(apply(graphdef, params, latent, T, clip, sync, text), expected["flow"]) <= 1e-5
    n, c, s = map(int, expected["lens_5s"])
    flow = apply(graphdef, params, latent[:, :n], T, clip[:, :c], sync[:, :s], text)
    assert relative_error(flow, expected["flow_5s"]) <= 1e-5


def test_v2_frequencies_are_within_their_own_rounding(golden):
    weights = golden.weights("flow_tiny_v2.pth")
    flow = apply(weights.graphdef(), weights.params, inputs(golden)[0], T, *inputs(golden)[1:])
    assert relative_error(flow, golden.expected("flow_tiny_v2")["flow"]) <= 2e-4


def test_text_only_uses_the_empty_video(golden, case):
    graphdef, params, expected = case
    latent, clip, sync, text = inputs(golden)
    clip = jnp.broadcast_to(params["empty_clip_feat"], clip.shape)
    sync = jnp.broadcast_to(params["empty_sync_feat"], sync.shape)
    assert relative_error(apply(graphdef, params, latent, T, clip, sync, text), expected["flow_text_only"]) <= 1e-5


@pytest.mark.parametrize(
    ("name", "strength", "steps", "negative"),
    [("sample_unnormalized", 4.5, 25, False), ("sample_negative_8", 3.0, 8, True), ("sample_nocfg_8", 0.5, 8, False)],
)
def test_sampler(golden, case, name, strength, steps, negative):
    graphdef, params, expected = case
    latent, clip, sync, text = inputs(golden)
    empty = jnp.broadcast_to(params["empty_string_feat"], text.shape)
    negative_f = golden.input("negative_text", text.shape) if negative else empty
    given = (clip, sync, text)
    rows = sampling.guided(params, *given, negative_f, strength) if strength >= 1 else sampling.plain(*given)
    table = solvers.stack([solvers.table("euler", steps)] * len(latent))
    out = sampling.sample(graphdef, params, latent, rows, table, steps)
    if name != "sample_unnormalized":
        out = (out - params["latent_mean"]) / params["latent_std"]
    assert relative_error(out, expected[name]) <= 2e-5


def test_bfloat16_stays_closer_than_bfloat16_throughout(golden):
    weights, (latent, *features) = golden.weights("flow_tiny.pth"), inputs(golden)
    flow = apply(weights.graphdef(dtype=jnp.bfloat16), weights.params, latent, T, *features)
    assert flow.dtype == jnp.float32
    assert relative_error(flow, golden.expected("flow_tiny")["flow"]) < 0.024


def test_initialisation_follows_the_recipe():
    _, params = trees.split(MMAudio(PRESETS["tiny"], rngs=nnx.Rngs(0)))
    for path, leaf in params.items():
        if "adaLN_modulation" in path or path.startswith(("final_layer", "sync_pos_emb", "empty_")):
            assert not leaf.any(), path
        elif path.endswith("norm.scale"):
            assert (leaf == 1).all(), path
        elif path.startswith("t_embed") and path.endswith("kernel"):
            assert abs(leaf.std() - 0.02) < 0.002, path
        elif path.endswith("kernel"):
            fan_in = leaf.size / leaf.shape[-1]
            bound = (6 / sum(leaf.shape)) ** 0.5 if leaf.ndim == 2 else fan_in**-0.5
            assert 0.95 * bound < abs(leaf).max() <= bound, path


def test_nearest_exact_stretches_as_published():
    assert mmaudio.nearest_exact(192, 250)[[0, 1, 2, 249]].tolist() == [0, 1, 1, 191]
    assert mmaudio.nearest_exact(4, 4).tolist() == [0, 1, 2, 3]
    for length, target in ((16, 32), (112, 157), (192, 345), (192, 250)):
        index = mmaudio.nearest_exact(length, target)
        assert (np.diff(index) >= 0).all() and index[0] == 0 and index[-1] == length - 1


def test_aligned_rope_is_another_network_than_unaligned(golden):
    weights, (latent, *features) = golden.weights("flow_tiny.pth"), inputs(golden)
    unaligned = MMAudio(dataclasses.replace(weights.config, aligned_rope=False), rngs=trees.UNDRAWN)
    flow = apply(trees.split(unaligned)[0], weights.params, latent, T, *features)
    assert relative_error(flow, golden.expected("flow_tiny")["flow"]) > 1e-3
