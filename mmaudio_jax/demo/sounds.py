"""Plays the scenes of the small world: modal impacts of four materials, rolling, wind."""

import numpy as np
from jaxtyping import Float
from scipy import signal

from mmaudio_jax.demo.world import Scene

RATE = 44_100
Wave = Float[np.ndarray, " n"]

# material: (range of the lowest mode in Hz, ratios of the modes to it, their levels, seconds in which they fall by e)
PARTIALS = {
    "wood": ((320, 520), (1, 2.57, 4.95, 7.7), (1, 0.6, 0.35, 0.2), (0.035, 0.06)),
    "metal": ((520, 820), (1, 2.76, 5.40, 8.93), (0.8, 1, 0.7, 0.4), (0.22, 0.35)),
    "drum": ((75, 120), (1, 1.59, 2.14, 2.65), (1, 0.5, 0.25, 0.15), (0.10, 0.16)),
    "glass": ((2300, 3000), (1, 1.47, 2.09, 2.56), (1, 0.8, 0.6, 0.4), (0.07, 0.12)),
}
CLICK = {"wood": 0.35, "metal": 0.15, "drum": 0.3, "glass": 0.15}  # level of the noise at the very contact


def play(scene: Scene, rng: np.random.Generator, samples: int) -> Wave:
    """The sound track of a scene at 44.1 kHz, its peak at 0.8."""
    track = np.zeros(samples)
    strike = _instrument(scene.material, rng)
    for contact in scene.contacts:
        start = round(contact.time * RATE)
        sound = contact.strength * strike(rng)[: samples - start]
        track[start : start + len(sound)] += sound
    track /= max(np.abs(track).max(), 1e-9)
    t = np.arange(samples) / RATE
    if scene.rolling is not None:
        coarse = np.arange(0, samples + RATE // 50, RATE // 50)
        speed = np.interp(np.arange(samples), coarse, [scene.rolling(i / RATE) for i in coarse])
        track += 0.012 * speed * _noise(rng, samples, 150, 900)
    if scene.wind:
        gusts = 1 + 0.6 * np.sin(2 * np.pi * (rng.uniform(0.1, 0.3) * t + rng.random()))
        track += 0.012 * gusts * _noise(rng, samples, 200, 1200)
    return (0.8 * track / max(np.abs(track).max(), 1e-9)).astype(np.float32)


def _instrument(material: str, rng: np.random.Generator):
    """One thing of the material: a function that gives one impact on it, hardly two alike."""
    (low, high), ratios, levels, (short, long) = PARTIALS[material]
    base, decay = rng.uniform(low, high), rng.uniform(short, long)
    ratios = np.array(ratios) * np.r_[1, rng.uniform(0.97, 1.03, 3)]
    t = np.arange(round(min(7 * decay, 1.6) * RATE)) / RATE

    def strike(rng: np.random.Generator) -> Wave:
        frequencies = base * ratios * rng.uniform(0.985, 1.015)
        gains = np.array(levels) * rng.uniform(0.7, 1.3, len(levels))
        falls = decay / (1 + 0.35 * np.arange(len(levels)))  # high modes die away sooner
        bend = 0.25 * 0.03 * (1 - np.exp(-t / 0.03)) if material == "drum" else 0.0  # a drum's pitch drops
        modes = np.sin(2 * np.pi * frequencies[:, None] * (t + bend)) * np.exp(-t / falls[:, None])
        click = CLICK[material] * rng.standard_normal(len(t)) * np.exp(-t / 0.004)
        return (gains @ modes / gains.sum() + click) * np.minimum(t / 0.001, 1)

    return strike


def _noise(rng: np.random.Generator, samples: int, low: float, high: float) -> Wave:
    """Noise of a band, root mean square about 1."""
    noise = signal.sosfilt(
        signal.butter(2, (low, high), "bandpass", fs=RATE, output="sos"), rng.standard_normal(samples)
    )
    return noise / max(noise.std(), 1e-9)
