import contextlib
import errno
import json
import pickle
import resource
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import FIRST_SHARD

from mmaudio_jax.data import part
from mmaudio_jax.data.example import CONDITIONS, DTYPES, Metadata, check_arrays, example_shapes, widened
from mmaudio_jax.data.part import PartName, PartWriter
from mmaudio_jax.data.records import FeatureWriter, open_features
from mmaudio_jax.errors import UserError

SHAPES = example_shapes("16k", 1.0, clip_dim=8, sync_dim=6, text_dim=4)
WHOLE = str(part.WHOLE)


def arrays(seed: int, shapes=SHAPES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return found | {"std": np.abs(found["std"]) + 0.1}


def without(example, *names):
    return {name: array for name, array in example.items() if name not in names}


@pytest.fixture
def written(tmp_path):
    """Three examples: whole, without video, without text."""
    path = tmp_path / "set"
    with FeatureWriter(path, "16k", 1.0, SHAPES, {"clip": "abc"}) as writer:
        writer.append({"id": "whole", "caption": "a", "original_video": "v.mp4"}, arrays(0))
        writer.append({"id": "audio", "caption": "b", "title_folder": "Storm"}, without(arrays(1), "clip_f", "sync_f"))
        writer.append({"id": "mute", "caption": ""}, without(arrays(2), "text_f"))
    return path


def test_what_is_written_is_read_bit_for_bit(written):
    features = open_features(written)
    assert len(features) == 3 and features.ids == ["whole", "audio", "mute"]
    assert features.captions == ["a", "b", ""] and features.sources == ["v.mp4", "Storm", "mute"]
    assert features.metadata.encoders == {"clip": "abc"} and features.metadata.shapes == SHAPES
    assert (features.metadata.mode, features.metadata.duration) == ("16k", 1.0)
    for name, array in arrays(0).items():
        assert features[0][name].dtype == np.float32 and np.array_equal(features[0][name], array)
    assert features[0]["has_video"] and features[0]["has_text"]
    assert features[0]["latents"] == 32 and features[0]["latents"].dtype == np.int32
    assert [fault for _, fault in features.files()] == [None]


def test_absent_conditions_are_zeros_and_say_so(written):
    features = open_features(written)
    audio, mute = features[1], features[2]
    assert not audio["has_video"] and audio["has_text"] and mute["has_video"] and not mute["has_text"]
    assert not audio["clip_f"].any() and not audio["sync_f"].any() and not mute["text_f"].any()
    assert {name: audio[name].shape for name in SHAPES} == SHAPES


def test_lengths_are_those_of_the_published_table():
    shapes = example_shapes("16k", 8.0)
    assert shapes == {
        "mean": (250, 20),
        "std": (250, 20),
        "clip_f": (64, 1024),
        "sync_f": (192, 768),
        "text_f": (77, 1024),
    }
    assert example_shapes("44k", 8.0)["mean"] == (345, 40)


@pytest.mark.parametrize(
    "name, fault, message",
    [
        ("clip_f", lambda a: np.full_like(a, np.nan), "clip_f has values that are not finite"),
        (
            "mean",
            lambda a: a * np.where(np.arange(len(a)) == 3, 0, 1)[:, None].astype("f4"),
            r"mean has a row of zeros \(3\)",
        ),
        ("text_f", np.zeros_like, "text_f has a row of zeros"),
        ("std", lambda a: -a, "std has values that are not positive"),
        ("sync_f", lambda a: a[:-1], r"sync_f is float32 \(15, 6\), not float32 \(16, 6\)"),
        ("clip_f", lambda a: a.astype(np.float64), "clip_f is float64|F64"),
    ],
)
def test_a_damaged_example_is_refused_when_written_and_when_read(name, fault, message, tmp_path, monkeypatch):
    bad = arrays(1) | {name: fault(arrays(1)[name])}
    with FeatureWriter(tmp_path / "set", "16k", 1.0, SHAPES) as writer:
        writer.append({"id": "good"}, arrays(0))
        with pytest.raises(ValueError, match=message):
            writer.append({"id": "bad"}, bad)
        assert len(writer) == 1
        monkeypatch.setattr("mmaudio_jax.data.part.check_arrays", lambda *_: None)
        writer.append({"id": "bad", "caption": "a"}, bad)
    features = open_features(tmp_path / "set")
    features.check([0])
    with pytest.raises(UserError, match=rf"set is damaged at row 3 of .*/clips.tsv \(id 'bad'\): {message}"):
        features.check()


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_values_whose_squares_are_no_float32_are_values(size):
    check_arrays({name: np.full(shape, size, np.float32) for name, shape in SHAPES.items()}, SHAPES)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_single_value_that_is_not_finite_is_found(value):
    bad = arrays(0)
    bad["sync_f"][3, 2] = value
    with pytest.raises(ValueError, match="sync_f has values that are not finite"):
        check_arrays(bad, SHAPES)


def test_an_example_has_a_latent_and_both_video_features_or_none():
    with pytest.raises(ValueError, match="std is missing"):
        check_arrays(without(arrays(0), "std"), SHAPES)
    with pytest.raises(ValueError, match="sync_f is missing"):
        check_arrays(without(arrays(0), "sync_f"), SHAPES)
    for latents in (np.int32(0), np.int32(33), np.int64(3), np.array([3], np.int32)):
        with pytest.raises(ValueError, match="latents is int.*not an int32 from 1 to 32"):
            check_arrays(arrays(0) | {"latents": latents}, SHAPES)
    with pytest.raises(ValueError, match="extra does not belong"):
        check_arrays(arrays(0) | {"extra": np.ones((1, 1), np.float32)}, SHAPES)


def test_latents_say_how_much_of_an_example_is_the_clip_s_own(tmp_path):
    length = SHAPES["mean"][0]
    with FeatureWriter(tmp_path / "set", "16k", 1.0, SHAPES) as writer:
        writer.append({"id": "whole"}, arrays(0))
        writer.append({"id": "padded"}, arrays(1) | {"latents": np.array(length - 3, np.int32)})
        for wrong in (np.int32(0), np.int32(length + 1), np.int64(1), np.ones(1, np.int32), np.float32(1)):
            with pytest.raises(ValueError, match=f"latents is .*, not an int32 from 1 to {length}"):
                writer.append({"id": "wrong"}, arrays(2) | {"latents": wrong})
    found = [example["latents"] for example in open_features(tmp_path / "set")]
    assert found == [length, length - 3] and all(latents.dtype == np.int32 for latents in found)


def test_a_set_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), FeatureWriter(tmp_path / "set", "16k", 1.0, SHAPES) as writer:
        writer.append({"id": "a"}, arrays(0))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="set exists already"):
        FeatureWriter(tmp_path / "set", "16k", 1.0, SHAPES).__enter__()


