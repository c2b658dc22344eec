"""Records out of ArrayRecord files, at any place, as fast as the system gives their bytes.

array_record's own reader copies a record twice and hashes it, in four times what reading it takes. So it is asked where
the hash counts, and what `PartWriter` writes, one record a chunk and not compressed, is read here without it:

- a file is blocks of 64 KiB that begin with 24 bytes of their own; places are counted here without these;
- a chunk is a header of 40 bytes and its data; of one record these end with its bytes;
- the last block tells where the footer is, a chunk that tells where the others begin and how long their records are.
"""

import functools
import itertools
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from mmaudio_jax.data.memory import Memory

OPEN_SHARDS = 128  # of all sets at a time: a system allows a process some hundred open files
BLOCK, BLOCK_HEADER, CHUNK_HEADER = 1 << 16, 24, 40
BODY = BLOCK - BLOCK_HEADER
OF_RECORDS, UNCOMPRESSED = ord("r"), 0  # of a chunk
PIECES = 1000  # of memory that one call of the system fills, at most
IN_HAND = 16  # records, about as many as are being read at a time
ALIGNMENT = 16  # of a record in memory, which is what the system gives


State = tuple[int, int, int]
"""Which file it is, by inode, size in bytes and time of change in nanoseconds."""


class Records:
    """The records of shards one after another; few files are open at a time."""

    def __init__(self, shards: Sequence[tuple[Path, int]]):
        """Opens nothing yet; what is another file by then is not read.

        Args:
            shards: (file, how many records it has).
        """
        self._files = [file for file, _ in shards]
        self._ends = np.cumsum([count for _, count in shards])
        self._states = [_state(file.stat()) if file.exists() else None for file in self._files]

    def file(self, index: int) -> Path:
        """The file that a record is in."""
        return self._files[self._shard(index)]

    def __getitem__(self, index: int) -> UInt8[np.ndarray, " n"]:
        """One record; several threads may read at once.

        Raises:
            ValueError: it cannot be read.
        """
        return self._read(index, _open)

    def guarded(self, index: int) -> bytes:
        """One record, compared with the hash that its file keeps of it; errors as of reading it."""
        return self._read(index, _open_guarded)

    def _read(self, index: int, opened: Callable):
        shard = self._shard(index)
        first = int(self._ends[shard - 1]) if shard else 0
        try:
            return opened(self._files[shard], self._states[shard]).read([index - first])[0]
        except (OSError, OverflowError, RuntimeError, IndexError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"its record in {self._files[shard].name} cannot be read ({reason})") from None

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))


def _state(about: os.stat_result) -> State:
    return about.st_ino, about.st_size, about.st_mtime_ns


@functools.lru_cache(maxsize=OPEN_SHARDS)
def _open(file: Path, state: State | None) -> "_Shard":
    return _Shard(file, state, Memory(IN_HAND))


@functools.lru_cache(maxsize=1)  # who compares with hashes goes through a set once
def _open_guarded(file: Path, state: State | None):
    from array_record.python.array_record_module import ArrayRecordReader

    _check_state(file.stat(), state)
    # without read-ahead the reader is made for random access
    return ArrayRecordReader(str(file), "readahead_buffer_size:0", file_reader_buffer_size=1 << 15)


def _check_state(about: os.stat_result, state: State | None) -> None:
    """Raises a ValueError if a file is another than it was: its records may be those of other clips."""
    if state != _state(about):
        raise ValueError("the file was changed since the set was opened")


class _Shard:
    """One file, open for reading, and where its records are."""

    def __init__(self, path: Path, state: State | None, memory: Memory):
        self._file, self._memory = open(path, "rb", buffering=0), memory
        weakref.finalize(self, self._file.close)  # when it has left the cache, and nobody reads
        about = os.fstat(self._file.fileno())
        _check_state(about, state)
        self._bytes = about.st_size
        _, postscript = self._chunk((self._bytes // BLOCK - 1) * BODY)
        sizes, footer = self._chunk(_without_headers(int(_varints(postscript)[1])))
        table = _varints(footer[sizes[0] :]).reshape(-1, 6)  # each a protocol buffer of the fields 1, 2 and 3
        if (table[:, [0, 2, 4, 5]] != [1 << 3, 2 << 3, 3 << 3, 1]).any():
            raise ValueError("its footer is damaged")
        self._begins, self._sizes = table[:, 1], table[:, 3]

    def read(self, indices: Sequence[int]) -> list[UInt8[np.ndarray, " n"]]:
        """The records; a ValueError if there is something else in their place."""
        return [self._record(_without_headers(int(self._begins[i])), int(self._sizes[i])) for i in indices]

    def _record(self, begin: int, size: int) -> UInt8[np.ndarray, " n"]:
        before = CHUNK_HEADER + 2 + -(-size.bit_length() // 7)  # header, kind, how long the length is, the length
        chunk = self._read(begin, before + size, aligned=before)
        _, length, _, kind, decoded = chunk[:CHUNK_HEADER].view("<u8").tolist()
        if (length, kind, decoded) != (before - CHUNK_HEADER + size, 1 << 8 | OF_RECORDS, size):
            raise ValueError("something else is in its place")
        return chunk[before:]

    def _chunk(self, begin: int) -> tuple[Int[np.ndarray, " r"], UInt8[np.ndarray, " n"]]:
        """How long the records of a chunk are, and the records."""
        size = int(self._read(begin, CHUNK_HEADER)[8:16].view("<u8")[0])
        data = self._read(begin + CHUNK_HEADER, min(size, self._bytes))
        if data[0] != UNCOMPRESSED:
            raise ValueError("its footer is damaged")
        first = 2 + int(np.argmax(data[1:] < 128))  # after how many bytes the lengths take
        last = first + int(_varints(data[1:first])[0])
        return _varints(data[first:last]), data[last:]

    def _read(self, begin: int, size: int, aligned: int = 0) -> UInt8[np.ndarray, " n"]:
        """Bytes of the file; the one at `aligned` lies aligned in memory."""
        found = self._memory.empty((ALIGNMENT + size,), np.uint8)[-aligned % ALIGNMENT :][:size]
        view, header = memoryview(found), bytearray(BLOCK_HEADER)
        cuts = [0, *range(BODY - begin % BODY, size, BODY), size]
        pieces = [piece for first, last in itertools.pairwise(cuts) for piece in (header, view[first:last])][1:]
        place = begin // BODY * BLOCK + BLOCK_HEADER + begin % BODY
        for i in range(0, len(pieces), PIECES):
            wanted = sum(map(len, pieces[i : i + PIECES]))
            if os.preadv(self._file.fileno(), pieces[i : i + PIECES], place) != wanted:
                raise ValueError("the file ends before it")
            place += wanted
        return found


def _without_headers(place: int) -> int:
    """A place in a file without what blocks begin with."""
    return place // BLOCK * BODY + max(place % BLOCK - BLOCK_HEADER, 0)


def _varints(data: UInt8[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
    """The whole numbers of a protocol buffer: seven bits a byte, the lowest first, the eighth bit where more follow."""
    last = np.flatnonzero(data < 128)
    first = np.append(0, last[:-1] + 1)
    place = np.arange(last[-1] + 1) - np.repeat(first, last - first + 1)
    return np.add.reduceat((data[: last[-1] + 1] & 127).astype(np.int64) << 7 * place, first)
