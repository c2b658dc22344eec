"""What was found in files is kept, whatever becomes of the processes that look at them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmaudio_jax.data.prepare import cache as inspection_cache
from mmaudio_jax.data.prepare.inspection import Inspection
from mmaudio_jax.errors import UserError

ROOT = Path(__file__).parent.parent


def kill(root, name):
    if name == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    while name == "endless":
        time.sleep(1)
    return Inspection(audio_end=1)


def test_a_file_that_its_decoder_crashes_or_hangs_at_ends_nothing_and_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection_cache, "_inspect", kill)
    monkeypatch.setattr(inspection_cache, "TIME_LIMIT", 1.0)
    names = ["deadly", "a", "endless", "b"]
    for name in names:
        (tmp_path / name).write_bytes(bytes(1_000_000))
    with inspection_cache.InspectionCache(tmp_path / "kept") as cache:
        found = inspection_cache.inspect_all(tmp_path, names, cache, 2)
    assert found["deadly"].fault == "its decoder crashed" and found["a"] == found["b"] == Inspection(audio_end=1)
    assert found["endless"].fault == "its decoder has not come to an end in 2 s"  # one of them for its size
    cache = inspection_cache.InspectionCache(tmp_path / "kept")
    known = {name: cache.find(name, (tmp_path / name).stat()) for name in names}
    assert known == {"deadly": None, "a": found["a"], "endless": None, "b": found["b"]}


def test_a_full_disk_names_the_file(tmp_path):
    cache = inspection_cache.InspectionCache(tmp_path / "kept")
    with pytest.raises(OSError, match="No space left on device.*kept"), cache:
        cache._file = open("/dev/full", "a")
        cache.keep_table("a")


class Unstartable:
    def __call__(self, root, name):
        pass

    def __reduce__(self):
        return os._exit, (7,)


def test_processes_that_cannot_start_end_the_run(tmp_path, monkeypatch):
    (tmp_path / "a").touch()
    monkeypatch.setattr(inspection_cache, "_inspect", Unstartable())
    with (
        inspection_cache.InspectionCache(tmp_path / "kept") as cache,
        pytest.raises(UserError, match="a process that decodes cannot start"),
    ):
        inspection_cache.inspect_all(tmp_path, ["a"], cache, 1)


def test_a_process_that_decodes_starts_without_jax():
    code = "import sys, mmaudio_jax.data.prepare.__main__; print(*{'jax', 'grain', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
