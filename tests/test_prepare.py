"""From a folder to a table of clips, as a user meets it."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from media_files import tone, write_media

from mmaudio_jax.data.clips import read_clips
from mmaudio_jax.data.prepare import __main__ as prepare
from mmaudio_jax.data.prepare import cache as inspection_cache
from mmaudio_jax.data.prepare import inspection
from mmaudio_jax.data.prepare.assembly import Assembled, Choices
from mmaudio_jax.data.prepare.cutting import Lengths
from mmaudio_jax.data.table import read_table, write_table
from mmaudio_jax.data.workers import read_ahead
from mmaudio_jax.errors import UserError

ROOT = Path(__file__).parent.parent
RATE = 16_000


def write(path, seconds=5.0, level=1.0, mute=False):
    """A video that is no copy of one of another name, which is in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = None if mute else level * tone(seconds, RATE)
    count = round(10 * seconds)
    return write_media(path, fps=10, count=count, size=(64, 64), audio=audio, rate=RATE, title=path.stem)


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """Five videos that can be used, and one of each fault, with captions beside all but one."""
    folder = tmp_path_factory.mktemp("media")
    for name in ("b/Walk.mp4", "b/walk.mp4", "a b/größe 🐕.mp4", "long name" + "n" * 240 + ".mp4", "z.mp4"):
        write(folder / name)
    write(folder / "silent.mp4", level=0.0)
    write(folder / "mute.mp4", mute=True)
    write(folder / "short.mp4", seconds=1)
    write(folder / "nothing said.mp4")
    (folder / "broken.mp4").write_bytes((folder / "z.mp4").read_bytes()[:2000])
    for path in folder.rglob("*.mp4"):
        if path.name != "nothing said.mp4":
            path.with_suffix(".txt").write_text(f"sound of\t{path.stem[:9]}\n")
    return folder


@pytest.fixture
def in_process(monkeypatch):
    """Files are looked at here rather than in other processes, and which is noted."""
    seen = []

    def read(names, inspect, workers, **options):
        seen.extend(names)
        return read_ahead(names, inspect, 0, **options)

    monkeypatch.setattr(inspection_cache, "read_ahead", read)
    return seen


def choices(duration=2.0, stride=None, least=None, **others):
    lengths = [int(1000 * (value or duration)) for value in (duration, stride, least)]
    return Choices(Lengths(*lengths), **{"val": 0.3, **others})


def run(folder, out, **options):
    files = {name: options.pop(name) for name in ("list_file", "captions_file") if name in options}
    prepare.prepare(folder, out, choices(**options), **files)
    return read_table(out).rows


def rejected(out):
    return read_table(out.with_name(f"{out.stem}.rejected.tsv")).rows


def test_a_folder_becomes_a_table_and_what_was_rejected(media, tmp_path, in_process, capsys):
    out = tmp_path / "clips.tsv"
    rows = run(media, out)
    clips = read_clips(out, media)
    assert len(clips) == len(rows) == 10 and all(clip.video.is_file() for clip in clips)
    assert [(clip.start_time, clip.end_time) for clip in clips] == [(0, 2), (2, 4)] * 5
    assert {row["caption"] for row in rows} >= {"sound of größe 🐕", "sound of Walk", "sound of walk"}
    assert len({row["id"].lower() for row in rows}) == 10
    for row in rows:
        assert (row["cut"], row["warnings"], f"{row['original_video']}.mp4") == ("regular", "", row["video_path"])
        assert (row["original_start_time"], row["original_end_time"]) == (row["start_time"], row["end_time"])
    reasons = {row["video_path"]: (row["reason"], row["detail"]) for row in rejected(out)}
    assert {name: reason for name, (reason, _) in reasons.items()} == {
        "broken.mp4": "undecodable",
        "mute.mp4": "no sound",
        "nothing said.mp4": "no caption",
        "short.mp4": "too short",
        "silent.mp4": "silent",
    }
    assert reasons["nothing said.mp4"][1] == "no nothing said.txt lies beside it"
    printed = capsys.readouterr().out
    assert (
        "10 clips of 5 sources: 20 seconds, of 36 seconds in 9 files" in printed
        and "1 no sound" in printed
        and "2 silent" in printed
    )
    assert f"python -m mmaudio_jax.features --clips {out} --root {media}" in printed and "--duration 2" in printed
    assert "nothing said.mp4" not in in_process  # what has no caption is not decoded


