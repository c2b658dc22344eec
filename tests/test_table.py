"""Tables hold any words: what is written is what is read."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mmaudio_jax.data.table import read_table, write_table

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=300)
@given(rows=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_any_string_is_read_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "table.tsv"
    rows = [{"id": id, "caption": caption} for id, caption in rows]
    write_table(path, rows)
    assert read_table(path).rows == rows


def test_a_caption_may_be_of_any_length(tmp_path):
    rows = [{"id": "a", "caption": "a dog 🐕\n\tbarks\r\0" * 100_000}]
    write_table(tmp_path / "table.tsv", rows)
    assert read_table(tmp_path / "table.tsv").rows == rows
