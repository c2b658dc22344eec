import itertools
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import FIRST_SHARD

from mmaudio_jax.data.dataset import split, split_by_source, training_batches, validation_batches
from mmaudio_jax.data.example import example_shapes
from mmaudio_jax.data.records import FeatureWriter, open_features
from mmaudio_jax.errors import UserError

SHAPES = example_shapes("16k", 1.0, clip_dim=4, sync_dim=4, text_dim=4)
COUNT = 11


def write(path):
    with FeatureWriter(path, "16k", 1.0, SHAPES) as writer:
        for i in range(COUNT):
            arrays = {name: np.full(shape, i + 1, np.float32) for name, shape in SHAPES.items()}
            writer.append({"id": f"clip{i}", "caption": "c", "original_video": f"video{i // 2}"}, arrays)
    return open_features(path)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write(tmp_path_factory.mktemp("features") / "set")


def take(batches, count):
    found = list(itertools.islice(batches, count))
    batches.close()
    return found


def which(batch):
    """The examples in a batch, told from their content."""
    return (batch["mean"][:, 0, 0] - 1).astype(int).tolist()


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**32 - 1),
    start=st.integers(0, 1000),
    local=st.integers(1, 5),
    processes=st.sampled_from([1, 2, 4]),
)
def test_the_order_is_a_function_of_seed_and_step_on_any_number_of_processes(features, seed, start, local, processes):
    size = local * processes
    indices = np.arange(1, 10)
    whole = take(training_batches(features, indices, batch_size=size, seed=seed), 3)
    for step, batch in enumerate(whole):
        assert np.array_equal(batch["position"], np.arange(step * size, (step + 1) * size))
    (later,) = take(training_batches(features, indices, batch_size=size, seed=seed, start=start), 1)
    parts = [
        take(
            training_batches(
                features,
                indices,
                batch_size=size,
                seed=seed,
                start=start,
                process_index=p,
                process_count=processes,
            ),
            1,
        )[0]
        for p in range(processes)
    ]
    for name, array in later.items():
        merged = np.concatenate([part[name] for part in parts])
        assert np.array_equal(merged, array), name
    assert np.array_equal(later["position"], start * size + np.arange(size))


def test_a_restart_at_any_step_goes_on_with_the_same_batches(features):
    run = take(training_batches(features, range(COUNT), batch_size=4, seed=3), 9)
    for step in range(9):
        (batch,) = take(training_batches(features, range(COUNT), batch_size=4, seed=3, start=step), 1)
        assert which(batch) == which(run[step]) and np.array_equal(batch["position"], run[step]["position"])


