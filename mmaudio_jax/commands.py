"""This project's own commands, run one after another by another one of them."""

import contextlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence

GRACE = 10.0  # seconds in which a command that the terminal's Ctrl-C has reached as well ends by itself


def show(command: Sequence[str]) -> None:
    """Prints a command as a user types it."""
    print(f"\n$ python {shlex.join(command)}", flush=True)


def run(command: Sequence[str]) -> int:
    """Shows a command and runs it with this interpreter; SIGINT and SIGTERM end it and this program.

    Returns:
        Its exit code; where a signal ended it, 128 and the signal's number.
    """
    show(command)
    told = False
    process = subprocess.Popen([sys.executable, *command])

    def hand_on(*_) -> None:
        nonlocal told
        told = True
        process.terminate()

    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        if process.poll() is None:  # the signal has come to this process alone
            process.send_signal(signal.SIGINT)
            process.wait()
        sys.exit(128 + signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)
    if code < 0:
        print(f"the command above was ended by {signal.Signals(-code).name}", file=sys.stderr)
        code = 128 - code
    if told:
        sys.exit(code or 128 + signal.SIGTERM)
    return code


def must(command: Sequence[str]) -> None:
    """Runs a command, which has said what is wrong if this program ends with its exit code."""
    if code := run(command):
        sys.exit(code)
