import json
import shutil

import numpy as np
import pytest

from mmaudio_jax.data.example import check_arrays, example_shapes
from mmaudio_jax.data.records import RECORDS, FeatureWriter, open_features
from mmaudio_jax.errors import UserError

SHAPES = example_shapes("16k", 1.0, clip_dim=8, sync_dim=6, text_dim=4)


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
        ("clip_f", lambda a: a.astype(np.float64), "clip_f is float64"),
    ],
)
def test_a_damaged_example_is_refused_when_written_and_when_read(name, fault, message, tmp_path, monkeypatch):
    bad = arrays(1) | {name: fault(arrays(1)[name])}
    with FeatureWriter(tmp_path / "set", "16k", 1.0, SHAPES) as writer:
        writer.append({"id": "good"}, arrays(0))
        with pytest.raises(ValueError, match=message):
            writer.append({"id": "bad"}, bad)
        assert len(writer) == 1
        monkeypatch.setattr("mmaudio_jax.data.records.check_arrays", lambda *_: None)
        writer.append({"id": "bad"}, bad)
    features = open_features(tmp_path / "set")
    features[0]
    with pytest.raises(UserError, match=rf"set is damaged at row 3 of clips.tsv \(id 'bad'\): {message}"):
        features[1]


def test_an_example_has_a_latent_and_both_video_features_or_none():
    with pytest.raises(ValueError, match="std is missing"):
        check_arrays(without(arrays(0), "std"), SHAPES)
    with pytest.raises(ValueError, match="sync_f is missing"):
        check_arrays(without(arrays(0), "sync_f"), SHAPES)
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


def test_a_damaged_set_is_one_sentence(written, tmp_path):
    def broken(edit):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(written, copy)
        edit(copy)
        return copy

    def metadata(**changes):
        def edit(path):
            content = json.loads((path / "metadata.json").read_text())
            (path / "metadata.json").write_text(json.dumps(content | changes))

        return edit

    def flip(path):
        raw = bytearray((path / RECORDS).read_bytes())
        raw[2000] ^= 255
        (path / RECORDS).write_bytes(raw)

    for edit, message in [
        (metadata(schema_version=9), "schema version 9, this release reads 1"),
        (metadata(duration=2.0), "shapes are not those of 2 s at 16k"),
        (metadata(mode="8k"), "does not describe a feature set"),
        (metadata(count=4), "has 4 examples but .* has 3 rows"),
        (lambda path: (path / "metadata.json").write_text("{"), "does not describe a feature set"),
        (lambda path: (path / "clips.tsv").unlink(), "there is no table"),
        (lambda path: (path / RECORDS).unlink(), "0 records can be read of the 3"),
        (lambda path: (path / RECORDS).write_bytes((path / RECORDS).read_bytes()[:9000]), "records can be read"),
    ]:
        with pytest.raises(UserError, match=message):
            open_features(broken(edit))
    with pytest.raises(UserError, match=rf"\(id 'whole'\): its record in {RECORDS} cannot be read"):
        [*open_features(broken(flip))]
    with pytest.raises(UserError, match="there is no feature set .*mmaudio_jax.features"):
        open_features(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a feature set"):
        open_features(tmp_path)


# the published code's TensorDict folders


@pytest.fixture
def published(request, tmp_path):
    """A copy of the example folders that the real library wrote, to be damaged."""
    return shutil.copytree(request.path.parent / "golden/tensordict_example", tmp_path / "tensordict")


def test_a_tensordict_folder_is_read_as_it_lies(published):
    features = open_features(published / "vgg-example")
    assert len(features) == 3 and features.ids[1] == features.sources[1] == "vgg-example_1"
    assert features.captions[2] == "caption 2, with a comma"
    assert (features.metadata.mode, features.metadata.duration) == ("16k", 8.0)
    names = {
        "mean": "mean",
        "std": "std",
        "clip_f": "clip_features",
        "sync_f": "sync_features",
        "text_f": "text_features",
    }
    for index in range(3):
        example = features[index]
        for name, stored in names.items():
            raw = np.fromfile(published / f"vgg-example/{stored}.memmap", "<f4").reshape(3, *example[name].shape)
            assert np.array_equal(example[name], raw[index])
        assert example["has_video"] and example["has_text"]


def test_an_audio_folder_has_no_video(published):
    features = open_features(published / "audio-example")
    example = features[1]
    assert features.captions[1] == "caption 1, with a comma" and features.metadata.duration == 8.0
    assert not example["has_video"] and not example["clip_f"].any() and not example["sync_f"].any()
    assert example["clip_f"].shape == (64, 1024) and example["sync_f"].shape == (192, 768)


def test_the_table_of_a_tensordict_folder_lies_beside_it(published):
    table = (published / "vgg-example.tsv").rename(published / "other.tsv")
    with pytest.raises(UserError, match="needs its table: put it at .*vgg-example.tsv"):
        open_features(published / "vgg-example")
    table.rename(published / "vgg-example.tsv")
    assert len(open_features(published / "vgg-example")) == 3
    shutil.copy(published / "audio-example.tsv", published / "vgg-example.tsv")
    with pytest.raises(UserError, match="has 3 examples but .*vgg-example.tsv has 2 rows"):
        open_features(published / "vgg-example")


def test_a_damaged_tensordict_folder_is_one_sentence(published):
    folder = published / "vgg-example"
    meta = json.loads((folder / "meta.json").read_text())

    def refused(message, **changes):
        (folder / "meta.json").write_text(json.dumps({k: v for k, v in (meta | changes).items() if v is not None}))
        with pytest.raises(UserError, match=message):
            open_features(folder)

    def entry(name, **changes):
        return {name: meta[name] | changes}

    refused("lacks std", std=None)
    refused("lacks sync_features", sync_features=None)
    refused("mean.memmap has 60000 bytes where", **entry("mean", shape=[3, 251, 20]))
    refused("clip_features as torch.float32 .*three axes, the first 3", **entry("clip_features", shape=[2, 96, 1024]))
    refused("std as torch.float16", **entry("std", dtype="torch.float16"))
    refused("is not the description of a TensorDict", **entry("mean", shape=None))
    refused("19 latent channels|has .* bytes", **entry("mean", shape=[3, 250, 19]))
    refused("do not belong to one duration: mean 250.*clip_features 128", **entry("clip_features", shape=[3, 128, 512]))

    (folder / "meta.json").write_text(json.dumps(meta))
    raw = np.fromfile(folder / "sync_features.memmap", "<f4")
    raw[-1] = np.inf
    raw.tofile(folder / "sync_features.memmap")
    with pytest.raises(UserError, match=r"row 4 of vgg-example.tsv \(id 'vgg-example_2'\): sync_f .*not finite"):
        open_features(folder)[2]
    (folder / "sync_features.memmap").unlink()
    with pytest.raises(UserError, match="sync_features.memmap is missing"):
        open_features(folder)


def test_meta_json_cannot_point_out_of_its_folder(published):
    folder = published / "vgg-example"
    meta = json.loads((folder / "meta.json").read_text())
    meta["../audio-example/mean"] = meta["mean"]
    meta["/etc/passwd"] = {"device": "cpu", "shape": [1], "dtype": "torch.uint8", "is_nested": False}
    (folder / "meta.json").write_text(json.dumps(meta))
    assert set(open_features(folder).read(0)) == {"mean", "std", "clip_f", "sync_f", "text_f"}
