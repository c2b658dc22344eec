"""Stand-ins for the trained codec and encoders, for the demo alone: fixed arithmetic behind the same interfaces.

Nothing here was trained: the codec is a cosine transform of the log mel spectrogram, the vocoder is Griffin-Lim, the
encoders measure plain things (brightness, motion energy, which words there are) and mix them by fixed random
projections, in float32, whatever dtype and precision are asked for. A weights folder names them
(`mmaudio_jax.weights.STAND_INS`), so that nobody gets one unasked; this command writes such folders:

    python -m mmaudio_jax.demo.stand_ins --out demo_base/weights
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from scipy import fft

from mmaudio_jax import errors, trees, weights
from mmaudio_jax.data import mel
from mmaudio_jax.models.clip import normalize
from mmaudio_jax.models.layers import Buffer

HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class MelDCTConfig:
    """Of `latent_dim` channels, `slow` tell the mean of two neighbouring frames, the others their difference."""

    mel_bins: int = 80
    latent_dim: int = 20
    slow: int = 15


class MelDCT(nnx.Module):
    """In place of the VAE: the lowest cosine coefficients, over frequency, of sum and difference of two mel frames."""

    STD = 0.1  # of the posterior, everywhere

    def __init__(self, config: MelDCTConfig, *, rngs, dtype=jnp.float32, precision=None):
        cosines = fft.dct(np.eye(config.mel_bins), axis=0, norm="ortho")
        half = np.sqrt(0.5)
        slow, fast = cosines[: config.slow], cosines[: config.latent_dim - config.slow]
        # rows are orthonormal, over (frame of two, bin)
        rows = np.concatenate([np.concatenate([slow, slow], 1), np.concatenate([fast, -fast], 1)])
        self.basis = Buffer(jnp.asarray(half * rows, jnp.float32))

    def encode(self, mel: Float[Array, "b f m"]) -> tuple[Float[Array, "b n z"], Float[Array, "b n z"]]:
        """The posterior's mean and standard deviation, (b, f/2, z); f must be even."""
        b, f, m = mel.shape
        mean = jnp.matmul(mel.reshape(b, f // 2, 2 * m), self.basis[...].T, precision=HIGHEST)
        return mean, jnp.full_like(mean, self.STD)

    def decode(self, z: Float[Array, "b n z"]) -> Float[Array, "b f m"]:
        """The log mel spectrogram of a latent, (b, 2n, m)."""
        b, n, _ = z.shape
        return jnp.matmul(z, self.basis[...], precision=HIGHEST).reshape(b, 2 * n, -1)


@dataclasses.dataclass(frozen=True)
class GriffinLimConfig:
    """`iterations` of Griffin and Lim's algorithm."""

    mel_bins: int = 80
    iterations: int = 32


class GriffinLim(nnx.Module):
    """In place of BigVGAN: magnitudes by the mel filters' pseudo-inverse, phases by Griffin and Lim's algorithm.

    With momentum (Perraudin, Balazs and Søndergaard, 2013); phases begin at zero, so that a sound is the same in any
    batch.
    """

    MOMENTUM = 0.99

    def __init__(self, config: GriffinLimConfig, *, rngs, dtype=jnp.float32, precision=None):
        self.inverse = Buffer(jnp.asarray(np.linalg.pinv(mel.mel_filters(mel.PRESETS["16k"])), jnp.float32))
        self.iterations = config.iterations

    def __call__(self, log_mel: Float[Array, "b f m"]) -> Float[Array, "b l"]:
        """The waveform within ±1, 256 samples a mel frame."""
        config = mel.PRESETS["16k"]
        n_fft, hop = config.n_fft, config.mode.hop
        frames = dict(window="hann", nperseg=n_fft, noverlap=n_fft - hop)
        magnitude = jnp.maximum(jnp.matmul(10**log_mel, self.inverse[...].T, precision=HIGHEST), 0)
        magnitude = magnitude.swapaxes(1, 2) / (n_fft / 2)  # stft divides by the window's sum

        def wave(phase):
            return jax.scipy.signal.istft(magnitude * phase, boundary=False, **frames)[1]

        def improve(carry, _):
            phase, before = carry
            now = jax.scipy.signal.stft(wave(phase), boundary=None, padded=False, **frames)[2]
            ahead = now - self.MOMENTUM / (1 + self.MOMENTUM) * before
            return (ahead / jnp.maximum(jnp.abs(ahead), 1e-16), now), None

        start = jnp.ones_like(magnitude, jnp.complex64), jnp.zeros_like(magnitude, jnp.complex64)
        (phase, _), _ = jax.lax.scan(improve, start, length=self.iterations)
        pad = (n_fft - hop) // 2  # mel frame i is centred on (i + ½) · hop
        return jnp.clip(wave(phase)[:, pad:-pad], -1, 1)


@dataclasses.dataclass(frozen=True)
class GlanceConfig:
    """`grid` squared places of a picture are seen."""

    embed_dim: int = 64
    text_width: int = 64
    grid: int = 16
    vocab_size: int = 49_408


class Glance(nnx.Module):
    """In place of CLIP: a picture's coarse colours, and which words a text has, randomly projected."""

    CONTEXT = 2.0  # share of the words before in a token's state

    def __init__(self, config: GlanceConfig, *, rngs: nnx.Rngs, dtype=jnp.float32, precision=None):
        self.grid = config.grid
        self.colours = Buffer(jax.random.normal(rngs.params(), (3 * config.grid**2, config.embed_dim)))
        self.words = Buffer(jax.random.normal(rngs.params(), (config.vocab_size, config.text_width)))

    def encode_image(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b e"]:
        """One vector of unit length an image; RGB in [0, 1]."""
        coarse = _pool(images, self.grid)
        coarse = coarse - coarse.mean(axis=(1, 2), keepdims=True)
        return normalize(jnp.matmul(coarse.reshape(len(images), -1), self.colours[...], precision=HIGHEST))

    def encode_text(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """One vector of unit length a token: the token itself, and all words up to it."""
        words, there = self.words[tokens], (tokens > 0)[..., None]
        before = jnp.cumsum(words * there, axis=1) / jnp.maximum(jnp.cumsum(there, axis=1), 1)
        return normalize(words + self.CONTEXT * jnp.sqrt(jnp.cumsum(there, axis=1)) * before)


@dataclasses.dataclass(frozen=True)
class MotionEnergyConfig:
    """Motion is measured on `size` × `size` places of a picture."""

    width: int = 128
    size: int = 56
    steps: int = 8


class MotionEnergy(nnx.Module):
    """In place of Synchformer: where a picture moves and which way, twice a step of two frames, randomly mixed.

    Temporal times spatial differences of brightness are motion (as in Lucas and Kanade, 1981): their means over the
    picture, its quarters and its sixteenths, times the number of places.
    """

    SQUARES = (1, 2, 4)  # squares a side

    def __init__(self, config: MotionEnergyConfig, *, rngs: nnx.Rngs, dtype=jnp.float32, precision=None):
        self.size, self.steps = config.size, config.steps
        measures = 3 * 2 * sum(n * n for n in self.SQUARES)
        self.mix = Buffer(jax.random.normal(rngs.params(), (measures, config.width)) / np.sqrt(measures))
        self.rest = Buffer(0.1 * jax.random.normal(rngs.params(), (config.width,)))

    def __call__(self, video: Float[Array, "b s frames h w 3"]) -> Float[Array, "b s f d"]:
        """Features of each segment on its own; RGB in [−1, 1]."""
        b, s, frames = video.shape[:3]
        grey = _pool(video.reshape(b * s * frames, *video.shape[3:]), self.size).mean(axis=-1)
        grey = grey.reshape(b * s, frames, self.size, self.size)
        later = jnp.concatenate([grey[:, 1:], 2 * grey[:, -1:] - grey[:, -2:-1]], axis=1)  # the last goes on as it went
        change, middle = later - grey, (later + grey) / 2
        vertical, horizontal = (jnp.gradient(middle, axis=axis) for axis in (2, 3))
        energy = jnp.stack([change * vertical, change * horizontal, jnp.abs(change)], axis=-1)
        sums = [self.size**2 * _pool(energy.reshape(-1, *energy.shape[2:]), n) for n in self.SQUARES]
        measures = jnp.concatenate([x.reshape(len(x), -1) for x in sums], axis=-1)
        measures = jnp.sign(measures) * jnp.log1p(jnp.abs(measures) / 0.01) / 3
        mixed = jnp.matmul(measures.reshape(b, s, self.steps, -1), self.mix[...], precision=HIGHEST)
        return mixed + self.rest[...]


def _pool(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b size size c"]:
    """Mean brightness of size × size squares; slices added up, as a CPU takes ten times longer to reduce such axes."""
    b, h, w, c = images.shape
    rows = images.reshape(b, size, h // size, w * c)
    rows = sum(rows[:, :, i] for i in range(h // size))
    squares = rows.reshape(b, size, size, w // size, c)
    return sum(squares[:, :, :, i] for i in range(w // size)) / ((h // size) * (w // size))


# folder of a weights folder: (network, config)
FOLDERS = {
    "clip": ("glance", GlanceConfig()),
    "synchformer": ("motion_energy", MotionEnergyConfig()),
    "vae_16k": ("mel_dct", MelDCTConfig()),
    "bigvgan_16k": ("griffin_lim", GriffinLimConfig()),
}


def save_stand_ins(folder: Path) -> None:
    """Writes all of them where the released networks of the 16 kHz model would be, with fixed seeds.

    Raises:
        UserError: there is another network in a place of theirs.
    """
    for name, (network, _) in FOLDERS.items():
        there = folder / name
        if there.exists() and weights.read_metadata(there)["network"] != network:
            raise errors.UserError(f"{there} is not the demo's; choose another folder")
    for seed, (name, (network, config)) in enumerate(FOLDERS.items()):
        module = weights.network_class(network)(config, rngs=nnx.Rngs(seed))
        provenance = {"source": "the demo's stand-ins, untrained", "licence": "MIT"}
        weights.save(folder / name, network, config, trees.split(module)[1], provenance, overwrite=True)


@errors.main
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m mmaudio_jax.demo.stand_ins", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the weights folder to make")
    save_stand_ins(parser.parse_args().out)


if __name__ == "__main__":
    main()
