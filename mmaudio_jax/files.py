"""Atomic writes: a reader sees the whole file or folder, or none."""

import contextlib
import glob
import hashlib
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from mmaudio_jax.errors import UserError, full_disk


def sha256(path: Path) -> str:
    """The hash of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: Path) -> None:
    """Makes a folder and those that it is in, as far as they are not there; a UserError if one of them is a file."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next((place for place in (path, *path.parents) if place.exists()), path)
        raise UserError(f"{file} is a file, not a folder to write something in; choose another place") from None


def _sibling(path: Path) -> Path:
    """A temporary path beside `path`, of this process."""
    make_folder(path.parent)
    return path.parent / f".{path.name}.tmp-{platform.node()}-{os.getpid()}"


def _remove_left(temporary: Path) -> None:
    """Removes what processes of this machine that were killed had begun to write in its place."""
    prefix = temporary.name.removesuffix(str(os.getpid()))
    for left in temporary.parent.glob(f"{glob.escape(prefix)}*"):
        pid = left.name.removeprefix(prefix)
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Has a full disk within, as of `errors.full_disk`, be an OSError that names `path`."""
    try:
        yield
    except Exception as error:
        full = full_disk(error, path)
        if full is None or getattr(error, "filename", None):
            raise
        raise full from None


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it takes the place of `path`, else it is removed."""
    path = Path(path)
    temporary = _sibling(path)
    try:
        with writing(path):
            yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty temporary folder beside `path`; on success it becomes `path`, else it is removed.

    Raises:
        UserError: `path` exists and `overwrite` is false.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; choose another place")
    temporary = _sibling(path)
    _remove_left(temporary)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with writing(path):
            yield temporary
        if path.exists():
            old = path.parent / f".{path.name}.old-{os.getpid()}"
            os.rename(path, old)
            os.rename(temporary, path)
            shutil.rmtree(old)
        else:
            os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
