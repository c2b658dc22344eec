"""Tab-separated tables with a header row: clips.tsv, failed.tsv and the table beside a feature set."""

import csv
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_file

MAKE = "python -m mmaudio_jax.data.prepare FOLDER --list"
SAVE_AS_UTF_8 = "save it as UTF-8, which editors and spreadsheets offer as its encoding"
csv.field_size_limit(2**31 - 1)  # captions may be long; the module's own limit is 131,072 characters

Row = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns and rows of one file; row i ends on line `lines[i]` of the file (the header is line 1)."""

    path: Path
    columns: list[str]
    rows: list[Row]
    lines: list[int]

    def require(self, *columns: str) -> None:
        """Raises a UserError that names the columns which are missing."""
        missing = [name for name in columns if name not in self.columns]
        if missing:
            commas = len(self.columns) == 1 and "," in self.columns[0]
            advice = f", not commas: `{MAKE} {self.path} --out clips.tsv` makes such a table of it" if commas else ""
            raise UserError(
                f"{self.path} has no column {', '.join(missing)} (it has {', '.join(self.columns)}); "
                f"the first line must name the columns, separated by tabs{advice}"
            )


def read_table(path: str | os.PathLike) -> Table:
    """Reads a UTF-8 table (a byte order mark and empty lines are skipped); every value is a string.

    Raises:
        UserError: the file is missing, is not such a table, or a row has more or fewer values than columns.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            (_, columns), *body = split_values(path, file, "\t")
    except FileNotFoundError:
        raise UserError(f"there is no table {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no tab-separated table in UTF-8 ({error}); {SAVE_AS_UTF_8}") from None
    columns = [name.strip() for name in columns]
    return Table(path, columns, name_values(path, columns, body), [line for line, _ in body])


def split_values(path: Path, lines: Iterable[str], separator: str) -> list[tuple[int, list[str]]]:
    """(number, values) of every line that is not empty; `path` is what errors name.

    Raises:
        UserError: there is none, or a quote is out of place.
    """
    reader = csv.reader(lines, delimiter=separator, strict=True)
    numbered, begin = [], 1
    try:
        for values in reader:
            if values:
                numbered.append((reader.line_num, values))
            begin = reader.line_num + 1
    except csv.Error as error:  # found out at some later quote, or at the end of the file
        raise UserError(
            f"{path} row {begin}: a quote that is not closed, or text after a closing quote ({error}); a value that "
            'begins with a quote is put in quotes, and quotes within it are doubled: """Boom"" he said"'
        ) from None
    if not numbered:
        raise UserError(f"{path} is empty; its first line must name the columns")
    return numbered


def name_values(path: Path, columns: Sequence[str], body: Iterable[tuple[int, list[str]]]) -> list[Row]:
    """The rows of what `split_values` found after the line of columns.

    Raises:
        UserError: a column is named twice, or a row has more or fewer values than columns.
    """
    if len(set(columns)) < len(columns):
        raise UserError(f"{path} names a column twice: {', '.join(columns)}")
    rows = []
    for line, values in body:
        if len(values) != len(columns):
            raise UserError(
                f"{path} row {line} has {len(values)} values for {len(columns)} columns; put a value that holds the "
                "separator (in a .tsv a tab) or begins with a quote in quotes"
            )
        rows.append(dict(zip(columns, values, strict=True)))
    return rows


def write_table(path: str | os.PathLike, rows: Iterable[Mapping[str, str]], columns: Sequence[str] = ()) -> None:
    """Writes rows under the columns given and then whatever others occur, in order of occurrence."""
    rows = list(rows)
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        minimal, all_quoted = (
            csv.DictWriter(file, names, restval="", delimiter="\t", lineterminator="\n", quoting=quoting)
            for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
        )
        minimal.writeheader()
        for row in rows:  # a carriage return, at which a reader ends a line, is no reason for quotes to the module
            (all_quoted if any("\r" in value for value in row.values()) else minimal).writerow(row)
