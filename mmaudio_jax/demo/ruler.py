"""Measures sounds of the small world: when things are struck, and of what material they are.

    python -m mmaudio_jax.demo.ruler

prints how well both measures do on scenes that neither was made with: on the true sound, and on what the demo's codec
leaves of it. They were chosen and frozen before any network was trained; a network's sound never touches them.
`--fit` fits the classifier of materials anew, to rendered sounds.
"""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float
from safetensors.numpy import load_file, save_file
from scipy import fft

from mmaudio_jax import errors
from mmaudio_jax.data import audio, mel
from mmaudio_jax.demo import sounds
from mmaudio_jax.demo.stand_ins import GriffinLim, GriffinLimConfig, MelDCT, MelDCTConfig
from mmaudio_jax.demo.world import MATERIALS, Scene, make_scene
from mmaudio_jax.files import atomic_file

FILE = Path(__file__).with_name("ruler.safetensors")
CONFIG = mel.PRESETS["16k"]
RATE = CONFIG.mode.sample_rate
TOLERANCE = 0.05  # seconds
RISE = 0.6  # log10 of mel energy, averaged over the bins: how much a contact must add
SHAPE = 24  # cosine coefficients of a spectrum
RANGE = 3.0  # log10 of magnitude: what lies 60 dB and more below the loudest is not heard
FIT_SEED, FIT_SCENES, TEST_SEED, TEST_SCENES = 101, 192, 102, 96  # no other scenes have these seeds

Wave = Float[np.ndarray, " l"]


def onsets(wave: Wave) -> Float[np.ndarray, " k"]:
    """Seconds at which something is struck: peaks of the rise of the log mel spectrogram."""
    import librosa

    hop = 128
    power = librosa.feature.melspectrogram(y=wave, sr=RATE, n_fft=512, hop_length=hop, n_mels=40)
    rise = librosa.onset.onset_strength(
        S=np.log10(np.maximum(power, 1e-4)), sr=RATE, hop_length=hop, lag=2, center=False
    )
    near, around = round(0.05 * RATE / hop), round(0.1 * RATE / hop)
    peaks = librosa.util.peak_pick(
        rise, pre_max=near, post_max=near, pre_avg=around, post_avg=around, delta=RISE, wait=2 * near
    )
    return peaks * hop / RATE


def onset_f1(wave: Wave, contacts: Sequence[float]) -> float:
    """F1 of the onsets heard against the true contacts, within ±50 ms."""
    import mir_eval

    heard = onsets(wave)
    return mir_eval.onset.f_measure(np.asarray(contacts, float), heard, window=TOLERANCE)[0] if len(heard) else 0.0


def timbre(wave: Wave) -> Float[np.ndarray, " c"] | None:
    """How a sound's impacts sound on average: their spectrum's shape, and its fall in 0.1 s; None without impacts."""
    spectrogram = np.asarray(_log_mel(wave[None])[0])
    spectrogram = np.maximum(spectrogram, spectrogram.max() - RANGE)
    frames = np.round(onsets(wave) * RATE / CONFIG.mode.hop).astype(int)
    frames = frames[(frames >= 0) & (frames < len(spectrogram) - 10)]
    if not len(frames):
        return None
    struck, later = (
        np.mean([spectrogram[frames + k] for k in range(first, first + 3)], axis=(0, 1)) for first in (1, 7)
    )
    return np.concatenate([fft.dct(struck, norm="ortho")[1:SHAPE], fft.dct(struck - later, norm="ortho")[:SHAPE]])


@jax.jit
def _log_mel(waves: Float[np.ndarray, "b l"]):
    return mel.log_mel(waves, CONFIG)


def material(wave: Wave) -> str | None:
    """The material that a sound's impacts are of; None if nothing is struck."""
    heard = timbre(wave)
    return (
        None if heard is None else MATERIALS[int(np.argmax(_classifier()["weights"] @ heard + _classifier()["bias"]))]
    )


@functools.cache
def _classifier() -> dict[str, np.ndarray]:
    return load_file(FILE)


def fit(timbres: Float[np.ndarray, "n c"], labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Fisher's linear discriminant: the class whose mean is nearest under the common covariance."""
    means = np.stack([timbres[np.array(labels) == name].mean(axis=0) for name in MATERIALS])
    spread = timbres - means[[MATERIALS.index(name) for name in labels]]
    weights = means @ np.linalg.inv(np.cov(spread.T) + 1e-3 * np.eye(timbres.shape[1]))
    return {"weights": weights, "bias": -0.5 * np.sum(weights * means, axis=1)}


def true_sounds(seed: int, count: int) -> tuple[list[Scene], Float[np.ndarray, "n l"]]:
    """Scenes of 8 seconds of all materials, and their sound at 16 kHz."""
    scenes = [make_scene(seed, i, MATERIALS, 8.0) for i in range(count)]
    tracks = (
        sounds.play(scene, np.random.default_rng((seed, i, 1)), 8 * sounds.RATE) for i, scene in enumerate(scenes)
    )
    return scenes, np.stack([audio.resample(audio.normalise_peak(t), sounds.RATE, RATE) for t in tracks])


def round_trip(waves: Float[np.ndarray, "n l"]) -> Float[np.ndarray, "n l"]:
    """What is left of sounds after the demo's codec: encoded, decoded, vocoded."""
    codec, vocoder = MelDCT(MelDCTConfig(), rngs=None), GriffinLim(GriffinLimConfig(), rngs=nnx.Rngs(0))
    return np.concatenate([np.asarray(vocoder(codec.decode(codec.encode(_log_mel(w[None]))[0]))) for w in waves])


@errors.main
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m mmaudio_jax.demo.ruler", description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true", help=f"fit the classifier first, and write {FILE.name}")
    if parser.parse_args().fit:
        scenes, true = true_sounds(FIT_SEED, FIT_SCENES)
        found = [(timbre(w), s.material) for ws in (true, round_trip(true)) for w, s in zip(ws, scenes, strict=True)]
        timbres, labels = zip(*[(heard, name) for heard, name in found if heard is not None], strict=True)
        with atomic_file(FILE) as temporary:
            save_file(fit(np.stack(timbres), labels), temporary)
    scenes, true = true_sounds(TEST_SEED, TEST_SCENES)
    print(f"{TEST_SCENES} scenes that the classifier was not fitted to   onset F1   material right")
    for name, waves in (("true sound", true), ("its codec round trip", round_trip(true))):
        score = np.mean([onset_f1(w, [c.time for c in s.contacts]) for w, s in zip(waves, scenes, strict=True)])
        right = np.mean([material(w) == s.material for w, s in zip(waves, scenes, strict=True)])
        print(f"{name:<50} {score:8.1%}   {right:14.1%}")


if __name__ == "__main__":
    main()
