"""BigVGAN, the vocoder from log mel spectrograms to waveforms (arXiv 2206.04658), in both released kinds.

Kernels here are used as they are; conversion has folded the published weight norm into them.
Shapes are (batch, time, channels).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

FILTER_TAPS = 12
FILTER_CUTOFF = 0.25  # cycles a sample at the doubled rate: half of the original Nyquist frequency
KAISER_BETA = 4.6638
EPSILON = 1e-9


@dataclasses.dataclass(frozen=True)
class BigVGANConfig:
    """Sizes: stage i multiplies the rate by `upsample_rates[i]` and halves the channels.

    The first release ends in a convolution with bias and tanh, the second (`v2`) without bias in a clamp to ±1.
    """

    mel_bins: int
    upsample_rates: tuple[int, ...]
    channels: int = 1536
    kernel_sizes: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[int, ...] = (1, 3, 5)
    v2: bool = False

    @property
    def hop(self) -> int:
        """Samples a mel frame."""
        return int(np.prod(self.upsample_rates))


PRESETS = {
    "bigvgan_16k": BigVGANConfig(mel_bins=80, upsample_rates=(4, 4, 2, 2, 2, 2)),
    "bigvgan_44k": BigVGANConfig(mel_bins=128, upsample_rates=(8, 4, 2, 2, 2, 2), v2=True),
}


class SnakeBeta(nnx.Module):
    """x + sin²(αx)/β with a frequency α and a magnitude β per channel, both stored as logarithms."""

    def __init__(self, channels: int):
        self.alpha = nnx.Param(jnp.zeros(channels))
        self.beta = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        alpha, beta = jnp.exp(self.alpha[...]), jnp.exp(self.beta[...])
        return x + jnp.square(jnp.sin(alpha * x)) / (beta + EPSILON)


class AntiAliased(nnx.Module):
    """An activation at twice the rate: interpolation, `act`, decimation, with one 12-tap low-pass for both ways.

    The doubled signal is never formed: its even and odd samples are two signals at the original rate, each a
    6-tap filter of the input, and the output is the sum of a 6-tap filter of each. The ends are replicated.
    Published name: Activation1d.
    """

    def __init__(self, act: nnx.Module):
        self.act = act

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        taps = lowpass_filter()
        padded = pad_edges(x.astype(jnp.float32), 3, 3)
        even = self.act(fir(padded[:, :-1], 2 * taps[::-2]))
        odd = self.act(fir(padded[:, 1:], 2 * taps[-2::-2]))
        first, last = even[:, :1], odd[:, -1:]
        even = jnp.concatenate([first] * 2 + [even] + [last] * 3, axis=1)
        odd = jnp.concatenate([first] * 3 + [odd] + [last] * 2, axis=1)
        # without the barrier XLA fuses the activation into the filters and evaluates it once for every tap
        even, odd = jax.lax.optimization_barrier((even, odd))
        return (fir(even, taps[1::2]) + fir(odd, taps[::2])).astype(x.dtype)


class ResidualBlock(nnx.Module):
    """For each dilation: x += conv(act(dilated conv(act(x)))). Published name: AMPBlock1."""

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...], **kw):
        self.convs1 = nnx.List([conv(channels, channels, kernel_size, kernel_dilation=d, **kw) for d in dilations])
        self.convs2 = nnx.List([conv(channels, channels, kernel_size, **kw) for _ in dilations])
        self.activations = nnx.List([AntiAliased(SnakeBeta(channels)) for _ in range(2 * len(dilations))])

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        for i, (conv1, conv2) in enumerate(zip(self.convs1, self.convs2, strict=True)):
            act1, act2 = self.activations[2 * i], self.activations[2 * i + 1]
            x = x + conv2(act2(conv1(act1(x))))
        return x


class BigVGAN(nnx.Module):
    """Stages of a transposed convolution and the mean of residual blocks of several kernel sizes.

    `resblocks` is flat: those of stage i are the `len(kernel_sizes)` ones from i · len(kernel_sizes) on.
    """

    def __init__(self, config: BigVGANConfig, *, rngs: nnx.Rngs, dtype=jnp.float32, precision=None):
        kw = dict(rngs=rngs, dtype=dtype, precision=precision)
        widths = [config.channels // 2**i for i in range(len(config.upsample_rates) + 1)]
        self.config = config
        self.conv_pre = conv(config.mel_bins, widths[0], 7, **kw)
        # the published layout has a list of one in each stage
        self.ups = nnx.List(
            [
                nnx.List([nnx.ConvTranspose(n_in, n_out, (2 * rate,), strides=(rate,), padding="SAME", **kw)])
                for rate, n_in, n_out in zip(config.upsample_rates, widths, widths[1:], strict=False)
            ]
        )
        self.resblocks = nnx.List(
            [ResidualBlock(n, k, config.dilations, **kw) for n in widths[1:] for k in config.kernel_sizes]
        )
        self.activation_post = AntiAliased(SnakeBeta(widths[-1]))
        self.conv_post = conv(widths[-1], 1, 7, use_bias=not config.v2, **kw)

    def __call__(self, mel: Float[Array, "b f m"]) -> Float[Array, "b l"]:
        """The waveform in float32 within ±1, `hop` samples a mel frame."""
        x = self.conv_pre(mel)
        kinds = len(self.config.kernel_sizes)
        for i, (up,) in enumerate(self.ups):
            x = up(x)
            x = sum(block(x) for block in self.resblocks[i * kinds : (i + 1) * kinds]) / kinds
        x = self.conv_post(self.activation_post(x))[..., 0].astype(jnp.float32)
        return jnp.clip(x, -1, 1) if self.config.v2 else jnp.tanh(x)


def conv(n_in: int, n_out: int, kernel_size: int, **kw) -> nnx.Conv:
    """A convolution over time with zero padding to the same length."""
    return nnx.Conv(n_in, n_out, (kernel_size,), padding="SAME", **kw)


@functools.cache
def lowpass_filter() -> np.ndarray:
    """Kaiser-windowed sinc, symmetric, of sum 1; published files store it with every activation as `filter`."""
    time = np.arange(FILTER_TAPS) - (FILTER_TAPS - 1) / 2
    taps = np.kaiser(FILTER_TAPS, KAISER_BETA) * np.sinc(2 * FILTER_CUTOFF * time)
    return (taps / taps.sum()).astype(np.float32)


def pad_edges(x: Float[Array, "b n c"], left: int, right: int) -> Float[Array, "b k c"]:
    """Repeats the first and the last frame."""
    return jnp.pad(x, ((0, 0), (left, right), (0, 0)), mode="edge")


def fir(x: Float[Array, "b k c"], taps: np.ndarray) -> Float[Array, "b n c"]:
    """Correlates every channel with `taps`, without padding; faster as a sum of slices than as a depthwise conv."""
    n = x.shape[1] - len(taps) + 1
    return sum(tap * x[:, i : i + n] for i, tap in enumerate(taps))
