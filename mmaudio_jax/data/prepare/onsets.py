"""Finds where something begins to sound, in a recording of any length, piece by piece."""

import numpy as np
from jaxtyping import Float

BLOCK, CONTEXT = 30.0, 0.5  # seconds looked at together, and beyond its ends
HOP = 0.01  # seconds
BANDS = 40
AUDIBLE = 60.0  # dB below the loudest of a block; what is fainter is not heard
RISE = 2.0  # dB, of the mean band within a hop over what surrounds it
ATTACK = 0.1  # seconds within which an onset reaches its level


class OnsetFinder:
    """Takes the sound as it is decoded and holds less than a minute of it.

    Attributes:
        found: (milliseconds, peak level in dB of full scale) of every onset so far, ascending.
    """

    def __init__(self, rate: int):
        self.found: list[tuple[int, float]] = []
        self._rate, self._hop = rate, max(round(HOP * rate), 1)
        self._block, self._context = int(BLOCK * rate), int(CONTEXT * rate)
        self._start, self._length = 0, 0
        self._pieces: list[Float[np.ndarray, " l"]] = []
        self._known = 0  # the sample up to which onsets have been looked for

    def offer(self, position: int, sound: Float[np.ndarray, " l"]) -> None:
        """Takes the samples from `position` on; behind a gap it begins anew."""
        if position != self._start + self._length:
            self.finish()
            self._start = self._known = position
        self._pieces.append(sound)
        self._length += len(sound)
        if self._length >= self._block + 2 * self._context:
            self._look(self._start + self._block + self._context)

    def finish(self) -> None:
        """Looks at what is left."""
        if self._length >= 2 * self._hop:
            self._look(self._start + self._length)
        self._pieces, self._start, self._length = [], self._start + self._length, 0

    def _look(self, stop: int) -> None:
        """Finds the onsets before the sample `stop`, and keeps what the next block needs."""
        import librosa

        sound = np.concatenate(self._pieces)
        window = 4 * self._hop
        shape = dict(sr=self._rate, hop_length=self._hop, n_fft=window)
        power = librosa.feature.melspectrogram(y=sound, n_mels=BANDS, **shape)
        level = librosa.power_to_db(power, ref=np.max, amin=1e-10, top_db=AUDIBLE)
        strength = librosa.onset.onset_strength(S=level, **shape)
        peaks = librosa.onset.onset_detect(
            onset_envelope=strength, sr=self._rate, hop_length=self._hop, units="samples", normalize=False, delta=RISE
        )
        for at in peaks.tolist():
            if self._known <= self._start + at < stop:
                peak = np.abs(sound[at : at + int(ATTACK * self._rate)]).max(initial=1e-10)
                time = 1000 * (self._start + at) // self._rate
                self.found.append((time, round(20 * float(np.log10(peak)), 1)))
        kept = min(stop - self._context, self._start + self._length) - self._start
        self._pieces, self._start, self._length = [sound[kept:]], self._start + kept, len(sound) - kept
        self._known = stop