def test_a_shard_that_may_not_be_so_large_is_told_by_its_set(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError) as told, FeatureWriter(tmp_path / "set", "16k", 1.0, SHAPES) as writer:
            writer.append({"id": "a", "caption": "a"}, arrays(0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (told.value.errno, told.value.filename) == (errno.EFBIG, str(tmp_path / "set"))
    assert not any(tmp_path.iterdir())


def test_a_damaged_set_is_one_sentence(written, tmp_path):
    def broken(edit):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(written, copy)
        edit(copy)
        return copy

    def metadata(**changes):
        def edit(path):
            file = path / WHOLE / "metadata.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | changes))

        return edit

    def flip(path):
        raw = bytearray((path / FIRST_SHARD).read_bytes())
        raw[2000] ^= 255
        (path / FIRST_SHARD).write_bytes(raw)

    for edit, message in [
        (metadata(schema_version=9), "schema version 9, this release reads 2 to 3"),
        (metadata(duration=2.0), "shapes are not those of 2 s at 16k"),
        (metadata(mode="8k"), "does not describe a part of a feature set"),
        (metadata(count=4), "its shards have not 4 examples"),
        (metadata(dtype="float16"), "its dtype is 'float16'"),
        (metadata(shards=[{"name": "../a", "count": 3, "bytes": 1, "sha256": ""}]), "names of their own"),
        (lambda path: (path / WHOLE / "metadata.json").write_text("{"), "does not describe a part of a feature set"),
        (lambda path: (path / WHOLE / "clips.tsv").unlink(), "there is no table"),
        (lambda path: (path / FIRST_SHARD).unlink(), "shard-00000.array_record is missing"),
        (lambda path: (path / FIRST_SHARD).write_bytes(b"short"), "has 5 bytes, .* were written"),
        (lambda path: (path / WHOLE).rename(path / "part-00001-of-00002"), "lacks part-00000-of-00002; .*--shard 0/2`"),
        (lambda path: (path / "part-00001-of-00002").mkdir(), "has parts of a set of [12] and of [12]; remove"),
        (
            lambda path: (path / WHOLE / "metadata.json").rename(path / "metadata.json"),
            "schema version 1, this .* reads 2",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            open_features(broken(edit))
    flipped = open_features(broken(flip))
    with pytest.raises(UserError, match=r"\(id 'whole'\): its record in shard-00000.array_record cannot be read"):
        flipped.check()
    ((_, fault),) = flipped.files()
    assert fault.endswith("shard-00000.array_record has another content than was written")
    (written / WHOLE / "clips.tsv").write_text("id\tcaption\na\tb\n")
    with pytest.raises(UserError, match="has 3 examples but .*clips.tsv has 1 rows"):
        open_features(written).ids  # noqa: B018
    with pytest.raises(UserError, match=f"is one part of a feature set; give the folder that holds it, {written}"):
        open_features(written / WHOLE)
    with pytest.raises(UserError, match="there is no feature set .*mmaudio_jax.features"):
        open_features(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a feature set"):
        open_features(tmp_path)


def write_part(folder, name, rows, dtype="float32", clips="", duration=1.0):
    """A part whose examples are told by their ids, which are seeds."""
    shapes = example_shapes("16k", duration, clip_dim=8, sync_dim=6, text_dim=4)
    (folder / str(name)).mkdir(parents=True)
    with PartWriter(folder / str(name), Metadata("16k", duration, shapes, 0, dtype=dtype), clips) as writer:
        for i in rows:
            writer.append({"id": str(i), "caption": "a"}, arrays(i, shapes))


def test_a_set_is_its_parts_one_after_another(tmp_path, monkeypatch):
    monkeypatch.setattr(part, "SHARD_BYTES", 2 * len(part.pack(arrays(0), "float32")) + 999)  # two records a shard
    monkeypatch.setattr("mmaudio_jax.data.shard.OPEN_SHARDS", 1)
    for index, rows in enumerate([range(5), [], range(5, 8)]):
        write_part(tmp_path, PartName(index, 3), rows)
    assert len(list(tmp_path.glob("part-00000-of-00003/*.array_record"))) == 3
    features = pickle.loads(pickle.dumps(open_features(tmp_path)))
    assert features.ids == [str(i) for i in range(8)] and len(features) == features.metadata.count == 8
    for i in (7, 0, 4, 5, 1, -1):
        assert np.array_equal(features[i]["mean"], arrays(i % 8)["mean"])
    with pytest.raises(IndexError):
        features[8]
    assert not any(fault for _, fault in features.files())
    shard = tmp_path / "part-00002-of-00003" / "shard-00000.array_record"
    raw = bytearray(shard.read_bytes())
    raw[raw.index(arrays(6)["mean"][0].tobytes())] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(UserError, match=r"at row 3 of part-00002-of-00003/clips.tsv \(id '6'\)"):
        open_features(tmp_path).check()
    (fault,) = (fault for _, fault in open_features(tmp_path).files() if fault)
    assert "part-00002-of-00003/shard-00000.array_record has another content" in fault


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"dtype": "bfloat16"}, "has another dtype than .*part-00000-of-00002: start its extraction again"),
        ({"clips": "of others"}, "has another clips.tsv than"),
        ({"duration": 2.0}, "has another duration, shapes than"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(tmp_path, other, message):
    write_part(tmp_path, PartName(0, 2), [0])
    write_part(tmp_path, PartName(1, 2), [1], **other)
    with pytest.raises(UserError, match=f"part-00001-of-00002 {message}"):
        open_features(tmp_path)


def test_a_part_that_is_on_its_way_is_named_with_the_command(tmp_path):
    write_part(tmp_path, PartName(0, 3), [0])
    (tmp_path / ".part-00002-of-00003.work").mkdir()
    with pytest.raises(
        UserError, match=r"lacks part-00001-of-00003, part-00002-of-00003; .*mmaudio_jax.features .*1/3`"
    ):
        open_features(tmp_path)


def test_a_worker_s_copy_has_no_table(written):
    features = open_features(written)
    before = len(pickle.dumps(features))
    assert features.ids and features.sources
    copy = pickle.dumps(features)
    assert len(copy) == before < 3000
    assert pickle.loads(copy).ids == features.ids


def test_half_the_conditions_and_all_of_the_latents_are_stored(tmp_path):
    for dtype in DTYPES:
        write_part(tmp_path / dtype, PartName(0, 1), [0], dtype)
    sets = [open_features(tmp_path / dtype) for dtype in DTYPES]
    full, half = (features.read(0) for features in sets)
    assert all(half[name].dtype == np.float32 for name in SHAPES)
    for name, value in sets[1][0].items():  # for the devices they stay as they are stored
        assert value.dtype == (DTYPES["bfloat16"] if name in CONDITIONS else sets[0][0][name].dtype), name
        np.testing.assert_array_equal(value.astype(np.float32), half.get(name, value))
    for name in ("mean", "std"):
        assert np.array_equal(half[name], full[name])
    for name in CONDITIONS:
        np.testing.assert_allclose(half[name], full[name], rtol=2**-8)
        assert not np.array_equal(half[name], full[name])
    sizes = {dtype: len(part.pack({"text_f": full["text_f"]}, dtype)) for dtype in DTYPES}
    assert sizes["float32"] - sizes["bfloat16"] == full["text_f"].nbytes / 2


@settings(max_examples=30)
@given(
    st.integers(0, 99), st.sampled_from(list(DTYPES)), st.sets(st.sampled_from(["video", "text"])), st.integers(1, 32)
)
def test_a_record_is_what_was_packed_and_packs_to_the_same_bytes(seed, dtype, lacks, latents):
    lost = [*(["clip_f", "sync_f"] if "video" in lacks else []), *(["text_f"] if "text" in lacks else [])]
    packed = part.pack(without(arrays(seed), *lost) | {"latents": np.int32(latents)}, dtype)
    found = part.unpack(packed)
    check_arrays(widened(found), SHAPES)
    assert found["latents"] == latents and set(found) == {*SHAPES, "latents"} - {*lost}
    assert part.pack(found, dtype) == packed


def of_other_tools(record: bytes) -> bytes:
    """The record as another writer may order its header."""
    begin = 8 + int.from_bytes(record[:8], "little")
    header = json.dumps(dict(reversed(json.loads(record[8:begin]).items())), separators=(",", ":"))
    return record[:8] + header.encode().ljust(begin - 8) + record[begin:]


@settings(max_examples=15)
@given(
    st.sampled_from(list(DTYPES)),
    st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(1, 32), st.booleans()), min_size=1, max_size=6),
)
def test_an_example_is_the_same_read_to_its_place_in_a_batch(tmp_path_factory, dtype, kinds):
    path = tmp_path_factory.mktemp("features") / "set"
    with FeatureWriter(path, "16k", 1.0, SHAPES, dtype=dtype) as writer:
        for i, (video, text, latents, of_others) in enumerate(kinds):
            lost = [*([] if video else ["clip_f", "sync_f"]), *([] if text else ["text_f"])]
            with pytest.MonkeyPatch.context() as patch:
                if of_others:
                    patch.setattr(
                        part, "pack", lambda arrays, dtype, pack=part.pack: of_other_tools(pack(arrays, dtype))
                    )
                example = without(arrays(i), *lost) | {"latents": np.int32(latents)}
                writer.append({"id": str(i), "caption": "a" if text else ""}, example)
    features = open_features(path)
    examples = list(features)
    batch = {name: np.full_like([value] * len(kinds), 7) for name, value in examples[0].items()}
    for i in reversed(range(len(kinds))):
        features.read_into(i - len(kinds), batch, i)
    for i, example in enumerate(examples):
        for name, value in example.items():
            assert batch[name][i].tobytes() == value.tobytes() and batch[name].dtype == value.dtype, name


def test_a_whole_set_is_read_to_its_places_without_parsing_a_record(written, monkeypatch):
    features = open_features(written)
    expected = [features[i] for i in range(3)]
    monkeypatch.setattr(part, "unpack", None)
    batch = {name: np.full_like([value] * 3, 7) for name, value in expected[0].items()}
    for i in range(3):
        features.read_into(i, batch, i)
    for name, found in batch.items():
        np.testing.assert_array_equal(found, [example[name] for example in expected])


def test_a_batch_may_lie_in_memory_as_it_likes(written):
    features = open_features(written)
    example = features[0]
    batch = {name: np.full((2, *value.shape), 7, value.dtype, order="F") for name, value in example.items()}
    features.read_into(0, batch, 1)
    for name, value in example.items():
        np.testing.assert_array_equal(batch[name][1], value)


def test_latents_that_no_example_has_are_told_in_a_batch_too(tmp_path, monkeypatch):
    monkeypatch.setattr("mmaudio_jax.data.part.check_arrays", lambda *_: None)
    with FeatureWriter(tmp_path / "set", "16k", 1.0, SHAPES) as writer:
        writer.append({"id": "good"}, arrays(0))
        writer.append({"id": "bad"}, arrays(1) | {"latents": np.int32(33)})
    features = open_features(tmp_path / "set")
    batch = {name: np.zeros_like([value]) for name, value in features[0].items()}
    with pytest.raises(UserError, match=r"\(id 'bad'\): latents is int32 33, not an int32 from 1 to 32"):
        features.read_into(1, batch, 0)


@given(st.binary(max_size=200))
def test_whatever_the_bytes_they_are_a_record_or_damaged(raw):
    with contextlib.suppress(ValueError):
        part.unpack(raw)
