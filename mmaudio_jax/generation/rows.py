"""Rows: what sound is asked for, by files, folders, tables, and lists of known data sets."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmaudio_jax.data.prepare.folder import AUDIO, IMAGE, VIDEO, MediaFolder
from mmaudio_jax.data.prepare.lists import Entry, clean, read_list, read_records
from mmaudio_jax.data.wording import count
from mmaudio_jax.errors import UserError
from mmaudio_jax.generation.names import words
from mmaudio_jax.request import Request, parse_adapters
from mmaudio_jax.sequence import MAX_DURATION, next_length

SHOWN = 60  # characters of a value that a message shows

Fields = Mapping[str, Any]  # of a Request
Warn = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One thing to make sound for.

    Attributes:
        where: it was asked for, as messages tell it.
        id: what its outputs are called unless a template says otherwise; that of a file in a folder is a path.
        request: None if it cannot be used.
        fault: why not.
        columns: as they were given.
    """

    where: str
    id: str
    request: Request | None
    fault: str = ""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)


def rows_of_words(defaults: Fields) -> list[Row]:
    """One row for the prompt alone."""
    return [_row("--prompt", "", defaults, {})]


def rows_of_paths(paths: Sequence[Path], defaults: Fields, out: Path, warn: Warn) -> list[Row]:
    """A row for every file, and for every video and picture in a folder and below it.

    Args:
        paths: files and folders.
        defaults: of the requests.
        out: where results go; what lies there is none of the inputs.
        warn: is told what could not be looked at.

    Raises:
        UserError: nothing is in a folder, or it is the one of the results.
    """
    rows = []
    for path in paths:
        if not path.is_dir():
            rows.append(_row(str(path), path.stem, {**defaults, "video": path}, {"video": str(path)}))
            continue
        if out.resolve() == path.resolve():
            raise UserError(f"--out is {path}, the folder of the videos themselves; choose another")
        folder = MediaFolder(path, VIDEO | IMAGE)
        for remark in folder.remarks:
            warn(f"{path}: {remark}")
        for name in folder.names:
            video = path / name
            if not (folder.root / name).is_relative_to(out.resolve()):
                id = str(Path(name).with_suffix(""))
                rows.append(_row(str(video), id, {**defaults, "video": video}, {"video": str(video)}))
    return rows


def rows_of_table(path: Path, root: Path | None, defaults: Fields, warn: Warn) -> list[Row]:
    """The rows of a TSV, CSV or JSON lines file with columns of `COLUMNS`; each value that is there goes before
    the default.

    Args:
        path: of the table.
        root: the folder that its paths start from, which holds them all; by default that of the table.
        defaults: of the requests. A row with `end_time` lasts no longer than they do.
        warn: is told of columns that are not known, and of rows whose file is sound alone, which are made for their
            words.

    Raises:
        UserError: the file is no such table, or has two columns for one thing.
    """
    header, records = read_records(path)
    chosen = {name: COLUMNS[name] for name in header if name in COLUMNS}
    if not {"video", "image", "prompt"} & {column.field for column in chosen.values()}:
        raise UserError(
            f"{path} has the columns {', '.join(header)}; rows need video, image or prompt (lists of data sets are "
            "given as --list)"
        )
    for name, column in chosen.items():
        if double := [other for other, its in chosen.items() if other != name and its.field == column.field]:
            raise UserError(f"{path} has the columns {name} and {double[0]}, which say the same; keep one of them")
    if unknown := [name for name in header if name not in (*COLUMNS, *OF_CLIPS)]:
        warn(f"{path}: columns that are not used: {', '.join(unknown)}")
    if not records:
        raise UserError(f"{path} has no rows")
    root = root or path.parent
    found = [_of_record(f"{path} row {line}", record, chosen, root, defaults) for line, record in records]
    video = next((name for name, column in chosen.items() if column.field == "video"), "")
    if heard := sum(
        row.request is not None and not row.request.video and bool(row.columns.get(video)) for row in found
    ):
        warn(f"{path}: {count(heard, 'row')} of sound without a picture: made for the words alone")
    return found


def rows_of_list(path: Path, root: Path | None, defaults: Fields, warn: Warn) -> list[Row]:
    """The rows of a list as VGGSound, AudioCaps, WavCaps and MovieGen are published.

    Args:
        path: of the list, see `lists.read_list`.
        root: the folder of its videos, found by name wherever they lie in it; None: the words alone are used.
        defaults: of the requests.
        warn: is told what could not be looked at.

    Raises:
        UserError: it is no list of a known kind, or no video is in the folder.
    """
    entries = read_list(path)
    folder = MediaFolder(root) if root else None
    for remark in folder.remarks if folder else ():
        warn(f"{root}: {remark}")
    return [_of_entry(f"{path} row {entry.line}", entry, folder, defaults) for entry in entries]


# Values of a table


