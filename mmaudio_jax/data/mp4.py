"""The one thing in an .mp4 that FFmpeg cannot be asked for: that its tracks end before their last packets do."""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

# box: where its duration stands, in the units of the whole file (ISO/IEC 14496-12, 8.2.2, 8.3.2 and 8.6.6, version 0)
MOVIE, TRACK, FIRST_EDIT = 16, 20, 8
EDIT = 12  # bytes of an entry of the edit list


class _Box(NamedTuple):
    kind: bytes
    begin: int  # of its content
    end: int


def end_at(path: str | os.PathLike, duration: int) -> None:
    """Lets no track be shown for longer than `duration`, in units of the file's movie time scale.

    A file of more than 2³¹ units, whose tables FFmpeg writes in version 1, stays as it is.
    """
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        movie = next(box for box in _boxes(file, 0, size) if box.kind == b"moov")
        for box in _boxes(file, movie.begin, movie.end):
            if box.kind == b"mvhd":
                _lower(file, box, MOVIE, duration)
            elif box.kind == b"trak":
                for part in _boxes(file, box.begin, box.end):
                    if part.kind == b"tkhd":
                        _lower(file, part, TRACK, duration)
                    elif part.kind == b"edts":
                        for edits in _boxes(file, part.begin, part.end):
                            _cut(file, edits, duration)


def _boxes(file: BinaryIO, begin: int, end: int) -> Iterator[_Box]:
    while begin < end:
        file.seek(begin)
        size, kind = struct.unpack(">I4s", file.read(8))
        header = 8
        if size == 1:
            (size,), header = struct.unpack(">Q", file.read(8)), 16
        yield _Box(kind, begin + header, begin + size)
        begin += size


def _cut(file: BinaryIO, edits: _Box, duration: int) -> None:
    """Shortens the edits of a list, one after the other, to `duration` in all."""
    (count,) = _numbers(file, edits.begin + 4, 1)
    for place in range(FIRST_EDIT, FIRST_EDIT + EDIT * count, EDIT):
        duration -= _lower(file, edits, place, duration)


def _lower(file: BinaryIO, box: _Box, place: int, most: int) -> int:
    """Makes a number of a box of version 0 at most `most`; returns it."""
    version_and_flags, number = *_numbers(file, box.begin, 1), *_numbers(file, box.begin + place, 1)
    if version_and_flags >> 24 == 0 and number > most:
        number = most
        file.seek(box.begin + place)
        file.write(struct.pack(">I", number))
    return number


def _numbers(file: BinaryIO, place: int, count: int) -> tuple[int, ...]:
    file.seek(place)
    return struct.unpack(f">{count}I", file.read(4 * count))
