"""Encoders of no network, for the tests of what is around them: features are noise, drawn from what is encoded."""

import zlib

import numpy as np

from mmaudio_jax.data.example import example_shapes


class EchoEncoders:
    """In place of `mmaudio_jax.encoders.Encoders`; `heard` counts the sounds."""

    numerics = "exact"

    def __init__(self, weights: str = "echo"):
        self.weights, self.heard = weights, 0

    def shapes(self, mode, duration):
        self._shapes = example_shapes(mode, duration, clip_dim=8, sync_dim=6, text_dim=4)
        return self._shapes

    def fingerprints(self, mode):
        return {"clip": self.weights}

    def encode_audio(self, audio, mode):
        self.heard += len(audio)
        mean, std = self._draw("mean", audio), self._draw("std", audio)
        return mean, np.abs(std) + 0.1

    def encode_clip_frames(self, frames):
        return self._draw("clip_f", frames)

    def encode_sync_frames(self, frames):
        return self._draw("sync_f", frames)

    def encode_captions(self, captions):
        return self._draw("text_f", captions)

    def _draw(self, name, items):
        seeds = [zlib.crc32(item.encode() if isinstance(item, str) else item.tobytes()) for item in items]
        rngs = (np.random.default_rng([seed, len(name)]) for seed in seeds)
        return np.stack([rng.standard_normal(self._shapes[name]).astype(np.float32) for rng in rngs])
