"""Checks of the videos that a set was made of: when picture and sound begin, how loud they are, what was stored.

Whether a sound belongs to its picture at its time cannot be told of a file. What can: when the file says that its two
streams begin, and, with the VAE, whether the stored latent is that of the clip's sound at the clip's time.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tqdm
from jaxtyping import Float

from mmaudio_jax.data import media
from mmaudio_jax.data.check.findings import Check, Distribution, Rows, fault, left_out, spread, warning
from mmaudio_jax.data.clips import INTERVAL, interval_of
from mmaudio_jax.data.example import StoredFeatures, check_arrays
from mmaudio_jax.errors import UserError
from mmaudio_jax.sequence import MODES, VAE_FACTOR, lengths

OFFSET = 0.05  # seconds that picture and sound may begin apart, and that a latent may be early or late
REACH = 1.0  # seconds around its place where a latent is looked for
SAME = 0.8  # least correlation of two latents of the same sound
QUIET = -45.0  # dB of full scale, root mean square, where the peak is at -0.4: a click and silence

NAMES = {
    "files": "clips that cannot be read again",
    "offset": "picture and sound that begin apart",
    "stored": "latents of another sound than the clip's",
    "late": "latents that are early or late",
    "quiet": f"sounds below {QUIET:g} dB",
}

Encode = Callable[[Float[np.ndarray, "b l"]], Float[np.ndarray, "b n z"]]


def check_recordings(
    features: StoredFeatures, root: Path, most: int, encode: Encode | None, rows: Rows
) -> tuple[list[Check], list[Distribution]]:
    """Looks at the videos of at most so many clips, spread evenly over the set.

    Args:
        features: the set, whose table has video_path, start_time and end_time.
        root: the folder that video_path starts from.
        most: clips.
        encode: sounds to the means of their latents; None leaves the stored latents uncompared.
        rows: where the examples are.
    """
    try:
        features.table.require(*INTERVAL)
    except UserError as error:
        return no_recordings(str(error)), []
    indices = spread(range(len(features)), most)
    recordings = _Recordings(features, root.resolve(), encode, rows)
    for index in tqdm.tqdm(indices, desc="listening", unit=" clips", delay=2, disable=None):
        recordings.add(index)
    return recordings.findings(len(indices))


def no_recordings(reason: str) -> list[Check]:
    """The same checks, left out."""
    return [left_out(name, reason) for name in NAMES.values()]


class _Recordings:
    """Takes in the videos of examples, and tells what is wrong with them."""

    def __init__(self, features: StoredFeatures, root: Path, encode: Encode | None, rows: Rows):
        self._features, self._root, self._encode, self._rows = features, root, encode, rows
        self._mode, self._duration = MODES[features.metadata.mode], features.metadata.duration
        self._files, self._offset, self._quiet = (
            fault(NAMES["files"]),
            warning(NAMES["offset"]),
            warning(NAMES["quiet"]),
        )
        self._stored, self._late = fault(NAMES["stored"]), fault(NAMES["late"])
        self._levels: list[float] = []
        self._starts: list[float] = []

    def add(self, index: int) -> None:
        """Looks at the video of an example."""
        table, latent = self._features.table, self._latent(index)
        length = lengths(self._duration, self._mode)
        samples = (length.latent if latent is None else len(latent)) * length.samples // length.latent
        seconds = min(self._duration, samples / self._mode.sample_rate)
        try:
            clip = interval_of(table.rows[index], self._root)
            info = media.probe(clip.video)
            audio = media.read_audio(
                clip.video, clip.start_time, seconds, self._mode.sample_rate, samples, clip.end_time
            )
        except (UserError, ValueError) as error:
            self._files.add(self._rows.place(index, str(error)))
            return
        if info.has_video:
            self._starts.append(info.audio_start - info.video_start)
            if abs(self._starts[-1]) > OFFSET:
                when = "after" if self._starts[-1] > 0 else "before"
                what = f"the sound begins {abs(self._starts[-1]):.3f} s {when} the picture"
                self._offset.add(self._rows.place(index, what))
        self._levels.append(float(10 * np.log10(np.mean(np.square(audio, dtype=np.float64)))))
        if self._levels[-1] < QUIET:
            self._quiet.add(self._rows.place(index, f"{self._levels[-1]:.1f} dB"))
        if self._encode and latent is not None:
            heard = self._encode(np.pad(audio, (0, length.samples - samples))[None])[0]
            self._compare(index, latent, heard[: len(latent)])

    def _latent(self, index: int) -> Float[np.ndarray, "n z"] | None:
        """The frames of the stored latent that are full of the clip's sound; None of what is damaged."""
        try:
            arrays = self._features.read(index)
            check_arrays(arrays, self._features.metadata.shapes)
        except ValueError:
            return None
        latent = arrays["mean"]
        own = int(arrays.get("latents", len(latent)))
        return latent if own == len(latent) else latent[: own - 1]  # the last before the padding may be part of it

    def _compare(self, index: int, stored: Float[np.ndarray, "n z"], heard: Float[np.ndarray, "n z"]) -> None:
        frame = self._mode.hop * VAE_FACTOR / self._mode.sample_rate  # seconds
        alike, lag = best_lag(stored, heard, round(REACH / frame))
        if alike < SAME:
            self._stored.add(self._rows.place(index, f"correlation {alike:.2f}"))
        elif abs(lag) * frame > OFFSET:
            self._late.add(self._rows.place(index, f"{abs(lag) * frame:.3f} s {'late' if lag > 0 else 'early'}"))

    def findings(self, looked_at: int) -> tuple[list[Check], list[Distribution]]:
        """All checks, and the histograms, of so many clips."""
        compared = [self._stored, self._late]
        made = [self._files, self._offset, self._quiet, *(compared if self._encode else [])]
        for check in made:
            check.note = f"{check.count} of {looked_at} clips"
        if not self._encode:
            compared = [left_out(check.name, "needs --weights") for check in compared]
        levels, starts = np.array(self._levels), np.array(self._starts)
        return [self._files, self._offset, *compared, self._quiet], [
            Distribution("loudness where the peak is at −0.4 dB", "dB of full scale, root mean square", levels),
            Distribution("start of the sound after that of the picture", "seconds", starts),
        ]


def best_lag(stored: Float[np.ndarray, "n z"], heard: Float[np.ndarray, "n z"], reach: int) -> tuple[float, int]:
    """The greatest correlation of two latents, all channels counting alike, and how many frames the stored is late."""
    scale = heard.std(axis=0)
    scale = np.where(scale > 0, scale, 1)
    stored, heard, reach = stored / scale, heard / scale, min(reach, len(stored) // 2)
    found = []
    for lag in range(-reach, reach + 1):
        one, other = stored[max(lag, 0) : len(stored) + min(lag, 0)], heard[max(-lag, 0) : len(heard) + min(-lag, 0)]
        one, other = one - one.mean(axis=0), other - other.mean(axis=0)
        norm = np.sqrt(np.sum(one**2) * np.sum(other**2))
        found.append((float(np.sum(one * other) / norm) if norm else 0.0, lag))
    return max(found)
