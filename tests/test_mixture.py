"""Several feature sets as one: how they are named, what may be mixed, and what a run sees of each."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_networks import FIRST_SHARD

from mmaudio_jax.data import mixture
from mmaudio_jax.data.dataset import split, split_by_source, training_batches
from mmaudio_jax.data.example import VIDEO, example_shapes
from mmaudio_jax.data.records import FeatureWriter, open_features
from mmaudio_jax.errors import UserError


def write(path, count, first=1, mode="16k", duration=1.0, video=True, encoders=None, sources=None, dtype="float32"):
    """A set whose every example holds its own number throughout, from `first`."""
    shapes = example_shapes(mode, duration, clip_dim=4, sync_dim=4, text_dim=4)
    with FeatureWriter(path, mode, duration, shapes, encoders, dtype) as writer:
        for i in range(count):
            arrays = {k: np.full(v, first + i, np.float32) for k, v in shapes.items() if video or k not in VIDEO}
            source = sources[i] if sources else f"{path.name}{i}"
            writer.append({"id": f"clip{i}", "caption": f"{path.name} {i}", "original_video": source}, arrays)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three sets, one of sounds without a picture, their examples numbered from 1 throughout."""
    folder = tmp_path_factory.mktemp("sets")
    write(folder / "films", 7, 1)
    write(folder / "sounds", 4, 8, video=False)
    write(folder / "scenes", 3, 12)
    return folder


@pytest.fixture(scope="module")
def mixed(folder):
    return mixture.open_mixture(f"{folder}/films*3, {folder}/sounds,{folder}/scenes *2")


NAMES = st.text(st.characters(exclude_characters=",*/\0", exclude_categories=["Cs", "Z", "Cc"]), min_size=1)
PARTS = st.lists(st.tuples(NAMES, st.integers(1, 9999)), min_size=1, max_size=5, unique_by=lambda part: part[0])
SPACE = st.sampled_from(["", " ", "  "])


@given(PARTS.filter(lambda parts: not {name for name, _ in parts} & {".", ".."}), st.data())
def test_what_is_written_is_read(parts, data):
    def write(name, repeat):
        star = "" if repeat == 1 and data.draw(st.booleans()) else f"{data.draw(SPACE)}*{data.draw(SPACE)}{repeat}"
        return f"{data.draw(SPACE)}sets/{name}{star}{data.draw(SPACE)}"

    text = ",".join(itertools.starmap(write, parts))
    assert mixture.parse(text) == [(f"sets/{name}", repeat) for name, repeat in parts]


@given(st.text(st.sampled_from("ab/.*, 0159٣²")))
def test_whatever_is_written_is_parts_or_a_mistake(text):
    try:
        parts = mixture.parse(text)
    except UserError:
        return
    assert len(parts) == text.count(",") + 1
    assert all(path.strip() == path != "" and 1 <= repeat <= 9999 for path, repeat in parts)
    assert len({os.path.abspath(path) for path, _ in parts}) == len(parts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has a part that names no feature set"),
        ("a,,b", "has a part that names no feature set"),
        ("a, *3", "has a part that names no feature set"),
        ("a*0", r"repeats a '0' times; it must be a whole number from 1 to 9999: a\*5"),
        ("a*x, b", "repeats a 'x' times"),
        ("a*", "repeats a '' times"),
        ("a*-1", "repeats a '-1' times"),
        ("a*1.5", "repeats a '1.5' times"),
        ("a*10000", "repeats a '10000' times"),
        ("a, b, ./a/*2", r"names ./a/ twice; to have it more often, write ./a/\*2"),
    ],
)
def test_a_mistake_in_the_names_is_told(text, message):
    with pytest.raises(UserError, match=message):
        mixture.parse(text)


def test_what_is_no_set_is_told_with_what_may_be_meant(folder, tmp_path):
    (tmp_path / "clips.tsv").touch()
    for path, message in (
        (tmp_path / "clips.tsv", "clips.tsv is a file and no feature set; .* --out data/mine` makes one of a table"),
        (f"{folder}/films {folder}/sounds", r"there is no feature set .*, write `SET\*3, SET, SET`$"),
        (f"{folder}/films*3, {folder}/sounds", r"there is no feature set .*, write `SET\*3, SET, SET`$"),
        (f"{folder}/fims", "there is no feature set .*/fims; make it with .*/fims`$"),
    ):
        with pytest.raises(UserError, match=message):
            open_features(path)


def test_one_set_is_as_it_is(folder):
    alone, plain = mixture.open_mixture(f"{folder}/films"), open_features(folder / "films")
    assert (alone.path, alone.metadata, alone.ids, alone.sources) == (
        *(plain.path, plain.metadata, plain.ids, plain.sources),
    )
    for one, two in zip(alone, plain, strict=True):
        assert one.pop("set") == 0
        assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_a_mixture_is_its_sets_one_after_another(mixed):
    assert len(mixed) == 14 and mixed.names == ("films", "sounds", "scenes")
    assert [int(example["mean"][0, 0]) for example in mixed] == list(range(1, 15)) and int(mixed[-1]["set"]) == 2
    assert [int(example["set"]) for example in mixed] == [0] * 7 + [1] * 4 + [2] * 3
    assert [bool(example["has_video"]) for example in mixed] == [True] * 7 + [False] * 4 + [True] * 3
    assert not mixed[8]["clip_f"].any() and mixed[8]["clip_f"].shape == mixed[0]["clip_f"].shape
    assert mixed.ids[6:8] == ["films/clip6", "sounds/clip0"] and len(set(mixed.ids)) == 14
    assert mixed.captions[7] == "sounds 0" and mixed.sources[7] == "sounds0"
    assert mixed.repeats.tolist() == [3] * 7 + [1] * 4 + [2] * 3
    with pytest.raises(IndexError):
        mixed[14]


