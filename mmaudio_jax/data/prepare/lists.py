"""Reads what others wrote of clips: lists of known data sets and tables of captions, recognised by their content.

Whatever is wrong with one row becomes its `fault`; what is wrong with the whole file is an error.
"""

import dataclasses
import io
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmaudio_jax.data.captions import is_empty
from mmaudio_jax.data.prepare.cutting import Span
from mmaudio_jax.data.table import SAVE_AS_UTF_8, Row, name_values, split_values
from mmaudio_jax.errors import UserError

SEGMENT = 10  # seconds of a video that a row of VGGSound or AudioCaps is about
SPLITS = {"train": "train", "training": "train", "test": "test"} | dict.fromkeys(("val", "valid", "validation"), "val")
FILE_COLUMNS = ("video_path", "audio_path", "path", "file", "file_name", "filename", "video", "audio", "name", "id")
CAPTION_COLUMNS = ("caption", "label", "text")
START_COLUMNS, END_COLUMNS = ("start_time", "start"), ("end_time", "end")
KINDS = (
    "a table with the columns video_path, start_time, end_time and caption; VGGSound's CSV (youtube id, start, label, "
    "train or test, without a header); AudioCaps' CSV (audiocap_id, youtube_id, start_time, caption); WavCaps' JSON "
    '({"data": [{"id": …, "caption": …}]}); MovieGen Audio Bench\'s JSON lines ({"id": …, "audio_prompt": …}), or a '
    "folder of ID.jsonl with one such record each; or a table with id and label or caption"
)

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Entry:
    """What one row says.

    Attributes:
        line: of the file, or the number of the record in JSON.
        names: what the media file may be called, the likeliest first: a path, a file name, or a name without suffix.
        caption: cleaned; empty where there is none.
        id: as it stands in the list; empty where it has none.
        span: the part of the file that is meant; None for all of it.
        segment: the part of the video that is meant, where the file may be the whole video, or the segment alone.
        split: train, val, test, or empty.
        columns: what else is known of it.
        fault: why the row cannot be used, though it may still tell the file; empty if it can.
    """

    line: int
    names: tuple[str, ...]
    caption: str
    id: str = ""
    span: Span | None = None
    segment: Span | None = None
    split: str = ""
    columns: Row = dataclasses.field(default_factory=dict)
    fault: str = ""

    @property
    def source(self) -> str:
        """Which video it is of; empty where the file tells."""
        return next((self.columns[name] for name in ("original_video", "title_folder") if self.columns.get(name)), "")


def read_list(path: Path) -> list[Entry]:
    """Reads a list of clips: a file, or of MovieGen Audio Bench a folder with a file for each.

    Raises:
        UserError: the file cannot be read, or is of no known kind.
    """
    if path.is_dir():
        return _entries(enumerate(_record_files(path), 1), _moviegen_file)
    text = _text(path)
    if _is_moviegen(text):
        return _entries(_json_lines(path, text), _moviegen)
    if text.lstrip().startswith("{"):
        return _entries(enumerate(_json_records(path, text), 1), _wavcaps)
    header, rows = _table(path, text)
    if _is_vggsound(header):
        return _entries([(1, header), *rows], _vggsound)
    records = _records(path, header, rows)
    if {"audiocap_id", "youtube_id", "start_time", "caption"} <= set(header):
        return _entries(records, _audiocaps)
    if {"video_path", "start_time", "end_time", "caption"} <= set(header):
        return _entries(records, _own)
    if "id" in header and {"label", "caption"} & set(header):
        return _entries(records, _published)
    raise UserError(f"{path} is no list of a known kind; it may be {KINDS}")


