"""Checks of the videos that a set was made of: when picture and sound begin, how loud they are, what was stored.

Whether a sound belongs to its picture at its time cannot be told of a file. What can: when the file says that its two
streams begin; with the VAE, whether the stored latent is that of the clip's sound at the clip's time; and with CLIP,
whether the stored features begin with the clip's first frame.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tqdm
from jaxtyping import Float, UInt8

from mmaudio_jax.data import media
from mmaudio_jax.data.check.findings import NEEDS_WEIGHTS, Check, Distribution, Rows, fault, left_out, spread, warning
from mmaudio_jax.data.clips import INTERVAL, Interval, interval_of
from mmaudio_jax.data.example import StoredFeatures, check_arrays
from mmaudio_jax.errors import UserError
from mmaudio_jax.sequence import CLIP_FPS, MODES, VAE_FACTOR, lengths

OFFSET = 0.05  # seconds that picture and sound may begin apart, and that a latent may be early or late
REACH = 1.0  # seconds around its place where a latent is looked for
SAME = 0.8  # least correlation of two latents of the same sound
AS_GOOD = 0.01  # correlation below the greatest that says the same
SAME_PICTURE, NEIGHBOURS = 0.9, 3  # least cosine of a frame's features and one of the first so many stored
QUIET = -45.0  # dB of full scale, root mean square, where the peak is at -0.4: a click and silence

FILES, BEGIN, LOW = (
    "clips that cannot be read again",
    "picture and sound that begin apart",
    f"sounds below {QUIET:g} dB",
)
STORED, LATE = "latents of another sound than the clip's", "latents that are early or late"
SEEN = "pictures of another video than the clip's"

EncodeAudio = Callable[[Float[np.ndarray, "b l"]], Float[np.ndarray, "b n z"]]
EncodeFrames = Callable[[UInt8[np.ndarray, "f 384 384 3"]], Float[np.ndarray, "f d"]]


def check_recordings(
    features: StoredFeatures,
    root: Path,
    most: int,
    encode_audio: EncodeAudio | None,
    encode_frames: EncodeFrames | None,
    rows: Rows,
) -> tuple[list[Check], list[Distribution]]:
    """Looks at the videos of at most so many clips, spread evenly over the set.

    Args:
        features: the set, whose table has video_path, start_time and end_time.
        root: the folder that video_path starts from.
        most: clips.
        encode_audio: sounds to the means of their latents; None leaves the stored latents uncompared.
        encode_frames: frames to CLIP's features; None leaves those uncompared.
        rows: where the examples are.
    """
    try:
        features.table.require(*INTERVAL)
    except UserError as error:
        return no_recordings(str(error)), []
    indices = spread(range(len(features)), most)
    recordings = _Recordings(features, root.resolve(), encode_audio, encode_frames, rows)
    for index in tqdm.tqdm(indices, desc="listening", unit=" clips", delay=2, disable=None):
        recordings.add(index)
    return recordings.findings(len(indices))


def no_recordings(reason: str) -> list[Check]:
    """The same checks, left out."""
    return [left_out(name, reason) for name in (FILES, BEGIN, STORED, LATE, SEEN, LOW)]


class _Recordings:
    """Takes in the videos of examples, and tells what is wrong with them."""

    def __init__(
        self,
        features: StoredFeatures,
        root: Path,
        encode_audio: EncodeAudio | None,
        encode_frames: EncodeFrames | None,
        rows: Rows,
    ):
        self._features, self._root, self._rows = features, root, rows
        self._encode_audio, self._encode_frames = encode_audio, encode_frames
        self._mode, self._duration = MODES[features.metadata.mode], features.metadata.duration
        compared = {STORED: encode_audio, LATE: encode_audio, SEEN: encode_frames}
        self._checks = {
            name: fault(name) if encode else left_out(name, NEEDS_WEIGHTS) for name, encode in compared.items()
        }
        self._checks = {FILES: fault(FILES), BEGIN: warning(BEGIN)} | self._checks | {LOW: warning(LOW)}
        self._levels: list[float] = []
        self._starts: list[float] = []

    def _add(self, name: str, index: int, what: str) -> None:
        self._checks[name].add(self._rows.place(index, what))

    def add(self, index: int) -> None:
        """Looks at the video of an example."""
        arrays = self._arrays(index)
        latent = _full_frames(arrays) if arrays else None
        length = lengths(self._duration, self._mode)
        samples = (length.latent if latent is None else len(latent)) * length.samples // length.latent
        seconds = min(self._duration, samples / self._mode.sample_rate)
        try:
            clip = interval_of(self._features.table.rows[index], self._root)
            info = media.probe(clip.video)
            audio = media.read_audio(
                clip.video, clip.start_time, seconds, self._mode.sample_rate, samples, clip.end_time
            )
            if info.has_video and self._encode_frames and arrays and "clip_f" in arrays:
                self._compare_pictures(index, arrays["clip_f"], clip)
        except (UserError, ValueError) as error:
            self._add(FILES, index, str(error))
            return
        if info.has_video:
            self._starts.append(info.audio_start - info.video_start)
            if abs(self._starts[-1]) > OFFSET:
                when = "after" if self._starts[-1] > 0 else "before"
                self._add(BEGIN, index, f"the sound begins {abs(self._starts[-1]):.3f} s {when} the picture")
        self._levels.append(float(10 * np.log10(np.mean(np.square(audio, dtype=np.float64)))))
        if self._levels[-1] < QUIET:
            self._add(LOW, index, f"{self._levels[-1]:.1f} dB")
        if self._encode_audio and latent is not None:
            heard = self._encode_audio(np.pad(audio, (0, length.samples - samples))[None])[0]
            self._compare_sounds(index, latent, heard[: len(latent)])

    def _arrays(self, index: int) -> Mapping[str, np.ndarray] | None:
        """Those of an example; None of what is damaged."""
        try:
            arrays = self._features.read(index)
            check_arrays(arrays, self._features.metadata.shapes)
        except ValueError:
            return None
        return arrays

    def _compare_sounds(self, index: int, stored: Float[np.ndarray, "n z"], heard: Float[np.ndarray, "n z"]) -> None:
        frame = self._mode.hop * VAE_FACTOR / self._mode.sample_rate  # seconds
        alike, lag = best_lag(stored, heard, round(REACH / frame))
        if alike < SAME:
            self._add(STORED, index, f"correlation {alike:.2f}")
        elif abs(lag) * frame > OFFSET:
            self._add(LATE, index, f"{abs(lag) * frame:.3f} s {'late' if lag > 0 else 'early'}")

    def _compare_pictures(self, index: int, stored: Float[np.ndarray, "c d"], clip: Interval) -> None:
        first, _ = media.read_frames(clip.video, clip.start_time, 1 / CLIP_FPS)
        (seen,) = self._encode_frames(first)
        stored = stored[:NEIGHBOURS]
        alike = float((stored @ seen / np.linalg.norm(stored, axis=1) / np.linalg.norm(seen)).max())
        if alike < SAME_PICTURE:
            self._add(SEEN, index, f"its first frame is another (cosine {alike:.2f})")

    def findings(self, looked_at: int) -> tuple[list[Check], list[Distribution]]:
        """All checks, and the histograms, of so many clips."""
        for check in self._checks.values():
            check.note = check.note or f"{check.count} of {looked_at} clips"
        levels, starts = np.array(self._levels), np.array(self._starts)
        return [*self._checks.values()], [
            Distribution("loudness where the peak is at −0.4 dB", "dB of full scale, root mean square", levels),
            Distribution("start of the sound after that of the picture", "seconds", starts),
        ]


def _full_frames(arrays: Mapping[str, np.ndarray]) -> Float[np.ndarray, "n z"]:
    """The frames of a stored latent that are full of the clip's sound."""
    latent = arrays["mean"]
    own = int(arrays.get("latents", len(latent)))
    return latent if own == len(latent) else latent[: own - 1]  # the last before the padding may be part of it


def best_lag(stored: Float[np.ndarray, "n z"], heard: Float[np.ndarray, "n z"], reach: int) -> tuple[float, int]:
    """The greatest correlation of two latents, all channels counting alike, and how many frames the stored is late.

    Of lags that are as good, as those of a sound that repeats itself are, it is the least.
    """
    scale = heard.std(axis=0)
    scale = np.where(scale > 0, scale, 1)
    stored, heard, reach = stored / scale, heard / scale, min(reach, len(stored) // 2)
    found: dict[int, float] = {}
    for lag in range(-reach, reach + 1):
        one, other = stored[max(lag, 0) : len(stored) + min(lag, 0)], heard[max(-lag, 0) : len(heard) + min(-lag, 0)]
        one, other = one - one.mean(axis=0), other - other.mean(axis=0)
        norm = np.sqrt(np.sum(one**2) * np.sum(other**2))
        found[lag] = float(np.sum(one * other) / norm) if norm else 0.0
    best = max(found.values())
    return best, min((lag for lag, alike in found.items() if alike >= best - AS_GOOD), key=abs)
