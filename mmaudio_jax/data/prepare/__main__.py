"""From a folder of videos or sounds to a table of clips: `python -m mmaudio_jax.data.prepare FOLDER --out clips.tsv`.

Finds the files, cuts them into clips as intervals, takes captions from where they are written, looks at every stream,
puts aside what cannot be used with the reason, and splits the sources into training, validation and test.
"""

import argparse
import collections
import shlex
from collections.abc import Sequence
from pathlib import Path

from mmaudio_jax import errors
from mmaudio_jax.data.clips import read_clips
from mmaudio_jax.data.example import SIDES
from mmaudio_jax.data.prepare import lists
from mmaudio_jax.data.prepare.assembly import CUTS, Assembled, Choices, assemble
from mmaudio_jax.data.prepare.cache import InspectionCache
from mmaudio_jax.data.prepare.cutting import Lengths
from mmaudio_jax.data.prepare.folder import MediaFolder
from mmaudio_jax.data.table import Row, write_table
from mmaudio_jax.data.wording import count
from mmaudio_jax.data.workers import CORES
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_file, sha256
from mmaudio_jax.sequence import MAX_DURATION, MIN_DURATION

PLACE = ("video_path", "start_time", "end_time", "caption")
COLUMNS = ("id", *PLACE, "split", "warnings", "original_video", "original_start_time", "original_end_time", "cut")


def prepare(
    folder: Path, out: Path, choices: Choices, *, list_file: Path | None = None, captions_file: Path | None = None
) -> None:
    """Writes the table of clips `out`, beside it that of what was rejected, and says what came of the folder.

    What has been looked at is kept beside the table, too: a run that was killed goes on, and another looks at what is
    new. The table is a function of the files and the arguments, and takes the place of the one that was written before,
    unless somebody has changed that.

    Raises:
        UserError: the folder or a list cannot be used, `out` is not what an earlier run wrote, or no clip can be used
            (the rejected ones are listed then).
    """
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file, such as {out / 'clips.tsv'}")
    rejected_file = out.with_name(f"{out.stem}.rejected.tsv")
    kept = InspectionCache(out.with_name(f"{out.stem}.inspected.jsonl"))
    for file in (list_file, captions_file):
        if file and file.resolve() in (out.resolve(), rejected_file.resolve()):
            raise UserError(f"{file} would be written over; choose another --out")
    if out.exists() and (not out.is_file() or sha256(out) not in kept.tables):
        raise UserError(
            f"{out} exists, and this command has not written it or it was changed since; choose another --out, or "
            f"move it away (--list {out} reads it)"
        )
    media = MediaFolder(folder)
    for remark in media.remarks:
        print(f"warning: {remark}")
    entries = lists.read_list(list_file) if list_file else lists.read_captions(captions_file) if captions_file else []
    others = [name for name in lists.CAPTION_COLUMNS if any(name in entry.columns for entry in entries)]
    if captions_file and others:
        counts = f"the first of {', '.join(lists.CAPTION_COLUMNS)} counts, not {', '.join(others)}"
        print(f"warning: {captions_file} has several columns that may say what is heard: {counts}")
    with kept as cache:
        found = assemble(media, entries, list_file is not None, cache, choices)
        if found.rejected:
            write_table(rejected_file, found.rejected, ["reason", "detail", *PLACE, "id"])
        else:
            rejected_file.unlink(missing_ok=True)
        if not found.rows:
            raise UserError(
                f"there is no clip that can be used ({_reasons(found)}); the reasons are in {rejected_file}"
            )
        with atomic_file(out) as temporary:
            write_table(temporary, found.rows, COLUMNS)
            read_clips(temporary, folder)  # what is written here is what is read there
            cache.keep_table(sha256(temporary))
    print(_summary(found, choices))
    if found.renamed:
        print(f"made up anew: {count(found.renamed, 'id')} that cannot name a file, or came twice; see original_id")
    if list_file and (others := len(media.names) - found.files) > 0:
        print(f"in no row of the list that can be used: {count(others, 'file')} of {folder}")
    if found.rejected:
        print(f"rejected: {_reasons(found)}; they are in {rejected_file}")
    print(f"the table is {out}; next:\n  {_next_command(folder, out, found.rows, choices.lengths)}")


def _seconds(row: Row) -> float:
    return float(row["end_time"]) - float(row["start_time"])


def _reasons(found: Assembled) -> str:
    counts = collections.Counter(row["reason"] for row in found.rejected)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "nothing has a caption"


