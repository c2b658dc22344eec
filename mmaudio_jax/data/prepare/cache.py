"""Inspections of many files: made in worker processes, and kept, so that no file is decoded twice."""

import contextlib
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import tqdm

from mmaudio_jax.data.prepare.inspection import Inspection, inspect
from mmaudio_jax.data.workers import TIME_LIMIT, NoProcess, read_ahead
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_file, writing

VERSION = 2  # of what `inspect` finds; another is not used
BYTES_PER_SECOND = 1e6  # of a file, for which its decoder has time beyond `TIME_LIMIT`
LOG_INTERVAL = 60.0  # seconds from one word on the progress to the next where nobody watches


class InspectionCache(contextlib.AbstractContextManager):
    """A file of JSON lines, each what was found in one file, told by its path, size and time of change.

    What a killed process left of its last line is passed over. A line may also tell what tables were written.
    """

    def __init__(self, path: Path):
        self.tables: set[str] = set()
        self._path = path
        self._lines: dict[str, str] = {}  # by path; as text they are small
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    with contextlib.suppress(ValueError, KeyError, TypeError):
                        self._take(line)

    def _take(self, line: str) -> None:
        entry = json.loads(line)
        if "table" in entry:
            self.tables.add(entry["table"])
        elif entry["version"] == VERSION:
            Inspection.from_json(entry["found"])
            self._lines[entry["path"]] = line

    def __enter__(self) -> "InspectionCache":
        with atomic_file(self._path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps({'table': table})}\n" for table in sorted(self.tables))
            file.writelines(f"{line.strip()}\n" for line in self._lines.values())
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *error) -> None:
        with writing(self._path):  # what a full disk did not take is tried again
            self._file.close()

    def find(self, name: str, stat: os.stat_result) -> Inspection | None:
        """What was found in a file, if it is still the same."""
        if name not in self._lines:
            return None
        entry = json.loads(self._lines[name])
        if (entry["size"], entry["mtime_ns"]) != (stat.st_size, stat.st_mtime_ns):
            return None
        return Inspection.from_json(entry["found"])

    def keep(self, name: str, stat: os.stat_result, inspection: Inspection) -> None:
        """Adds a file."""
        identity = {"version": VERSION, "path": name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        self._write(identity | {"found": dataclasses.asdict(inspection)})

    def keep_table(self, digest: str) -> None:
        """Adds a table that is about to be written."""
        self._write({"table": digest})

    def _write(self, entry: dict) -> None:
        with writing(self._path):
            self._file.write(f"{json.dumps(entry, ensure_ascii=False)}\n")
            self._file.flush()


def inspect_all(root: Path, names: Sequence[str], cache: InspectionCache, workers: int) -> dict[str, Inspection]:
    """What is in each of these files, in a bar; those that are not in the cache are decoded, and kept in it.

    Args:
        root: the folder.
        names: paths within it.
        cache: entered.
        workers: processes.

    Raises:
        NoProcess: none can be started.
    """
    found: dict[str, Inspection] = {}
    stats: dict[str, os.stat_result] = {}
    for name in names:
        try:
            stats[name] = os.stat(root / name)
        except OSError as error:
            found[name] = Inspection(fault=f"it cannot be read ({error.strerror})")
            continue
        if known := cache.find(name, stats[name]):
            found[name] = known
    new = [name for name in names if name not in found]
    interval = 0.1 if sys.stderr.isatty() else LOG_INTERVAL
    done = len(names) - len(new)
    reading = read_ahead(
        new,
        functools.partial(_inspect, root),
        workers,
        in_order=False,
        time_limit=lambda name: TIME_LIMIT + stats[name].st_size / BYTES_PER_SECOND,
    )
    with (
        tqdm.tqdm(total=len(names), initial=done, unit=" files", desc="decoding", mininterval=interval) as bar,
        reading as ahead,
    ):
        for name, future in ahead:
            try:
                found[name] = future.result()
                cache.keep(name, stats[name], found[name])
            except NoProcess:
                raise
            except UserError as error:  # it cannot be read, or its decoder fails, which another run tries again
                found[name] = Inspection(fault=str(error))
            bar.update()
    return found


def _inspect(root: Path, name: str) -> Inspection:
    try:
        return inspect(root / name)
    except OSError as error:
        raise UserError(f"it cannot be read ({error.strerror})") from None