@pytest.mark.parametrize(
    ("train", "val", "asked", "drawn", "said"),
    [
        (2, 1, 0.1, True, "  val   1 clip of 1 source: 1 second (33% of the sources; 10% was asked for)"),
        (4, 1, 0.1, True, "  val   1 clip of 1 source: 1 second"),
        (7, 3, 0.125, True, "  val   3 clips of 3 sources: 3 seconds (30% of the sources; 12.5% was asked for)"),
        (7, 2, 0.1, True, "  val   2 clips of 2 sources: 2 seconds (22% of the sources; 10% was asked for)"),
        (6, 2, 0.125, True, "  val   2 clips of 2 sources: 2 seconds"),
        (2, 1, 0.1, False, "  val   1 clip of 1 source: 1 second"),
    ],
)
def test_more_on_a_side_than_was_asked_for_is_said_where_it_is_far_more(train, val, asked, drawn, said):
    sides = ["train"] * train + ["val"] * val
    rest = {"start_time": "0", "end_time": "1", "warnings": ""}
    rows = [{"split": side, "original_video": f"{i}", **rest} for i, side in enumerate(sides)]
    summary = prepare._summary(Assembled(rows, files=1, drawn=drawn), choices(val=asked))
    assert summary.splitlines()[2] == said and " in 1 file\n" in summary


def test_sides_are_those_of_sources(media, tmp_path, in_process):
    rows = run(media, tmp_path / "clips.tsv", test=0.3)
    sides = {}
    for row in rows:
        sides.setdefault(row["original_video"], set()).add(row["split"])
    assert all(len(found) == 1 for found in sides.values())
    assert set.union(*sides.values()) == {"train", "val", "test"}


def test_a_last_piece_and_the_most_of_a_source(media, tmp_path, in_process, capsys):
    rows = run(media, tmp_path / "clips.tsv", least=0.5)
    assert [row["end_time"] for row in rows if row["video_path"] == "z.mp4"] == ["2", "4", "5"]
    assert "--short pad" in capsys.readouterr().out
    rows = run(media, tmp_path / "clips.tsv", least=0.5, max_per_source=1)
    assert len(rows) == 6 and "\nleft out: 10 clips (--max_per_source)\n" in capsys.readouterr().out


def test_the_table_is_the_same_again_and_only_the_new_is_looked_at(media, tmp_path, in_process):
    folder, out = shutil.copytree(media, tmp_path / "media"), tmp_path / "clips.tsv"
    first = run(folder, out)
    content = out.read_bytes()
    in_process.clear()
    assert run(folder, out) == first and out.read_bytes() == content and in_process == []
    write(folder / "new.mp4", seconds=3)
    (folder / "new.txt").write_text("new")
    (folder / "z.txt").write_text("another caption")
    rows = run(folder, out)
    assert in_process == ["new.mp4"] and {row["caption"] for row in rows} >= {"new", "another caption"}
    before = {row["id"]: row["split"] for row in first}
    assert {row["id"]: row["split"] for row in rows if row["id"] in before} == before

    cache = tmp_path / "clips.inspected.jsonl"
    cache.write_text(cache.read_text()[:-40])  # as a kill leaves it
    out.unlink()
    in_process.clear()
    assert run(folder, out) == rows and len(in_process) <= 1


def test_a_table_that_somebody_changed_is_not_written_over(media, tmp_path, in_process):
    out = tmp_path / "clips.tsv"
    rows = run(media, out)
    write_table(out, [{**row, "caption": "better"} for row in rows])
    with pytest.raises(UserError, match="has not written it or it was changed since; choose another --out"):
        run(media, out)
    assert {row["caption"] for row in read_table(out).rows} == {"better"}
    again = run(media, tmp_path / "again.tsv", list_file=out)
    changes = ("caption", "cut")
    assert [{k: v for k, v in row.items() if k not in changes} for row in again] == [
        {k: v for k, v in row.items() if k not in changes} for row in rows
    ]
    with pytest.raises(UserError, match="would be written over"):
        run(media, out, list_file=out)


