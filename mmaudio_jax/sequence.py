"""Seconds to sequence lengths: how long each stream of the network is for a duration."""

import dataclasses
import math

from mmaudio_jax.errors import UserError

CLIP_FPS = 8
SYNC_FPS = 25
SYNC_SEGMENT = 16  # frames a segment
SYNC_STRIDE = 8  # frames from one segment to the next
SYNC_FEATURES = 8  # features a segment
MIN_DURATION = SYNC_SEGMENT / SYNC_FPS
MAX_DURATION = 60.0  # seconds: the networks were trained on 8, and memory grows with the square
ROUNDING = 1e-3  # seconds that times of tables and files may be off


@dataclasses.dataclass(frozen=True)
class AudioMode:
    """One of the two audio representations (published `mode`): rate, STFT hop, mel bins, latent channels."""

    name: str
    sample_rate: int
    hop: int
    mel_bins: int
    latent_dim: int


VAE_FACTOR = 2  # mel frames a latent frame
MODES = {
    "16k": AudioMode("16k", sample_rate=16_000, hop=256, mel_bins=80, latent_dim=20),
    "44k": AudioMode("44k", sample_rate=44_100, hop=512, mel_bins=128, latent_dim=40),
}


def mode_of(latent_dim: int) -> AudioMode | None:
    """The mode whose latents have so many channels, if one has."""
    return next((mode for mode in MODES.values() if mode.latent_dim == latent_dim), None)


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Sequence lengths of one example: latent frames, CLIP frames, sync features, sync frames, audio samples."""

    latent: int
    clip: int
    sync: int
    sync_frames: int
    samples: int


def lengths(duration: float, mode: AudioMode) -> Lengths:
    """Lengths of every stream for a duration in seconds.

    The latent is rounded up to whole frames, so `samples` may exceed duration × rate (8 s at 44.1 kHz: 353,280).

    Raises:
        UserError: the duration is below one sync segment (0.64 s), or above a minute.
    """
    if not MIN_DURATION <= duration <= MAX_DURATION:
        raise UserError(f"a duration of {duration:g} s is not possible: from {MIN_DURATION} to {MAX_DURATION:g} s are")
    sync_frames = int(round(SYNC_FPS * duration, 6))  # 25 · 9.28 is a little less than 232
    latent = math.ceil(duration * mode.sample_rate / mode.hop / VAE_FACTOR)
    return Lengths(
        latent=latent,
        clip=int(round(CLIP_FPS * duration, 6)),
        sync=SYNC_FEATURES * sync_segments(sync_frames),
        sync_frames=sync_frames,
        samples=latent * VAE_FACTOR * mode.hop,
    )


def next_length(seconds: float) -> float:
    """The next of the lengths 0.64, 0.96, 1.28, … s, each a sync segment longer: few lengths, so few programs."""
    stride = SYNC_STRIDE / SYNC_FPS
    return round(MIN_DURATION + stride * math.ceil(round((seconds - MIN_DURATION) / stride, 6)), 2)


def sync_segments(frames: int) -> int:
    """How many overlapping segments of 16 frames, one every 8, fit into `frames`."""
    return (frames - SYNC_SEGMENT) // SYNC_STRIDE + 1
