"""Checks of the stored arrays, in one pass over a set; what is kept of an example is a hundred bytes."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from mmaudio_jax.data.check import duplicates, texts
from mmaudio_jax.data.check.findings import Channels, Check, Distribution, Place, Rows, fault, left_out, warning
from mmaudio_jax.data.example import VIDEO, Metadata, check_shapes
from mmaudio_jax.data.statistics import ChannelStatistics

EDGE = 8  # an eighth of a latent at each end is not looked at for change: the VAE's padding shows there
STILL = 0.01  # change of a latent from frame to frame that is none, by how much the set's usually move
LARGEST = 1e3  # no encoder gives larger values
FAR = 20.0  # times the median of all examples' largest values
AS_SILENCE = 0.1  # root mean square difference from the latent of silence, in the released model's standard deviations
OFF = 1.0  # how far a channel's mean may be from the released model's, in its standard deviations
SPREAD = (1 / 3, 3.0)  # a channel's standard deviation, in units of the released model's

ReleasedStatistics = tuple[Float[np.ndarray, " z"], Float[np.ndarray, " z"]]
"""Mean and standard deviation of each channel that a model was trained with."""


class Scan:
    """Takes in the arrays of every example, and tells what is wrong with them.

    Attributes:
        readable: (examples,) bool, of which the record can be read.
        has_video, has_text: (examples,) bool, what is stored of each.
        seconds: (examples,) float32, how long each is without its padding; nan for the damaged.
    """

    def __init__(self, metadata: Metadata, rows: Rows):
        count, self._shapes = metadata.count, metadata.shapes
        self._duration, self._rows = metadata.duration, rows
        self._unreadable, self._misfit = fault("records that cannot be read"), fault("missing or misshapen arrays")
        self._nan, self._infinity, self._zeros = fault("NaN"), fault("infinity"), fault("rows of zeros")
        self._constant, self._std = fault("rows of one value"), fault("standard deviations not above 0")
        self._absurd = fault("values out of all measure")
        self._largest = {name: np.zeros(count, np.float32) for name in metadata.shapes}
        self._frozen = warning("pictures that never change")
        self.readable, self.has_video, self.has_text = (np.zeros(count, bool) for _ in range(3))
        self._whole, self._moves = (np.zeros(count, bool) for _ in range(2))
        self.seconds, self._change, self._movement = (np.full(count, np.nan, np.float32) for _ in range(3))
        self._sounds, self._pictures, self._texts = (np.zeros(count, np.uint64) for _ in range(3))
        self._sketches = np.zeros((count, duplicates.SKETCH), np.float32)
        self._statistics = ChannelStatistics()

    def unreadable(self, index: int, error: Exception) -> None:
        """Notes an example that cannot be read."""
        self._unreadable.add(self._rows.place(index, str(error)))

    def add(self, index: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes in the stored arrays of an example; one that is damaged counts in no statistics."""
        self.readable[index] = True
        self.has_video[index], self.has_text[index] = VIDEO[0] in arrays, "text_f" in arrays
        try:
            check_shapes(arrays, self._shapes)
        except ValueError as error:
            self._misfit.add(self._rows.place(index, str(error)))
            return
        latent, length = arrays["mean"], self._shapes["mean"][0]
        own = int(arrays.get("latents", length))
        with np.errstate(invalid="ignore", over="ignore"):  # of what is not finite
            self._change[index] = _largest_change(latent[:own])
        if not self._check_values(index, arrays):
            return
        self._whole[index] = True
        self.seconds[index] = self._duration * own / length
        self._statistics.add(latent[:own])
        self._movement[index] = movement(latent[:own])
        self._sounds[index] = duplicates.content_hash(latent)
        self._sketches[index] = duplicates.sketch(latent)
        if "text_f" in arrays:
            self._texts[index] = duplicates.content_hash(arrays["text_f"])
        if VIDEO[0] in arrays:
            picture = arrays[VIDEO[0]]
            shown = picture[: max(len(picture) * own // length, 1)]
            self._pictures[index] = duplicates.content_hash(picture)
            self._moves[index] = len(shown) < 2 or (shown != shown[0]).any()
            if not self._moves[index]:
                self._frozen.add(self._rows.place(index, f"its {len(shown)} rows of {VIDEO[0]} are the same"))

    def _check_values(self, index: int, arrays: Mapping[str, np.ndarray]) -> bool:
        """Whether there is nothing wrong with the values of an example; every fault is noted."""
        whole = True
        for name in self._shapes.keys() & arrays.keys():
            array = arrays[name]
            low, high = array.min(axis=1), array.max(axis=1)
            differ = name != "std" and array.shape[1] > 1  # a posterior may be equally wide in all channels
            for check, rows in (
                (self._nan, np.isnan(low)),
                (self._infinity, np.isinf(low) | np.isinf(high)),
                (self._zeros, (low == 0) & (high == 0)),
                (self._constant, differ & (low == high) & (low != 0)),
                (self._std, (name == "std") & (low <= 0)),
                (self._absurd, np.isfinite(high) & np.isfinite(low) & (np.maximum(high, -low) > LARGEST)),
            ):
                if rows.any():
                    whole = False
                    check.add(self._rows.place(index, f"{name}, {_listed(rows)}"))
            self._largest[name][index] = np.maximum(high, -low).max()
        return whole

    @property
    def typical(self) -> float:
        """How much the latents of most examples move at most; one that is far off does not change it."""
        there = self._movement[np.isfinite(self._movement)]
        return float(np.quantile(there, 0.75)) if len(there) else 0.0

    def _check_largest(self) -> Check:
        """Also finds values that are far beyond those of the other examples."""
        for name, largest in self._largest.items():
            there = self._whole & (largest > 0)
            median = np.median(largest[there]) if there.any() else 0.0
            for i in np.flatnonzero(there & (largest > FAR * median)):
                what = f"{name} has values up to {largest[i]:.3g}, most examples up to {median:.3g}"
                self._absurd.add(self._rows.place(int(i), what))
        return self._absurd

    def findings(
        self,
        captions: Sequence[str],
        splits: Sequence[str],
        released: ReleasedStatistics | None,
        silence: Float[np.ndarray, "n z"] | None,
    ) -> tuple[list[Check], list[Distribution], Channels | None]:
        """All checks, the histograms, and the statistics of the latents.

        Args:
            captions: one an example.
            splits: which part of the data each example is in.
            released: of the model that is to be trained on; None if it is not known.
            silence: the latent of silence, by which steady tones are told from it; None if it is not known.
        """
        checks = [self._unreadable, self._misfit, self._nan, self._infinity, self._zeros, self._constant, self._std]
        silent, still = fault("latents of silence"), warning("latents that never change")
        channels, distributions = None, []
        if self._statistics.count > 1:
            mean, std = self._statistics.mean, self._statistics.std
            channels = Channels(mean, std, *(released or (None, None)))
            typical = self.typical
            for i in np.flatnonzero(self._whole & (self._change <= STILL * typical)):
                what = f"the latent changes by {self._change[i]:.2g} at most"
                if silence is None or released is None:
                    what += "; --weights would tell one steady tone from silence"
                    silent.add(self._rows.place(int(i), what))
                else:
                    off = duplicates.difference(self._sketches[i], duplicates.sketch(silence))
                    check = silent if off <= AS_SILENCE * np.sqrt(np.mean(released[1] ** 2)) else still
                    check.add(self._rows.place(int(i), what))
            distributions = [
                Distribution("length without padding", "seconds", self.seconds[self._whole]),
                Distribution(
                    "largest change of the latent from frame to frame",
                    "by how much the set's usually move",
                    self._change[self._whole & np.isfinite(self._change)] / max(typical, np.finfo(np.float32).tiny),
                ),
            ]
        copies = duplicates.check_duplicates(
            self._sounds,
            self._pictures,
            self._whole,
            self._moves,
            self._sketches,
            captions,
            splits,
            self._rows,
        )
        differ = texts.check_differ(self._texts, self._whole & self.has_text, captions, self._rows)
        return (
            [*checks, self._check_largest(), silent, still, self._frozen, *copies, differ, _check_channels(channels)],
            distributions,
            channels,
        )


def movement(latent: Float[np.ndarray, "n z"]) -> float:
    """The standard deviation in time, all channels together."""
    return float(np.sqrt(without_ends(latent).var(axis=0).mean()))


def without_ends(latent: Float[np.ndarray, "n z"]) -> Float[np.ndarray, "m z"]:
    """A latent where the VAE's padding does not show."""
    edge = len(latent) // EDGE
    return latent[edge : len(latent) - edge]


def _largest_change(latent: Float[np.ndarray, "n z"]) -> float:
    """Root mean square over channels of the largest step from frame to frame, away from the ends; nan of one frame."""
    steps = np.diff(without_ends(latent), axis=0)
    return np.sqrt(np.square(steps).mean(axis=1).max()) if len(steps) else np.nan


def _listed(rows: Bool[np.ndarray, " n"]) -> str:
    """The first numbers of rows."""
    numbers = np.flatnonzero(rows)
    more = f" and {len(numbers) - 3} more" if len(numbers) > 3 else ""
    return f"row{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:3]))}{more} of {len(rows)}"


def _check_channels(channels: Channels | None) -> Check:
    """The latents of the set against those that the released model was trained on."""
    name = "latent channels unlike the released model's"
    if channels is None or channels.released_mean is None:
        return left_out(name, "needs --weights" if channels else "no latent can be read")
    check = warning(name)
    off = (channels.mean - channels.released_mean) / channels.released_std
    spread = channels.std / channels.released_std
    check.note = f"mean off by {np.abs(off).max():.2f} std, std × {spread.min():.2f}–{spread.max():.2f}"
    for k in np.flatnonzero((np.abs(off) > OFF) | (spread < SPREAD[0]) | (spread > SPREAD[1])):
        check.add(Place(f"channel {k}: mean off by {off[k]:+.2f} std, std × {spread[k]:.2f}"))
    return check
