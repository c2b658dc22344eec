"""Caption tokens against open_clip's."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import HERE
from hypothesis import given, settings
from hypothesis import strategies as st

from mmaudio_jax.data.captions import CONTEXT_LENGTH, END, START, clean, count_tokens, cut, is_cut, tokenize

LONG = "water splashing " * 100


def test_equals_open_clip(golden):
    folder = golden.folder if (golden.folder / "tokens.json").exists() else HERE / "expected"
    expected = json.loads((folder / "tokens.json").read_text())
    ids = tokenize(expected["captions"])
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, expected["tokens"])


@pytest.mark.parametrize(
    "caption, ids",
    [
        # recorded from open_clip 3.3.0: the special tokens of other tools are text, whatever they touch
        ("a dog <|startoftext|> barking", [320, 1929, 27, 347, 993, 6659, 4160, 91, 285, 32676]),
        ("rain<|startoftext|>!", [2443, 27, 347, 993, 6659, 4160, 91, 29, 256]),
        ("<|endoftext|>, rain", [27, 347, 40786, 4160, 91, 29, 267, 2443]),
        ("<START_OF_TEXT> rain", [START, 2443]),  # open_clip's own names are not text to it
        ("DON'T &amp;lt;b&amp;gt; “quote” ﬁre", [847, 713, 283, 321, 285, 257, 4020, 257, 1769]),
    ],
)
def test_unusual_captions(caption, ids):
    assert tokenize([caption])[0, : len(ids) + 2].tolist() == [START, *ids, END]


def test_a_long_caption_is_cut_and_still_ends():
    (ids,) = tokenize([LONG])
    assert count_tokens(LONG) == 302
    assert ids[-1] == END and (ids[:-1] != END).all() and (ids != 0).all()


def test_a_caption_that_just_fits_is_whole():
    fits, cut = "dog " * (CONTEXT_LENGTH - 2), "dog " * (CONTEXT_LENGTH - 1)
    assert count_tokens(fits) == CONTEXT_LENGTH and count_tokens(cut) == CONTEXT_LENGTH + 1
    np.testing.assert_array_equal(tokenize([fits]), tokenize([cut]))


def test_most_captions_need_not_be_counted(monkeypatch):
    monkeypatch.setattr("mmaudio_jax.data.captions.count_tokens", lambda _: pytest.fail("it counted"))
    assert not is_cut("a dog barks at the door, then it rains on the tin roof of an old shed") and not is_cut("")


@pytest.mark.parametrize(("caption", "expected"), [("&nGg;" * 15, False), ("\U0001d160" * 18, True)])
def test_few_letters_that_become_several_are_counted(caption, expected):
    assert is_cut(caption) == (count_tokens(caption) > CONTEXT_LENGTH) == expected


def test_no_captions():
    assert tokenize([]).shape == (0, CONTEXT_LENGTH)


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=[]), max_size=300))
def test_every_text_has_77_ids(caption):
    (ids,) = tokenize([caption])
    assert ids.shape == (CONTEXT_LENGTH,) and ids[0] == START
    assert ids.min() >= 0 and ids.max() <= END
    assert is_cut(caption) == (count_tokens(caption) > CONTEXT_LENGTH)
    end = min(count_tokens(caption), CONTEXT_LENGTH) - 1
    assert ids[end] == END and (ids[end + 1 :] == 0).all()


@settings(max_examples=100)
@given(st.text(max_size=50))
def test_cleaning_lowers_and_joins(caption):
    text = clean(caption)
    assert text == " ".join(text.split()) and text == text.lower()


def test_needs_no_network_and_says_nothing():
    code = """if True:
        import sys
        def hook(event, args):
            if event.startswith("socket."):
                print(event, args, file=sys.stderr)
        sys.addaudithook(hook)
        from mmaudio_jax.data.captions import tokenize
        print(tokenize(["a dog barking"])[0, :5].tolist())
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout.strip(), result.stderr) == ("[49406, 320, 1929, 32676, 49407]", "")


def test_a_caption_that_does_not_fit_is_cut_where_the_ids_are():
    caption = "Thunder, and a dröhnendes 😀 rain on the tin roof. " * 8
    read, rest = cut(caption)
    assert read + rest == clean(caption) and rest
    np.testing.assert_array_equal(tokenize([read]), tokenize([caption]))
    assert cut(read) is None and cut("") is None
