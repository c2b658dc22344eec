"""Statistics of what streams by."""

import numpy as np
from jaxtyping import Float


class ChannelStatistics:
    """Mean and unbiased standard deviation of each channel, over all frames that were added."""

    def __init__(self):
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, frames: Float[np.ndarray, "n z"]) -> None:
        """Takes frames in; sums are in float64."""
        frames = frames.astype(np.float64)
        centre = frames.mean(axis=0)
        # Chan et al. (1983): exact merging of a part's mean and sum of squares into the whole's
        total, shift = self.count + len(frames), centre - self.mean
        merged = shift**2 * self.count * len(frames) / total
        self._squares = self._squares + ((frames - centre) ** 2).sum(axis=0) + merged
        self.mean, self.count = self.mean + shift * len(frames) / total, total

    @property
    def std(self) -> Float[np.ndarray, " z"]:
        """Of each channel; at least two frames must have been added."""
        return np.sqrt(self._squares / (self.count - 1))
