"""Puts captions, files and what is in them together: rows of a table of clips, and of what cannot be one."""

import dataclasses
import hashlib
import itertools
import os
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath

from mmaudio_jax.data import split
from mmaudio_jax.data.captions import is_cut
from mmaudio_jax.data.clips import check_id
from mmaudio_jax.data.prepare import cutting
from mmaudio_jax.data.prepare.cache import InspectionCache, inspect_all
from mmaudio_jax.data.prepare.cutting import Lengths, Span
from mmaudio_jax.data.prepare.folder import MediaFolder
from mmaudio_jax.data.prepare.inspection import Inspection
from mmaudio_jax.data.prepare.lists import Entry, clean
from mmaudio_jax.data.table import Row
from mmaudio_jax.errors import UserError

CUTS = ("regular", "scenes", "onsets")
STEM = 80  # bytes of a file's name in an id
LONGER = 2000  # ms that a file is longer than a segment of its video, if it is the whole video and not the segment


@dataclasses.dataclass(frozen=True)
class Choices:
    """How clips are made.

    Attributes:
        lengths: of the clips.
        cut: one of `CUTS`.
        max_per_source: clips kept of each source, spread evenly; None for all.
        val, test: shares of the sources.
        seed: of the split.
        workers: processes that decode.
    """

    lengths: Lengths
    cut: str = "regular"
    max_per_source: int | None = None
    val: float = 0.1
    test: float = 0.0
    seed: int = 0
    workers: int = 1

    def __post_init__(self):
        if not (0 <= self.val and 0 <= self.test and self.val + self.test < 1):
            raise UserError(
                f"the shares of validation and test are {self.val:g} and {self.test:g}; some must be left to train"
            )


@dataclasses.dataclass
class Assembled:
    """What became of the files.

    Attributes:
        rows: of the table of clips.
        rejected: what cannot be used: reason, detail, and what is known of it.
        milliseconds: that can be used of the files that were looked at.
        files: how many they were.
        left_out: clips beyond `max_per_source`.
        renamed: ids that were given and could not be taken.
        drawn: whether all sides of the split were drawn, none being told.
    """

    rows: list[Row] = dataclasses.field(default_factory=list)
    rejected: list[Row] = dataclasses.field(default_factory=list)
    milliseconds: int = 0
    files: int = 0
    left_out: int = 0
    renamed: int = 0
    drawn: bool = True

    def reject(self, reason: str, detail: str, entry: Entry, name: str = "", span: Span | None = None) -> None:
        """Adds what cannot be used: a file, a row of a list, or a part of a file."""
        times = {"start_time": _seconds(span[0]), "end_time": _seconds(span[1])} if span else {}
        line = {"row": str(entry.line)} if entry.line else {}
        known = {"video_path": name, "id": entry.id, "caption": entry.caption}
        self.rejected.append(entry.columns | known | times | line | {"reason": reason, "detail": detail})


@dataclasses.dataclass(frozen=True)
class _Clip:
    """A part of a file that can be used.

    Attributes:
        used: the part of `span` that features are made of.
        first: it begins where what its entry means does.
        content: the hash of the file.
        id: empty before it has one.
        original: the video that it is of, for the table; empty before that is known.
    """

    entry: Entry
    name: str
    span: Span
    used: Span
    first: bool
    content: str
    cut: str
    warnings: list[str]
    id: str = ""
    original: str = ""

    @property
    def source(self) -> str:
        """What it is of if its file is no copy of another."""
        return _source(self.entry, self.name)


