"""How a user's mistake reaches the user: one sentence, exit code 1, no stack trace."""

import functools
import sys
from collections.abc import Callable

from absl import logging


class UserError(Exception):
    """A mistake that the user can mend; the message says what is wrong, where, and what to do."""


def main(function: Callable[..., int | None]) -> Callable[..., None]:
    """Wraps an entry point: a `UserError`, or a fault of the disk, is printed as `error: …`; code 1."""

    @functools.wraps(function)
    def run(*args, **kwargs) -> None:
        logging.set_verbosity(logging.ERROR)  # Orbax narrates every save and restore
        try:
            code = function(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 1
        except OSError as error:  # a folder that cannot be written, a full disk
            print(f"error: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
            code = 1
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            code = 130
        sys.exit(code or 0)

    return run
