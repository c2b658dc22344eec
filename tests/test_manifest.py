"""What counts as finished: the line of a sound, whole, made of the same, with its files as they were written."""

import dataclasses
import io
import json
import os
from pathlib import Path

import pytest

from mmaudio_jax.data.part import PartName
from mmaudio_jax.data.table import read_table
from mmaudio_jax.errors import UserError
from mmaudio_jax.generation import manifest
from mmaudio_jax.generation.manifest import Manifest
from mmaudio_jax.generation.tasks import task_key
from mmaudio_jax.request import AdapterUse, Request

PROVENANCE = {
    "model": "small_16k",
    "weights": {"small_16k": "1", "clip": "2"},
    "adapters": [{"run": "runs/a@3", "fingerprint": "3", "weight": 0.5}],
    "versions": {"jax": "1"},
}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def commit(at_work, name, key, suffixes=("wav",), content="sound"):
    with at_work.new() as place:
        made = {suffix: place / f"made.{suffix}" for suffix in suffixes}
        for path in made.values():
            path.write_text(content)
        places = {suffix: at_work.folder / f"{name}.{suffix}" for suffix in suffixes}
        at_work.commit(name, key, made, places, {"prompt": "rain"})


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("[!.]*") if path.is_file())


def test_a_sound_is_finished_while_its_files_are_what_was_written(out):
    with Manifest(out) as at_work:
        for name in ("a", "x/b"):
            commit(at_work, name, f"key {name}", ("wav", "png"))
        assert at_work.finished({"a": "key a", "x/b": "key x/b", "c": "key"}) == {"a", "x/b"}
    assert names(out) == ["a.png", "a.wav", "manifest.jsonl", "x/b.png", "x/b.wav"]
    keys = {"a": "key a", "x/b": "key x/b"}
    for damage in (lambda p: p.write_text("s0und"), lambda p: p.write_text("soun"), lambda p: p.unlink()):
        damage(out / "x/b.png")
        with Manifest(out) as at_work:
            assert at_work.finished(keys) == {"a"} and at_work.owns(out / "x/b.png")
            assert at_work.finished({"a": "another key"}) == set()
            commit(at_work, "x/b", "key x/b", ("wav", "png"))
            assert at_work.finished(keys) == {"a", "x/b"}


def test_a_line_that_a_kill_has_torn_is_taken_out_and_its_files_remain_ours(out):
    with Manifest(out) as at_work:
        commit(at_work, "a", "1")
    line = (out / "manifest.jsonl").read_text()
    for torn in (line[:40], "[]\n", '{"name": "b"}\n', "\0\n", "{" * 100_000, line.replace("a.wav", "../a.wav")):
        (out / "manifest.jsonl").write_text(line + torn)
        with Manifest(out) as at_work:
            assert at_work.finished({"a": "1"}) == {"a"}
        assert (out / "manifest.jsonl").read_text() == line


def test_what_a_killed_run_had_put_in_place_is_its_own(out, monkeypatch):
    """Between the files and their line."""
    append = manifest._append

    def die(path, text):
        if path.name == "manifest.jsonl":
            raise KeyboardInterrupt
        append(path, text)

    monkeypatch.setattr(manifest, "_append", die)
    with pytest.raises(KeyboardInterrupt), Manifest(out) as at_work:
        commit(at_work, "a", "1")
    monkeypatch.undo()
    (out / "b.wav").write_text("somebody's")
    with Manifest(out) as at_work:
        assert at_work.owns(out / "a.wav") and not at_work.owns(out / "b.wav")
        assert not at_work.finished({"a": "1"})
        commit(at_work, "a", "1")
    assert names(out) == ["a.wav", "b.wav", "manifest.jsonl"]


def test_the_last_line_of_a_name_counts_and_what_it_has_no_more_is_gone(out):
    with Manifest(out) as at_work:
        commit(at_work, "a", "1", ("wav", "png"))
        commit(at_work, "a", "2", ("wav",))
        assert at_work.finished({"a": "1"}) == set() and at_work.finished({"a": "2"}) == {"a"}
    assert names(out) == ["a.wav", "manifest.jsonl"]
    with Manifest(out):
        assert [json.loads(line)["key"] for line in (out / "manifest.jsonl").open()] == ["2"]