def assemble(
    folder: MediaFolder, entries: Sequence[Entry], listed: bool, cache: InspectionCache, choices: Choices
) -> Assembled:
    """Makes the rows.

    Args:
        folder: the files.
        entries: of a list, or captions.
        listed: they are a list, whose intervals are clips and whose files are all that count. Else they are captions,
            whose intervals are cut; a file that no row names takes that of the .txt file beside it.
        cache: of inspections, entered.
        choices: how clips are made.

    Raises:
        UserError: a source is on two sides of the split that the list tells.
    """
    found = Assembled()
    located, spoilt = _locate(folder, entries, found)
    if not listed:
        located += _beside(folder, {name for _, name in located} | spoilt, bool(entries), found)
        located.sort(key=lambda pair: os.path.splitext(pair[1]))  # a.mp4 before its copy, a copy.mp4
    located = [pair for pair in located if _has_caption(*pair, found)]
    told = split.told_sides((_source(entry, name), entry.split) for entry, name in located)
    names = list(dict.fromkeys(name for _, name in located))
    inspections = inspect_all(folder.root, names, cache, choices.workers)
    found.files, found.milliseconds = len(names), sum(inspection.end for inspection in inspections.values())
    clips = [clip for entry, name in located for clip in _cut(entry, name, inspections[name], listed, choices, found)]
    joined = split.join_copies(((clip.name, clip.content, clip.source) for clip in clips), told)
    clips = _named(clips, joined, found)
    kept = _thin(clips, choices.max_per_source)
    found.left_out = len(clips) - len(kept)
    sources = [joined.sources[clip.source] for clip in kept]
    told = {source: joined.sides[source] for source in sources}
    sides = split.complete(told, choices.seed, choices.val, choices.test)
    found.drawn = not any(told.values())
    found.rows = [_row(clip, sides[source]) for clip, source in zip(kept, sources, strict=True)]
    return found


def _source(entry: Entry, name: str) -> str:
    """What is split: the video that a list tells, else the file, whatever its suffix."""
    return entry.source or os.path.splitext(name)[0]


def _locate(
    folder: MediaFolder, entries: Sequence[Entry], found: Assembled
) -> tuple[list[tuple[Entry, str]], set[str]]:
    """The entries with their files; and the files of those that cannot be used."""
    located, spoilt = [], set()
    for entry in entries:
        try:
            name = folder.locate(entry.names)
        except LookupError as error:
            found.reject(*("bad row", entry.fault) if entry.fault else ("missing", error.args[0]), entry)
            continue
        if entry.fault:
            found.reject("bad row", entry.fault, entry, name)
            spoilt.add(name)
        else:
            located.append((entry, name))
    return located, spoilt


def _beside(folder: MediaFolder, captioned: set[str], has_rows: bool, found: Assembled) -> list[tuple[Entry, str]]:
    """The other files than those that rows name, with the captions that lie beside them."""
    others, listed = [], "no row of captions names it, and " if has_rows else ""
    for name in folder.names:
        if name in captioned:
            continue
        beside = f"{PurePosixPath(name).stem}.txt"
        try:
            caption = folder.beside(name)
            if caption is None:
                raise ValueError(f"{listed}no {beside} lies beside it")
            if not clean(caption):
                raise ValueError(f"{beside} beside it is empty")
        except ValueError as error:
            found.reject("no caption", str(error), Entry(0, (name,), ""), name)
        else:
            others.append((Entry(0, (name,), clean(caption)), name))
    return others


def _has_caption(entry: Entry, name: str, found: Assembled) -> bool:
    if not entry.caption:
        found.reject("no caption", "its row has none", entry, name)
    return bool(entry.caption)


def _cut(
    entry: Entry, name: str, inspection: Inspection, listed: bool, choices: Choices, found: Assembled
) -> list[_Clip]:
    """The clips of one entry; what cannot be used is rejected."""
    if inspection.fault:
        found.reject("undecodable", inspection.fault, entry, name)
        return []
    if inspection.audio_end is None:
        found.reject("no sound", "the file has no sound track", entry, name)
        return []
    lengths = choices.lengths
    start, stop = _meant(entry, name, inspection)
    span, cut = (start, min(stop, inspection.end)), choices.cut
    if listed and entry.span:
        spans, cut = [span] if span[1] - start >= lengths.least else [], "list"
    elif cut == "scenes":
        spans = cutting.within_scenes(span, inspection.cuts, lengths)
    elif cut == "onsets":
        spans = cutting.at_onsets(span, inspection.loud_onsets, lengths)
    else:
        spans = cutting.regularly(span, lengths)
    if not spans:
        there, least = max(span[1] - start, 0), f"{_seconds(lengths.least)} s are needed"
        if there < lengths.least:
            detail = f"{_seconds(there)} s can be used from {_seconds(start)} s on, {least}: --min_duration takes less"
        else:
            detail = f"{least} between two scene cuts, or from a loud onset on: --cut regular needs neither"
        found.reject("too short", detail, entry, name, entry.span)
    long = ["long caption"] if is_cut(entry.caption) else []
    clips = []
    for begin, end in spans:
        used = (begin, min(end, begin + lengths.duration))
        if refusal := inspection.refusal(used):
            found.reject(*refusal, entry, name, (begin, end))
        else:
            doubts = inspection.doubts(used) + long
            clips.append(_Clip(entry, name, (begin, end), used, begin == start, inspection.sha256, cut, doubts))
    return clips