def take(batches, count):
    found = list(itertools.islice(batches, count))
    batches.close()
    return found


def test_an_epoch_is_the_whole_mix_shuffled_with_workers_too(mixed):
    epoch = np.repeat(np.arange(14), mixed.repeats)
    assert len(epoch) == 31
    batches = take(training_batches(mixed, epoch, batch_size=31, seed=0), 2)
    for batch in batches:
        assert np.bincount(batch["set"]).tolist() == [21, 4, 6]
        values, often = np.unique(batch["mean"][:, 0, 0], return_counts=True)
        assert values.tolist() == list(range(1, 15)) and often.tolist() == mixed.repeats.tolist()
        assert (np.diff(batch["set"]) != 0).sum() > 6  # not one set after another
    (read_elsewhere,) = take(training_batches(mixed, epoch, batch_size=31, seed=0, start=1, workers=1), 1)
    for name, array in read_elsewhere.items():
        np.testing.assert_array_equal(array, batches[1][name])


def test_a_video_of_two_sets_is_on_one_side_of_the_split(tmp_path):
    videos = [f"video{i}" for i in range(8)]
    write(tmp_path / "one", 8, sources=videos)
    write(tmp_path / "two", 8, sources=videos)
    both = mixture.open_mixture(f"{tmp_path}/one, {tmp_path}/two*2")
    train, validation = split_by_source(both, 0.3, 0)
    assert sorted([*train, *validation]) == list(range(16)) and len(validation) == 4
    assert set(validation[:2] + 8) == set(validation[2:])


def test_a_set_without_a_column_split_follows_its_sources(tmp_path):
    videos = [f"video{i}" for i in range(4)]
    one = open_features(write(tmp_path / "one", 4, sources=videos))
    two = open_features(write(tmp_path / "two", 5, sources=[*videos, "other"]))
    for row, side in zip(one.table.rows, ("train", "val", "test", ""), strict=True):
        row["split"] = side
    train, validation = split(mixture.Mixture([one, two], [1, 1]), 0.5, 0)
    assert train.tolist() == [0, 3, 4, 7, 8] and validation.tolist() == [1, 5]


def test_memory_maps_of_the_published_tools_mix_with_and_without_video():
    folder = Path(__file__).parent / "golden" / "tensordict_example"
    published = mixture.open_mixture(f"{folder}/vgg-example*5, {folder}/audio-example")
    assert [bool(example["has_video"]) for example in published] == [True] * 3 + [False] * 2
    assert all(example["has_text"] for example in published) and published.captions[4] == "caption 1, with a comma"
    assert published.metadata.count == 5 and published.metadata.duration == 8.0


def test_a_damaged_example_names_its_set(folder, tmp_path):
    path = write(tmp_path / "bad", 2)
    raw = bytearray((path / FIRST_SHARD).read_bytes())
    raw[raw.index(np.full(8, 2, np.float32).tobytes())] ^= 1
    (path / FIRST_SHARD).write_bytes(raw)
    with pytest.raises(UserError, match=r"the feature set .*bad is damaged at row 3 of .*/clips.tsv \(id 'clip1'\)"):
        mixture.open_mixture(f"{folder}/films, {path}").check()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dict(duration=2.0), r"cannot be mixed with .*films: its duration is 2.0, not 1.0, its shape of mean is \("),
        (dict(mode="44k"), "its mode is 44k, not 16k"),
        (dict(encoders={"clip": "b", "vae_16k": "c"}), "its clip is another than that of .*known; extract"),
    ],
)
def test_what_cannot_be_mixed_says_how_it_differs(folder, tmp_path, other, message):
    known = write(tmp_path / "known", 1, encoders={"clip": "a"})
    path = write(tmp_path / "other", 1, **other)
    with pytest.raises(UserError, match=message):
        mixture.open_mixture(f"{folder}/films, {known}, {path}")


def test_encoders_are_those_of_all_sets(folder, tmp_path):
    one = write(tmp_path / "one", 1, encoders={"clip": "a"})
    two = write(tmp_path / "two", 1, encoders={"clip": "a", "vae_16k": "c"})
    assert mixture.open_mixture(f"{folder}/films,{one},{two}").metadata.encoders == {"clip": "a", "vae_16k": "c"}


def test_two_sets_of_one_name_are_refused(folder, tmp_path):
    write(tmp_path / "films", 1)
    with pytest.raises(UserError, match="are both called films, by which a set is told: rename one"):
        mixture.open_mixture(f"{folder}/films, {tmp_path}/films")


@pytest.mark.parametrize(("others", "expected"), [("bfloat16", "bfloat16"), ("float32", "float32")])
def test_features_come_as_they_are_stored_or_in_the_wider_dtype_of_two(tmp_path, others, expected):
    write(tmp_path / "films", 3, 1, dtype="bfloat16")
    write(tmp_path / "sounds", 3, 4, video=False, dtype=others)
    mixed = mixture.open_mixture(f"{tmp_path}/films, {tmp_path}/sounds")
    assert mixed.metadata.dtype == expected
    for workers in (0, 1):
        stream = training_batches(mixed, range(6), batch_size=6, seed=0, workers=workers)
        batch = next(stream)
        stream.close()
        assert {str(batch[name].dtype) for name in ("clip_f", "sync_f", "text_f")} == {expected}
        assert batch["mean"].dtype == np.float32
        np.testing.assert_array_equal(batch["text_f"][:, 0, 0].astype(np.float32), batch["mean"][:, 0, 0])
