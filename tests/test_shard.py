import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from mmaudio_jax.data.memory import Memory
from mmaudio_jax.data.shard import BODY, PIECES, Records

EDGES = [1, 127, 128, 16383, 16384, BODY - 45, BODY - 44, BODY, 1 << 16, 5 * BODY]  # of lengths and of blocks


def write(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()


def record(number: int, size: int) -> bytes:
    return np.random.default_rng(number).bytes(size)


@settings(max_examples=30)
@given(sizes=st.lists(st.sampled_from(EDGES) | st.integers(1, 3 * BODY), min_size=1, max_size=30))
def test_a_record_is_what_array_record_wrote(tmp_path_factory, sizes):
    path = tmp_path_factory.mktemp("shard") / "records"
    write(path, [record(i, size) for i, size in enumerate(sizes)])
    found = Records([(path, len(sizes))])
    for i, size in enumerate(sizes):
        assert found[i].tobytes() == found.guarded(i) == record(i, size)
        assert found[i].ctypes.data % 16 == 0  # numbers are read where they lie


@settings(max_examples=30)
@given(size=st.sampled_from(EDGES), first=st.integers(1, BODY), cuts=st.lists(st.integers(0, 5 * BODY), max_size=5))
def test_a_record_is_read_into_pieces_of_memory_wherever_they_end(tmp_path_factory, size, first, cuts):
    path = tmp_path_factory.mktemp("shard") / "records"
    write(path, [record(0, first), record(1, size)])
    records = Records([(path, 2)])
    assert records.size(1) == size
    ends = sorted(min(cut, size) for cut in cuts)
    memory = [bytearray(last - first) for first, last in itertools.pairwise([0, *ends, size])]
    records.read_into(1, memory)
    assert b"".join(memory) == record(1, size)
    for other in (memory[:-1] + [bytearray(len(memory[-1]) + 1)], [bytearray(size - 1)]):
        with pytest.raises(ValueError, match="cannot be read"):
            records.read_into(1, other)


def test_a_record_may_have_more_pieces_than_the_system_takes_at_once(tmp_path):
    large = np.random.default_rng(0).bytes(PIECES // 2 * BODY + 7)
    write(tmp_path / "records", [b"a", large, b"b"])
    found = Records([(tmp_path / "records", 3)])
    assert found[1].tobytes() == large and found[2].tobytes() == b"b"


def test_threads_read_at_once_and_a_copy_opens_the_files_itself(tmp_path):
    counts = (3000, 1, 50)  # the footer of the first is longer than a block
    for k, count in enumerate(counts):
        write(tmp_path / str(k), [record(1000 * k + i, 50 + i) for i in range(count)])
    records = Records([(tmp_path / str(k), count) for k, count in enumerate(counts)])
    expected = [record(1000 * k + i, 50 + i) for k, count in enumerate(counts) for i in range(count)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: records[i].tobytes(), range(sum(counts)))) == expected
    copy = pickle.loads(pickle.dumps(records))
    assert copy[3000].tobytes() == expected[3000] and copy.file(3001) == tmp_path / "2"


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1],
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: bytes(len(raw)),
        lambda raw: raw[: len(raw) - (1 << 16)] + bytes(1 << 16),
        lambda raw: raw[:72] + b"\xff" + raw[73:],  # the length of the first chunk
        lambda raw: np.random.default_rng(0).bytes(len(raw)),
    ],
    ids=["shorter", "half", "empty", "zeros", "no postscript", "another length", "noise"],
)
def test_whatever_else_lies_there_is_no_record(tmp_path, damage):
    path = tmp_path / "records"
    write(path, [record(i, 100_000) for i in range(3)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="^its record in records cannot be read"):
        Records([(path, 3)])[0]


def test_memory_is_used_again_when_nobody_holds_a_view_of_it():
    memory = Memory(kept=1)
    first = memory.empty((4, 8), np.float32)
    place, first[:] = first.ctypes.data, 1
    view = first[1:, ::2]
    del first
    other = memory.empty((4, 8), np.float32)
    other[:] = 2
    assert other.ctypes.data != place and (view == 1).all()
    del view
    assert memory.empty((32,), np.int32).ctypes.data == place


def test_the_memory_of_a_record_is_used_again_for_those_of_other_files(tmp_path):
    for k in range(2):
        write(tmp_path / str(k), [record(k, 54_321)])
    records = Records([(tmp_path / str(k), 1) for k in range(2)])
    place = records[0].ctypes.data
    assert records[1].ctypes.data == place


def test_a_file_that_another_has_taken_the_place_of_is_not_read(tmp_path):
    for k in range(2):
        write(tmp_path / str(k), [record(10 * k + i, 50) for i in range(3)])
    records = Records([(tmp_path / str(k), 3) for k in range(2)])
    assert records[0].tobytes() == record(0, 50)
    for k in range(2):
        write(tmp_path / "new", [record(100 + i, 50) for i in range(3)])
        (tmp_path / "new").replace(tmp_path / str(k))
    assert records[1].tobytes() == record(1, 50)  # it is open
    for read in (records.__getitem__, records.guarded):
        with pytest.raises(ValueError, match=r"in 1 cannot be read \(the file was changed since the set was opened\)"):
            read(3)
    with pytest.raises(ValueError, match="was changed since"):
        records.guarded(1)