def test_captions_of_parts_are_cut_within_them(media, tmp_path, in_process):
    table = tmp_path / "captions.csv"
    table.write_text(
        "file,start,end,caption,title\n"
        'z,0.5,4.7,"rain, loud",T\nz.mp4,0.5,4.7,also,\nb/walk.mp4,4.5,9,late,\nnowhere.mp4,0,2,x,\nz,1,2,short,\n'
        "z.mp4,2.5,4.7,also,\n"
    )
    folder = tmp_path / "videos"
    shutil.copytree(media, folder)
    (folder / "short.txt").write_text(" \n")
    rows = run(folder, tmp_path / "clips.tsv", captions_file=table)
    parts = [(row["start_time"], row["end_time"], row["title"]) for row in rows if row["caption"] == "rain, loud"]
    assert parts == [("0.5", "2.5", "T"), ("2.5", "4.5", "T")]
    also = [row for row in rows if row["caption"] == "also"]  # of the same parts
    assert [(row["start_time"], row["end_time"]) for row in also] == [("0.5", "2.5"), ("2.5", "4.5")]
    assert len({row["id"] for row in rows}) == len(rows)
    assert any(row["caption"] == "sound of Walk" for row in rows)  # what the table leaves out
    faults = rejected(tmp_path / "clips.tsv")
    uncaptioned = {row["video_path"]: row["detail"] for row in faults if row["reason"] == "no caption"}
    beside = "no row of captions names it, and no nothing said.txt lies beside it"
    assert uncaptioned == {"nothing said.mp4": beside, "short.mp4": "short.txt beside it is empty"}
    found = {row["caption"]: row for row in faults}
    assert {found[caption]["reason"] for caption in ("late", "short")} == {"too short"}
    assert found["x"]["reason"] == "missing" and (found["also"]["row"], found["also"]["reason"]) == ("7", "double")
    assert found["also"]["detail"] == f"the same part with the same caption is the clip {also[1]['id']}"


def test_lists_keep_their_ids_and_sides(media, tmp_path, in_process, capsys):
    folder = tmp_path / "vggsound"
    for name in ("abc_000010.mp4", "deep/-de_000020.mp4", "fgh_000000.mp4"):
        write(folder / name)
    (tmp_path / "v.csv").write_text('abc,10,rain,train\n-de,20,"wind, hail",test\nfgh,0,x,train\ngone,7,x,train\nx,y\n')
    rows = run(folder, tmp_path / "clips.tsv", duration=4.0, list_file=tmp_path / "v.csv")
    assert [(row["id"], row["original_video"], row["caption"]) for row in rows] == [
        ("abc_000010", "abc", "rain"),
        ("-de_000020", "-de", "wind, hail"),
        ("fgh_000000", "fgh", "x"),
    ]
    assert rows[1]["split"] == "test" and sorted((rows[0]["split"], rows[2]["split"])) == ["train", "val"]
    assert [(row["id"], row["reason"]) for row in rejected(tmp_path / "clips.tsv")] == [
        ("gone_000007", "missing"),
        ("", "bad row"),
    ]


VGGSOUND = "abc,3,rain,train\nabc,20,hail,train\nabc,40,snow,train\ndef,3,wind,train\nghi,3,sea,train\n"
AUDIOCAPS = (
    "audiocap_id,youtube_id,start_time,caption\n1,abc,3,rain\n2,abc,20,hail\n3,abc,40,snow\n4,def,3,wind\n5,ghi,3,sea\n"
)


