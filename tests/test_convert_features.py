"""Feature sets to the published tools' layout and back."""

import json
import resource
import sys

import numpy as np
import pytest
from random_networks import FIRST_SHARD

from convert import features as command
from mmaudio_jax.data.example import VIDEO, example_shapes
from mmaudio_jax.data.records import FeatureWriter, open_features
from mmaudio_jax.data.table import read_table

SHAPES = example_shapes("16k", 8.0)
GOLDEN = "tests/golden/tensordict_example"


def write(path, video=True, caption="the last", **changes):
    """A set of three random examples; the last may have another caption, and other arrays or, where None, lack them."""
    rng = np.random.default_rng(0)
    names = [name for name in SHAPES if video or name not in VIDEO]
    with FeatureWriter(path, "16k", 8.0, SHAPES, {"clip": "a"}, "bfloat16") as writer:
        for i, said in enumerate(["a sound", 'it is "loud"', caption]):
            arrays = {name: rng.standard_normal(SHAPES[name]).astype(np.float32) for name in names}
            arrays |= {"std": np.abs(arrays["std"]) + 0.1} | (changes if i == 2 else {})
            row = {"id": f"clip{i}", "caption": said, "original_video": f"video{i}"}
            writer.append(row, {name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command; returns (exit code, what it printed)."""

    def run(path, to, out):
        monkeypatch.setattr(sys, "argv", ["features", str(path), "--to", to, "--out", str(out)])
        with pytest.raises(SystemExit) as end:
            command.main()
        return end.value.code, "".join(capsys.readouterr())

    return run


def same(one, two):
    return all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a) for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("video", [True, False])
def test_there_and_back_everything_is_as_it_was(run, tmp_path, monkeypatch, video):
    monkeypatch.delattr("os.posix_fallocate", raising=False)  # which macOS has not
    path = write(tmp_path / "set", video=video)
    assert run(path, "tensordict", tmp_path / "theirs") == (0, f"3 examples are in {tmp_path / 'theirs'}\n")
    assert run(tmp_path / "theirs", "records", tmp_path / "back")[0] == 0
    sets = [open_features(tmp_path / name) for name in ("set", "theirs", "back")]
    for other in sets[1:]:
        assert same(sets[0], other)
        assert (other.ids, other.captions, other.sources) == (sets[0].ids, sets[0].captions, sets[0].sources)
    assert read_table(tmp_path / "theirs.tsv").columns == ["id", "label" if video else "caption", "original_video"]


@pytest.mark.parametrize("name", ["vgg-example", "audio-example"])
def test_what_the_real_library_wrote_comes_back_byte_by_byte(run, request, tmp_path, name):
    golden = request.config.rootpath / GOLDEN / name
    assert run(golden, "records", tmp_path / "set")[0] == 0
    assert run(tmp_path / "set", "tensordict", tmp_path / name)[0] == 0
    for file in golden.glob("*.memmap"):
        assert (tmp_path / name / file.name).read_bytes() == file.read_bytes()
    written, theirs = (json.loads((folder / "meta.json").read_text()) for folder in (tmp_path / name, golden))
    assert written == theirs
    assert (tmp_path / f"{name}.tsv").read_text() == golden.with_name(f"{name}.tsv").read_text()


def test_what_the_layout_cannot_say_is_refused(run, tmp_path):
    faults = {
        "padded": ({"latents": np.int32(100)}, "example 'clip2' is padded: extract the features with --short skip"),
        "mixed": ({"clip_f": None, "sync_f": None}, "'clip2' has no video, unlike the first: put the rows of each"),
        "mute": ({"caption": ""}, "'clip2' has no caption"),
    }
    for name, (changes, message) in faults.items():
        code, printed = run(write(tmp_path / name, **changes), "tensordict", tmp_path / "out")
        assert code == 1 and message in printed and "Traceback" not in printed
        assert not list(tmp_path.glob("*out*"))


def test_a_file_for_which_there_is_no_room_is_one_sentence(run, tmp_path):
    path, limits = write(tmp_path / "set"), resource.getrlimit(resource.RLIMIT_FSIZE)
    small = 3 * 4 * int(np.prod(SHAPES["clip_f"])) - 1  # bytes that a file may have: too few for one of them
    resource.setrlimit(resource.RLIMIT_FSIZE, (small, limits[1]))
    try:
        code, printed = run(path, "tensordict", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1 and f"{tmp_path / 'out'}: File too large; `ulimit -f`" in printed and printed.count("\n") == 1
    assert not list(tmp_path.glob("*out*"))


def test_mistakes_are_one_sentence(run, tmp_path):
    path = write(tmp_path / "set")
    (tmp_path / "taken.tsv").touch()
    for to, out, message in (
        ("records", "out", "set is of the kind records already"),
        ("tensordict", "set", "set exists already; choose another place\n"),
        ("tensordict", "taken", "taken.tsv exists already; choose another place\n"),
    ):
        code, printed = run(path, to, tmp_path / out)
        assert code == 1 and message in printed and printed.count("\n") == 1
    raw = bytearray((path / FIRST_SHARD).read_bytes())
    raw[len(raw) // 2] ^= 255
    (path / FIRST_SHARD).write_bytes(raw)
    code, printed = run(path, "tensordict", tmp_path / "out")
    assert code == 1 and "is damaged at row" in printed and not list(tmp_path.glob("*out*"))
