"""Names of results: templates, what they refuse, and that no two sounds get the same."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmaudio_jax.errors import UserError
from mmaudio_jax.generation.names import Template, check_distinct, words

VALUES = dict(id="x/a", stem="a", words="rain", row=7, sample=1, seed=3)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{id}", "x/a"),
        ("{stem}_{seed}", "a_3"),
        ("{row:04d}-{words}", "0007-rain"),
        ("takes/{sample}/{stem}", "takes/1/a"),
        ("{{{stem}}}", "{a}"),
    ],
)
def test_a_template_is_filled_in(text, name):
    assert Template(text).name(**VALUES) == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{title}", r"--name has the field \{title\}; there are id, stem, words, row, sample, seed"),
        ("{}", r"--name has the field \{\}"),
        ("{stem.__class__}", r"--name has the field \{stem.__class__\}"),
        ("{row:{seed}}", "--name has the field {row}"),
        ("{stem!r}", "--name has the field {stem}"),
        ("{stem", "--name '{stem' cannot be used"),
        ("{stem:d}", "--name '{stem:d}' cannot be used"),
        ("{row:99999999999999999999d}", "cannot be used"),
        ("../{stem}", "'..' cannot name a file"),
        ("/tmp/{stem}", "'' cannot name a file"),
        ("", "'' cannot name a file"),
        (".{stem}", "must not be empty, start with a dot"),
    ],
)
def test_what_is_no_template_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        Template(text)


@pytest.mark.parametrize("id", ["../x", "a/../../x", "/etc/x", "", ".hidden", "a\nb", "a\0", "x" * 300, "a/", "C:\\x "])
def test_a_row_s_name_does_not_lead_out_of_the_folder(id):
    with pytest.raises(ValueError, match="its results would be called"):
        Template("{id}").name(**VALUES | {"id": id})


@given(st.text())
def test_a_name_stays_within_the_folder(id):
    try:
        name = Template("{id}_{seed}").name(**VALUES | {"id": id})
    except ValueError:
        return
    path = PurePosixPath(name)
    assert not path.is_absolute() and not {"..", "."} & set(path.parts) and str(path) == name


@given(st.text())
def test_words_are_always_a_name(prompt):
    assert Template("{words}").name(**VALUES | {"words": words(prompt)})


def test_words_are_the_first_of_the_prompt():
    assert words("Rain, on a tin roof!") == "rain_on_a_tin_roof"
    assert words("?!") == "sound" and len(words("word " * 100)) <= 60


def test_results_of_two_rows_are_told_apart():
    check_distinct([("a", "row 2"), ("b", "row 3"), ("a/b", "row 4")])
    with pytest.raises(UserError, match="the results of row 2 and row 4 would both be called a; tell them apart"):
        check_distinct([("a", "row 2"), ("b", "row 3"), ("a", "row 4")])
    with pytest.raises(UserError, match="the results of row 2, which is asked for twice, would both be called a"):
        check_distinct([("a", "row 2"), ("a", "row 2")])
