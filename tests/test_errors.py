"""What a user reads when something goes wrong."""

import io
import os
import subprocess
import sys

import jax
import pytest

from mmaudio_jax import errors


def ended(function, capsys):
    with pytest.raises(SystemExit) as end:
        errors.main(function)()
    return end.value.code, capsys.readouterr().err


def raising(error):
    def function():
        raise error

    return function


@pytest.mark.parametrize("number", errors.ADVICE)
def test_a_full_disk_is_one_sentence_whatever_library_meets_it(capsys, number):
    message = os.strerror(number)
    for error in (RuntimeError(f"write() failed: {message}; writing x"), OSError(number, message)):
        code, printed = ended(raising(error), capsys)
        assert code == 1 and printed.endswith(f"{message}; {errors.ADVICE[number]}\n") and printed.count("\n") == 1
        with pytest.raises(type(error)), errors.reading("x/6", "remove it"):
            raise error


def test_a_thread_that_meets_a_full_disk_ends_the_program_that_waits_for_it():
    code = """
import errno, queue, threading
from mmaudio_jax import errors
def fail(): raise OSError(errno.ENOSPC, "No space left on device", "x")
def wait(): threading.Thread(target=fail).start(); queue.Queue().get()
errors.main(wait)()"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (1, "error: x: No space left on device; make room and start again\n")


def test_ctrl_c_ends_at_once_and_says_so():
    code = "from mmaudio_jax import errors\ndef stop(): print('at work'); raise KeyboardInterrupt\nerrors.main(stop)()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "at work\n", "stopped\n")


def test_a_temporary_path_is_told_as_the_one_that_was_asked_for(capsys):
    code, printed = ended(raising(PermissionError(13, "Permission denied", "data/.set.tmp-host-1-123/x")), capsys)
    assert (code, printed) == (1, "error: data/set/x: Permission denied\n")


def test_other_exceptions_are_ours_and_are_shown(capsys):
    with pytest.raises(ZeroDivisionError):
        errors.main(lambda: 1 / 0)()


def test_a_console_of_few_characters_ends_nothing(monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    with pytest.raises(SystemExit) as end:
        errors.main(lambda: print("loss – 0.5"))()
    assert end.value.code == 0
    narrow.flush()
    assert narrow.buffer.getvalue() == b"loss ? 0.5\n"


def test_damage_is_told_and_want_of_memory_is_not_damage():
    with pytest.raises(errors.UserError, match=r"x/6 is damaged or none of this program's \(NOT_FOUND\); remove it"):
        with errors.reading("x/6", "remove it"):
            raise ValueError("NOT_FOUND\nand a long specification")
    for error in (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), MemoryError()):
        with pytest.raises(type(error)), errors.reading("x/6", "remove it"):
            raise error
