import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from mmaudio_jax.data.split import complete, draw_sides, join_copies, told_sides
from mmaudio_jax.errors import UserError

NAMES = st.lists(st.text(max_size=9), unique=True, max_size=30)
SHARES = st.tuples(st.floats(0, 0.4), st.floats(0, 0.4))


@given(NAMES, st.integers(0, 99), SHARES)
def test_every_side_that_is_asked_for_has_a_source(names, seed, shares):
    sides = draw_sides(names, seed, *shares)
    assert list(sides) == names and draw_sides(reversed(names), seed, *shares) == sides
    asked = ["train", *(side for side, share in zip(("val", "test"), shares, strict=True) if share)]
    assert set(sides.values()) <= set(asked)
    assert len(set(sides.values())) == min(len(asked), len(names)) and (not names or "train" in sides.values())


def test_more_videos_move_none():
    some = draw_sides([f"video{i}" for i in range(40)], 0, 0.2, 0.1)
    assert len(set(some.values())) == 3
    more = draw_sides([f"video{i}" for i in range(4000)], 0, 0.2, 0.1)
    assert {name: more[name] for name in some} == some
    counts = [list(more.values()).count(side) / 4000 for side in ("val", "test")]
    assert counts == pytest.approx([0.2, 0.1], abs=0.02)
    assert draw_sides(some, 4, 0.2, 0.1) != some


def test_what_a_list_tells_holds():
    told = told_sides([("a", "train"), ("b", "test"), ("c", ""), ("a", ""), ("c", "")])
    assert told == {"a": "train", "b": "test", "c": ""}
    assert complete(told, 0, 0.0, 0.5) == {"a": "train", "b": "test", "c": "train"}
    drawn = complete(told, 0, 0.1, 0.5)
    assert drawn["b"] == "test" and sorted((drawn["a"], drawn["c"])) == ["train", "val"]
    assert complete({**told, "d": "val"}, 0, 0.4, 0.0)["a"] == "train"
    with pytest.raises(UserError, match="clips of the source a are on two sides of the split, train and test"):
        told_sides([("a", "train"), ("a", ""), ("a", "test")])


SOURCES = "uvwxyz"
# three names of each content: whatever is drawn twice is parts of one file
FILES = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("123"), st.sampled_from(SOURCES)), max_size=9)


def named(files):
    return [(f"{content}{name}.mp4", content, source) for name, content, source in files]


@given(FILES, st.randoms())
def test_sources_of_copies_are_joined_by_any_chain_and_no_others(files, random):
    files = named(files)
    joined = join_copies(files, dict.fromkeys(SOURCES, ""))
    assert list(joined.sources) == list(SOURCES) and set(joined.sides) == set(joined.sources.values())
    assert not joined.apart
    same = np.zeros((6, 6), bool)
    for name, content, source in files:
        if any(other != name for other, of, _ in files if of == content):
            for _, of, another in files:
                same[SOURCES.index(source), SOURCES.index(another)] |= of == content
    count, groups = connected_components(same)
    assert len(set(zip(groups, joined.sources.values(), strict=True))) == count == len(joined.sides)
    random.shuffle(files)
    assert join_copies(files, dict.fromkeys(SOURCES, "")) == joined


@given(FILES, st.lists(st.sampled_from(["train", "val", ""]), min_size=6, max_size=6))
def test_no_content_that_stays_is_on_two_sides_unless_a_list_parts_one_file(files, told):
    files, told = named(files), dict(zip(SOURCES, told, strict=True))
    joined = join_copies(files, told)
    assert all(told[source] in ("", joined.sides[joined.sources[source]]) for source in told)
    for content in "123":
        left = {(name, source) for name, of, source in files if of == content} - joined.apart.keys()
        groups = {joined.sources[source] for _, source in left}
        assert len(groups) <= 1 or len({name for name, _ in left}) == 1


def test_sides_of_copies_hold_for_all_that_are_joined():
    files = [("a", "1", "x"), ("b", "1", "y"), ("c", "2", "y"), ("d", "2", "z"), ("e", "3", "u")]
    joined = join_copies(files, {"x": "", "y": "", "z": "val", "u": "test"})
    assert joined.sources == {"x": "x", "y": "x", "z": "x", "u": "u"}
    assert joined.sides == {"x": "val", "u": "test"} and not joined.apart
    joined = join_copies(files, {"x": "train", "y": "", "z": "val", "u": ""})
    assert joined.sources == {"x": "x", "y": "x", "z": "z", "u": "u"} and joined.apart == {("d", "z"): "c"}