def _meant(entry: Entry, name: str, inspection: Inspection) -> Span:
    """The part of a file that an entry means.

    Of a segment of a video, the file is the whole video if it is called after that alone and is longer than the segment
    by `LONGER`; else it is the segment.
    """
    whole = (0, inspection.end)
    if entry.segment and PurePosixPath(name).stem in (entry.source, f"Y{entry.source}"):
        length = entry.segment[1] - entry.segment[0]
        return entry.segment if inspection.end > length + LONGER else whole
    return entry.span or whole


def _named(clips: Sequence[_Clip], joined: split.Joined, found: Assembled) -> list[_Clip]:
    """The clips with their ids and originals; one whose content and caption are those of one before is rejected, and so
    is one whose content is on another side.
    """
    named: dict[tuple[str, Span, str], _Clip] = {}
    taken: set[str] = set()
    for clip in clips:
        what = (clip.content, clip.used, clip.entry.caption)
        if other := joined.apart.get((clip.name, clip.source)):
            detail = (
                f"the file is a copy of {other}, which is on another side of the split: what trains is not measured"
            )
            found.reject("double", detail, clip.entry, clip.name, clip.span)
        elif first := named.get(what):
            copy = "" if first.name == clip.name else f"the file is a copy of {first.name}; "
            detail = f"{copy}the same part with the same caption is the clip {first.id}"
            found.reject("double", detail, clip.entry, clip.name, clip.span)
        else:
            original = clip.entry.source or joined.sources[clip.source]
            id = _free_id(clip, taken)
            found.renamed += clip.first and clip.entry.id not in ("", id)
            named[what] = dataclasses.replace(clip, id=id, original=original)
    return list(named.values())


def _free_id(clip: _Clip, taken: set[str]) -> str:
    """An id that is safe and not taken, upper and lower case being the same: the list's own, else one made of the
    file's path and the times. It is taken then.
    """
    entry, (start, end) = clip.entry, clip.span
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in unicodedata.normalize("NFC", clip.name))
    stem = stem[: len(stem) - len(PurePosixPath(clip.name).suffix)].strip("_").encode()[-STEM:].decode(errors="ignore")
    stem = stem.lstrip("-")  # a command would take the id for an option
    own = entry.id if clip.first else entry.id and f"{entry.id}_{start:08d}"
    others = (f"\n{number}" if number else "" for number in itertools.count())  # captions of the same part
    digests = (hashlib.sha256(f"{clip.name}\n{start}\n{end}\n{entry.id}{other}".encode()) for other in others)
    made = (f"{stem}_{start:08d}_{digest.hexdigest()[:12]}" for digest in digests)
    free = next(id for id in itertools.chain([own], made) if _is_safe(id) and id.casefold() not in taken)
    taken.add(free.casefold())
    return free


def _is_safe(id: str) -> bool:
    try:
        check_id(id)
    except ValueError:
        return False
    return True


def _thin(clips: Sequence[_Clip], most: int | None) -> list[_Clip]:
    """At most so many clips of each source."""
    if most is None:
        return list(clips)
    places: dict[str, list[int]] = {}
    for place, clip in enumerate(clips):
        places.setdefault(clip.original, []).append(place)
    return [clips[i] for i in sorted(i for group in places.values() for i in cutting.evenly(group, most))]


def _row(clip: _Clip, side: str) -> Row:
    entry, times = clip.entry, [_seconds(time) for time in clip.span]
    origin = dict(zip(("original_start_time", "original_end_time"), times, strict=True))
    return (
        {"cut": clip.cut}
        | ({} if entry.source else origin)
        | entry.columns
        | {"original_video": clip.original}
        | ({"original_id": entry.id} if entry.id not in ("", clip.id) else {})
        | {
            "id": clip.id,
            "video_path": clip.name if clip.name == clip.name.strip() else f"./{clip.name}",
            "start_time": times[0],
            "end_time": times[1],
            "caption": entry.caption,
            "split": side,
            "warnings": ", ".join(clip.warnings),
        }
    )


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".")
