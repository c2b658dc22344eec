"""Checks of the videos that a set was made of: when picture and sound begin, how loud they are, what was stored.

Whether a sound belongs to its picture at its time cannot be told of a file. What can: when the file says that its two
streams begin; with the VAE, whether the stored latent is that of the clip's sound at the clip's time; and with CLIP and
Synchformer, whether the stored features begin as the clip does.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tqdm
from jaxtyping import Float, UInt8

from mmaudio_jax.data import media
from mmaudio_jax.data.check.examples import LARGEST, movement
from mmaudio_jax.data.check.findings import NEEDS_WEIGHTS, Check, Distribution, Rows, fault, left_out, spread, warning
from mmaudio_jax.data.clips import INTERVAL, interval_of
from mmaudio_jax.data.example import StoredFeatures, check_arrays
from mmaudio_jax.data.table import Row
from mmaudio_jax.data.workers import NoProcess, read_ahead
from mmaudio_jax.errors import UserError
from mmaudio_jax.sequence import MIN_DURATION, MODES, VAE_FACTOR, lengths

OFFSET = 0.05  # seconds that picture and sound may begin apart, and that a latent may be early or late
REACH = 1.0  # seconds around its place where a latent is looked for
SAME = 0.8  # least correlation of two latents of the same sound
FLAT = 0.05  # of the set's standard deviation: what moves less in time, as a steady tone does, is everywhere alike
AS_GOOD = 0.01  # correlation below the greatest that says the same
SAME_PICTURE, NEIGHBOURS = 0.9, 3  # least cosine of a frame's features and one of the first so many stored
SAME_MOTION, ROUNDING = 0.5, 0.05  # greatest distance of the first segment's features: of that of others, of the norm
QUIET = -45.0  # dB of full scale, root mean square, where the peak is at -0.4: a click and silence

FILES, BEGIN, LOW = (
    "clips that cannot be read again",
    "picture and sound that begin apart",
    f"sounds below {QUIET:g} dB",
)
STORED, LATE = "latents of another sound than the clip's", "latents that are early or late"
SEEN, MOTION = "pictures of another video than the clip's", "motion of another video than the clip's"


class Encode(NamedTuple):
    """The encoders that a set was made with; what is None leaves what is stored uncompared.

    Attributes:
        audio: sounds to the means of their latents.
        frames: frames to CLIP's features.
        motion: the frames of a segment to Synchformer's features.
    """

    audio: Callable[[Float[np.ndarray, "b l"]], Float[np.ndarray, "b n z"]] | None = None
    frames: Callable[[UInt8[np.ndarray, "f 384 384 3"]], Float[np.ndarray, "f d"]] | None = None
    motion: Callable[[UInt8[np.ndarray, "16 224 224 3"]], Float[np.ndarray, "8 e"]] | None = None


def check_recordings(
    features: StoredFeatures,
    root: Path,
    most: int,
    encode: Encode,
    typical: float,
    rows: Rows,
    workers: int,
) -> tuple[list[Check], list[Distribution]]:
    """Looks at the videos of at most so many clips, spread evenly over the set.

    Args:
        features: the set, whose table has video_path, start_time and end_time.
        root: the folder that video_path starts from.
        most: clips.
        encode: the encoders.
        typical: how much the set's latents usually move.
        rows: where the examples are.
        workers: processes that decode, as in `workers.read_ahead`.
    """
    try:
        features.table.require(*INTERVAL)
    except UserError as error:
        return no_recordings(str(error)), []
    indices = spread(range(len(features)), most)
    recordings = _Recordings(features, root.resolve(), encode, typical, rows)
    with read_ahead(map(recordings.wanted, indices), _read, workers) as ahead:
        for wanted, found in tqdm.tqdm(
            ahead, desc="listening", total=len(indices), unit=" clips", delay=2, disable=None
        ):
            recordings.add(wanted, found)
    return recordings.findings(len(indices))


def no_recordings(reason: str) -> list[Check]:
    """The same checks, left out."""
    return [left_out(name, reason) for name in (FILES, BEGIN, STORED, LATE, SEEN, MOTION, LOW)]


class _Wanted(NamedTuple):
    """What is to be read of the video of an example.

    Attributes:
        index: of the example.
        row: of the set's table.
        root: the absolute folder that its video_path starts from.
        seconds, sample_rate, samples: of the sound, as of `media.read_audio`.
        picture: whether the first segment of the video, too.
    """

    index: int
    row: Row
    root: Path
    seconds: float
    sample_rate: int
    samples: int
    picture: bool


class _Recording(NamedTuple):
    """What was read of it; no frames where none were wanted or there are none."""

    info: media.MediaInfo
    audio: Float[np.ndarray, " l"]
    frames: tuple[UInt8[np.ndarray, "f 384 384 3"], UInt8[np.ndarray, "16 224 224 3"]] | None


def _read(wanted: _Wanted) -> _Recording:
    try:
        clip = interval_of(wanted.row, wanted.root)
    except ValueError as error:
        raise UserError(str(error)) from None
    info, start = media.probe(clip.video), clip.start_time
    sound = (wanted.seconds, wanted.sample_rate, wanted.samples)
    audio = media.read_audio(clip.video, start, *sound, clip.end_time)
    picture = wanted.picture and info.has_video
    return _Recording(info, audio, media.read_frames(clip.video, start, MIN_DURATION) if picture else None)


class _Recordings:
    """Takes in the videos of examples, and tells what is wrong with them."""

    def __init__(
        self,
        features: StoredFeatures,
        root: Path,
        encode: Encode,
        typical: float,
        rows: Rows,
    ):
        self._features, self._root, self._rows = features, root, rows
        self._encode, self._typical = encode, typical
        self._mode, self._duration = MODES[features.metadata.mode], features.metadata.duration
        compared = {STORED: encode.audio, LATE: encode.audio, SEEN: encode.frames, MOTION: encode.motion}
        self._checks = {name: fault(name) if by else left_out(name, NEEDS_WEIGHTS) for name, by in compared.items()}
        self._checks = {FILES: fault(FILES), BEGIN: warning(BEGIN)} | self._checks | {LOW: warning(LOW)}
        self._stored: dict[int, Mapping[str, np.ndarray] | None] = {}  # of the examples whose videos are being read
        self._levels: list[float] = []
        self._starts: list[float] = []
        self._motion: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # stored and seen, of an example's first segment
        self._flat = 0

    def _add(self, name: str, index: int, what: str) -> None:
        self._checks[name].add(self._rows.place(index, what))

    def wanted(self, index: int) -> _Wanted:
        """What is to be read for an example."""
        arrays = self._stored[index] = self._arrays(index)
        length, rate = lengths(self._duration, self._mode), self._mode.sample_rate
        samples = (len(_full_frames(arrays)) if arrays else length.latent) * length.samples // length.latent
        picture = bool((self._encode.frames or self._encode.motion) and arrays and "clip_f" in arrays)
        row = self._features.table.rows[index]
        return _Wanted(index, row, self._root, min(self._duration, samples / rate), rate, samples, picture)

    def add(self, wanted: _Wanted, found: "Future[_Recording]") -> None:
        """Takes in what was read."""
        index, error, arrays = wanted.index, found.exception(), self._stored.pop(wanted.index)
        if isinstance(error, NoProcess):
            raise error
        if error:
            self._add(FILES, index, str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
            return
        info, audio, frames = found.result()
        if frames is not None and self._encode.frames:
            self._compare_pictures(index, arrays["clip_f"], frames[0][:1])
        if frames is not None and self._encode.motion:
            seen = self._encode.motion(frames[1])
            self._motion[index] = arrays["sync_f"][: len(seen)].ravel(), seen.ravel()
        if info.has_video:
            self._starts.append(info.audio_start - info.video_start)
            if abs(self._starts[-1]) > OFFSET:
                when = "after" if self._starts[-1] > 0 else "before"
                self._add(BEGIN, index, f"the sound begins {abs(self._starts[-1]):.3f} s {when} the picture")
        self._levels.append(float(10 * np.log10(np.mean(np.square(audio, dtype=np.float64)))))
        if self._levels[-1] < QUIET:
            self._add(LOW, index, f"{self._levels[-1]:.1f} dB")
        if self._encode.audio and arrays:
            latent, samples = _full_frames(arrays), lengths(self._duration, self._mode).samples
            heard = self._encode.audio(np.pad(audio, (0, samples - len(audio)))[None])[0]
            self._compare_sounds(index, latent, heard[: len(latent)])

    def _arrays(self, index: int) -> Mapping[str, np.ndarray] | None:
        """Those of an example; None of what is damaged or out of all measure."""
        try:
            arrays = self._features.read(index)
            check_arrays(arrays, self._features.metadata.shapes)
        except ValueError:
            return None
        return arrays if max(np.abs(array).max() for array in arrays.values()) <= LARGEST else None

    def _compare_sounds(self, index: int, stored: Float[np.ndarray, "n z"], heard: Float[np.ndarray, "n z"]) -> None:
        if max(map(movement, (stored, heard))) <= FLAT * self._typical:
            self._flat += 1
            return
        frame = self._mode.hop * VAE_FACTOR / self._mode.sample_rate  # seconds
        alike, lag = best_lag(stored, heard, round(REACH / frame))
        if alike < SAME:
            self._add(STORED, index, f"correlation {alike:.2f}")
        elif abs(lag) * frame > OFFSET:
            self._add(LATE, index, f"{abs(lag) * frame:.3f} s {'late' if lag > 0 else 'early'}")

    def _compare_pictures(
        self, index: int, stored: Float[np.ndarray, "c d"], frames: UInt8[np.ndarray, "1 384 384 3"]
    ) -> None:
        (seen,) = self._encode.frames(frames)
        stored = stored[:NEIGHBOURS]
        alike = float((stored @ seen / np.linalg.norm(stored, axis=1) / np.linalg.norm(seen)).max())
        if alike < SAME_PICTURE:
            self._add(SEEN, index, f"its first frame is another (cosine {alike:.2f})")

    def _compare_motion(self) -> None:
        """Of each example with those of all others: how far two videos' features are apart depends on the network."""
        if len(self._motion) < 3:
            return
        all_stored = np.stack([stored for stored, _ in self._motion.values()])
        for index, (stored, seen) in self._motion.items():
            off, others = np.linalg.norm(stored - seen), np.median(np.linalg.norm(all_stored - seen, axis=1))
            if off > max(SAME_MOTION * others, ROUNDING * np.linalg.norm(seen)):
                self._add(MOTION, index, f"its first segment is {off / others:.1f} times as far off as those of others")

    def findings(self, looked_at: int) -> tuple[list[Check], list[Distribution]]:
        """All checks, and the histograms, of so many clips."""
        self._compare_motion()
        for name, check in self._checks.items():
            compared = looked_at - self._flat if name in (STORED, LATE) else looked_at
            check.note = check.note or f"{check.count} of {compared} clips"
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
