"""Synchformer's visual half against plain NumPy at a tiny size, and against the released file's tensors."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from conftest import relative_error
from flax import nnx

from mmaudio_jax import trees
from mmaudio_jax.models.synchformer import PRESETS, DividedAttention, Synchformer, SynchformerConfig

TINY = SynchformerConfig(image_size=12, patch_size=4, frames=6, tubelet=2, width=16, layers=2, heads=2)
STEPS, PLACES = 3, 9


def network(dtype=jnp.float32):
    """The tiny network; the leaves are drawn large enough for each to matter."""
    graphdef, shapes = trees.abstract(lambda: Synchformer(TINY, rngs=nnx.Rngs(0), dtype=dtype))
    rng = np.random.default_rng(0)
    params = {
        path: jnp.asarray(rng.standard_normal(leaf.shape) * 0.3 + path.endswith("scale"), jnp.float32)
        for path, leaf in shapes.items()
    }
    return graphdef, params


@pytest.fixture(scope="module")
def video():
    return np.tanh(np.random.default_rng(1).standard_normal((2, 2, 6, 12, 12, 3))).astype(np.float32)


@pytest.fixture(scope="module")
def features(video):
    return run(video)


def run(video, dtype=jnp.float32):
    graphdef, params = network(dtype)
    return np.asarray(jax.jit(lambda params, video: trees.merge(graphdef, params)(video))(params, video))


class Reference:
    """The whole network in float64, attention as one dense softmax under a mask of (query, key) pairs."""

    def __init__(self, params):
        prefix = "vfeat_extractor."
        self.p = {path.removeprefix(prefix): np.asarray(leaf, np.float64) for path, leaf in params.items()}

    def linear(self, name, x):
        return x @ self.p[f"{name}.kernel"] + self.p[f"{name}.bias"]

    def norm(self, name, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * self.p[f"{name}.scale"] + self.p[f"{name}.bias"]

    def gelu(self, x):
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    def attention(self, qkv, mask):
        t, d = qkv.shape[0], qkv.shape[1] // 3
        q, k, v = (qkv[:, i * d : (i + 1) * d].reshape(t, TINY.heads, -1) for i in range(3))
        out = np.empty_like(q)
        for head in range(TINY.heads):
            weights = np.exp(q[:, head] @ k[:, head].T / math.sqrt(q.shape[-1])) * mask
            out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, head]
        return out.reshape(t, d)

    def divided(self, name, x, axis):
        return self.linear(f"{name}.proj", self.attention(self.linear(f"{name}.qkv", x), mask(axis)))

    def pool(self, x):
        name = "spatial_attn_agg"
        x = np.concatenate([self.p[f"{name}.cls_token"][0], x])
        qkv = self.linear(f"{name}.self_attn.in_proj", self.norm(f"{name}.norm1", x))
        x = x + self.linear(f"{name}.self_attn.out_proj", self.attention(qkv, 1))
        hidden = self.gelu(self.linear(f"{name}.linear1", self.norm(f"{name}.norm2", x)))
        return (x + self.linear(f"{name}.linear2", hidden))[0]

    def __call__(self, segment):
        p = self.p
        tokens = [p["cls_token"][0, 0] + p["pos_embed"][0, 0]]
        for step in range(STEPS):
            for place in range(PLACES):
                row, column = divmod(place, 3)
                pixels = segment[2 * step :, 4 * row :, 4 * column :][:2, :4, :4]
                token = np.einsum("fhwc,fhwcd->d", pixels, p["patch_embed_3d.proj.kernel"])
                token = token + p["patch_embed_3d.proj.bias"] + p["pos_embed"][0, 1 + place] + p["temp_embed"][0, step]
                tokens.append(token)
        x = np.stack(tokens)
        for block in (f"blocks.{i}" for i in range(TINY.layers)):
            x = x + self.divided(f"{block}.timeattn", self.norm(f"{block}.norm3", x), "time")
            x = x + self.divided(f"{block}.attn", self.norm(f"{block}.norm1", x), "space")
            hidden = self.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x)))
            x = x + self.linear(f"{block}.mlp.fc2", hidden)
        steps = self.norm("norm", x[1:]).reshape(STEPS, PLACES, -1)
        return np.stack([self.pool(step) for step in steps])


def mask(axis: str) -> np.ndarray:
    """Who sees whom: the class token all, a patch the class token and its place (time) or its step (space)."""
    index = np.arange(STEPS * PLACES)
    group = index % PLACES if axis == "time" else index // PLACES
    seen = np.ones((1 + len(index), 1 + len(index)))
    seen[1:, 1:] = group[:, None] == group
    return seen


def test_preset_has_the_published_tensors(golden):
    _, shapes = trees.abstract(lambda: Synchformer(PRESETS["synchformer"], rngs=nnx.Rngs(0)))
    ours = {published.name(path): published.shape(path, leaf.shape) for path, leaf in shapes.items()}
    tensors = golden.manifest("synchformer_state_dict.pth")["tensors"]
    unused = "vfeat_extractor.patch_embed."  # of still images, which the 3-D patches replaced
    assert ours == {
        name: tuple(tensor["shape"])
        for name, tensor in tensors.items()
        if name.startswith("vfeat_extractor.") and not name.startswith(unused)
    }


@pytest.mark.parametrize("axis", ["time", "space"])
def test_divided_attention_is_dense_attention_under_its_mask(axis):
    layer = DividedAttention(TINY, axis, rngs=nnx.Rngs(0), dtype=jnp.float32, precision=None)
    x = np.random.default_rng(2).standard_normal((2, 1 + STEPS * PLACES, TINY.width)).astype(np.float32)
    reference = Reference({f"layer.{path}": leaf for path, leaf in trees.split(layer)[1].items()})
    expected = np.stack([reference.divided("layer", row, axis) for row in x])
    assert relative_error(layer(x), expected) < 1e-5


def test_equals_the_reference(video, features):
    reference = Reference(network()[1])
    expected = np.stack([[reference(segment) for segment in clip] for clip in video])
    assert features.shape == (2, 2, STEPS, TINY.width)
    assert relative_error(features, expected) < 1e-5


def test_a_segment_does_not_see_the_others(video, features):
    alone = run(video[1:, 1:])
    assert relative_error(alone, features[1:, 1:]) < 1e-6


def test_bfloat16_stays_close(video, features):
    low = run(video, jnp.bfloat16)
    assert low.dtype == np.float32
    assert 1e-5 < relative_error(low, features) < 0.05


def test_sizes_come_from_the_config():
    config = dataclasses.replace(TINY, frames=4, tubelet=1, image_size=8)
    video = jnp.zeros((1, 5, 4, 8, 8, 3))
    features = jax.eval_shape(lambda video: Synchformer(config, rngs=nnx.Rngs(0))(video), video)
    assert features.shape == (1, 5, 4, TINY.width)
