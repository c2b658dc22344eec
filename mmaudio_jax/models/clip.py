"""CLIP's two towers, as the flow network's features need them (arXiv 2103.00020; weights DFN5B-CLIP-ViT-H-14-384).

Both are pre-norm transformers with quick GELU. An image becomes one vector, a text the last hidden states of all
its tokens, or one vector that compares with an image's. Paths and shapes follow the open_clip form of the checkpoint.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mmaudio_jax.models.layers import attention

IMAGE_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
IMAGE_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Sizes of the two towers; `embed_dim` is the length of an image's vector."""

    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    text_width: int
    text_layers: int
    text_heads: int
    embed_dim: int
    context_length: int = 77
    vocab_size: int = 49408


PRESETS = {
    "clip": CLIPConfig(
        image_size=384,
        patch_size=14,
        vision_width=1280,
        vision_layers=32,
        vision_heads=16,
        text_width=1024,
        text_layers=24,
        text_heads=16,
        embed_dim=1024,
    ),
}


class Attention(nnx.Module):
    """Multi-head self-attention; q, k and v come stacked from one product."""

    def __init__(self, width: int, heads: int, **kw):
        self.heads = heads
        self.in_proj = nnx.Linear(width, 3 * width, **kw)
        self.out_proj = nnx.Linear(width, width, **kw)

    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "1 1 n n"] | None) -> Float[Array, "b n d"]:
        b, n, d = x.shape
        q, k, v = jnp.split(self.in_proj(x).reshape(b, n, 3 * self.heads, d // self.heads), 3, axis=2)
        out = attention(q, k, v, mask=mask, precision=self.in_proj.precision)
        return self.out_proj(out.reshape(b, n, d))


class MLP(nnx.Module):
    """Linear → quick GELU → linear, four times as wide inside."""

    def __init__(self, width: int, **kw):
        self.c_fc = nnx.Linear(width, 4 * width, **kw)
        self.c_proj = nnx.Linear(4 * width, width, **kw)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.c_proj(quick_gelu(self.c_fc(x)))


class ResidualAttentionBlock(nnx.Module):
    """x += attn(ln_1 x); x += mlp(ln_2 x)."""

    def __init__(self, width: int, heads: int, **kw):
        self.ln_1 = layer_norm(width, kw["rngs"])
        self.attn = Attention(width, heads, **kw)
        self.ln_2 = layer_norm(width, kw["rngs"])
        self.mlp = MLP(width, **kw)

    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "1 1 n n"] | None) -> Float[Array, "b n d"]:
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nnx.Module):
    """A stack of residual attention blocks; the residual stream keeps its dtype."""

    def __init__(self, width: int, layers: int, heads: int, **kw):
        self.resblocks = nnx.List([ResidualAttentionBlock(width, heads, **kw) for _ in range(layers)])

    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "1 1 n n"] | None = None) -> Float[Array, "b n d"]:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisionTransformer(nnx.Module):
    """Image tower: patches and a class token; the class token's last state, projected."""

    def __init__(self, config: CLIPConfig, **kw):
        width, patch, rngs = config.vision_width, config.patch_size, kw["rngs"]
        patches = (config.image_size // patch) ** 2
        # VALID drops the rows and columns that do not fill a patch (384 = 27 · 14 + 6), as published
        self.conv1 = nnx.Conv(3, width, (patch, patch), strides=patch, padding="VALID", use_bias=False, **kw)
        self.class_embedding = normal(rngs, (width,), width**-0.5)
        self.positional_embedding = normal(rngs, (1 + patches, width), width**-0.5)
        self.ln_pre = layer_norm(width, rngs)
        self.transformer = Transformer(width, config.vision_layers, config.vision_heads, **kw)
        self.ln_post = layer_norm(width, rngs)
        self.proj = normal(rngs, (width, config.embed_dim), width**-0.5)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b e"]:
        x = self.conv1(images).astype(jnp.float32)
        b, _, _, d = x.shape
        first = jnp.broadcast_to(self.class_embedding[...], (b, 1, d))
        x = jnp.concatenate([first, x.reshape(b, -1, d)], axis=1) + self.positional_embedding[...]
        x = self.transformer(self.ln_pre(x))
        dtype = self.conv1.dtype
        pooled = self.ln_post(x[:, 0]).astype(dtype)
        return jnp.matmul(pooled, self.proj[...].astype(dtype), precision=self.conv1.precision)


class CLIP(nnx.Module):
    """Features of images and of texts, all of unit length, float32.

    The flow network hears of `encode_image` and `encode_text`; `embed_text` says how well a text fits an image.

    Args:
        config: sizes.
        rngs: seeds the initialisation (`params`).
        dtype: compute dtype of the layers; the residual stream, norms and softmax stay in float32.
        precision: matrix-product precision of every layer.
    """

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs, dtype=jnp.float32, precision=None):
        kw = dict(rngs=rngs, dtype=dtype, precision=precision)
        width = config.text_width
        self.visual = VisionTransformer(config, **kw)
        self.token_embedding = nnx.Embed(
            config.vocab_size, width, embedding_init=nnx.initializers.normal(0.02), rngs=rngs
        )
        self.positional_embedding = normal(rngs, (config.context_length, width), 0.01)
        self.transformer = Transformer(width, config.text_layers, config.text_heads, **kw)
        self.ln_final = layer_norm(width, rngs)
        self.text_projection = normal(rngs, (width, config.embed_dim), width**-0.5)

    def encode_image(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b e"]:
        """One vector an image.

        Args:
            images: RGB in [0, 1], image_size squared; CLIP's mean and deviation are applied here.
        """
        return normalize(self.visual((images.astype(jnp.float32) - IMAGE_MEAN) / IMAGE_STD))

    def encode_text(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """The last hidden states, one vector a token, padding included (it is masked by causality alone).

        Args:
            tokens: ids of `mmaudio_jax.data.captions.tokenize`, context_length of them a text.
        """
        length = tokens.shape[1]
        causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
        x = self.token_embedding(tokens) + self.positional_embedding[...]
        return normalize(self.ln_final(self.transformer(x, causal)))

    def embed_text(self, tokens: Int[Array, "b t"]) -> Float[Array, "b e"]:
        """One vector a text: the projected last state of its end token, whose id is the highest.

        Its product with `encode_image`'s vector is their cosine similarity.

        Args:
            tokens: as for `encode_text`.
        """
        states = self.encode_text(tokens)
        last = jnp.take_along_axis(states, tokens.argmax(axis=1)[:, None, None], axis=1)[:, 0]
        return normalize(jnp.matmul(last, self.text_projection[...], precision=jax.lax.Precision.HIGHEST))


def layer_norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm in float32."""
    return nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, dtype=jnp.float32, rngs=rngs)


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float) -> nnx.Param:
    """A parameter drawn from N(0, std²)."""
    return nnx.Param(std * jax.random.normal(rngs.params(), shape))


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x · σ(1.702 x), the GELU that the weights were trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def normalize(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Unit length over the last axis, float32."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
