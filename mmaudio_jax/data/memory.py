"""Memory that is used again: to have it from the system, page by page, takes longer than to read a file into it."""

import collections
import weakref

import numpy as np


class Memory:
    """Gives arrays, and the memory of those that nobody holds any more, nor a view of them, to others as large."""

    def __init__(self, kept: int):
        """Holds nothing yet.

        Args:
            kept: how many that nobody holds stay, of each size.
        """
        self._free = collections.defaultdict(lambda: collections.deque(maxlen=kept))

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """As `np.empty`; several threads may ask at once."""
        count = int(np.prod(shape))
        free = self._free[count * np.dtype(dtype).itemsize]
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(count * np.dtype(dtype).itemsize, np.uint8)
        # views of an array hold the one that it is a view of; but for the memoryview that would be the memory itself
        array = np.frombuffer(memoryview(memory), dtype)
        weakref.finalize(array, free.append, memory).atexit = False
        return array.reshape(shape)
