"""Video frames as the encoders see them: which frame each tick takes, bicubic resize, centre crop."""

import dataclasses
import functools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from jaxtyping import Int32, UInt8
from scipy import sparse

from mmaudio_jax.sequence import CLIP_FPS, SYNC_FPS

CLIP_SIZE = 384
SYNC_SIZE = 224

Image = UInt8[np.ndarray, "height width 3"]


def clip_frame(image: Image) -> UInt8[np.ndarray, "384 384 3"]:
    """The whole image resized to 384×384, whatever its aspect."""
    return resize(image, CLIP_SIZE, CLIP_SIZE)


def sync_frame(image: Image) -> UInt8[np.ndarray, "224 224 3"]:
    """The image with its short side resized to 224, then its central 224×224."""
    height, width = image.shape[:2]
    short = min(height, width)
    return resize(image, int(SYNC_SIZE * height / short), int(SYNC_SIZE * width / short), crop=SYNC_SIZE)


def resize(image: Image, height: int, width: int, crop: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Anti-aliased bicubic (a = −0.5) resize in 8-bit arithmetic: first the width, then the height.

    With `crop`, only the central crop×crop of the result is computed. Equal in every bit to what PyTorch's uint8
    interpolation computes, which the encoders were trained on.
    """
    if image.shape[:2] == (height, width) == (crop or height, crop or width):
        return image  # what the passes would give
    columns, rows = _Bicubic(image.shape[1], width, crop), _Bicubic(image.shape[0], height, crop)
    planes = image[rows.used, columns.used].transpose(2, 1, 0).astype(np.int32, order="C")  # (channel, column, row)
    return np.stack([rows(columns(plane).T) for plane in planes], axis=-1).astype(np.uint8)


@functools.lru_cache(maxsize=64)
class _Bicubic:
    """One pass of the resize along axis 0, with weights rounded to 16 bits as fixed-point numbers.

    `used` is the part of the axis that the pass reads; it is called with that part.
    """

    def __init__(self, size: int, new_size: int, crop: int | None):
        scale = size / new_size
        stretch = max(scale, 1.0)
        support = 2 * stretch
        centre = scale * (np.arange(new_size)[:, None] + 0.5)
        first = np.maximum((centre - support + 0.5).astype(int), 0)
        last = np.minimum((centre + support + 0.5).astype(int), size)
        tap = np.arange(size)
        weights = np.where((first <= tap) & (tap < last), _cubic((tap - centre + 0.5) / stretch), 0.0)
        weights /= weights.sum(axis=1, keepdims=True)

        self.shift = 0  # the most fractional bits that keep every weight within 16 bits
        while int(weights.max() * 2 ** (self.shift + 1) + 0.5) < 2**15:
            self.shift += 1
        fixed = np.trunc(weights * 2**self.shift + np.copysign(0.5, weights)).astype(np.int32)

        begin = 0 if crop is None else round((new_size - crop) / 2)
        end = new_size if crop is None else begin + crop
        self.used = slice(int(first[begin, 0]), int(last[end - 1, 0]))
        self.matrix = sparse.csr_array(fixed[begin:end, self.used])

    def __call__(self, plane: Int32[np.ndarray, "used x"]) -> Int32[np.ndarray, "new x"]:
        total = self.matrix @ plane
        total += 1 << (self.shift - 1)
        total >>= self.shift
        return np.clip(total, 0, 255, out=total)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = −0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@dataclasses.dataclass(frozen=True)
class Frame:
    """A decoded frame, shown from `time` to `end` (seconds); its image is made when it is first looked at."""

    time: Fraction
    end: Fraction
    make_image: Callable[[], Image]

    @functools.cached_property
    def image(self) -> Image:
        """(height, width, 3) RGB."""
        return self.make_image()


class Ticks:
    """The frames that one encoder sees: tick k, at start + k/fps, takes the first frame at or after that time.

    Frames are offered in the order of time; one frame may serve several ticks, or none.
    """

    def __init__(self, start: Fraction, fps: int, count: int, size: int, fit: Callable[[Image], Image]):
        self.frames = np.empty((count, size, size, 3), np.uint8)
        self._start, self._fps, self._fit = start, fps, fit
        self._filled = 0

    @property
    def complete(self) -> bool:
        """Whether every tick has its frame."""
        return self._filled == len(self.frames)

    def offer(self, frame: Frame) -> None:
        """Serves the waiting ticks at or before the frame's time."""
        self._serve(math.floor((frame.time - self._start) * self._fps) + 1, frame)

    def offer_last(self, frame: Frame) -> None:
        """Serves the waiting ticks before the end of the video's last frame."""
        self._serve(math.ceil((frame.end - self._start) * self._fps), frame)

    def _serve(self, stop: int, frame: Frame) -> None:
        stop = min(stop, len(self.frames))
        if stop > self._filled:
            self.frames[self._filled : stop] = self._fit(frame.image)
            self._filled = stop


def clip_ticks(start: Fraction, duration: float) -> Ticks:
    """Ticks of the CLIP encoder: 8 a second, 384×384."""
    return Ticks(start, CLIP_FPS, int(CLIP_FPS * duration), CLIP_SIZE, clip_frame)


def sync_ticks(start: Fraction, duration: float) -> Ticks:
    """Ticks of the synchronisation encoder: 25 a second, 224×224."""
    return Ticks(start, SYNC_FPS, int(SYNC_FPS * duration), SYNC_SIZE, sync_frame)