def _summary(found: Assembled, choices: Choices) -> str:
    """How many sources, clips and hours there are on each side, and what is doubtful, as text."""
    lines = [f"{_amount(found.rows)}, of {_length(found.milliseconds / 1000)} in {count(found.files, 'file')}"]
    for side in SIDES:
        rows = [row for row in found.rows if row["split"] == side]
        asked = {"val": choices.val, "test": choices.test}.get(side, 0)
        if rows:
            told = side == "train" or not found.drawn
            lines.append(f"  {side:5} {_amount(rows)}{'' if told else _excess(rows, found.rows, asked)}")
        elif asked:
            lines.append(f"  {side:5} nothing: there are too few sources to put one aside")
    if found.left_out:
        lines.append(f"left out: {count(found.left_out, 'clip')} (--max_per_source)")
    doubts = collections.Counter(word for row in found.rows for word in filter(None, row["warnings"].split(", ")))
    if doubts:
        lines.append(
            f"doubtful, in the column warnings: {', '.join(f'{n} {word}' for word, n in doubts.most_common())}"
        )
    return "\n".join(lines)


def _excess(rows: Sequence[Row], all_rows: Sequence[Row], asked: float) -> str:
    """Says that a side has far more of the sources than was asked for, as with few of them it may; else empty."""
    sources, there = len(_sources(rows)), len(_sources(all_rows))
    if sources <= 2 * asked * there or (sources > 1 and sources <= asked * there + 1):
        return ""
    return f" ({100 * sources / there:.0f}% of the sources; {100 * asked:g}% was asked for)"


def _sources(rows: Sequence[Row]) -> set[str]:
    return {row["original_video"] for row in rows}


def _amount(rows: Sequence[Row]) -> str:
    sources = count(len(_sources(rows)), "source")
    return f"{count(len(rows), 'clip')} of {sources}: {_length(sum(map(_seconds, rows)))}"


def _length(seconds: float) -> str:
    if seconds < 600:
        return count(round(seconds), "second")
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _next_command(folder: Path, out: Path, rows: Sequence[Row], lengths: Lengths) -> str:
    words = ["python", "-m", "mmaudio_jax.features", "--clips", out, "--root", folder]
    words += ["--weights", "weights", "--out", f"data/{out.stem}"]
    if lengths.duration != 8000:
        words += ["--duration", f"{lengths.duration / 1000:g}"]
    if any(_seconds(row) < lengths.duration / 1000 - 1e-6 for row in rows):
        words += ["--short", "pad"]
    return shlex.join(map(str, words))


@errors.main
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mmaudio_jax.data.prepare",
        description="From a folder of videos or sounds to a table of clips.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("folder", type=Path, help="where the files are, with all folders in it")
    add("--out", type=Path, required=True, help="the table to write; NAME.rejected.tsv is written beside it")
    said = parser.add_mutually_exclusive_group()
    captions_help = "TSV, CSV or JSON lines; without it, or for files that are not in it, NAME.txt beside NAME.mp4"
    said.add_argument("--captions", type=Path, default=argparse.SUPPRESS, help=captions_help)
    list_help = "a table of clips, or VGGSound's, AudioCaps' or WavCaps' list; each brings its captions"
    said.add_argument("--list", type=Path, default=argparse.SUPPRESS, help=list_help)
    add("--duration", type=float, default=8.0, help="seconds of a clip")
    add("--stride", type=float, default=argparse.SUPPRESS, help="seconds from clip to clip (default: --duration)")
    least_help = "seconds of a last, shorter piece that is kept (default: --duration, so none is)"
    add("--min_duration", type=float, default=argparse.SUPPRESS, help=least_help)
    add("--max_per_source", type=int, default=argparse.SUPPRESS, help="clips of a source (default: all)")
    cut_help = "one after another, within scenes, or from loud onsets on"
    add("--cut", choices=CUTS, default="regular", help=cut_help)
    add("--val", type=float, default=0.1, help="share of the sources that validate")
    add("--test", type=float, default=0.0, help="share of the sources that neither train nor validate")
    add("--seed", type=int, default=0, help="of the split")
    add("--workers", type=int, default=CORES, help="processes that decode")
    args = vars(parser.parse_args())
    for name in ("max_per_source", "workers"):
        if args.get(name, 1) < 1:
            raise UserError(f"--{name} is {args[name]}; it must be 1 or more")
    for name in ("duration", "min_duration"):
        if not MIN_DURATION <= args.get(name, args["duration"]) <= MAX_DURATION:
            raise UserError(
                f"--{name} is {args[name]:g}; it must lie in [{MIN_DURATION}, {MAX_DURATION:g}] seconds, which the "
                "networks take"
            )
    lengths = [_milliseconds(args.get(name, args["duration"]), name) for name in ("duration", "stride", "min_duration")]
    choices = {name: args.get(name) for name in ("cut", "max_per_source", "val", "test", "seed", "workers")}
    prepare(
        args["folder"],
        args["out"],
        Choices(Lengths(*lengths), **choices),
        list_file=args.get("list"),
        captions_file=args.get("captions"),
    )


def _milliseconds(seconds: float, name: str) -> int:
    if not 0.001 <= seconds < 1e6:
        raise UserError(f"--{name} is {seconds:g}; it must lie in [0.001, 1000000) seconds")
    return round(1000 * seconds)


if __name__ == "__main__":
    main()