@dataclasses.dataclass(frozen=True)
class Column:
    """What a column says: a field of a request, and how it is read."""

    field: str
    read: Callable[[str], Any]


def _whole(text: str) -> int:
    value = float(text)
    if not value.is_integer():
        raise ValueError
    return int(value)


COLUMNS = {
    "id": Column("id", str),
    "video": Column("video", Path),
    "video_path": Column("video", Path),
    "image": Column("image", Path),
    "prompt": Column("prompt", clean),
    "caption": Column("prompt", clean),
    "negative_prompt": Column("negative_prompt", clean),
    "start": Column("start", float),
    "start_time": Column("start", float),
    "end_time": Column("end", float),
    "duration": Column("duration", float),
    "seed": Column("seed", _whole),
    "steps": Column("steps", _whole),
    "solver": Column("solver", str),
    "shift": Column("shift", float),
    "cfg_strength": Column("cfg_strength", float),
    "video_strength": Column("video_strength", float),
    "adapter": Column("adapters", parse_adapters),
}
OF_CLIPS = ("split", "warnings", "original_video", "original_start_time", "original_end_time", "cut")  # of prepare
NUMBERS = {float: "a number", _whole: "a whole number"}


def _of_record(where: str, record: Mapping[str, Any], columns: Mapping[str, Column], root: Path, defaults: Fields):
    texts = {name: _text(value) for name, value in record.items()}
    given, id = {}, ""
    try:
        for name, column in columns.items():
            text = texts.get(name, "")
            if text is None:
                raise UserError(f"{name} is {str(record[name])[:SHOWN]}, which is neither text nor a number")
            if text and column.field == "id":
                id = text
            elif text:
                given[column.field] = _value(name, column, text)
        for name in ("video", "image"):
            if name in given:
                given[name] = _within(root, given[name])
        if (end := given.pop("end", None)) is not None:
            _end(given, end, defaults["duration"])
        if _is_sound(given.get("video")) and "prompt" in given:
            id = id or given["video"].stem
            given = {name: value for name, value in given.items() if name not in ("video", "start")}
    except UserError as error:
        return Row(where, id, None, str(error), _as_text(texts))
    return _row(where, id, {**defaults, **given}, texts)


def _text(value: Any) -> str | None:
    """A cell of a table, or a value of JSON, as text; None if it is neither text nor a number."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value).encode(errors="replace").decode().strip()  # JSON may hold halves of characters


def _value(name: str, column: Column, text: str) -> Any:
    try:
        return column.read(text)
    except (ValueError, OverflowError):
        raise UserError(f"{name} is {text[:SHOWN]!r}; it must be {NUMBERS[column.read]}") from None


def _within(root: Path, path: Path) -> Path:
    try:
        inside = (root / path).resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # no path at all, or links in a circle
        inside = False
    if not inside:
        raise UserError(f"{str(path)[:SHOWN]!r} leads out of {root}; --root must name a folder that holds every video")
    return root / path


def _end(given: dict[str, Any], end: float, longest: float) -> None:
    """Makes an end into a duration, of at most `longest` where none is given."""
    there = end - given.get("start", 0.0)
    if not there > 0 or math.isinf(there):
        raise UserError(f"end_time {end:g} is not after start_time {given.get('start', 0.0):g}")
    if "duration" not in given:
        given |= _lasting(min(there, longest))


def _lasting(seconds: float) -> Fields:
    """A duration that a table or a list tells of its videos: any number of seconds, so made at one of few lengths."""
    return {"duration": seconds, "made": min(next_length(seconds), MAX_DURATION)}


def _of_entry(where: str, entry: Entry, folder: MediaFolder | None, defaults: Fields) -> Row:
    columns = {"id": entry.id, "caption": entry.caption} | entry.columns
    id = entry.id or (Path(entry.names[0]).stem if entry.names else "")
    if entry.fault:
        return Row(where, id, None, entry.fault, columns)
    given = {"prompt": entry.caption} if entry.caption else {}
    if folder:
        try:
            name = folder.locate(entry.names)
        except LookupError as error:
            return Row(where, id, None, str(error.args[0]), columns)
        given["video"] = folder.root / name
        if _is_sound(folder.root / name):
            return Row(where, id, None, f"{given['video']}: sound without a picture", columns)
        if entry.span:
            start, end = (time / 1000 for time in entry.span)
            given |= {"start": start, **_lasting(min(end - start, defaults["duration"]))}
    return _row(where, id, {**defaults, **given}, columns)


def _is_sound(path: Path | None) -> bool:
    return path is not None and path.suffix.lower() in AUDIO


def _row(where: str, id: str, fields: Fields, columns: Mapping[str, str | None]) -> Row:
    try:
        request = Request(**fields)
    except UserError as error:
        return Row(where, id, None, str(error), _as_text(columns))
    source = request.video or request.image
    return Row(where, id or (source.stem if source else words(request.prompt)), request, "", _as_text(columns))


def _as_text(columns: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value or "" for name, value in columns.items()}