def read_captions(path: Path) -> list[Entry]:
    """Reads captions of files, or of parts of them where they have a start and an end: TSV, CSV or JSON lines.

    A file is named by `video_path`, `file`, `name`, `id` or the like, the caption by `caption`, `label` or `text`.

    Raises:
        UserError: the file cannot be read, or has no such columns.
    """
    header, records = read_records(path)
    chosen = [next((name for name in names if name in header), None) for names in (FILE_COLUMNS, CAPTION_COLUMNS)]
    if None in chosen:
        raise UserError(
            f"{path} has the columns {', '.join(header)}; captions need one that names the file "
            f"({', '.join(FILE_COLUMNS)}) and one that says what is heard ({', '.join(CAPTION_COLUMNS)})"
        )
    start, end = (next((name for name in names if name in header), None) for names in (START_COLUMNS, END_COLUMNS))
    if (start is None) != (end is None):
        raise UserError(f"{path} has the column {start or end} without its counterpart; captions of parts need both")

    def entry(line: int, record: Record) -> Entry:
        names = (_value(record, chosen[0]),)
        said = [record.get(name) not in ("", None) for name in (start, end) if name]
        try:
            return Entry(
                line,
                names,
                _caption(record, chosen[1]),
                "" if chosen[0] == "id" else str(record.get("id") or ""),
                _span(record, start, end) if any(said) else None,
                split=_split(record),
                columns=_rest(record, *chosen, "id", start, end, "split", "warnings"),
            )
        except ValueError as error:
            caption = clean(str(record.get(chosen[1]) or ""))
            return Entry(line, names, caption, columns=_shown(record), fault=str(error))

    return _entries(records, entry)


def read_records(path: Path) -> tuple[list[str], list[tuple[int, Record]]]:
    """The columns and the numbered rows of a TSV, a CSV, or JSON lines; which it is, is told from the content.

    Raises:
        UserError: the file cannot be read, or is none of them.
    """
    text = _text(path)
    if text.lstrip().startswith("{"):
        records = list(_json_lines(path, text))
        return list(dict.fromkeys(key for _, record in records for key in record)), records
    header, rows = _table(path, text)
    return header, _records(path, header, rows)


def clean(text: str) -> str:
    """The text in one line, in composed Unicode, without control characters; emoji and the like stay.

    It is empty if nothing in it can be read.
    """
    if is_empty(text):
        return ""
    text = unicodedata.normalize("NFC", text)
    return " ".join("".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text).split())


# Rows


def _entries(records: Iterable[tuple[int, Any]], read: Callable[[int, Any], Entry]) -> list[Entry]:
    entries = []
    for line, record in records:
        try:
            entries.append(read(line, record))
        except ValueError as error:
            entries.append(Entry(line, (), "", columns=_shown(record), fault=str(error)))
    return entries


def _shown(record: Any) -> Row:
    """A row that cannot be read, as it stands."""
    return {"content": clean(json.dumps(record, ensure_ascii=False, default=str))}


def _own(line: int, record: Record) -> Entry:
    if not (path := _value(record, "video_path")):
        raise ValueError("video_path is empty")
    id = str(record.get("id", ""))
    if not id and record.get("title_folder"):
        id = f"{record['title_folder']}_{Path(path).stem}"
    columns = _rest(record, "id", "video_path", "start_time", "end_time", "caption", "split", "warnings")
    span = _span(record, "start_time", "end_time")
    return Entry(line, (path,), _caption(record, "caption"), id, span, split=_split(record), columns=columns)


def _is_vggsound(row: Sequence[str]) -> bool:
    return len(row) == 4 and re.fullmatch(r"\d+", row[1].strip()) is not None and row[3].strip() in ("train", "test")


def _vggsound(line: int, row: Sequence[str]) -> Entry:
    if not _is_vggsound(row):
        raise ValueError("not the four values youtube id, start in seconds, label, and train or test")
    video, start, label, split = (value.strip() for value in row)
    return _of_youtube(line, video, int(start), clean(label), f"{video}_{int(start):06d}", split)


def _audiocaps(line: int, record: Record) -> Entry:
    id, video = _value(record, "audiocap_id"), _value(record, "youtube_id")
    start = _seconds(record, "start_time")
    return _of_youtube(line, video, start, _caption(record, "caption"), id, _split(record))


def _of_youtube(line: int, video: str, start: float, caption: str, id: str, split: str) -> Entry:
    """A row about a segment of a video, of which the file may hold all or the segment alone."""
    names = (f"{video}_{int(start):06d}", f"{video}_{start:g}", video, f"Y{video}", id)
    end = start + SEGMENT
    times = {"original_start_time": f"{start:g}", "original_end_time": f"{end:g}"}
    segment = (round(1000 * start), round(1000 * end))
    return Entry(line, names, caption, id, None, segment, split, {"original_video": video, **times})


def _wavcaps(line: int, record: Record) -> Entry:
    id = _value(record, "id")
    names = tuple(dict.fromkeys([id, *([_value(record, "file_name")] if record.get("file_name") else [])]))
    return Entry(
        line,
        names,
        _caption(record, "caption"),
        id,
        split=_split(record),
        columns=_rest(record, "id", "caption", "split"),
    )


