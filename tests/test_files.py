"""What is written is there whole or not at all, and what a kill left is cleared away."""

import errno
import os
import platform
import subprocess
import sys

import pytest

from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_directory, atomic_file


def test_what_a_killed_process_had_begun_is_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here, other = f".set.tmp-{platform.node()}-", ".set.tmp-another-machine-"
    for name in (f"{here}{ended.pid}", f"{here}{os.getppid()}", f"{other}{ended.pid}"):
        (tmp_path / name).mkdir()
    with atomic_directory(tmp_path / "set") as folder:
        (folder / "file").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"set", f"{here}{os.getppid()}", f"{other}{ended.pid}"}


def test_what_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "set", overwrite=True) as folder:
        (folder / "file").touch()
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["set"] and not any((tmp_path / "set").iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("library", [False, True])
@pytest.mark.parametrize("write", [atomic_directory, atomic_file])
def test_a_full_disk_is_named_by_what_was_to_be_written(tmp_path, write, library, number):
    message = os.strerror(number)
    with pytest.raises(OSError, match=message) as told, write(tmp_path / "set"):
        raise RuntimeError(f"x: {message}") if library else OSError(number, message)
    assert (told.value.errno, told.value.filename) == (number, str(tmp_path / "set")) and not any(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file/x", "file/x/y"])
@pytest.mark.parametrize("write", [atomic_directory, atomic_file])
def test_a_file_where_a_folder_must_be_is_told(tmp_path, write, place):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"{tmp_path / 'file'} is a file, "), write(tmp_path / place):
        pass
