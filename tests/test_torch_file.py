"""Checkpoint files: what is read, and what is refused, each refusal with its reason."""

import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch_zip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from torch_zip import Call, Global, Storage, Tensor

from convert import checkpoint_file, state_dict_pickle
from mmaudio_jax.errors import UserError

anywhere = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
FLOATS = np.arange(6, dtype=np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pth"


def read(path) -> dict[str, np.ndarray]:
    return {name: tensor.read() for name, tensor in checkpoint_file.read(path).tensors.items()}


def refused(path, *reasons: str):
    with pytest.raises(UserError) as error:
        checkpoint_file.read(path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    for reason in reasons:
        assert reason in message
    return message


# What is read


def test_reads_every_tensor_of_a_checkpoint(golden):
    tensors, expected = read(golden.checkpoint("flow_tiny.pth")), golden.state_dict("flow_tiny.pth")
    assert tensors.keys() == expected.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("dtype", [*torch_zip.STORAGE_TYPES])
def test_reads_every_storage_type(path, dtype):
    dtype = torch_zip.BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    expected = np.array([[0, 1, 2], [3, 100, 1]]).astype(dtype)
    array = read(torch_zip.write(path, {"a": torch_zip.tensor(expected)}))["a"]
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, expected)


@anywhere
@given(data=st.data())
def test_reads_any_view(path, data):
    """Offsets, strides of any order, overlapping and repeated elements: as NumPy understands them."""
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=4), label="shape"))
    strides = tuple(data.draw(st.lists(st.integers(0, 7), min_size=len(shape), max_size=len(shape)), label="strides"))
    offset = data.draw(st.integers(0, 5), label="offset")
    span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if 0 not in shape else 0
    base = np.arange(offset + span, dtype=np.float32)
    torch_zip.write(path, {"before": torch_zip.tensor(FLOATS), "a": Tensor(Storage(base), offset, shape, strides)})
    expected = np.lib.stride_tricks.as_strided(base[offset:], shape, [4 * s for s in strides])
    np.testing.assert_array_equal(read(path)["a"], expected)


def test_reads_views_of_a_shared_storage(path):
    storage = Storage(FLOATS)
    views = {"head": Tensor(storage, 0, (2,), (1,)), "tail": Tensor(storage, 2, (2, 2), (1, 2))}
    tensors = read(torch_zip.write(path, views))
    np.testing.assert_array_equal(tensors["head"], [0, 1])
    np.testing.assert_array_equal(tensors["tail"], [[2, 4], [3, 5]])
    with zipfile.ZipFile(path) as archive:
        assert [name for name in archive.namelist() if "/data/" in name] == ["archive/data/0"]


@pytest.mark.parametrize("protocol", [2, 4])
def test_reads_the_containers_of_a_state_dict(path, protocol):
    """OrderedDict with metadata, nested dicts, parameters; what is no tensor is told."""
    tree = {
        "generator": torch_zip.ordered_dict(
            {
                "conv.weight": torch_zip.parameter(torch_zip.tensor(FLOATS.reshape(2, 3))),
                "gain": torch_zip.tensor(np.float32(7)),
            },
            _metadata={"": {"version": 1}},
        ),
        "step": 1000,
        "schedule": [0.1, None, True],
        "size": Call(Global("torch", "Size"), ((2, 3),)),
    }
    checkpoint = checkpoint_file.read(torch_zip.write(path, tree, protocol=protocol, top="best_netG"))
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == {
        "generator.conv.weight": (2, 3),
        "generator.gain": (),
    }
    assert checkpoint.tensors["generator.gain"].read() == 7
    assert checkpoint.others == {"step": "int", "schedule": "list", "size": "tuple"}


def test_the_name_does_not_matter(path):
    save_file({"a": FLOATS, "b": FLOATS.astype(torch_zip.BFLOAT16)}, path)
    tensors = read(path)
    np.testing.assert_array_equal(tensors["a"], FLOATS)
    np.testing.assert_array_equal(tensors["b"].astype(np.float32), FLOATS)
    other = path.with_suffix(".safetensors")
    np.testing.assert_array_equal(read(torch_zip.write(other, {"a": torch_zip.tensor(FLOATS)}))["a"], FLOATS)


