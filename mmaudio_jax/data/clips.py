"""clips.tsv: which part of which video is a clip, and what is heard in it."""

import dataclasses
import math
import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mmaudio_jax.data.captions import is_empty
from mmaudio_jax.data.example import SIDES, source_of
from mmaudio_jax.data.table import Row, Table, read_table
from mmaudio_jax.errors import UserError

MAX_ID = 200  # bytes: file names have at most 255, and get suffixes


INTERVAL = ("video_path", "start_time", "end_time")


class Interval(NamedTuple):
    """A part of a media file, in seconds."""

    video: Path
    start_time: float
    end_time: float


@dataclasses.dataclass(frozen=True)
class Clip:
    """One row of clips.tsv.

    Attributes:
        id: unique, safe as a file name.
        video: path of the file, inside the root folder.
        start_time, end_time: seconds within the file.
        caption: what is heard; never empty.
        line: the row's line in the table.
        columns: all columns as they stand in the table, `id` among them.
    """

    id: str
    video: Path
    start_time: float
    end_time: float
    caption: str
    line: int
    columns: Row

    @property
    def side(self) -> str:
        """One of `SIDES`, as the column `split` says; empty where it says nothing."""
        return self.columns.get("split", "").strip()


def read_clips(path: str | os.PathLike, root: str | os.PathLike) -> list[Clip]:
    """Reads and checks clips.tsv; whether the videos can be used is found out when they are read.

    Raises:
        UserError: as of `clips_of`, or the file is no table.
    """
    return clips_of(read_table(path), root)


def clips_of(table: Table, root: str | os.PathLike) -> list[Clip]:
    """The clips of a table.

    Columns: video_path (relative to `root`), start_time, end_time, caption, and id; without an id column the
    id is `title_folder` and the stem of `video_path`, joined by `_`. Other columns are kept as provenance.

    Raises:
        UserError: a column is missing, there are no rows, or a row has an id that is a path or occurs twice,
            a video outside `root`, times that are no interval, no caption, or a split that training does not know or
            that differs from that of another clip of its source.
    """
    path = table.path
    require_columns(table)
    if not table.rows:
        raise UserError(f"{path} has no clips: there is no row after the column names")
    root = Path(root).resolve()
    if not root.is_dir():
        raise UserError(f"there is no folder {root} for video_path to start from; name the one that holds the videos")
    clips: dict[str, Clip] = {}
    told: dict[str, Clip] = {}  # by source: the first that tells its side
    for row, line in zip(table.rows, table.lines, strict=True):
        try:
            clip = clip_of(row, line, root)
        except ValueError as error:
            raise UserError(f"{path} row {line}: {error}") from None
        if clip.id in clips:
            raise UserError(
                f"{path} rows {clips[clip.id].line} and {line} have the same id {clip.id!r}; every clip needs its own"
            )
        clips[clip.id] = clip
        if not clip.side:
            continue
        source = source_of(clip.columns)
        first = told.setdefault(source, clip)
        if first.side != clip.side:
            raise UserError(
                f"{path} rows {first.line} and {line} are clips of the source {source!r} on two sides of the split, "
                f"{first.side} and {clip.side}; what trains must not be measured: put all clips of a source on one side"
            )
    return list(clips.values())


def check_id(id: str) -> None:
    """Raises a ValueError if an id cannot name a file."""
    if id != id.strip() or not id or id.startswith(".") or any(c in id for c in "/\\") or not id.isprintable():
        raise ValueError(
            f"the id {id!r} cannot name a file; it must not be empty, start with a dot, begin or end with a space, or "
            "hold /, \\ or a control character"
        )
    if len(id.encode()) > MAX_ID:
        raise ValueError(f"the id {id[:40]!r}… is too long for a file name; {MAX_ID} bytes are the most")


def require_columns(table: Table) -> None:
    """Raises a UserError that names the columns of a clip which are missing."""
    table.require(*INTERVAL, "caption")
    if "id" not in table.columns and "title_folder" not in table.columns:
        table.require("id")


def clip_of(row: Row, line: int, root: Path) -> Clip:
    """The clip of one row, which has all columns that are needed, within an absolute `root`.

    Raises:
        ValueError: what is wrong with the row.
    """
    interval = interval_of(row, root)
    id = row["id"] if "id" in row else f"{row['title_folder']}_{PurePosixPath(row['video_path'].strip()).stem}"
    check_id(id)
    caption = row["caption"].strip()
    if is_empty(caption):
        raise ValueError("the caption is empty; say what is heard")
    clip = Clip(id, *interval, caption, line, {"id": id, **row})
    if clip.side not in ("", *SIDES):
        raise ValueError(f"the split is {clip.side!r}; it must be {', '.join(SIDES)}, or empty")
    return clip


def interval_of(row: Row, root: Path) -> Interval:
    """Which part of which file a row means, by its columns `INTERVAL`, within an absolute `root`.

    Raises:
        ValueError: the file lies outside `root`, or the times are no interval.
    """
    video_path = row["video_path"].strip()
    if not video_path:
        raise ValueError("video_path is empty")
    video = (root / video_path).resolve()
    if not video.is_relative_to(root):
        raise ValueError(f"video_path {video_path!r} leads out of {root}; --root must hold every video")
    start, end = (_seconds(row, name) for name in ("start_time", "end_time"))
    if end <= start:
        raise ValueError(f"end_time {end:g} is not after start_time {start:g}")
    return Interval(video, start, end)


def _seconds(row: Row, name: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} {row[name]!r} is not a number of seconds from 0 on")
    return value
