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
from mmaudio_jax.data.check.findings import Check, Distribution, Rows, fault, left_out, warning
from mmaudio_jax.data.clips import clip_of, require_columns
from mmaudio_jax.data.example import StoredFeatures
from mmaudio_jax.errors import UserError
from mmaudio_jax.sequence import MODES, lengths

OFFSET = 0.05  # seconds that picture and sound may begin apart, and that a latent may be early or late
REACH = 1.0  # seconds around its place where a latent is looked for
SAME = 0.5  # least correlation of two latents of the same sound
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
        require_columns(features.table)
    except UserError as error:
        return no_recordings(str(error)), []
    indices = np.unique(np.linspace(0, len(features) - 1, min(most, len(features))).round().astype(int))
    files, offset, quiet = fault(NAMES["files"]), warning(NAMES["offset"]), warning(NAMES["quiet"])
    stored, late = fault(NAMES["stored"]), fault(NAMES["late"])
    mode, duration = MODES[features.metadata.mode], features.metadata.duration
    samples = lengths(duration, mode).samples
    levels, starts = [], []
    for index in tqdm.tqdm(indices.tolist(), desc="listening", unit=" clips", delay=2, disable=None):
        try:
            clip = clip_of(features.table.rows[index], features.table.lines[index], root.resolve())
            info = media.probe(clip.video)
            audio = media.read_audio(clip.video, clip.start_time, duration, mode.sample_rate, samples)
        except (UserError, ValueError) as error:
            files.add(rows.place(index, str(error)))
            continue
        if info.has_video:
            starts.append(info.audio_start - info.video_start)
            if abs(starts[-1]) > OFFSET:
                when = "after" if starts[-1] > 0 else "before"
                offset.add(rows.place(index, f"the sound begins {abs(starts[-1]):.3f} s {when} the picture"))
        levels.append(10 * np.log10(np.mean(np.square(audio, dtype=np.float64))))
        if levels[-1] < QUIET:
            quiet.add(rows.place(index, f"{levels[-1]:.1f} dB"))
        if encode:
            try:
                latent = features.read(index)["mean"]
            except (ValueError, KeyError):  # which the pass over the examples has told
                continue
            alike, lag = best_lag(latent, encode(audio[None])[0], round(REACH / duration * len(latent)))
            seconds = lag * duration / len(latent)
            if not alike >= SAME:
                stored.add(rows.place(index, f"correlation {alike:.2f}"))
            elif abs(seconds) > OFFSET:
                late.add(rows.place(index, f"{abs(seconds):.3f} s {'late' if lag > 0 else 'early'}"))
    for check in (files, offset, quiet, *([stored, late] if encode else [])):
        check.note = f"{check.count} of {len(indices)} clips"
    compared = [stored, late] if encode else [left_out(NAMES[name], "needs --weights") for name in ("stored", "late")]
    distributions = [
        Distribution("loudness where the peak is at −0.4 dB", "dB of full scale, root mean square", np.array(levels)),
        Distribution("start of the sound after that of the picture", "seconds", np.array(starts)),
    ]
    return [files, offset, *compared, quiet], [each for each in distributions if len(each.values)]


def no_recordings(reason: str) -> list[Check]:
    """The same checks, left out."""
    return [left_out(name, reason) for name in NAMES.values()]


def best_lag(stored: Float[np.ndarray, "n z"], heard: Float[np.ndarray, "n z"], reach: int) -> tuple[float, int]:
    """The greatest correlation of two latents, and by how many frames the stored one is late there."""
    reach = min(reach, len(stored) // 2)
    found = []
    for lag in range(-reach, reach + 1):
        one, other = stored[max(lag, 0) : len(stored) + min(lag, 0)], heard[max(-lag, 0) : len(heard) + min(-lag, 0)]
        one, other = one - one.mean(axis=0), other - other.mean(axis=0)
        norm = np.sqrt(np.sum(one**2) * np.sum(other**2))
        found.append((float(np.sum(one * other) / norm) if norm else 0.0, lag))
    return max(found)
