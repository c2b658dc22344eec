"""Synchformer's visual half: features of motion in time with the sound (arXiv 2401.16423).

A MotionFormer ViT with divided space-time attention (arXiv 2106.05392, 2102.05095) sees segments of 16 frames at
25 fps; one more layer pools each time step over space into one feature, eight a segment.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmaudio_jax.models.layers import attention


@dataclasses.dataclass(frozen=True)
class SynchformerConfig:
    """Sizes of the visual half; a patch is `tubelet` frames deep."""

    image_size: int
    patch_size: int
    frames: int
    tubelet: int
    width: int
    layers: int
    heads: int

    @property
    def steps(self) -> int:
        """Time steps of patches, and features, in a segment."""
        return self.frames // self.tubelet


PRESETS = {
    "synchformer": SynchformerConfig(
        image_size=224, patch_size=16, frames=16, tubelet=2, width=768, layers=12, heads=12
    ),
}


class DividedAttention(nnx.Module):
    """Attention divided `over` "time" or "space".

    The class token attends to all tokens, a patch to the class token and to the patches at its place (over time)
    or of its step (over space): no matrix of all tokens by all tokens is ever made.
    """

    def __init__(self, config: SynchformerConfig, over: str, **kw):
        self.heads, self.steps, self.over = config.heads, config.steps, over
        self.qkv = nnx.Linear(config.width, 3 * config.width, **kw)
        self.proj = nnx.Linear(config.width, config.width, **kw)

    def __call__(self, x: Float[Array, "b 1+f*n d"]) -> Float[Array, "b 1+f*n d"]:
        b, t, d = x.shape
        q, k, v = jnp.split(self.qkv(x).reshape(b, t, 3 * self.heads, d // self.heads), 3, axis=2)
        attend = functools.partial(attention, precision=self.qkv.precision)
        first = attend(q[:, :1], k, v)
        rest = attend(self.rows(q), self.rows(k, with_class=True), self.rows(v, with_class=True))
        if self.over == "time":
            rest = rest.reshape(b, -1, self.steps, d).swapaxes(1, 2)
        return self.proj(jnp.concatenate([first.reshape(b, 1, d), rest.reshape(b, t - 1, d)], axis=1))

    def rows(self, x: Float[Array, "b 1+f*n h e"], with_class: bool = False) -> Float[Array, "r m h e"]:
        """One row for each group of patches that see each other, the class token before them if asked for."""
        grid = x[:, 1:].reshape(x.shape[0], self.steps, -1, *x.shape[2:])
        if self.over == "time":
            grid = grid.swapaxes(1, 2)
        if with_class:
            first = jnp.broadcast_to(x[:, None, :1], (*grid.shape[:2], 1, *x.shape[2:]))
            grid = jnp.concatenate([first, grid], axis=2)
        return grid.reshape(-1, *grid.shape[2:])


class MLP(nnx.Module):
    """Linear → GELU → linear, four times as wide inside."""

    def __init__(self, width: int, **kw):
        self.fc1 = nnx.Linear(width, 4 * width, **kw)
        self.fc2 = nnx.Linear(4 * width, width, **kw)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.fc2(gelu(self.fc1(x)))


class Block(nnx.Module):
    """x += timeattn(norm3 x); x += attn(norm1 x); x += mlp(norm2 x)."""

    def __init__(self, config: SynchformerConfig, **kw):
        self.norm1, self.norm2, self.norm3 = (layer_norm(config.width, kw["rngs"]) for _ in range(3))
        self.timeattn = DividedAttention(config, "time", **kw)
        self.attn = DividedAttention(config, "space", **kw)
        self.mlp = MLP(config.width, **kw)

    def __call__(self, x: Float[Array, "b 1+f*n d"]) -> Float[Array, "b 1+f*n d"]:
        x = x + self.timeattn(self.norm3(x))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SelfAttention(nnx.Module):
    """Multi-head attention of the first token over all of them."""

    def __init__(self, width: int, heads: int, **kw):
        self.heads = heads
        self.in_proj = nnx.Linear(width, 3 * width, **kw)
        self.out_proj = nnx.Linear(width, width, **kw)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        b, n, d = x.shape
        q, k, v = jnp.split(self.in_proj(x).reshape(b, n, 3 * self.heads, d // self.heads), 3, axis=2)
        return self.out_proj(attention(q[:, :1], k, v, precision=self.in_proj.precision).reshape(b, d))


class SpatialPooling(nnx.Module):
    """A pre-norm encoder layer over [class, places], of which only the class token is kept (spatial_attn_agg)."""

    def __init__(self, config: SynchformerConfig, **kw):
        width, rngs = config.width, kw["rngs"]
        self.cls_token = normal(rngs, (1, 1, width))
        self.norm1, self.norm2 = layer_norm(width, rngs), layer_norm(width, rngs)
        self.self_attn = SelfAttention(width, config.heads, **kw)
        self.linear1 = nnx.Linear(width, 4 * width, **kw)
        self.linear2 = nnx.Linear(4 * width, width, **kw)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        first = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, x.shape[-1]))
        tokens = jnp.concatenate([first, x], axis=1)
        pooled = tokens[:, 0] + self.self_attn(self.norm1(tokens))
        return pooled + self.linear2(gelu(self.linear1(self.norm2(pooled))))


class PatchEmbed3D(nnx.Module):
    """Linear map of tubelet × patch × patch blocks of pixels."""

    def __init__(self, config: SynchformerConfig, **kw):
        size = (config.tubelet, config.patch_size, config.patch_size)
        self.proj = nnx.Conv(3, config.width, size, strides=size, padding="VALID", **kw)

    def __call__(self, video: Float[Array, "b frames h w 3"]) -> Float[Array, "b f n d"]:
        x = self.proj(video)
        return x.reshape(*x.shape[:2], -1, x.shape[-1])


class MotionFormer(nnx.Module):
    """The visual feature extractor: one feature a step of a segment."""

    def __init__(self, config: SynchformerConfig, **kw):
        width, rngs = config.width, kw["rngs"]
        self.patch_embed_3d = PatchEmbed3D(config, **kw)
        self.cls_token = normal(rngs, (1, 1, width))
        self.pos_embed = normal(rngs, (1, 1 + (config.image_size // config.patch_size) ** 2, width))
        self.temp_embed = normal(rngs, (1, config.steps, width))
        self.blocks = nnx.List([Block(config, **kw) for _ in range(config.layers)])
        self.norm = layer_norm(width, rngs)
        self.spatial_attn_agg = SpatialPooling(config, **kw)

    def __call__(self, segments: Float[Array, "b frames h w 3"]) -> Float[Array, "b f d"]:
        pos, temp = self.pos_embed[...], self.temp_embed[...]
        patches = self.patch_embed_3d(segments).astype(jnp.float32) + pos[:, None, 1:] + temp[:, :, None]
        b, f, n, d = patches.shape
        first = jnp.broadcast_to(self.cls_token[...] + pos[:, :1], (b, 1, d))
        x = jnp.concatenate([first, patches.reshape(b, f * n, d)], axis=1)
        for block in self.blocks:
            x = block(x)
        return self.spatial_attn_agg(self.norm(x[:, 1:]).reshape(b * f, n, d)).reshape(b, f, d)


class Synchformer(nnx.Module):
    """Features of a video's segments, float32.

    Args:
        config: sizes.
        rngs: seeds the initialisation (`params`).
        dtype: compute dtype of the layers; the residual stream, norms and softmax stay in float32.
        precision: matrix-product precision of every layer.
    """

    def __init__(self, config: SynchformerConfig, *, rngs: nnx.Rngs, dtype=jnp.float32, precision=None):
        self.vfeat_extractor = MotionFormer(config, rngs=rngs, dtype=dtype, precision=precision)

    def __call__(self, video: Float[Array, "b s frames h w 3"]) -> Float[Array, "b s f d"]:
        """Features of each segment on its own.

        Args:
            video: s segments a video of `frames` RGB frames in [−1, 1], image_size squared.
        """
        b, s = video.shape[:2]
        features = self.vfeat_extractor(video.reshape(b * s, *video.shape[2:]))
        return features.reshape(b, s, *features.shape[1:])


def layer_norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm in float32."""
    return nnx.LayerNorm(width, epsilon=1e-6, use_fast_variance=False, dtype=jnp.float32, rngs=rngs)


def normal(rngs: nnx.Rngs, shape: tuple[int, ...]) -> nnx.Param:
    """A parameter drawn from N(0, 0.02²)."""
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, not its tanh approximation."""
    return jax.nn.gelu(x, approximate=False)
