"""The manifest: a line for each sound that is finished, which is what a restart goes by.

    manifest.jsonl              a JSON record a sound; a process of several has its own, manifest-00000-of-00004.jsonl
    failed.tsv                  what the last run could not make, and why; likewise
    .manifest.jsonl.lock        whose holder is the run
    .manifest.jsonl.work/       while a run is at work, and after one that was killed:
        claims                      names of files that are this program's, before a line says so
        new/                        files on their way to their places

A line is written when all files of its sound are in place, and goes before earlier ones of the same name. A sound is
finished if a line has its key, which stands for all that decides it, and the files are there as the line tells.
"""

import contextlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tqdm

from mmaudio_jax.data.part import WHOLE, PartName
from mmaudio_jax.data.table import Row, write_table
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_file, sha256

READERS = 4  # threads that compare files with the manifest

Line = dict[str, Any]


class Manifest(contextlib.AbstractContextManager):
    """The manifest of one process in a folder of results; entered, it is this run's alone.

    Attributes:
        folder: of the results.
        failed: path of the table of failures.
    """

    def __init__(self, folder: Path, part: PartName = WHOLE):
        self.folder = folder
        self.failed = folder / _of_part("failed.tsv", part)
        self._path = folder / _of_part("manifest.jsonl", part)
        self._work = folder / f".{self._path.name}.work"
        self._lock = folder / f".{self._path.name}.lock"
        self._guard = threading.Lock()

    def __enter__(self) -> "Manifest":
        """Reads what is there.

        Raises:
            UserError: another run is at work here, or the folder is a file.
        """
        import filelock

        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file; --out must name a folder")
        self._work.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(filelock.FileLock(self._lock, blocking=False))
            except filelock.Timeout:
                raise UserError(
                    f"another run is making sounds in {self.folder}; wait for it, or choose another --out"
                ) from None
            shutil.rmtree(self._work / "new", ignore_errors=True)
            (self._work / "new").mkdir()
            self._own = self._mended()
            others = [path for path in sorted(self.folder.glob("manifest*.jsonl")) if path != self._path]
            self._others = [line for path in others for line in _read(path)[0]]
            self._claims = self._work / "claims"
            self._known = set(self._claims.read_text(encoding="utf-8").splitlines()) if self._claims.exists() else set()
            self._known |= {name for line in [*self._own.values(), *self._others] for name in _files(line)}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        with self._stack:
            listed = {name for line in self._own.values() for name in _files(line)}
            claims = self._claims.read_text(encoding="utf-8").splitlines() if self._claims.exists() else []
            if not any((self.folder / name).exists() for name in set(claims) - listed):
                shutil.rmtree(self._work)
            if set(self.folder.iterdir()) == {self._lock}:  # nothing came of it
                self._lock.unlink()
                self.folder.rmdir()

    def _mended(self) -> dict[str, Line]:
        """The last line of each name; earlier ones, and what a kill left of one, are taken out of the file."""
        lines, whole = _read(self._path)
        own = {line["name"]: line for line in lines}
        if not whole or len(own) < len(lines):
            with atomic_file(self._path) as temporary, temporary.open("w", encoding="utf-8") as file:
                file.writelines(map(_json, own.values()))
        return own

    def finished(self, keys: Mapping[str, str]) -> set[str]:
        """Which of these {name: key} are finished, every file of them being what was written, to the last byte."""
        lines = [line for line in [*self._own.values(), *self._others] if keys.get(line["name"]) == line["key"]]
        bar = dict(desc="looking at what is there", unit=" sounds", delay=2, leave=False, disable=None)
        with ThreadPoolExecutor(READERS) as pool:
            whole = tqdm.tqdm(pool.map(self._is_whole, lines), total=len(lines), **bar)
            return {line["name"] for line, good in zip(lines, whole, strict=True) if good}

    def _is_whole(self, line: Line) -> bool:
        for file in line["files"].values():
            path = self.folder / file["path"]
            try:
                if path.stat().st_size != file["bytes"] or sha256(path) != file["sha256"]:
                    return False
            except OSError:
                return False
        return True

    def owns(self, path: Path) -> bool:
        """Whether a file is this program's, by a manifest or a claim."""
        return str(path.relative_to(self.folder)) in self._known

    @contextlib.contextmanager
    def new(self) -> Iterator[Path]:
        """An empty folder for files on their way to their places, which is gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self._work / "new", ignore_cleanup_errors=True) as place:
            yield Path(place)

    def commit(self, name: str, key: str, made: Mapping[str, Path], places: Mapping[str, Path], about: Line) -> None:
        """Moves the files of a sound to their places, and then writes its line.

        Args:
            name: of the sound.
            key: of all that decides it.
            made: its files, by kind.
            places: where they belong, likewise.
            about: what else the line tells.
        """
        names = {kind: str(path.relative_to(self.folder)) for kind, path in places.items()}
        files = {
            kind: {"path": names[kind], "bytes": path.stat().st_size, "sha256": sha256(path)}
            for kind, path in made.items()
        }
        line = {"name": name, "key": key, "files": files, **about}
        with self._guard:
            _append(self._claims, "".join(f"{name}\n" for name in names.values()))
            for kind, path in made.items():
                places[kind].parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, places[kind])
            _append(self._path, _json(line))
            before = self._own.get(name)
            self._own[name] = line
            for left in _files(before) - set(names.values()) if before else ():
                (self.folder / left).unlink(missing_ok=True)

    def write_failed(self, rows: Sequence[Row]) -> None:
        """Writes the table of failures; without any there is none."""
        if rows:
            write_table(self.failed, rows)
        else:
            self.failed.unlink(missing_ok=True)


def _of_part(name: str, part: PartName) -> str:
    stem, dot, suffix = name.rpartition(".")
    return name if part == WHOLE else f"{stem}-{part.index:05d}-of-{part.count:05d}{dot}{suffix}"


def _files(line: Line) -> set[str]:
    return {file["path"] for file in line["files"].values()}


def _json(line: Line) -> str:
    return f"{json.dumps(line, ensure_ascii=False)}\n"


def _append(path: Path, text: str) -> None:
    """Adds text to a file, all of it or none."""
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        data = text.encode()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(before)
            raise


def _read(path: Path) -> tuple[list[Line], bool]:
    """The lines of a manifest that can be read, and whether these are all."""
    try:
        texts = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], True
    lines, whole = [], texts.pop() == b""
    for text in texts:
        try:
            line = json.loads(text)
            hashes = (file["sha256"] for file in line["files"].values() if file["bytes"] >= 0)
            if not all(isinstance(text, str) for text in (line["name"], line["key"], *hashes)):
                raise TypeError
            if any(path.startswith("/") or ".." in path.split("/") for path in _files(line)):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            whole = False
        else:
            lines.append(line)
    return lines, whole
