"""The VAE between log mel spectrograms and audio latents: 1-D and magnitude-preserving (after arXiv 2312.02696).

Every layer keeps the expected magnitude of its input at one: each output's kernel has unit norm, sums are
rescaled, SiLU is divided by its own gain. Kernels here are used as they are; conversion has normalised the
published weights and multiplied the learned output gains into them. Shapes are (batch, time, channels).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmaudio_jax.models.layers import Buffer, attention

EPSILON = 1e-4
SILU_GAIN = 0.596  # root mean square of SiLU of a standard normal variable
RESIDUAL = 0.3  # share of the branch in a residual sum
CLAMP = 256.0
LOG_VARIANCE_RANGE = (-30.0, 20.0)


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes: a level has `width` times its multiplier channels; the decoder's levels have one block more."""

    mel_bins: int
    latent_dim: int
    width: int
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 2


PRESETS = {
    "vae_16k": VAEConfig(mel_bins=80, latent_dim=20, width=384),
    "vae_44k": VAEConfig(mel_bins=128, latent_dim=40, width=512),
}


class ResidualBlock(nnx.Module):
    """Two convolutions on the normalised input, beside that input (through 1×1 where the width changes)."""

    def __init__(self, n_in: int, n_out: int, **kw):
        self.conv1 = conv(n_in, n_out, 3, **kw)
        self.conv2 = conv(n_out, n_out, 3, **kw)
        self.nin_shortcut = conv(n_in, n_out, 1, **kw) if n_in != n_out else None

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n e"]:
        x = normalize(x)
        branch = self.conv2(mp_silu(self.conv1(mp_silu(x))))
        return mp_sum(x if self.nin_shortcut is None else self.nin_shortcut(x), branch)


class AttentionBlock(nnx.Module):
    """Self-attention over time with one head and normalised q, k and v."""

    def __init__(self, channels: int, **kw):
        self.qkv = conv(channels, 3 * channels, 1, **kw)
        self.proj_out = conv(channels, channels, 1, **kw)
        self.precision = kw["precision"]

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        b, n, c = x.shape
        qkv = normalize(self.qkv(x).reshape(b, n, 1, c, 3), axis=-2)
        q, k, v = (qkv[..., i] for i in range(3))
        attended = attention(q, k, v, precision=self.precision)
        return mp_sum(x, self.proj_out(attended.reshape(b, n, c)))


class Mid(nnx.Module):
    """The stage at the lowest resolution: residual block, attention, residual block."""

    def __init__(self, channels: int, **kw):
        self.block_1 = ResidualBlock(channels, channels, **kw)
        self.attn_1 = AttentionBlock(channels, **kw)
        self.block_2 = ResidualBlock(channels, channels, **kw)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        return clamp(self.block_2(self.attn_1(self.block_1(x))))


class Downsample(nnx.Module):
    """Halves the frames: the mean of two neighbours, between two 1×1 convolutions."""

    def __init__(self, channels: int, **kw):
        self.conv1 = conv(channels, channels, 1, **kw)
        self.conv2 = conv(channels, channels, 1, **kw)

    def __call__(self, x: Float[Array, "b f c"]) -> Float[Array, "b n c"]:
        b, _, c = x.shape
        return self.conv2(jnp.mean(self.conv1(x).reshape(b, -1, 2, c), axis=2))


class Upsample(nnx.Module):
    """Doubles the frames: each one twice, then a convolution."""

    def __init__(self, channels: int, **kw):
        self.conv = conv(channels, channels, 3, **kw)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b f c"]:
        return self.conv(jnp.repeat(x, 2, axis=1))


class Level(nnx.Module):
    """Residual blocks at one width; at most one of `downsample` and `upsample` follows them."""

    def __init__(self, n_in: int, n_out: int, blocks: int, *, down: bool = False, up: bool = False, **kw):
        self.block = nnx.List([ResidualBlock(n_in if i == 0 else n_out, n_out, **kw) for i in range(blocks)])
        self.downsample = Downsample(n_out, **kw) if down else None
        self.upsample = Upsample(n_out, **kw) if up else None

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b k e"]:
        for block in self.block:
            x = clamp(block(x))
        resample = self.downsample or self.upsample
        return x if resample is None else resample(x)