@pytest.mark.parametrize("content", [VGGSOUND, AUDIOCAPS])
def test_of_a_whole_video_the_segment_is_taken_that_the_caption_is_of(content, tmp_path, in_process):
    folder, file = tmp_path / "videos", tmp_path / "list.csv"
    write(folder / "abc.mp4", seconds=27)
    write(folder / "def.mp4", seconds=10.5)  # the segment alone
    write(folder / "ghi_000003.mp4", seconds=12.5)  # the segment alone, though it was cut too long
    file.write_text(content)
    rows = run(folder, tmp_path / "clips.tsv", duration=4.0, list_file=file)
    times = [tuple(float(row[name]) for name in ("start_time", "end_time")) for row in rows]
    assert list(zip((row["caption"] for row in rows), times, strict=True)) == [
        ("rain", (3, 7)),
        ("rain", (7, 11)),
        ("hail", (20, 24)),
        ("wind", (0, 4)),
        ("wind", (4, 8)),
        ("sea", (0, 4)),
        ("sea", (4, 8)),
        ("sea", (8, 12)),
    ]
    assert [row["original_start_time"] for row in rows] == ["3", "3", "20", *"33333"]
    ids = ["abc_000003", "abc_000020", "def_000003"] if content == VGGSOUND else ["1", "2", "4"]
    assert [row["id"] for row in rows[:5:2]] == [ids[0], ids[1], f"{ids[2]}_00004000"]
    (gone,) = rejected(tmp_path / "clips.tsv")
    assert (gone["caption"], gone["reason"]) == ("snow", "too short") and "from 40 s on" in gone["detail"]


def test_bad_ids_of_a_list_become_safe_ones(media, tmp_path, in_process, capsys):
    ids = ["a/b", "ok", "OK", " x", ".y", "i" * 255, "🐕 ü", "new\nline"]
    place = {"video_path": "z.mp4", "start_time": "0", "end_time": "2"}
    rows = [{"id": id, "caption": f"caption {i}", **place} for i, id in enumerate(ids)]
    write_table(tmp_path / "list.tsv", rows)
    found = run(media, tmp_path / "clips.tsv", list_file=tmp_path / "list.tsv")
    assert [row["id"] for row in found if not row["original_id"]] == ["ok", "🐕 ü"]
    assert [row["original_id"] for row in found] == ["a/b", "", "OK", " x", ".y", "i" * 255, "", "new\nline"]
    assert len({row["id"].lower() for row in found}) == len(ids)
    assert "made up anew: 6 ids that cannot name a file, or came twice; see original_id" in capsys.readouterr().out
    assert run(media, tmp_path / "again.tsv", list_file=tmp_path / "list.tsv") == found


def listed(path, *rows):
    """A list of (file, start, end, caption, source, side)."""
    names = ("video_path", "start_time", "end_time", "caption", "original_video", "split")
    write_table(path, [{"id": f"id{i}"} | dict(zip(names, row, strict=True)) for i, row in enumerate(rows)])
    return path


def test_what_is_the_same_part_with_the_same_caption_is_a_double(media, tmp_path, in_process):
    """Whatever its row says that features are not made of; another caption, or another part, is no double."""
    rows = [("z.mp4", "0", "2", "rain"), ("z.mp4", "0", "3", "rain"), ("./z.mp4", "0", "2", " rain ")]
    rows += [("z.mp4", "0", "2", "wind"), ("z.mp4", "0", "1.9", "rain"), ("z.mp4", "1", "3", "rain")]
    list_file = listed(tmp_path / "list.tsv", *((*row, "", "") for row in rows))
    found = run(media, tmp_path / "clips.tsv", least=1, list_file=list_file)
    assert [row["id"] for row in found] == ["id0", "id3", "id4", "id5"]
    doubles = [(row["id"], row["reason"], row["detail"]) for row in rejected(tmp_path / "clips.tsv")]
    assert doubles == [(id, "double", "the same part with the same caption is the clip id0") for id in ("id1", "id2")]


@pytest.fixture
def copied(tmp_path):
    """Videos with captions: "k copy" and a/b are copies of k, the former with its caption, the latter with another."""
    folder = tmp_path / "videos"
    for name in ("k", "l", "m", "n"):
        write(folder / f"{name}.mp4")
        (folder / f"{name}.txt").write_text("rain")
    (folder / "a").mkdir()
    for name, caption in (("k copy", "rain"), ("a/b", "wind")):
        shutil.copy(folder / "k.mp4", folder / f"{name}.mp4")
        (folder / f"{name}.txt").write_text(caption)
    return folder