def test_processes_have_manifests_of_their_own_and_read_those_of_others(out):
    for i in range(2):
        with Manifest(out, PartName(i, 2)) as at_work:
            commit(at_work, str(i), "1")
            at_work.write_failed([{"row": "row 3", "reason": "no"}])
    assert {"manifest-00000-of-00002.jsonl", "failed-00001-of-00002.tsv"} < set(names(out))
    with Manifest(out) as at_work:
        assert at_work.finished({"0": "1", "1": "1"}) == {"0", "1"}


def test_two_runs_do_not_share_a_folder(out):
    with Manifest(out):
        with pytest.raises(UserError, match="another run is making sounds in .*; wait for it, or choose another --out"):
            Manifest(out).__enter__()
    assert not out.exists()
    out.write_text("")
    with pytest.raises(UserError, match="is a file; --out must name a folder"):
        Manifest(out).__enter__()


def test_failures_are_those_of_the_last_run(out):
    with Manifest(out) as at_work:
        at_work.write_failed([{"row": "rows.tsv row 3", "reason": "no\tsuch"}])
    assert read_table(out / "failed.tsv").rows == [{"row": "rows.tsv row 3", "reason": "no\tsuch"}]
    with Manifest(out) as at_work:
        at_work.write_failed([])
    assert not out.exists()


def test_a_disk_that_fills_leaves_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    path.write_text("whole\n")

    class Full(io.FileIO):
        """A file with room for ten bytes more."""

        def write(self, data):
            room = 16 - self.tell()
            if not room:
                raise OSError(28, "No space left on device")
            return super().write(data[:room])

    monkeypatch.setattr(Path, "open", lambda path, mode, buffering: Full(path, "a"))
    with pytest.raises(OSError, match="No space left"):
        manifest._append(path, "x" * 100)
    monkeypatch.undo()
    assert path.read_text() == "whole\n"


def test_the_key_stands_for_all_that_decides_a_sound(tmp_path):
    video = tmp_path / "a.mp4"
    video.write_text("1234")
    request = Request(video=video, prompt="rain", adapters=(AdapterUse(Path("runs/a@3"), 0.5),))
    settings = {"dtype": "auto", "outputs": {"format": "wav"}}

    def key(request=request, settings=settings, **provenance):
        return task_key(request, PROVENANCE | provenance, settings)

    first = key()
    others = {"prompt": "hail", "negative_prompt": "wind", "start": 0.5, "duration": 2.0, "seed": 1, "steps": 2}
    others |= {"solver": "midpoint", "shift": 2.0, "cfg_strength": 3.0, "video_strength": 2.0, "use_clip": False}
    assert {field.name for field in dataclasses.fields(Request)} - others.keys() == {
        "video",
        "image",
        "adapters",  # as of the provenance
        "made",  # follows from the video
    }
    found = [first, *(key(dataclasses.replace(request, **{name: value})) for name, value in others.items())]
    adapter = PROVENANCE["adapters"][0]
    found += [
        key(adapters=[]),
        key(adapters=[adapter | {"weight": 1.0}]),
        key(adapters=[adapter | {"fingerprint": "4"}]),
    ]
    found += [key(weights={"small_16k": "1", "clip": "3"}), key(settings=settings | {"dtype": "bfloat16"})]
    found.append(key(settings={"dtype": "auto", "outputs": {"format": "flac"}}))
    os.utime(video, ns=(1, 1))
    found.append(key())
    video.write_text("12345")
    os.utime(video, ns=(1, 1))
    found.append(key())
    assert len(set(found)) == len(found)
    # what does not decide it
    moved = tmp_path / "moved"
    moved.mkdir()
    video.rename(moved / "a.mp4")
    again = dataclasses.replace(request, video=moved / "a.mp4")
    assert key(again) == found[-1] == key(again, versions={"jax": "2"})
    assert key(again, adapters=[adapter | {"run": "elsewhere/a@3"}]) == found[-1]
    assert key() != found[-1]  # the video is gone
