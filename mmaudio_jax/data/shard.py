"""Records out of ArrayRecord files, at any place, as fast as the system gives their bytes.

array_record's own reader copies a record twice and hashes it, in four times what reading it takes. So it is asked where
the hash counts, and what `PartWriter` writes, one record a chunk and not compressed, is read here without it:

- a file is blocks of 64 KiB that begin with 24 bytes of their own; places are counted here without these;
- a chunk is a header of 40 bytes and its data; of one record these end with its bytes;
- the last block tells where the footer is, a chunk that tells where the others begin and how long their records are.
"""

import bisect
import functools
import itertools
import os
import struct
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from mmaudio_jax.data.memory import Memory

OPEN_SHARDS = 128  # of all sets at a time: a system allows a process some hundred open files
BLOCK, BLOCK_HEADER, CHUNK_HEADER = 1 << 16, 24, 40
BODY = BLOCK - BLOCK_HEADER
OF_RECORDS, UNCOMPRESSED = ord("r"), 0  # of a chunk
PIECES = 1000  # of memory that one call of the system fills, at most
MEMORY = Memory(16)  # for records of any file: about as many as are being read at a time

Bytes = bytearray | memoryview
"""Memory to read into, byte by byte."""

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
        self._ends = list(itertools.accumulate(count for _, count in shards))
        self._states = [_state(file.stat()) if file.exists() else None for file in self._files]

    def file(self, index: int) -> Path:
        """The file that a record is in."""
        return self._files[self._shard(index)]

    def __getitem__(self, index: int) -> UInt8[np.ndarray, " n"]:
        """One record; several threads may read at once.

        Raises:
            ValueError: it cannot be read.
        """
        return self._ask(index, _open, lambda shard, i: shard.read(i))

    def size(self, index: int) -> int:
        """How many bytes a record has; errors as of reading it."""
        return self._ask(index, _open, lambda shard, i: shard.size(i))

    def read_into(self, index: int, memory: Sequence[Bytes]) -> None:
        """Reads one record into pieces of memory, one after another; together they are as large as it.

        Raises:
            ValueError: it cannot be read, or has another size; the memory may hold anything then.
        """
        self._ask(index, _open, lambda shard, i: shard.read_into(i, memory))

    def guarded(self, index: int) -> bytes:
        """One record, compared with the hash that its file keeps of it; errors as of reading it."""
        return self._ask(index, _open_guarded, lambda shard, i: shard.read([i])[0])

    def _ask(self, index: int, opened: Callable, question: Callable):
        """What the file of a record answers, asked for the record's place in it."""
        shard = self._shard(index)
        first = self._ends[shard - 1] if shard else 0
        try:
            return question(opened(self._files[shard], self._states[shard]), index - first)
        except (OSError, OverflowError, RuntimeError, IndexError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"its record in {self._files[shard].name} cannot be read ({reason})") from None

    def _shard(self, index: int) -> int:
        return bisect.bisect_right(self._ends, index)


def _state(about: os.stat_result) -> State:
    return about.st_ino, about.st_size, about.st_mtime_ns


@functools.lru_cache(maxsize=OPEN_SHARDS)
def _open(file: Path, state: State | None) -> "_Shard":
    return _Shard(file, state)


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

    def __init__(self, path: Path, state: State | None):
        self._file = open(path, "rb", buffering=0)
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

    def size(self, index: int) -> int:
        """How many bytes a record has."""
        return int(self._sizes[index])

    def read(self, index: int) -> UInt8[np.ndarray, " n"]:
        """A record, aligned in memory; a ValueError if there is something else in its place."""
        found = MEMORY.empty((self.size(index),), np.uint8)
        self.read_into(index, [memoryview(found)])
        return found

    def read_into(self, index: int, memory: Sequence[Bytes]) -> None:
        """Reads a record into memory; errors as of `read`, or if the memory is not as large as the record."""
        size = sum(map(len, memory))
        before = 2 + -(-size.bit_length() // 7)  # kind, how long the length is, the length; then comes the record
        head = bytearray(CHUNK_HEADER + before)
        self._fill(_without_headers(int(self._begins[index])), [head, *memory])
        _, length, _, kind, decoded = struct.unpack("<5Q", head[:CHUNK_HEADER])
        if (length, kind, decoded) != (before + size, 1 << 8 | OF_RECORDS, size):
            raise ValueError("something else is in its place")

    def _chunk(self, begin: int) -> tuple[Int[np.ndarray, " r"], UInt8[np.ndarray, " n"]]:
        """How long the records of a chunk are, and the records."""
        size = int(self._read(begin, CHUNK_HEADER)[8:16].view("<u8")[0])
        data = self._read(begin + CHUNK_HEADER, min(size, self._bytes))
        if data[0] != UNCOMPRESSED:
            raise ValueError("its footer is damaged")
        first = 2 + int(np.argmax(data[1:] < 128))  # after how many bytes the lengths take
        last = first + int(_varints(data[1:first])[0])
        return _varints(data[first:last]), data[last:]

    def _read(self, begin: int, size: int) -> UInt8[np.ndarray, " n"]:
        """Bytes of the file."""
        found = np.empty(size, np.uint8)
        self._fill(begin, [memoryview(found)])
        return found

    def _fill(self, begin: int, memory: Iterable[Bytes]) -> None:
        """Fills pieces of memory, one after another, with the file's bytes from a place on."""
        pieces, header, left = [], bytearray(BLOCK_HEADER), BODY - begin % BODY
        for piece in map(memoryview, memory):
            while len(piece) > left:
                pieces += [piece[:left], header]
                piece, left = piece[left:], BODY
            pieces.append(piece)
            left -= len(piece)
        place = begin // BODY * BLOCK + BLOCK_HEADER + begin % BODY
        for i in range(0, len(pieces), PIECES):
            wanted = sum(map(len, pieces[i : i + PIECES]))
            if os.preadv(self._file.fileno(), pieces[i : i + PIECES], place) != wanted:
                raise ValueError("the file ends before it")
            place += wanted


def _without_headers(place: int) -> int:
    """A place in a file without what blocks begin with."""
    return place // BLOCK * BODY + max(place % BLOCK - BLOCK_HEADER, 0)


def _varints(data: UInt8[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
    """The whole numbers of a protocol buffer: seven bits a byte, the lowest first, the eighth bit where more follow."""
    last = np.flatnonzero(data < 128)
    first = np.append(0, last[:-1] + 1)
    place = np.arange(last[-1] + 1) - np.repeat(first, last - first + 1)
    return np.add.reduceat((data[: last[-1] + 1] & 127).astype(np.int64) << 7 * place, first)
