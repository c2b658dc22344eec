"""The published code's feature sets: TensorDict folders."""

import json
import shutil

import numpy as np
import pytest

from mmaudio_jax.data.records import open_features
from mmaudio_jax.errors import UserError


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
        open_features(folder).check()
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