def test_every_epoch_is_complete_and_in_another_order(features):
    indices = [0, 2, 3, 5, 8, 9]
    run = sum(map(which, take(training_batches(features, indices, batch_size=4, seed=0), 9)), [])
    epochs = [run[i : i + 6] for i in range(0, 36, 6)]
    assert all(sorted(epoch) == indices for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3
    other = sum(map(which, take(training_batches(features, indices, batch_size=4, seed=1), 9)), [])
    assert run != other


def test_a_batch_may_be_larger_than_the_set(features):
    (batch,) = take(training_batches(features, [4], batch_size=3, seed=0), 1)
    assert which(batch) == [4, 4, 4] and batch["position"].tolist() == [0, 1, 2]
    assert batch["position"].dtype == np.int64 and batch["has_video"].dtype == bool
    assert {name: batch[name].shape[1:] for name in SHAPES} == SHAPES
    assert batch["latents"].tolist() == [SHAPES["mean"][0]] * 3 and batch["latents"].dtype == np.int32


def test_each_example_is_read_once_but_the_first_whose_shapes_are_those_of_all(features, monkeypatch):
    opened, found = open_features(features.path), []
    for name in ("read_stored", "read_into"):
        read = getattr(opened, name)
        monkeypatch.setattr(opened, name, lambda i, *place, read=read: found.append(i) or read(i, *place))
    list(validation_batches(opened, range(COUNT), batch_size=1))
    assert found == [0, *range(COUNT)]


def damage(features, folder, what):
    """A copy of the set in whose record of example 7 one bit is another, `what` bytes from its values."""
    records = shutil.copytree(features.path, folder) / FIRST_SHARD
    raw = bytearray(records.read_bytes())
    raw[raw.index(np.full(64, 8, np.float32).tobytes()) + what] ^= 1
    records.write_bytes(raw)
    return open_features(folder)


def test_a_check_finds_the_damaged_example_before_a_run_does(features, tmp_path):
    features.check()
    damaged = damage(features, tmp_path / "damaged", 0)
    with pytest.raises(UserError, match=r"damaged at row 9 of .*/clips.tsv \(id 'clip7'\)"):
        damaged.check()
    damaged[7]  # a run that has checked its examples reads them without their hash


def test_workers_change_nothing_and_their_error_is_the_same_sentence(features, tmp_path):
    damaged = damage(features, tmp_path / "damaged", -1)
    args = dict(batch_size=2, seed=3, start=2)
    expected = take(training_batches(features, range(COUNT), **args), 9)
    healthy = next(i for i, batch in enumerate(expected) if 7 in which(batch))
    assert healthy > 1, "choose a seed that brings the damaged example later"

    messages = []
    for workers in (0, 2):
        batches = training_batches(damaged, range(COUNT), workers=workers, **args)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for batch in expected[:healthy]:
                found = next(batches)
                assert all(np.array_equal(found[name], batch[name]) for name in batch)
        with pytest.raises(UserError, match=r"damaged at row 9 of .*/clips.tsv \(id 'clip7'\)") as error:
            next(batches)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_a_killed_run_leaves_no_worker_behind(tmp_path):
    (tmp_path / "run.py").write_text(
        "import multiprocessing, time\n"
        "from mmaudio_jax.data.workers import live_with_parent\n"
        "def work(): live_with_parent(); print('working', flush=True); time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.get_context('spawn').Process(target=work, daemon=True).start()\n"
        "    time.sleep(60)\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    run = subprocess.Popen([sys.executable, tmp_path / "run.py"], env=env, stdout=subprocess.PIPE)
    assert run.stdout.readline() == b"working\n"
    run.kill()
    run.communicate(timeout=20)  # which waits until nobody holds the pipe, the worker neither


def test_validation_sees_each_example_once_in_one_shape(features):
    batches = list(validation_batches(features, [2, 5, 6, 9, 10], batch_size=4))
    assert [which(batch) for batch in batches] == [[2, 5, 6, 9], [10, 2, 5, 6]]
    assert [batch["weight"].tolist() for batch in batches] == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert batches[1]["position"].tolist() == [4, 5, 6, 7] and batches[0]["weight"].dtype == np.float32
    halves = [
        list(validation_batches(features, [2, 5, 6, 9, 10], batch_size=4, process_index=p, process_count=2))
        for p in range(2)
    ]
    assert [which(batch) for batch in halves[1]] == [[6, 9], [5, 6]]
    assert sum(batch["weight"].sum() for half in halves for batch in half) == 5
    assert list(validation_batches(features, [], batch_size=4)) == []


@given(fraction=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_no_source_video_is_on_both_sides(features, fraction, seed):
    train, validation = split_by_source(features, fraction, seed)
    sources = np.array(features.sources)
    assert len(train) and len(validation) and sorted([*train, *validation]) == list(range(COUNT))
    assert not set(sources[train]) & set(sources[validation])
    again = split_by_source(features, fraction, seed)
    assert np.array_equal(train, again[0]) and np.array_equal(validation, again[1])


def test_a_split_that_cannot_be_is_refused(features, tmp_path):
    train, validation = split_by_source(features, 0.0, 0)
    assert len(train) == COUNT and len(validation) == 0
    with pytest.raises(UserError, match=r"must be in \[0, 1\)"):
        split_by_source(features, 1.0, 0)
    single = write(tmp_path / "single")
    for row in single.table.rows:
        row["original_video"] = "video0"
    with pytest.raises(
        UserError, match=r"come from one source video \(video0\).*another video, or fill .*original_video"
    ):
        split_by_source(single, 0.15, 0)


def with_sides(features, *sides):
    for row, side in zip(features.table.rows, sides, strict=True):
        row["split"] = side
    return features


def test_the_column_split_decides_where_there_is_one(features, tmp_path):
    sides = ["train"] * 4 + ["val"] * 2 + ["test"] * 2 + ["", "train", ""]
    train, validation = split(with_sides(write(tmp_path / "told"), *sides), 0.5, 0)
    assert train.tolist() == [0, 1, 2, 3, 8, 9, 10] and validation.tolist() == [4, 5]
    for one, other in zip(split(features, 0.3, 5), split_by_source(features, 0.3, 5), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        (["train", "val", *["train"] * 9], "the source video0 are on two sides of the split, train and val"),
        (["train"] * 11, "puts no example on the side val; .*config.validation_fraction"),
        (["val"] * 11, "puts no example on the side train"),
        (["dev"] * 11, r"has the split 'dev' in row 2 of .*/clips.tsv \(id 'clip0'\); it must be train, val, test"),
    ],
)
def test_a_column_split_that_cannot_be_is_one_sentence(tmp_path, sides, message):
    with pytest.raises(UserError, match=message):
        split(with_sides(write(tmp_path / "set"), *sides), 0.5, 0)


def test_a_batch_that_cannot_be_shared_out_is_refused(features):
    with pytest.raises(UserError, match="a batch of 3 cannot be shared out among 2 processes"):
        training_batches(features, [0], batch_size=3, seed=0, process_count=2)
    with pytest.raises(UserError, match="no example of .* to train on"):
        training_batches(features, [], batch_size=3, seed=0)