@pytest.mark.parametrize("seed", range(4))
def test_copies_of_a_file_are_one_source(copied, tmp_path, in_process, seed):
    rows = run(copied, tmp_path / "clips.tsv", val=0.4, seed=seed)
    of_copies = [row for row in rows if row["video_path"] in ("k.mp4", "a/b.mp4")]
    assert len(rows) == 10 and len(of_copies) == 4 and len({row["split"] for row in of_copies}) == 1
    assert {row["original_video"] for row in of_copies} == {"a/b"}  # the first by name
    (first, _), found = [row["id"] for row in rows if row["video_path"] == "k.mp4"], rejected(tmp_path / "clips.tsv")
    assert [(row["video_path"], row["reason"]) for row in found] == [("k copy.mp4", "double")] * 2
    detail = f"the file is a copy of k.mp4; the same part with the same caption is the clip {first}"
    assert found[0]["detail"] == detail
    assert len(run(copied, tmp_path / "clips.tsv", seed=seed, max_per_source=1)) == 4


def test_copies_keep_the_source_and_the_side_that_a_list_tells(copied, tmp_path, in_process):
    rest = [("l.mp4", "0", "2", "x", "L", ""), ("m.mp4", "0", "2", "x", "L", "train")]
    copies = [
        ("k.mp4", "0", "2", "c", "K", ""),
        ("a/b.mp4", "2", "4", "c", "", ""),
        ("k copy.mp4", "0", "2", "d", "X", "test"),
    ]
    found = run(copied, tmp_path / "clips.tsv", list_file=listed(tmp_path / "list.tsv", *rest, *copies))
    sides = [(row["original_video"], row["split"]) for row in found[2:]]
    assert sides == [("K", "test"), ("a/b", "test"), ("X", "test")] and found[0]["split"] == found[1]["split"] != "test"
    copies[1] = (*copies[1][:5], "train")
    found = run(copied, tmp_path / "clips.tsv", val=0.0, list_file=listed(tmp_path / "list.tsv", *rest, *copies))
    assert [(row["original_video"], row["split"]) for row in found[2:]] == [("K", "train"), ("a/b", "train")]
    (row,) = rejected(tmp_path / "clips.tsv")
    assert row["reason"] == "double" and row["detail"].startswith("the file is a copy of a/b.mp4, which is on another")


def test_of_a_file_a_list_may_tell_parts_of_several_sources(copied, tmp_path, in_process):
    rows = [("k.mp4", "0", "2", "c", "one", "train"), ("k.mp4", "2", "4", "c", "two", "val")]
    found = run(copied, tmp_path / "clips.tsv", list_file=listed(tmp_path / "list.tsv", *rows))
    assert [(row["original_video"], row["split"]) for row in found] == [("one", "train"), ("two", "val")]


def test_clips_begin_at_onsets_and_end_before_cuts(tmp_path, in_process):
    audio = 5e-3 * np.random.default_rng(0).standard_normal((1, 10 * RATE)).astype(np.float32)
    for at in (2.0, 3.0, 6.5):
        audio[:, int(at * RATE) :][:, :2000] += 0.5 * tone(0.125, RATE)

    def picture(i, width, height):
        return np.full((height, width, 3), (200, 40, 40) if i < 33 else (40, 60, 200), np.uint8)

    (tmp_path / "v").mkdir()
    write_media(
        tmp_path / "v/a.mp4",
        fps=10,
        count=100,
        size=(64, 64),
        audio=audio,
        rate=RATE,
        picture=picture,
    )
    (tmp_path / "v/a.txt").write_text("knocks")
    rows = run(tmp_path / "v", tmp_path / "o.tsv", cut="onsets")
    assert np.allclose([float(row["start_time"]) for row in rows], [1.8, 6.3], atol=0.03)
    rows = run(tmp_path / "v", tmp_path / "s.tsv", cut="scenes")
    assert [row["start_time"] for row in rows] == ["0", "3.3", "5.3", "7.3"]
    assert {row["cut"] for row in rows} == {"scenes"} and {row["warnings"] for row in rows} == {"still"}
    assert rows[0]["split"] == "train"  # of one source, nothing can be put aside


def test_long_captions_stay_and_are_told(media, tmp_path, in_process):
    (tmp_path / "c.jsonl").write_text(json.dumps({"name": "z.mp4", "text": "word " * 2000 + "\x00🐕"}) + "\n")
    rows = run(media, tmp_path / "clips.tsv", captions_file=tmp_path / "c.jsonl")
    (caption,) = {row["caption"] for row in rows if row["warnings"] == "long caption"}
    assert caption == "word " * 2000 + "🐕"


