"""How a user's mistake reaches the user: one sentence, exit code 1, no stack trace."""

import contextlib
import errno
import functools
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator

from absl import logging

ROOM = "make room and start again"
ADVICE = {  # where a disk takes no more, what one may use of it is used up, or a file may not be as large
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: "`ulimit -f`, or the file system, takes no larger files there: raise it, or choose another place",
}
FULL = {os.strerror(code): code for code in ADVICE}


class UserError(Exception):
    """A mistake that the user can mend; the message says what is wrong, where, and what to do."""


class Damaged(UserError):
    """A file that is there and cannot be used."""


REASON = 160  # characters of a library's message


def full_disk(error: Exception, path: str | os.PathLike | None = None) -> OSError | None:
    """What the system said if a disk takes no more, as of `ADVICE`, of which libraries tell in many ways; else None.

    Args:
        error: of any library.
        path: what was to be written, if the error does not tell.
    """
    for message, code in FULL.items():
        if message in str(error):
            return OSError(code, message, getattr(error, "filename", None) or (path and os.fspath(path)))
    return None


@contextlib.contextmanager
def reading(what: object, advice: str) -> Iterator[None]:
    """Reports whatever a library raises within as damage of `what`; what is no damage, as want of memory, passes.

    Orbax and TensorStore have many exceptions for a damaged file.
    """
    import jax  # which processes that decode media do without

    try:
        yield
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        if full_disk(error):
            raise
        reason = (str(error).partition(" See full TensorStore details")[0].splitlines() or [type(error).__name__])[0]
        raise Damaged(f"{what} is damaged or none of this program's ({reason[:REASON]}); {advice}") from None


def main(function: Callable[..., int | None]) -> Callable[..., None]:
    """Wraps an entry point: a `UserError`, or a fault of the disk, is printed as `error: …`; code 1."""

    @functools.wraps(function)
    def run(*args, **kwargs) -> None:
        logging.set_verbosity(logging.FATAL)  # Orbax narrates every save and restore; what fails is said below
        sys.unraisablehook, threading.excepthook = _unraisable, _ended_thread
        warnings.filterwarnings("ignore", "coroutine .* was never awaited")  # as are Orbax's, of a save that failed
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # a console of few characters must not end a run
        try:
            code = function(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 1
        except OSError as error:  # a folder that cannot be written
            advice = f"; {ADVICE[full.errno]}" if (full := full_disk(error)) else ""
            print(f"error: {_asked(error.filename)}: {error.strerror or error}{advice}", file=sys.stderr)
            code = 1
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            sys.stdout.flush()
            os._exit(130)  # a thread of JAX that compiles would crash in the interpreter's own way out
        except Exception as error:  # libraries of files have exceptions of their own for it
            if not (full := full_disk(error)):
                raise
            print(f"error: {full.strerror}; {ADVICE[full.errno]}", file=sys.stderr)
            code = 1
        sys.exit(code or 0)

    return run


def _unraisable(unraisable) -> None:
    """Shows what nobody can catch, but for what follows on a save of Orbax that has failed, which is said for itself:
    it closes a loop that TensorStore's threads still answer to, once for each array.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _ended_thread(ended) -> None:
    """Ends the program if a library's thread met a full disk, as TensorBoard's: who feeds it would wait for ever."""
    if not (full := full_disk(ended.exc_value)):
        threading.__excepthook__(ended)
        return
    print(f"error: {_asked(full.filename)}: {full.strerror}; {ADVICE[full.errno]}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


def _asked(path: str | None) -> str:
    """The path that the user knows, of a temporary one beside it."""
    return re.sub(r"\.([^/]+)\.tmp-[^/]*-\d+", r"\1", str(path)) if path else "input or output"
