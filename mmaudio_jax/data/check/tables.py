"""Checks of a set's table: ids, captions, sources, and which of the sets for training and validation a row is in."""

import collections
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mmaudio_jax.data.captions import CONTEXT_LENGTH, count_tokens, is_cut
from mmaudio_jax.data.check.findings import Check, Distribution, Place, Rows, fault, left_out, warning
from mmaudio_jax.data.clips import check_id
from mmaudio_jax.data.dataset import split_by_source
from mmaudio_jax.data.example import SIDES, StoredFeatures, caption_of, source_of
from mmaudio_jax.data.table import Table
from mmaudio_jax.errors import UserError

COLUMN = "split"
SPLIT_VALUES = f"unknown values of the column {COLUMN}"
SHORT = 3  # letters: a caption of fewer says nothing
ALIKE = 0.5  # share of the examples that one caption may have


def repeated(values: Iterable) -> Iterator[list[int]]:
    """The indices of each value that occurs more than once."""
    found: dict = collections.defaultdict(list)
    for i, value in enumerate(values):
        found[value].append(i)
    return (indices for indices in found.values() if len(indices) > 1)


def check_ids(ids: Sequence[str], rows: Rows) -> list[Check]:
    """Every example has an id of its own, which files can be named by."""
    double, unsafe = fault("double ids"), warning("ids that cannot name a file")
    alike = warning("ids that differ in case alone")  # one file to some file systems
    for indices in repeated(ids):
        double.add(rows.together(indices))
    for indices in repeated(map(str.casefold, ids)):
        if len({ids[i] for i in indices}) > 1:
            alike.add(rows.together(indices))
    for i, id in enumerate(ids):
        try:
            check_id(id)
        except ValueError as error:
            unsafe.add(rows.place(i, str(error)))
    return [double, alike, unsafe]


def check_captions(captions: Sequence[str], has_text: Sequence[bool], rows: Rows) -> tuple[list[Check], Distribution]:
    """Captions that are empty, short, long or alike, and how many words they have.

    Args:
        captions: one an example.
        has_text: which examples have stored features of a text.
        rows: where the examples are.
    """
    empty, unread = fault("empty captions of stored text features"), warning("captions without stored text features")
    short, long, alike = (
        warning(f"captions under {SHORT} letters"),
        warning(f"captions over {CONTEXT_LENGTH} tokens, of which CLIP reads the first"),
        warning("one caption for most examples"),
    )
    for i, (caption, stored) in enumerate(zip(map(str.strip, captions), has_text, strict=True)):
        if not caption:
            if stored:
                empty.add(rows.place(i))
            continue
        if not stored:
            unread.add(rows.place(i))
        if sum(map(str.isalpha, caption)) < SHORT:
            short.add(rows.place(i, repr(caption)))
        if is_cut(caption):
            long.add(rows.place(i, f"{count_tokens(caption)} tokens"))
    given = collections.Counter(caption.strip() for caption in captions if caption.strip())
    if given:
        caption, count = given.most_common(1)[0]
        alike.note = f"{len(given)} distinct"
        if count > 1 and count > ALIKE * len(captions):
            first = next(i for i, other in enumerate(captions) if other.strip() == caption)
            alike.add(rows.place(first, f"{caption[:60]!r} is the caption of {count} of {len(captions)} examples"))
    words = np.array([len(caption.split()) for caption in captions], np.float32)
    return [empty, unread, short, long, alike], Distribution("words of a caption", "words", words)


class Split(NamedTuple):
    """Which part of the data each example belongs to: one name an example, and who says so."""

    names: list[str]
    origin: str


def read_split(column: Sequence[str], sources: Sequence[str], rows: Rows) -> tuple[Split, Check]:
    """The split by the table's column, and its values that are none of `SIDES`.

    As in training, a row that says nothing is where others of its source are, or trains.
    """
    check = fault(SPLIT_VALUES)
    for i, name in enumerate(column):
        if name not in ("", *SIDES):
            check.add(rows.place(i, f"{name!r} is none of {', '.join(SIDES)}"))
    told = {source: name for source, name in zip(sources, column, strict=True) if name}
    names = [name or told.get(source, "train") for source, name in zip(sources, column, strict=True)]
    return Split(names, f"the column {COLUMN}"), check


def draw_split(features: StoredFeatures, fraction: float, seed: int) -> tuple[Split, Check]:
    """The split of a run with this fraction and seed, or none where the set has too few sources."""
    origin = f"a run with validation_fraction={fraction:g} and seed={seed}"
    names = ["train"] * len(features)
    try:
        _, validation = split_by_source(features, fraction, seed)
    except UserError as error:
        check = warning("a set that cannot be split by source")
        check.add(Place(str(error)))
        return Split(names, "nothing"), check
    for i in validation:
        names[i] = "val"
    return Split(names, origin), left_out(SPLIT_VALUES, "no such column")


def check_sources(sources: Sequence[str], split: Split, rows: Rows) -> Check:
    """No source video is in two parts of the data."""
    check = fault("sources in two splits")
    parts: dict[str, dict[str, int]] = collections.defaultdict(dict)
    for i, (source, name) in enumerate(zip(sources, split.names, strict=True)):
        parts[source].setdefault(name, i)
    for source, found in parts.items():
        if len(found) > 1:
            check.add(rows.together(list(found.values()), f"{source!r} is in {' and '.join(found)}"))
    return check


class Described(NamedTuple):
    """What a set's table says, row by row.

    Attributes:
        fits: whether row i is that of example i; else the rows are not as many as the examples.
        rows: where each row stands.
        captions, sources: as of `FeatureSet`.
        split: which part of the data each row is in.
    """

    fits: bool
    rows: Rows
    captions: list[str]
    sources: list[str]
    split: Split


def describe(features: StoredFeatures, fraction: float, seed: int) -> tuple[Described, list[Check]]:
    """Reads the table, as much of it as there is, and checks what does not need the examples.

    Args:
        features: the set.
        fraction, seed: of the run whose split is looked at where the table has no column for it.
    """
    fits = fault("a table that does not fit the examples")
    try:
        table = features.table
    except UserError as error:
        fits.add(Place(str(error)))
        table = _read_anyway(features)
    whole, written = not fits.count, table.rows if table else []
    rows = Rows(table, features.table_name if whole else lambda _: table.path.name)
    sides = [row.get(COLUMN, "").strip() for row in written]
    sources = [source_of(row) for row in written]
    if any(sides):
        split, values = read_split(sides, sources, rows)
    elif whole:
        split, values = draw_split(features, fraction, seed)
    else:
        split, values = Split([""] * len(written), "nothing"), left_out(SPLIT_VALUES, "no such column")
    captions = [caption_of(row) for row in written]
    ids = [row.get("id", "") for row in written]
    checks = [fits, *check_ids(ids, rows), values, check_sources(sources, split, rows)]
    return Described(whole, rows, captions, sources, split), checks


def _read_anyway(features: StoredFeatures) -> Table | None:
    try:
        return features.read_table()
    except UserError:
        return None
