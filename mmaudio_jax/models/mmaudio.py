"""The flow network: a multimodal diffusion transformer over audio latents, video and text (arXiv 2412.15322).

Three streams (audio latents, CLIP features, text features) meet in joint-attention blocks; the audio stream then
goes on alone through fused blocks. Synchformer features and a global vector modulate the audio stream.
Time t = 0 is noise, t = 1 is data. Shapes are (batch, time, channels).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from mmaudio_jax.models.layers import Buffer, attention, torch_conv_init

SYNC_FEATURES = 8  # features of one Synchformer segment; each has a learned offset
RMS_EPSILON = 1.1920929e-07  # float32's machine epsilon, as published
ROPE_BASE = 10_000.0


@dataclasses.dataclass(frozen=True)
class MMAudioConfig:
    """Sizes of the flow network, and its variants.

    `v2` is the second training's (SiLU projections, other t frequencies). `aligned_rope` puts CLIP frames and latents
    on one time axis, as published; false is there to show what that is worth.
    """

    latent_dim: int
    hidden_dim: int
    num_heads: int
    joint_depth: int
    fused_depth: int
    v2: bool = False
    aligned_rope: bool = True
    clip_dim: int = 1024
    sync_dim: int = 768
    text_dim: int = 1024
    text_len: int = 77


PRESETS = {
    "small_16k": MMAudioConfig(20, 448, 7, 4, 8),
    "small_44k": MMAudioConfig(40, 448, 7, 4, 8),
    "medium_44k": MMAudioConfig(40, 896, 14, 4, 8),
    "large_44k": MMAudioConfig(40, 896, 14, 7, 14),
    "large_44k_v2": MMAudioConfig(40, 896, 14, 7, 14, v2=True),
    "demo_16k": MMAudioConfig(20, 64, 2, 2, 2, clip_dim=64, sync_dim=128, text_dim=64),
    "demo_16k_unaligned": MMAudioConfig(20, 64, 2, 2, 2, aligned_rope=False, clip_dim=64, sync_dim=128, text_dim=64),
    "tiny": MMAudioConfig(20, 64, 2, 2, 1),
    "tiny_v2": MMAudioConfig(20, 64, 2, 2, 1, v2=True),
}


def _products(primitive, *args, **params) -> bool:
    """Whether a value is the product of a linear layer or a convolution with its weights."""
    matrices = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return primitive is jax.lax.conv_general_dilated_p or matrices(primitive, *args, **params)


REMAT = {  # which of a block's activations the backward pass finds; the others are computed again
    "none": None,
    "blocks": jax.checkpoint_policies.nothing_saveable,
    "dots": _products,
}


class Conditions(NamedTuple):
    """What the network derives from video and text alone: computed once a sample, reused by every solver step."""

    clip_f: Float[Array, "b c d"]
    text_f: Float[Array, "b t d"]
    sync_f: Float[Array, "b n d"]
    global_c: Float[Array, "b d"]


class MLP(nnx.Module):
    """SwiGLU: w2(silu(w1 x) · w3 x), without biases; `kernel_size` makes the three layers convolutions over time."""

    def __init__(self, dim: int, *, kernel_size: int | None = None, rngs, dtype, precision):
        hidden = -(-int(2 * 4 * dim / 3) // 256) * 256
        kw = dict(rngs=rngs, dtype=dtype, precision=precision)
        if kernel_size is None:

            def layer(n_in, n_out):
                return linear(n_in, n_out, use_bias=False, **kw)
        else:

            def layer(n_in, n_out):
                return conv(n_in, n_out, kernel_size, use_bias=False, **kw)

        self.w1, self.w2, self.w3 = layer(dim, hidden), layer(hidden, dim), layer(dim, hidden)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.w2(jax.nn.silu(self.w1(x)) * self.w3(x))


class TimestepEmbedder(nnx.Module):
    """Sinusoidal features of t, then linear → SiLU → linear."""

    def __init__(self, config: MMAudioConfig, **kw):
        dim = config.hidden_dim
        self.frequency_dim, self.max_period = (dim, 1) if config.v2 else (256, 10_000)
        init = dict(kernel_init=nnx.initializers.normal(0.02))
        self.mlp = nnx.List(
            [linear(self.frequency_dim, dim, **init, **kw), jax.nn.silu, linear(dim, dim, **init, **kw)]
        )

    def frequencies(self) -> np.ndarray:
        """Radians a unit of t, float32, (frequency_dim / 2,): the order of operations is the published one."""
        exponent = np.arange(0, self.frequency_dim, 2, dtype=np.float32) / np.float32(self.frequency_dim)
        return 1 / np.float32(10_000) ** exponent * np.float32(10_000 / self.max_period)

    def __call__(self, t: Float[Array, " b"]) -> Float[Array, "b d"]:
        angles = t.astype(jnp.float32)[:, None] * self.frequencies()
        return apply(self.mlp, jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1))


class SelfAttention(nnx.Module):
    """The part of attention that a stream owns: q, k, v with RMS-normalised, rotated q and k."""

    def __init__(self, dim: int, num_heads: int, **kw):
        self.num_heads = num_heads
        self.qkv = linear(dim, 3 * dim, **kw)
        norm = dict(epsilon=RMS_EPSILON, dtype=jnp.float32, rngs=kw["rngs"])
        self.q_norm = nnx.RMSNorm(dim // num_heads, **norm)
        self.k_norm = nnx.RMSNorm(dim // num_heads, **norm)

    def __call__(
        self, x: Float[Array, "b n d"], rotation: Float[Array, "n e 2"] | None
    ) -> tuple[Float[Array, "b n h e"], Float[Array, "b n h e"], Float[Array, "b n h e"]]:
        b, n, d = x.shape
        qkv = self.qkv(x).reshape(b, n, self.num_heads, d // self.num_heads, 3)
        q, k, v = (qkv[..., i] for i in range(3))
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return q.astype(v.dtype), k.astype(v.dtype), v


class StreamBlock(nnx.Module):
    """One stream's half of a block: q, k, v before the attention, projection and FFN after it.

    Published name: MMDitSingleBlock. `kernel_size` makes the projection (3) and the FFN convolutions; `pre_only`
    leaves out everything after the attention.
    """

    def __init__(self, config: MMAudioConfig, *, kernel_size: int | None = None, pre_only: bool = False, **kw):
        dim = config.hidden_dim
        self.attn = SelfAttention(dim, config.num_heads, **kw)
        self.adaLN_modulation = adaln_modulation(dim, 2 if pre_only else 6, **kw)
        if not pre_only:
            self.linear1 = linear(dim, dim, **kw) if kernel_size is None else conv(dim, dim, kernel_size, **kw)
            self.ffn = MLP(dim, kernel_size=kernel_size, **kw)

    def pre_attention(self, x, c, rotation):
        """q, k, v of the modulated stream, and the modulation that `post_attention` needs."""
        shift, scale, *rest = modulation(self.adaLN_modulation, c)
        return self.attn(modulate(layer_norm(x), shift, scale), rotation), rest

    def post_attention(self, x, attended, rest):
        """Adds the gated projection of the attention and the gated FFN to the stream."""
        gate, ffn_shift, ffn_scale, ffn_gate = rest
        x = x + self.linear1(attended.reshape(x.shape)) * gate
        return x + self.ffn(modulate(layer_norm(x), ffn_shift, ffn_scale)) * ffn_gate

    def __call__(
        self, x: Float[Array, "b n d"], c: Float[Array, "b #n d"], rotation: Float[Array, "n e 2"]
    ) -> Float[Array, "b n d"]:
        """The stream alone: a fused block."""
        (q, k, v), rest = self.pre_attention(x, c, rotation)
        return self.post_attention(x, attention(q, k, v, precision=self.attn.qkv.precision), rest)


class JointBlock(nnx.Module):
    """Three streams with their own weights and one attention over [audio, clip, text]."""

    def __init__(self, config: MMAudioConfig, *, pre_only: bool, **kw):
        self.pre_only = pre_only
        self.latent_block = StreamBlock(config, kernel_size=3, **kw)
        self.clip_block = StreamBlock(config, kernel_size=3, pre_only=pre_only, **kw)
        self.text_block = StreamBlock(config, pre_only=pre_only, **kw)

    def __call__(self, latent, clip_f, text_f, extended_c, global_c, latent_rotation, clip_rotation):
        blocks = (self.latent_block, self.clip_block, self.text_block)
        streams = (latent, clip_f, text_f)
        pre = [
            block.pre_attention(x, c, rotation)
            for block, x, c, rotation in zip(
                blocks, streams, (extended_c, global_c, global_c), (latent_rotation, clip_rotation, None), strict=True
            )
        ]
        keys = jnp.concatenate([k for (_, k, _), _ in pre], axis=1)
        values = jnp.concatenate([v for (_, _, v), _ in pre], axis=1)
        # the last block's clip and text streams end here: nobody asks what their queries find
        alive = 1 if self.pre_only else 3
        queries = jnp.concatenate([q for (q, _, _), _ in pre[:alive]], axis=1)
        attended = attention(queries, keys, values, precision=self.latent_block.attn.qkv.precision)
        ends = np.cumsum([x.shape[1] for x in streams[:alive]])
        parts = jnp.split(attended, ends[:-1], axis=1)
        out = [
            block.post_attention(x, part, rest)
            for block, x, part, (_, rest) in zip(blocks[:alive], streams[:alive], parts, pre[:alive], strict=True)
        ]
        return (*out, *streams[alive:])


class FinalLayer(nnx.Module):
    """adaLN with the global vector (as the published code has it), then conv7 to the latent channels."""

    def __init__(self, config: MMAudioConfig, **kw):
        self.adaLN_modulation = adaln_modulation(config.hidden_dim, 2, **kw)
        self.conv = conv(config.hidden_dim, config.latent_dim, 7, **ZERO_INIT, **kw)

    def __call__(self, x: Float[Array, "b n d"], c: Float[Array, "b 1 d"]) -> Float[Array, "b n z"]:
        return self.conv(modulate(layer_norm(x), *modulation(self.adaLN_modulation, c)))


class MMAudio(nnx.Module):
    """The velocity field v(x, t | video, text); see `conditions` and `velocity`.

    Args:
        config: sizes.
        rngs: seeds the published initialisation (`params`).
        dtype: compute dtype of the blocks and the final layer; what leads up to them (input projections, conditions,
            time), the residual stream, norms, softmax and angles stay in float32.
        precision: matrix-product precision of every layer.
        remat: how much the backward pass computes again, for memory (arXiv 1604.06174): `none`; `blocks`, every joint
            and fused block from what goes into it; `dots`, of them all but the products with weights.
    """

    def __init__(self, config: MMAudioConfig, *, rngs: nnx.Rngs, dtype=jnp.float32, precision=None, remat="none"):
        self.config, self.remat = config, remat
        dim = config.hidden_dim
        kw = dict(rngs=rngs, dtype=dtype, precision=precision)
        # rounding here reaches every block: float32 halves the error of bfloat16, and costs little
        entry = {**kw, "dtype": jnp.float32}
        act = jax.nn.silu if config.v2 else jax.nn.selu
        self.audio_input_proj = nnx.List(
            [conv(config.latent_dim, dim, 7, **entry), act, MLP(dim, kernel_size=7, **entry)]
        )
        clip_act = text_act = [act] if config.v2 else []
        self.clip_input_proj = nnx.List(
            [linear(config.clip_dim, dim, **entry), *clip_act, MLP(dim, kernel_size=3, **entry)]
        )
        self.sync_input_proj = nnx.List([conv(config.sync_dim, dim, 7, **entry), act, MLP(dim, kernel_size=3, **entry)])
        self.text_input_proj = nnx.List([linear(config.text_dim, dim, **entry), *text_act, MLP(dim, **entry)])
        self.clip_cond_proj = linear(dim, dim, **entry)
        self.text_cond_proj = linear(dim, dim, **entry)
        self.global_cond_mlp = MLP(dim, **entry)
        self.t_embed = TimestepEmbedder(config, **entry)
        self.joint_blocks = nnx.List(
            [JointBlock(config, pre_only=i == config.joint_depth - 1, **kw) for i in range(config.joint_depth)]
        )
        self.fused_blocks = nnx.List([StreamBlock(config, kernel_size=3, **kw) for _ in range(config.fused_depth)])
        self.final_layer = FinalLayer(config, **kw)
        self.sync_pos_emb = nnx.Param(jnp.zeros((1, 1, SYNC_FEATURES, config.sync_dim)))
        self.empty_clip_feat = nnx.Param(jnp.zeros((1, config.clip_dim)))
        self.empty_sync_feat = nnx.Param(jnp.zeros((1, config.sync_dim)))
        self.empty_string_feat = Buffer(jnp.zeros((config.text_len, config.text_dim)))
        self.latent_mean = Buffer(jnp.zeros((1, 1, config.latent_dim)))
        self.latent_std = Buffer(jnp.ones((1, 1, config.latent_dim)))

    def normalize(self, x: Float[Array, "b n z"]) -> Float[Array, "b n z"]:
        """VAE latent to the flow's unit scale, by the checkpoint's channel statistics."""
        return (x - self.latent_mean[...]) / self.latent_std[...]

    def unnormalize(self, x: Float[Array, "b n z"]) -> Float[Array, "b n z"]:
        """The inverse of `normalize`."""
        return x * self.latent_std[...] + self.latent_mean[...]

    def conditions(
        self,
        clip_f: Float[Array, "b c f"],
        sync_f: Float[Array, "b s g"],
        text_f: Float[Array, "b t e"],
        latent_len: int,
    ) -> Conditions:
        """Projects the features; independent of x and t.

        Args:
            clip_f: CLIP image features, one a frame at 8 fps.
            sync_f: Synchformer features; s is a multiple of 8.
            text_f: CLIP text hidden states.
            latent_len: latent frames n; sync features are stretched to it.
        """
        b, s, g = sync_f.shape
        sync_f = (sync_f.reshape(b, s // SYNC_FEATURES, SYNC_FEATURES, g) + self.sync_pos_emb[...]).reshape(b, s, g)
        clip_f = apply(self.clip_input_proj, clip_f)
        text_f = apply(self.text_input_proj, text_f)
        sync_f = apply(self.sync_input_proj, sync_f)
        pooled = self.clip_cond_proj(clip_f.mean(axis=1)) + self.text_cond_proj(text_f.mean(axis=1))
        return Conditions(
            clip_f=clip_f,
            text_f=text_f,
            sync_f=sync_f[:, nearest_exact(s, latent_len)],
            global_c=self.global_cond_mlp(pooled),
        )

    def velocity(
        self, latent: Float[Array, "b n z"], t: Float[Array, " b"], conditions: Conditions
    ) -> Float[Array, "b n z"]:
        """The flow at `latent` and time t in [0, 1], float32."""
        head_dim = self.config.hidden_dim // self.config.num_heads
        clip_f, text_f = conditions.clip_f, conditions.text_f
        n, c = latent.shape[1], clip_f.shape[1]
        clip_scale = n / c if self.config.aligned_rope else 1.0
        latent_rotation, clip_rotation = rope(n, head_dim), rope(c, head_dim, scale=clip_scale)

        x = apply(self.audio_input_proj, latent)
        global_c = (conditions.global_c + self.t_embed(t))[:, None]
        extended_c = global_c + conditions.sync_f
        for block in self.joint_blocks:
            streams = (x, clip_f, text_f)
            x, clip_f, text_f = self._remat(block)(*streams, extended_c, global_c, latent_rotation, clip_rotation)
        for block in self.fused_blocks:
            x = self._remat(block)(x, extended_c, latent_rotation)
        return self.final_layer(x, global_c).astype(jnp.float32)

    def _remat(self, block: nnx.Module) -> Callable:
        """The block as a function that keeps what `remat` says."""
        policy = REMAT[self.remat]
        return block if policy is None else jax.checkpoint(lambda *streams: block(*streams), policy=policy)

    def __call__(self, latent, t, clip_f, sync_f, text_f) -> Float[Array, "b n z"]:
        """`velocity` under `conditions` of the features."""
        return self.velocity(latent, t, self.conditions(clip_f, sync_f, text_f, latent.shape[1]))


ZERO_INIT = dict(kernel_init=nnx.initializers.zeros_init(), bias_init=nnx.initializers.zeros_init())


def linear(n_in: int, n_out: int, **kw) -> nnx.Linear:
    """A linear layer with the recipe's initialisation: Xavier uniform, zero bias."""
    return nnx.Linear(n_in, n_out, **{"kernel_init": nnx.initializers.xavier_uniform(), **kw})