def test_a_huge_view_of_little_takes_no_memory(path):
    """A tensor is made only when its shape has been found right."""
    tree = {"a": Tensor(Storage(FLOATS), 0, (1 << 40, 1 << 40), (0, 0))}
    assert checkpoint_file.read(torch_zip.write(path, tree)).tensors["a"].shape == (1 << 40, 1 << 40)


# Pickles that do more than a state dict needs


class Evil:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("function, name", [(os.system, f"{os.name}.system"), (eval, "eval"), (exec, "exec")])
def test_runs_nothing(path, tmp_path, function, name, protocol):
    witness = tmp_path / "witness"
    argument = f"touch {witness}" if function is os.system else f"open({str(witness)!r}, 'w')"
    pickled = pickle.dumps({"a": Evil(function, argument)}, protocol)
    message = refused(torch_zip.write_archive(path, pickled), name, "nothing was run")
    assert "__builtin__.eval" in message or "builtins.eval" in message or name != "eval"
    assert not witness.exists()


@pytest.mark.parametrize(
    "pickled, name",
    [
        (b"\x80\x02cmmaudio.model.networks\nMMAudio\n)\x81.", "mmaudio.model.networks.MMAudio"),  # a whole module
        (b"\x80\x02(ios\nsystem\n.", "os.system"),  # INST
        (b"\x80\x02ctorch\nComplexFloatStorage\n.", "torch.ComplexFloatStorage"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x04\x8f.", "EMPTY_SET"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x00.", "BYTEARRAY8"),
    ],
)
def test_refuses_what_no_state_dict_needs(path, pickled, name):
    message = refused(torch_zip.write_archive(path, pickled))
    assert name in message or "damaged pickle" in message and name == "BYTEARRAY8"


@pytest.mark.parametrize(
    "tree, reason",
    [
        ({"a": Call(Global("torch", "Size"), ((2, -3),))}, "damaged pickle"),
        ({"a": Call(Global("torch", "FloatStorage"), (3,))}, "torch.FloatStorage is called"),
        ({"a": Tensor(Storage(FLOATS), 0, (2,), (1,), ({"neg": True},))}, "conjugated or negated"),
        ({"a": {"b": torch_zip.tensor(FLOATS)}, "a.b": torch_zip.tensor(FLOATS)}, "two entries called a.b"),
        (torch_zip.tensor(np.ones((1, 77, 1024), np.float32)), "one tensor of shape (1, 77, 1024), no state dict"),
        ([torch_zip.tensor(FLOATS)], "a list, no state dict"),
        ({"step": 3}, "no tensors"),
    ],
)
def test_refuses_trees_that_are_no_state_dict(path, tree, reason):
    refused(torch_zip.write(path, tree), reason)


def test_refuses_dicts_that_hold_themselves(path):
    tree = {"a": torch_zip.tensor(FLOATS)}
    tree["again"] = tree
    refused(torch_zip.write(path, tree), "in two places")
    nested = b"}" + b"\x8c\x01a}" * 5000 + b"s" * 5000 + b"."
    refused(torch_zip.write_archive(path, b"\x80\x04" + nested))


# Damage


@pytest.mark.parametrize(
    "tree, reason",
    [
        ({"a": Tensor(Storage(FLOATS), 0, (7,), (1,))}, "a needs 28 bytes of archive/data/0, which has 24"),
        ({"a": Tensor(Storage(FLOATS), 5, (2,), (1,))}, "a needs 28 bytes"),
        ({"a": Tensor(Storage(FLOATS), 0, (2, 3), (1, 3))}, "a needs 32 bytes"),
        ({"a": Tensor(Storage(FLOATS, size=100), 0, (2,), (1,))}, "a needs 400 bytes"),
        ({"a": Tensor(Storage(FLOATS), 0, (2,), (-1,))}, "damaged pickle"),
        ({"a": Tensor(Storage(FLOATS), -1, (2,), (1,))}, "damaged pickle"),
        ({"a": Tensor(Storage(FLOATS), 0, (2, 3), (1,))}, "damaged pickle"),
        ({"a": Tensor(Storage(FLOATS), 0, (2.0,), (1,))}, "damaged pickle"),
    ],
)
def test_refuses_tensors_larger_than_their_storage(path, tree, reason):
    refused(torch_zip.write(path, tree), reason, "download it again")


