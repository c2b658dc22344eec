"""Names of results: a template, and what becomes of it for a row."""

import re
import string
from collections.abc import Iterable

from mmaudio_jax.data.clips import check_id
from mmaudio_jax.errors import UserError

FIELDS = (
    "id",  # of the row; without one the path of the video within its folder, or its name, or the prompt's first words
    "stem",  # the name of the video or picture, without its suffix; empty for words alone
    "words",  # the prompt's first words
    "row",  # number of the row, from 1
    "sample",  # number of the sample of the row, from 0
    "seed",  # of the sample
)
MAX_WORDS = 60  # characters of a prompt that become a name


def words(prompt: str) -> str:
    """The first words of a prompt, as a name."""
    name = re.sub(r"\W+", "_", prompt.lower()).strip("_")[:MAX_WORDS]
    return name.encode()[: 3 * MAX_WORDS].decode(errors="ignore").strip("_") or "sound"


class Template:
    """What results are called, without a suffix: text with fields of `FIELDS` in braces, and folders with slashes."""

    def __init__(self, text: str):
        """Reads it.

        Raises:
            UserError: it is no template, or has a field that there is not.
        """
        self._text = text
        try:
            parts = list(string.Formatter().parse(text))
            for _, field, form, conversion in parts:
                if field is not None and (field not in FIELDS or conversion or "{" in form):
                    raise UserError(f"--name has the field {{{field}}}; there are {', '.join(FIELDS)}")
            self.name(row=1, sample=0, seed=0, id="a", stem="a", words="a")
        except (ValueError, MemoryError, OverflowError) as error:
            raise UserError(f"--name {text!r} cannot be used: {error or 'a field is too wide'}") from None

    def name(self, **values: str | int) -> str:
        """The name for the values of all fields.

        Raises:
            ValueError: it would lead out of the folder of results, or no file can be called so.
        """
        name = self._text.format(**values)
        for part in name.split("/"):
            try:
                check_id(part)
            except ValueError as error:
                reason = str(error).removeprefix("the id ")
                raise ValueError(f"its results would be called {name!r}: {reason}") from None
        return name


def check_distinct(named: Iterable[tuple[str, str]]) -> None:
    """Raises a UserError if two of these (name, where it was asked for) have the same name."""
    places: dict[str, str] = {}
    for name, where in named:
        if name in places:
            other = f"{places[name]} and {where}" if places[name] != where else f"{where}, which is asked for twice,"
            raise UserError(
                f"the results of {other} would both be called {name}; tell them apart by --name, as in "
                '--name "{row:04d}_{id}_{seed}", or by a column id'
            )
        places[name] = where