def conv(n_in: int, n_out: int, kernel_size: int, **kw) -> nnx.Conv:
    """A convolution over time that keeps the length."""
    return nnx.Conv(n_in, n_out, (kernel_size,), padding="SAME", **{**torch_conv_init(n_in * kernel_size), **kw})


def adaln_modulation(dim: int, parts: int, **kw) -> nnx.List:
    """SiLU → linear to `parts` vectors, zero at the start."""
    return nnx.List([jax.nn.silu, linear(dim, parts * dim, **ZERO_INIT, **kw)])


def modulation(layers: nnx.List, c: Float[Array, "b n d"]) -> list[Float[Array, "b n d"]]:
    """The vectors of an adaLN modulation, float32."""
    out = apply(layers, c).astype(jnp.float32)
    return jnp.split(out, out.shape[-1] // c.shape[-1], axis=-1)


def modulate(x, shift, scale):
    """x · (1 + scale) + shift."""
    return x * (1 + scale) + shift


def layer_norm(x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """LayerNorm without affine, eps 1e-5, float32."""
    x = x.astype(jnp.float32)
    return jax.nn.standardize(x, axis=-1, epsilon=1e-5, algorithm="stable")


def apply(layers, x):
    """Calls the layers one after another."""
    for layer in layers:
        x = layer(x)
    return x


def rope(length: int, dim: int, scale: float = 1.0) -> Float[np.ndarray, "n e 2"]:
    """cos and sin of the rotary angles position · 10000^(−2i/dim) · scale, float32.

    Aligned RoPE: `scale` = latent length / clip length puts both streams on one time axis.
    """
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequencies = 1 / np.float32(ROPE_BASE) ** exponent * np.float32(scale)
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def rotate(x: Float[Array, "b n h d"], rotation: Float[Array, "n e 2"]) -> Float[Array, "b n h d"]:
    """Rotates each pair of neighbouring channels (2i, 2i + 1) by its angle."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    cos, sin = rotation[:, None, :, 0], rotation[:, None, :, 1]
    even, odd = pairs[..., 0], pairs[..., 1]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)


def nearest_exact(length: int, target: int) -> np.ndarray:
    """Source index of each of `target` positions: floor((i + ½) · length / target), in float32 as published."""
    scale = np.float32(length) / np.float32(target)
    index = np.floor((np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale)
    return np.minimum(index.astype(np.int32), length - 1)
