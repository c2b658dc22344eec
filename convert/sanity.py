"""Signs that weights are trained: what a network makes of rendered tones, noise, clicks, squares and motion.

The bounds are wide: trained weights are far within them, random or misread ones far outside.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from mmaudio_jax import sampling, solvers, trees, weights
from mmaudio_jax.data import mel
from mmaudio_jax.data.captions import tokenize
from mmaudio_jax.encoders import Encoders
from mmaudio_jax.models.mmaudio import MMAudio
from mmaudio_jax.sequence import MODES, SYNC_SEGMENT, AudioMode, lengths, mode_of

SECONDS = 3.0  # of every rendered sound
TONE = 440.0  # Hz
HUSH = 1e-3  # noise under every sound: no recording is silent to the last bit
ALIKE = 0.7  # least correlation of two log mel spectrograms of the same sound
PITCH = 0.03  # relative
LOUDNESS = 6.0  # dB
ORDER = 0.02  # least relative change of motion features when time runs backwards
SMOOTH = 0.1  # least correlation of neighbouring frames of a generated latent; noise has none
SPREAD = (0.3, 3.0)  # standard deviation of a generated latent in units of the training set's
STATISTICS = (1e-2, 1e2)  # standard deviation of a latent channel
STEPS = 10  # of Euler's method


@dataclasses.dataclass(frozen=True)
class Finding:
    """One check of one network: what was found, and what trained weights give."""

    what: str
    found: str
    needs: str
    passed: bool


def at_least(what: str, value: float, bound: float) -> Finding:
    """A finding that is good from `bound` on."""
    return Finding(what, f"{value:.3f}", f"≥ {bound:g}", bool(value >= bound))


def between(what: str, low: float, high: float, bounds: tuple[float, float]) -> Finding:
    """A finding that is good if all values from `low` to `high` lie within the bounds."""
    found = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    return Finding(what, found, f"{bounds[0]:g} to {bounds[1]:g}", bool(bounds[0] <= low and high <= bounds[1]))


def rendered_sounds(mode: AudioMode) -> dict[str, Float[np.ndarray, " l"]]:
    """A tone with overtones, bursts of noise, and clicks, all `SECONDS` long."""
    rng = np.random.default_rng(0)
    time = np.arange(lengths(SECONDS, mode).samples) / mode.sample_rate
    noise = rng.standard_normal(len(time))
    bursts = np.where(time % 1.0 < 0.5, 0.1, 0.0) * noise
    clicks = sum(np.where(time >= at, np.exp(-(time - at) / 0.02), 0.0) for at in (0.3, 0.7, 1.3, 1.6, 2.4))
    sounds = {
        "tone": sum(0.3 / k * np.sin(2 * np.pi * k * TONE * time) for k in (1, 2, 3)),
        "noise": bursts,
        "clicks": 0.5 * clicks * rng.standard_normal(len(time)),
    }
    hush = HUSH * rng.standard_normal(len(time))
    return {name: (sound + hush).astype(np.float32) for name, sound in sounds.items()}


def codec(root: Path, mode: str) -> Iterator[Finding]:
    """The VAE and the vocoder of a mode: rendered sounds through the vocoder alone, and through both."""
    config, rate = mel.PRESETS[mode], MODES[mode].sample_rate
    sounds = rendered_sounds(MODES[mode])
    waves = np.stack(list(sounds.values()))
    log_mel = jax.jit(lambda audio: mel.log_mel(audio, config))
    true = log_mel(waves)
    vocoder, vae = weights.load(root / f"bigvgan_{mode}", "bigvgan"), weights.load(root / f"vae_{mode}", "vae")
    vocode = jax.jit(lambda params, spectrogram: trees.merge(vocoder.graphdef(), params)(spectrogram))
    latent = Encoders(root).encode_audio(waves, mode)[0]
    heard = {
        "vocoder": vocode(vocoder.params, true),
        "VAE and vocoder": sampling.decode(vae.graphdef(), vae.params, vocoder.graphdef(), vocoder.params, latent),
    }
    for through, audio in heard.items():
        for name, before, after in zip(sounds, true, log_mel(audio), strict=True):
            alike = np.corrcoef(np.ravel(before), np.ravel(after))[0, 1]
            yield at_least(f"{name} through {through}: spectrogram's correlation", np.nan_to_num(alike), ALIKE)
    again = np.asarray(heard["VAE and vocoder"])
    spectrum = np.abs(np.fft.rfft(again[0] * np.hanning(again.shape[1])))
    pitch = np.argmax(spectrum) * rate / again.shape[1]
    yield between("the tone's pitch, Hz", pitch, pitch, (TONE * (1 - PITCH), TONE * (1 + PITCH)))
    change = 10 * np.log10(np.mean(again[1] ** 2) / np.mean(waves[1] ** 2))
    yield between("the noise's change of loudness, dB", change, change, (-LOUDNESS, LOUDNESS))


def pictures() -> dict[str, UInt8[np.ndarray, "384 384 3"]]:
    """A red square and a blue circle on white, under their captions."""
    y, x = np.mgrid[:384, :384] - 191.5
    masks = {
        ("a red square", (220, 20, 20)): np.maximum(abs(x), abs(y)) < 90,
        ("a blue circle", (20, 20, 220)): np.hypot(x, y) < 100,
    }
    return {
        caption: np.where(mask[..., None], colour, 255).astype(np.uint8) for (caption, colour), mask in masks.items()
    }


def clip(root: Path) -> Iterator[Finding]:
    """CLIP puts the right caption before the wrong one, for each of two drawn pictures."""
    drawn, encoders = pictures(), Encoders(root)
    images = encoders.encode_clip_frames(np.stack(list(drawn.values()))[None])[0]
    network = encoders.clip
    embed = jax.jit(lambda params, tokens: trees.merge(network.graphdef, params).embed_text(tokens))
    similarity = images @ np.asarray(embed(network.weights.params, tokenize(list(drawn)))).T
    for i, caption in enumerate(drawn):
        right, wrong = similarity[i, i], similarity[i, 1 - i]
        found = f"{right:.3f}, {wrong:.3f}"
        yield Finding(f"{caption}: cosine with its caption, with the other", found, "first > second", right > wrong)


def synchformer(root: Path) -> Iterator[Finding]:
    """Features of a square that crosses the picture change when time runs backwards."""
    frames = np.full((SYNC_SEGMENT, 224, 224, 3), 255, np.uint8)
    for i, frame in enumerate(frames):
        frame[80:140, 10 * i : 10 * i + 60] = 40
    there, back = Encoders(root).encode_sync_frames(np.stack([frames, frames[::-1]]))
    change = np.linalg.norm(there - back[::-1]) / np.linalg.norm(there)
    yield at_least("a square's way back instead of forth: change of the features", change, ORDER)


def flow(root: Path, model: str) -> Iterator[Finding]:
    """A flow network's latent statistics, and those of a latent that it makes of nothing."""
    network = weights.load(root / model, "mmaudio")
    mean, std = (np.asarray(network.params[f"latent_{name}"]).ravel() for name in ("mean", "std"))
    yield between("standard deviations of the latent's channels", std.min(), std.max(), STATISTICS)
    yield between("means of the latent's channels", mean.min(), mean.max(), (-STATISTICS[1], STATISTICS[1]))
    mode = mode_of(network.config.latent_dim)
    if mode is None:
        yield Finding("latent channels", str(network.config.latent_dim), "20 or 40", False)
        return
    made = np.asarray(_unconditional(network, mode))
    yield between("standard deviation of a generated latent", made.std(), made.std(), SPREAD)
    centred = made - made.mean(axis=0)
    smooth = np.sum(centred[1:] * centred[:-1]) / np.sum(centred**2)
    yield at_least("correlation of a generated latent's neighbouring frames", smooth, SMOOTH)


def _unconditional(network: weights.Weights, mode: AudioMode) -> Float[Array, "n z"]:
    """A normalised latent of 8 s, made of noise under the model's own empty conditions."""
    graphdef, length = network.graphdef(), lengths(8.0, mode)

    @jax.jit
    def make(params, x0):
        model: MMAudio = trees.merge(graphdef, params)
        conditions = model.conditions(
            jnp.tile(model.empty_clip_feat[...], (1, length.clip, 1)),
            jnp.tile(model.empty_sync_feat[...], (1, length.sync, 1)),
            model.empty_string_feat[...][None],
            length.latent,
        )
        table = solvers.stack([solvers.table("euler", STEPS)])
        return sampling.integrate(lambda x, t: model.velocity(x, t, conditions), x0, table, STEPS)[0]

    return make(network.params, sampling.initial_noise([0], length.latent, mode.latent_dim))