def _is_moviegen(text: str) -> bool:
    try:
        first = json.loads(text.lstrip().partition("\n")[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "audio_prompt" in first


def _moviegen(line: int, record: Record) -> Entry:
    """The sound's prompt is the caption; those of the picture and of music are columns."""
    id = _value(record, "id")
    return Entry(line, (id,), _caption(record, "audio_prompt"), id, columns=_rest(record, "id", "audio_prompt"))


def _moviegen_file(line: int, file: Path) -> Entry:
    """A record in a file of its own, which has the name of the video."""
    try:
        record = json.loads(_text(file))
    except (UserError, ValueError, RecursionError) as error:
        raise ValueError(f"{file.name}: not one record in JSON ({error})") from None
    if not isinstance(record, dict) or "audio_prompt" not in record:
        raise ValueError(f"{file.name}: no audio_prompt in it")
    return _moviegen(line, {**record, "id": file.stem})


def _published(line: int, record: Record) -> Entry:
    said = "caption" if "caption" in record else "label"
    id = _value(record, "id")
    return Entry(
        line, (id,), _caption(record, said), id, split=_split(record), columns=_rest(record, "id", said, "split")
    )


# Values


def _value(record: Record, name: str) -> str:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f"{name} is {'empty' if value in (None, '') else repr(value)[:60]}; it must name the file")
    return unicodedata.normalize("NFC", str(value).strip())


def _caption(record: Record, name: str) -> str:
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} is {repr(value)[:60]}, not text")
    return clean(value or "")


def _seconds(record: Record, name: str) -> float:
    try:
        value = float(record.get(name))
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value < 1e7:  # four months: milliseconds of it are exact
        raise ValueError(f"{name} {record.get(name)!r} is not a number of seconds from 0 on")
    return value


def _span(record: Record, start: str, end: str) -> Span:
    span = tuple(round(1000 * _seconds(record, name)) for name in (start, end))
    if span[1] <= span[0]:
        raise ValueError(f"{end} {record[end]} is not after {start} {record[start]}")
    return span


def _split(record: Record) -> str:
    value = str(record.get("split") or "").strip()
    if value and value.lower() not in SPLITS:
        raise ValueError(f"the split is {value!r}; it must be train, val or test")
    return SPLITS[value.lower()] if value else ""


def _rest(record: Record, *used: str | None) -> Row:
    """The other values that are no lists and no records, as text."""
    return {
        clean(str(name)): clean(str(value))
        for name, value in record.items()
        if name and name not in used and isinstance(value, str | int | float)
    }


# Files


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 ({error}); {SAVE_AS_UTF_8}") from None


def _record_files(folder: Path) -> list[Path]:
    """The .jsonl files of a folder."""
    if files := sorted(file for file in folder.iterdir() if file.suffix == ".jsonl"):
        return files
    raise UserError(f"{folder} is a folder without .jsonl files and no list of a known kind; it may be {KINDS}")


def _table(path: Path, text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The first line and the others with their numbers, separated by tabs where the first has one, else by commas."""
    first = text.lstrip().partition("\n")[0]
    if first.startswith("["):
        raise UserError(f"{path} begins as a JSON array; write its records instead, each in a line of its own")
    if ";" in first and not {"\t", ","} & set(first):
        raise UserError(f"{path} has its values separated by semicolons; save it with tabs or commas between them")
    rows = split_values(path, io.StringIO(text, newline=""), "\t" if "\t" in first else ",")
    return [name.strip() for name in rows[0][1]], rows[1:]


def _records(path: Path, header: list[str], rows: list[tuple[int, list[str]]]) -> list[tuple[int, Record]]:
    return list(zip([line for line, _ in rows], name_values(path, header, rows), strict=True))


def _json_records(path: Path, text: str) -> list[Record]:
    """The records of {"data": […]}."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} begins like JSON but is none ({error})") from None
    records = content.get("data") if isinstance(content, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path} is no list of a known kind; it may be {KINDS}")
    return records


def _json_lines(path: Path, text: str) -> Iterable[tuple[int, Record]]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} row {line} is no JSON ({error}); each line must be one record") from None
        if not isinstance(record, dict):
            raise UserError(f'{path} row {line} is no record; write {{"file": "a.mp4", "caption": "…"}}')
        yield line, record
