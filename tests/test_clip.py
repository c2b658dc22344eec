"""CLIP against open_clip at a tiny size, and against the released file's tensors at full size."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from conftest import HERE, relative_error
from flax import nnx

from mmaudio_jax import trees
from mmaudio_jax.models.clip import CLIP, PRESETS, CLIPConfig

UNUSED = {"logit_scale"}  # the temperature is for training


@pytest.fixture(scope="module")
def recorded():
    with np.load(HERE / "small" / "clip_tiny.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def build(recorded, golden):
    """The tiny network on the weights that open_clip had."""
    config = CLIPConfig(**json.loads(recorded["config"].tobytes()))

    def build(dtype=jnp.float32):
        graphdef, shapes = trees.abstract(lambda: CLIP(config, rngs=nnx.Rngs(0), dtype=dtype))
        return trees.merge(graphdef, published.fill(shapes, lambda *tensor: golden.recipe.tensor(*tensor, seed=1)))

    return build


@pytest.fixture(scope="module")
def encode(build):
    """Both towers, and the projected text, jitted once."""
    graphdef, params = trees.split(build())

    @jax.jit
    def run(params, images, tokens):
        network = trees.merge(graphdef, params)
        return network.encode_image(images), network.encode_text(tokens), network.embed_text(tokens)

    return lambda images, tokens: tuple(np.asarray(f) for f in run(params, images, tokens))


def test_preset_has_the_published_tensors(golden):
    _, shapes = trees.abstract(lambda: CLIP(PRESETS["clip"], rngs=nnx.Rngs(0)))
    ours = {published.name(path): published.shape(path, leaf.shape) for path, leaf in shapes.items()}
    tensors = golden.manifest("open_clip_pytorch_model.bin")["tensors"]
    assert ours == {name: tuple(tensor["shape"]) for name, tensor in tensors.items() if name not in UNUSED}
    assert {leaf.dtype for leaf in shapes.values()} == {jnp.dtype("float32")}


def test_equals_open_clip(encode, recorded):
    names = ("image_features", "text_features", "text_embeddings")
    for ours, name in zip(encode(recorded["images"], recorded["tokens"]), names, strict=True):
        assert relative_error(ours, recorded[name]) < 1e-5, name


def test_bfloat16_stays_close(build, recorded):
    network = build(jnp.bfloat16)
    features = network.encode_image(recorded["images"]), network.encode_text(recorded["tokens"])
    for ours, name in zip(features, ("image_features", "text_features"), strict=True):
        assert ours.dtype == jnp.float32
        assert 1e-5 < relative_error(ours, recorded[name]) < 0.03
        np.testing.assert_allclose(np.linalg.norm(ours, axis=-1), 1, rtol=1e-5)


def test_pixels_beyond_the_last_whole_patch_are_not_seen(encode, recorded):
    images, tokens = recorded["images"], recorded["tokens"]
    rest, edge = images.copy(), images.copy()
    rest[:, 18:] = rest[:, :, 18:] = 0  # 20 pixels are three patches of 6 and a rest
    edge[:, 17] = 0
    np.testing.assert_array_equal(encode(rest, tokens)[0], encode(images, tokens)[0])
    assert relative_error(encode(edge, tokens)[0], encode(images, tokens)[0]) > 1e-3


def test_a_token_does_not_see_later_ones(encode, recorded):
    images, tokens = recorded["images"], recorded["tokens"]
    changed = tokens.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 40
    before, after = encode(images, tokens)[1], encode(images, changed)[1]
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (np.abs(before - after)[:, 5:].max(axis=-1) > 1e-4).all()