def test_nothing_that_can_be_used_is_an_error_with_a_list(tmp_path, in_process):
    write(tmp_path / "v/mute.mp4", mute=True)
    (tmp_path / "v/mute.txt").write_text("x")
    with pytest.raises(
        UserError, match=r"no clip that can be used \(1 no sound\); the reasons are in .*clips.rejected"
    ):
        run(tmp_path / "v", tmp_path / "clips.tsv")
    assert not (tmp_path / "clips.tsv").exists() and len(rejected(tmp_path / "clips.tsv")) == 1
    (tmp_path / "l.csv").write_text("abc,1,x,train\nabc,9,x,test\n")
    for name in ("abc_000001", "abc_000009"):
        shutil.copy(tmp_path / "v/mute.mp4", tmp_path / f"v/{name}.mp4")
    with pytest.raises(UserError, match="the source abc are on two sides of the split, train and test"):
        run(tmp_path / "v", tmp_path / "clips.tsv", list_file=tmp_path / "l.csv")


def command(folder, out):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    flags = [f"--out={out}", "--duration=2", "--workers=1", "--val=0.3"]
    words = [sys.executable, "-m", "mmaudio_jax.data.prepare", folder, *flags]
    return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_run_goes_on_and_ends_as_an_unbroken_one(media, tmp_path, in_process):
    out, whole = tmp_path / "broken/clips.tsv", tmp_path / "whole/clips.tsv"
    run(media, whole)
    process = command(media, out)
    cache = out.with_name("clips.inspected.jsonl")
    while process.poll() is None and not (cache.exists() and cache.read_text().count("\n")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # which waits until no worker holds the pipe
    known = cache.read_text().count("\n")
    assert known and not out.exists()
    process = command(media, out)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "rejected: " in printed, errors
    for name in ("clips.tsv", "clips.rejected.tsv"):
        assert (out.parent / name).read_bytes() == (whole.parent / name).read_bytes()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_the_system_cannot_read_is_told_and_tried_again(media, tmp_path, in_process, monkeypatch, code):
    hashed = inspection.sha256

    def refusing(path):
        if path.name == "z.mp4":
            raise OSError(code, os.strerror(code))
        return hashed(path)

    monkeypatch.setattr(inspection, "sha256", refusing)
    rows = run(media, tmp_path / "clips.tsv")
    (fault,) = [row for row in rejected(tmp_path / "clips.tsv") if row["video_path"] == "z.mp4"]
    assert (fault["reason"], fault["detail"]) == ("undecodable", f"it cannot be read ({os.strerror(code)})")
    monkeypatch.undo()
    again = run(media, tmp_path / "clips.tsv")
    assert len(again) == len(rows) + 2 and {"z.mp4"} == {row["video_path"] for row in again if row not in rows}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers=0"], "--workers is 0; it must be 1 or more"),
        (["--stride=0"], "--stride is 0; it must lie in [0.001, 1000000) seconds"),
        (["--val=0.7", "--test=0.3"], "the shares of validation and test are 0.7 and 0.3"),
        (["--duration=0.5"], "--duration is 0.5; it must lie in [0.64, 60] seconds, which the networks take"),
        (["--duration=1e9"], "--duration is 1e+09; it must lie in [0.64, 60]"),
        (["--min_duration=0.1"], "--min_duration is 0.1; it must lie in [0.64, 60]"),
        (["--out=."], ". is a folder; name a file, such as clips.tsv"),
        (["--duration=2", "--min_duration=3"], "the shortest clip, 3 s, is longer than a clip, 2 s"),
    ],
)
def test_mistakes_of_the_command_are_one_sentence(media, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.setattr(sys, "argv", ["prepare", str(media), f"--out={tmp_path / 'clips.tsv'}", *flags])
    with pytest.raises(SystemExit) as end:
        prepare.main()
    printed = capsys.readouterr().err
    assert end.value.code == 1 and printed.startswith(f"error: {message}") and printed.count("\n") == 1