def test_refuses_a_storage_that_is_not_there(path):
    pickled, _ = torch_zip.dump({"a": torch_zip.tensor(FLOATS)})
    refused(torch_zip.write_archive(path, pickled), "archive/data/0, the data of a, is not in it")


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.7, 0.99])
def test_refuses_a_truncated_file(golden, path, keep):
    whole = golden.checkpoint("flow_tiny.pth").read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    refused(path, "truncated or damaged", "download it again")
    save_file({"a": FLOATS}, path)
    path.write_bytes(path.read_bytes()[:-3])
    refused(path, "truncated or damaged", "download it again")


def test_refuses_changed_bytes(golden, path):
    whole = bytearray(golden.checkpoint("flow_tiny.pth").read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    refused(path, "fails its checksum at archive/data/", "download it again")


@pytest.mark.parametrize("name", ["../evil", "archive/../../evil", "/etc/passwd"])
def test_refuses_entries_that_point_elsewhere(path, name):
    pickled, storages = torch_zip.dump({"a": torch_zip.tensor(FLOATS)})
    refused(torch_zip.write_archive(path, pickled, storages, extra={name: b"x"}), name, "points out")


def test_a_storage_key_is_no_path(path, tmp_path):
    (tmp_path / "secret").write_bytes(FLOATS.tobytes())
    pickled, storages = torch_zip.dump({"a": torch_zip.tensor(FLOATS)})
    for key in (f"{tmp_path}/secret", "../../secret"):
        unicode = b"X" + len(key).to_bytes(4, "little") + key.encode()
        refused(
            torch_zip.write_archive(path, pickled.replace(b"X\x01\x00\x00\x000", unicode), storages), "is not in it"
        )


def test_refuses_other_kinds_of_file(path, tmp_path):
    path.write_bytes(b"")
    refused(path, "no checkpoint")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(path, "no checkpoint", "version https://")
    path.write_bytes(pickle.dumps({"a": FLOATS}))
    refused(path, "no checkpoint")
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")
    refused(path, "legacy", "torch.save(torch.load(")
    np.savez(tmp_path / "a.npz", a=FLOATS)
    shutil.move(tmp_path / "a.npz", path)
    refused(path, "zip archive", "no data.pkl")
    refused(tmp_path, "cannot be read")
    refused(tmp_path / "nothing.pth", "No such file")


def test_refuses_other_archives(path):
    pickled, storages = torch_zip.dump({"a": torch_zip.tensor(FLOATS)})
    refused(torch_zip.write_archive(path, pickled, storages, byteorder=b"big"), "big-endian")
    refused(torch_zip.write_archive(path, pickled, storages, extra={"archive/constants.pkl": b"."}), "TorchScript")
    refused(torch_zip.write_archive(path, pickled, storages, extra={"archive/code/net.py": b""}), "TorchScript")
    refused(torch_zip.write_archive(path, pickled, storages, compression=zipfile.ZIP_DEFLATED), "compressed")


@settings(max_examples=300)
@given(data=st.data())
def test_damage_in_the_pickle_never_surprises(data):
    """Whatever the bytes, the pickle is read or refused; no other error and no long work."""
    pickled, _ = torch_zip.dump(
        {
            "generator": torch_zip.ordered_dict({"a": torch_zip.tensor(FLOATS), "b": 3}, _metadata={}),
            "c": [1.5, (None,)],
        }
    )
    changed = bytearray(pickled)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(pickled) - 1))] = data.draw(st.integers(0, 255))
    try:
        state_dict_pickle.load(bytes(changed))
    except state_dict_pickle.Refused:
        pass