class Encoder(nnx.Module):
    """Normalised mel to the latent's mean and log-variance side by side; level 0 halves the frames."""

    def __init__(self, config: VAEConfig, **kw):
        widths = [config.width * multiplier for multiplier in config.multipliers]
        self.conv_in = conv(config.mel_bins, widths[0], 3, **kw)
        pairs = zip([widths[0], *widths], widths, strict=False)
        self.down = nnx.List([Level(*pair, config.blocks, down=i == 0, **kw) for i, pair in enumerate(pairs)])
        self.mid = Mid(widths[-1], **kw)
        self.conv_out = conv(widths[-1], 2 * config.latent_dim, 3, **kw)

    def __call__(self, x: Float[Array, "b f m"]) -> Float[Array, "b n y"]:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(mp_silu(self.mid(x)))


class Decoder(nnx.Module):
    """Latent to normalised mel; `up` is applied from its last level to its first, and level 1 doubles the frames."""

    def __init__(self, config: VAEConfig, **kw):
        widths = [config.width * multiplier for multiplier in config.multipliers]
        self.conv_in = conv(config.latent_dim, widths[-1], 3, **kw)
        self.mid = Mid(widths[-1], **kw)
        pairs = zip([*widths[1:], widths[-1]], widths, strict=True)
        self.up = nnx.List([Level(*pair, config.blocks + 1, up=i == 1, **kw) for i, pair in enumerate(pairs)])
        self.conv_out = conv(widths[0], config.mel_bins, 3, **kw)

    def __call__(self, x: Float[Array, "b n z"]) -> Float[Array, "b f m"]:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(mp_silu(x))


class VAE(nnx.Module):
    """Encoder and decoder with the mel statistics that they are normalised by (`data_mean`, `data_std`)."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs, dtype=jnp.float32, precision=None):
        kw = dict(rngs=rngs, dtype=dtype, precision=precision)
        self.encoder = Encoder(config, **kw)
        self.decoder = Decoder(config, **kw)
        self.data_mean = Buffer(jnp.zeros(config.mel_bins))
        self.data_std = Buffer(jnp.ones(config.mel_bins))

    def encode(self, mel: Float[Array, "b f m"]) -> tuple[Float[Array, "b n z"], Float[Array, "b n z"]]:
        """The posterior's mean and standard deviation in float32, (b, f/2, z); f must be even."""
        moments = self.encoder((mel - self.data_mean[...]) / self.data_std[...])
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.exp(jnp.clip(log_variance, *LOG_VARIANCE_RANGE) / 2)

    def decode(self, z: Float[Array, "b n z"]) -> Float[Array, "b f m"]:
        """The log mel spectrogram of a latent in float32, (b, 2n, m)."""
        return self.decoder(z).astype(jnp.float32) * self.data_std[...] + self.data_mean[...]


def conv(n_in: int, n_out: int, kernel_size: int, *, rngs, dtype, precision) -> nnx.Conv:
    """A convolution over time, zero-padded, without bias; a fresh kernel has unit norm for each output."""
    return nnx.Conv(
        n_in,
        n_out,
        kernel_size=(kernel_size,),
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(1.0, "fan_in", "normal"),
        rngs=rngs,
        dtype=dtype,
        precision=precision,
    )


def normalize(x: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """Divides by the root mean square over `axis` (pixel norm, equation 30)."""
    rms = jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), axis=axis, keepdims=True))
    return (x / (EPSILON + rms)).astype(x.dtype)


def mp_silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """SiLU of unit gain (equation 81)."""
    return jax.nn.silu(x) / SILU_GAIN


def mp_sum(skip: Float[Array, "..."], branch: Float[Array, "..."]) -> Float[Array, "..."]:
    """Weighted sum that keeps the magnitude of uncorrelated inputs (equation 88)."""
    return ((1 - RESIDUAL) * skip + RESIDUAL * branch) / math.hypot(1 - RESIDUAL, RESIDUAL)


def clamp(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Limits activations to ±256, as the network was trained."""
    return jnp.clip(x, -CLAMP, CLAMP)
