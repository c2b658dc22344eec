"""An extraction can be stopped at any time, shared out, and done again for what is new: the set is always the same."""

import dataclasses
import errno
import json
import os
import shutil
import time

import filelock
import numpy as np
import pytest
import soak_features
from echo_encoders import EchoEncoders
from hypothesis import given
from hypothesis import strategies as st

from mmaudio_jax import extraction
from mmaudio_jax.data import part
from mmaudio_jax.data.clips import Clip
from mmaudio_jax.data.part import WHOLE, PartName
from mmaudio_jax.data.records import open_features
from mmaudio_jax.data.table import read_table
from mmaudio_jax.errors import UserError

KILLS, CLIPS = 2, 8  # `make soak` does more


def content(folder):
    """{name: bytes} of all that lies in a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def root(small_videos, tmp_path):
    """Videos that a test may change; times stay."""
    return shutil.copytree(small_videos, tmp_path / "videos")


@pytest.fixture
def clips(root):
    """Seven clips of three videos."""

    def clip(i):
        name, start, end = f"{i % 3}.mp4", 0.01 * i, 1.1
        columns = {"id": f"clip{i}", "video_path": name, "caption": f"sound {i}", "original_video": name}
        return Clip(f"clip{i}", root / name, start, end, f"sound {i}", i + 2, columns)

    return [clip(i) for i in range(7)]


@pytest.fixture
def extract(tmp_path):
    """Extracts into a set of this name; returns how many clips were encoded."""

    def run(clips, out="set", encoders=None, **options):
        encoders = encoders or EchoEncoders()
        extraction.extract(clips, encoders, tmp_path / out, **{"mode": "16k", "duration": 1.0} | options)
        return encoders.heard

    return run


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


class Mortal(EchoEncoders):
    """Lives for so many sounds."""

    def __init__(self, life):
        super().__init__()
        self.life = life

    def encode_audio(self, audio, mode):
        if self.heard == self.life:
            raise Killed
        return super().encode_audio(audio, mode)


def test_what_is_done_is_not_done_again(extract, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(part, "SHARD_BYTES", 20_000)
    assert extract(clips, "whole") == 7
    assert len(content(tmp_path / "whole")) > 3
    lives = [3, 0, 2]
    for life in lives:
        with pytest.raises(Killed):
            extract(clips, encoders=Mortal(life))
        assert not (tmp_path / "set" / str(WHOLE)).exists()
    assert extract(clips) == 7 - sum(lives)
    assert content(tmp_path / "set") == content(tmp_path / "whole")


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_as_the_part_is_replaced_is_mended(extract, clips, tmp_path, monkeypatch, renames):
    extract(clips[:5])
    before = content(tmp_path / "set")
    left, rename = [renames], os.rename

    def mortal(*paths):
        if not left[0]:
            raise Killed
        left[0] -= 1
        rename(*paths)

    monkeypatch.setattr(os, "rename", mortal)
    with pytest.raises(Killed):
        extract(clips)
    monkeypatch.setattr(os, "rename", rename)
    if renames:
        with pytest.raises(UserError, match=f"lacks {WHOLE}; go on with `python -m mmaudio_jax.features"):
            open_features(tmp_path / "set")
    else:
        assert len(open_features(tmp_path / "set")) == 5
    assert extract(clips) == 0
    assert open_features(tmp_path / "set").ids == [clip.id for clip in clips]
    extract(clips[:5])
    assert content(tmp_path / "set") == before


def test_killed_again_and_again_the_command_leaves_what_it_would_have(small_weights, small_videos, tmp_path):
    killed, whole = soak_features.prepare(small_weights, small_videos, tmp_path, CLIPS)
    whole.finish()
    assert soak_features.soak(killed, whole, KILLS, seed=0) == []


def test_a_set_that_is_there_is_left_alone(extract, clips, tmp_path, capsys):
    extract(clips)
    before = content(tmp_path / "set"), (tmp_path / "set" / str(WHOLE)).stat().st_mtime_ns
    assert extract(clips) == 0
    assert f"{tmp_path / 'set'} has 7 clips: 7 encoded before; nothing has changed" in capsys.readouterr().out
    assert before == (content(tmp_path / "set"), (tmp_path / "set" / str(WHOLE)).stat().st_mtime_ns)


def changed(clip, **changes):
    return dataclasses.replace(clip, **changes, columns=clip.columns | {k: str(v) for k, v in changes.items()})


def test_only_what_is_new_or_has_changed_is_encoded(extract, clips, root, tmp_path, capsys):
    extract(clips[:5])
    assert "has 5 clips: 5 encoded now\n" in capsys.readouterr().out
    os.utime(root / "1.mp4", ns=(1, 1))  # clips 1 and 4
    noted = dataclasses.replace(clips[3], columns=clips[3].columns | {"original_video": "another.mp4"})
    rows = [clips[5], noted, changed(clips[2], caption="another"), clips[1], clips[0]]
    assert extract(rows) == 3
    assert "has 5 clips: 3 encoded now, 2 encoded before; dropped 1 that the table no longer has" in (
        capsys.readouterr().out
    )
    assert extract(rows, "fresh") == 5
    assert content(tmp_path / "set") == content(tmp_path / "fresh")
    assert open_features(tmp_path / "set").sources[1] == "another.mp4"


def test_the_records_of_videos_that_are_gone_stay(extract, clips, root, tmp_path):
    extract(clips[:5])
    before = content(tmp_path / "set")
    for video in root.glob("[0-2].mp4"):
        video.unlink()
    assert extract(clips[:5]) == 0
    assert content(tmp_path / "set") == before
    with pytest.raises(UserError, match="2 of 7 clips could not be used"):
        extract(clips)
    assert open_features(tmp_path / "set").ids == [clip.id for clip in clips[:5]]


def test_failed_clips_are_tried_again(extract, clips, root, tmp_path):
    (root / "1.mp4").rename(root / "later.mp4")
    for _ in range(2):
        with pytest.raises(UserError, match=f"2 of 7 clips could not be used; .*{WHOLE}/failed.tsv, and the other 5"):
            extract(clips)
        reasons = {row["id"]: row["reason"] for row in read_table(tmp_path / f"set/{WHOLE}/failed.tsv").rows}
        assert list(reasons) == ["clip1", "clip4"] and "no such file" in reasons["clip1"]
    (root / "later.mp4").rename(root / "1.mp4")
    assert extract(clips) == 2
    assert extract(clips, "fresh") == 7
    assert content(tmp_path / "set") == content(tmp_path / "fresh")


def test_where_no_clip_can_be_used_what_was_there_stays(extract, clips, root, tmp_path):
    extract(clips[:2])
    before = content(tmp_path / "set")
    with pytest.raises(
        UserError, match=f"none of the 1 clips could be used; .*set.failed.tsv; .*{WHOLE} stays as it was"
    ):
        extract([dataclasses.replace(clips[5], video=root / "nowhere.mp4")])
    assert content(tmp_path / "set") == before


@pytest.mark.parametrize("count", [2, 3, 9])
def test_the_set_is_the_same_in_any_number_of_parts(extract, clips, tmp_path, count):
    extract(clips, "whole")
    for index in reversed(range(count)):
        with pytest.raises(UserError, match="there is no feature set|lacks part-00000"):
            open_features(tmp_path / "set")
        extract(clips, name=PartName(index, count))
    whole, shared = open_features(tmp_path / "whole"), open_features(tmp_path / "set")
    assert whole.table.rows == shared.table.rows and len(shared) == 7
    assert all(part.pack(whole.read(i), "float32") == part.pack(shared.read(i), "float32") for i in range(7))
    with pytest.raises(UserError, match=rf"is a set of {count} part\(s\), not of 1: go on with --shard 0/{count} to"):
        extract(clips)


def test_a_clip_whose_decoder_hangs_holds_up_no_other(extract, clips, tmp_path, monkeypatch):
    encoders, before, read_media = EchoEncoders(), [], extraction.read_media

    def read(clip, **options):
        if clip is clips[0]:
            deadline = time.monotonic() + 10
            while encoders.heard < 6 and time.monotonic() < deadline:
                time.sleep(0.01)
            before.append(encoders.heard)
        return read_media(clip, **options)

    monkeypatch.setattr(extraction, "read_media", read)
    extract(clips, encoders=encoders)
    assert before == [6]
    assert open_features(tmp_path / "set").ids == [clip.id for clip in clips]


def test_a_caption_that_is_cut_is_told_when_its_clip_comes(extract, clips, monkeypatch, capsys):
    encoders, looked_at = EchoEncoders(), []
    clips[4] = dataclasses.replace(clips[4], caption="rain " * 80)
    is_cut = extraction.is_cut
    monkeypatch.setattr(extraction, "is_cut", lambda caption: looked_at.append(encoders.heard) or is_cut(caption))
    extract(clips, encoders=encoders)
    assert looked_at == list(range(7))
    assert capsys.readouterr().out.count("warning: clip4: CLIP reads the first 77 tokens of the caption, it has") == 1


def test_a_part_of_another_table_is_refused(extract, clips, tmp_path):
    extract(clips, name=PartName(0, 2))
    extract([*clips[:6], dataclasses.replace(clips[6], id="other")], name=PartName(1, 2))
    with pytest.raises(UserError, match="part-00001-of-00002 has another clips.tsv than .*start its extraction again"):
        open_features(tmp_path / "set")
    assert extract(clips, name=PartName(1, 2)) == 0
    assert open_features(tmp_path / "set").ids == [clip.id for clip in clips]


def test_two_extractions_of_one_part_are_one_too_many(extract, clips, tmp_path):
    with pytest.raises(Killed):
        extract(clips, encoders=Mortal(2))
    lock = tmp_path / "set" / f".{WHOLE}.lock"
    with filelock.FileLock(lock), pytest.raises(UserError, match=f"another extraction is at work on .*{WHOLE}; wait"):
        extract(clips)
    assert extract(clips) == 5


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"duration": 0.8}, "was made with duration 1 s, not 0.8 s: choose another --out, or remove it"),
        ({"dtype": "bfloat16"}, "was made with dtype float32, not bfloat16: choose another --out, or remove it"),
        ({"encoders": EchoEncoders("others")}, "was made with another clip: choose another --out, or remove it"),
    ],
)
def test_a_set_of_other_settings_is_not_overwritten(extract, clips, tmp_path, other, message):
    extract(clips)
    before = content(tmp_path / "set")
    with pytest.raises(UserError, match=message):
        extract(clips, **other)
    assert content(tmp_path / "set") == before


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (lambda raw: raw[:-1] + b"?", 0),  # behind all records
        (lambda raw: raw[:5000] + bytes([raw[5000] ^ 255]) + raw[5001:], 1),
        (lambda raw: raw[:-1000], 2),
    ],
)
def test_what_is_damaged_of_a_shard_is_made_again(extract, clips, tmp_path, monkeypatch, capsys, damage, lost):
    monkeypatch.setattr(part, "SHARD_BYTES", 20_000)
    extract(clips)
    before = content(tmp_path / "set")
    shard = tmp_path / "set" / str(WHOLE) / "shard-00001.array_record"
    shard.write_bytes(damage(shard.read_bytes()))
    assert extract(clips) == lost and f": {lost} of its clips are encoded again" in capsys.readouterr().err
    assert content(tmp_path / "set") == before


def test_a_full_disk_loses_nothing(extract, clips, tmp_path, monkeypatch):
    pack, calls = part.pack, []

    def full(*args):
        calls.append(1)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pack(*args)

    monkeypatch.setattr(part, "pack", full)
    with pytest.raises(OSError, match="No space left") as error:
        extract(clips)
    assert str(tmp_path / "set") in error.value.filename
    assert extract(clips) == 4


@pytest.mark.parametrize("whole", [0, 3000])  # bytes that had come to the disk
def test_a_record_that_a_power_failure_left_is_found(extract, clips, tmp_path, whole):
    with pytest.raises(Killed):
        extract(clips, encoders=Mortal(2))
    record = next((tmp_path / "set" / f".{WHOLE}.work" / "records").iterdir())
    written = record.read_bytes()
    record.write_bytes(written[:whole] + bytes(len(written) - whole) if whole else b"")
    with pytest.raises(UserError, match="was damaged .* and is removed; start the same command again"):
        extract(clips)
    assert extract(clips) == 1


def test_sounds_and_padded_clips_are_examples(extract, clips, root, tmp_path, capsys):
    sound = dataclasses.replace(clips[1], video=root / "sound.wav")
    short = dataclasses.replace(clips[2], end_time=clips[2].start_time + 0.8)
    rows = [clips[0], sound, short]
    with pytest.raises(UserError, match="1 of 3 clips could not be used"):
        extract(rows)
    assert extract(rows, short="pad", dtype="bfloat16", out="padded") == 3
    assert "has 3 clips: 3 encoded now, 1 without a picture\n" in capsys.readouterr().out
    examples = [*open_features(tmp_path / "padded")]
    assert [int(example["latents"]) for example in examples] == [32, 32, 25]
    assert [bool(example["has_video"]) for example in examples] == [True, False, True]
    assert not examples[1]["clip_f"].any() and all(example["has_text"] for example in examples)


def test_a_table_whose_rows_are_not_the_records_is_not_believed(extract, clips, tmp_path):
    extract(clips)
    before, table = content(tmp_path / "set"), tmp_path / "set" / str(WHOLE) / "clips.tsv"
    lines = table.read_text().splitlines(keepends=True)
    for others in (lines[:1] + lines[2:3] + lines[1:2] + lines[3:], lines[:3] + lines[4:] + ["x" + lines[3]]):
        table.write_text("".join(others))
        with pytest.raises(UserError, match="has other ids than were written, or in another order"):
            open_features(tmp_path / "set").ids  # noqa: B018
        with pytest.raises(UserError, match=f"put it back as it was, or move .*{WHOLE} away and start its extraction"):
            extract(clips)
    table.write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match="has 6 rows for 7 examples; put it back"):
        extract(clips)
    table.unlink()
    with pytest.raises(UserError, match="there is no table .*; put it back"):
        extract(clips)
    table.write_text("".join(lines).replace("sound 3", "a sound"))
    with pytest.raises(UserError, match="has other captions than those that were encoded; put them back"):
        open_features(tmp_path / "set").captions  # noqa: B018
    assert extract(clips) == 0 and content(tmp_path / "set") == before  # the rows are still those of the records


def test_a_set_of_the_release_before_opens_and_is_not_gone_on_with(extract, clips, tmp_path):
    extract(clips)
    file = tmp_path / "set" / str(WHOLE) / "metadata.json"
    about = json.loads(file.read_text())
    del about["ids"]
    file.write_text(json.dumps(about | {"schema_version": 2}))
    assert open_features(tmp_path / "set").ids == [clip.id for clip in clips]
    with pytest.raises(UserError, match="was made by an earlier release: choose another --out, or remove it"):
        extract(clips)


@pytest.mark.parametrize("gone", [False, True])
def test_parts_of_a_table_that_grows_keep_what_they_have(extract, clips, root, tmp_path, gone):
    new = dataclasses.replace(clips[2], id="new", start_time=0.05, columns=clips[2].columns | {"id": "new"})
    for index in range(3):
        extract(clips[:6], name=PartName(index, 3))
    if gone:
        (root / "0.mp4").unlink()
        (root / "1.mp4").unlink()
    grown = [new, *clips[:6]]
    assert sum(extract(grown, name=PartName(index, 3)) for index in range(3)) == 1
    features = open_features(tmp_path / "set")
    assert features.ids == [clip.id for clip in grown]
    assert not list((tmp_path / "set").glob("*.work"))
    if not gone:
        extract(grown, "fresh")
        fresh = open_features(tmp_path / "fresh")
        assert all(part.pack(features.read(i), "float32") == part.pack(fresh.read(i), "float32") for i in range(7))


def test_padding_after_skipping_encodes_the_short_clips_alone(extract, clips, tmp_path):
    rows = [*clips[:3], dataclasses.replace(clips[3], end_time=clips[3].start_time + 0.8)]
    with pytest.raises(UserError, match="1 of 4 clips could not be used"):
        extract(rows)
    assert extract(rows, short="pad") == 1
    assert extract(rows, short="pad") == 0
    with pytest.raises(UserError, match="1 of 4 clips could not be used"):
        extract(rows)
    assert open_features(tmp_path / "set").ids == [clip.id for clip in clips[:3]]


def test_other_numerics_are_another_record_and_lose_none(extract, clips, root, tmp_path):
    def other():
        encoders = EchoEncoders()
        encoders.numerics = "bfloat16, default, a GPU"
        return encoders

    extract(clips[:2], "set")
    assert extract(clips[:2], "another") == extract(clips[:2], "another", other()) == 2
    before = content(tmp_path / "set")
    (root / "1.mp4").unlink()
    for rows, encoders in ((clips[:2], other()), ([clips[0], changed(clips[1], caption="x")], None)):
        with pytest.raises(UserError, match=r"features of 1 clip\(s\), the first 'clip1', .* their videos are gone"):
            extract(rows, encoders=encoders)
        assert content(tmp_path / "set") == before
    assert extract(clips[:1], encoders=other()) == 1


def test_a_folder_where_nothing_was_made_is_gone(extract, clips, root, tmp_path):
    with pytest.raises(UserError, match="none of the 1 clips"):
        extract([dataclasses.replace(clips[0], video=root / "nowhere.mp4")])
    assert not (tmp_path / "set").exists()


@given(st.integers(0, 40), st.integers(1, 12))
def test_blocks_are_the_whole_table_in_order(total, count):
    blocks = [PartName(i, count).block(total) for i in range(count)]
    assert [i for block in blocks for i in block] == list(range(total))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


def test_what_decides_a_record_names_it(clips, root, tmp_path):
    settings = {"mode": "16k"}
    key = extraction.record_key(clips[0], settings)
    assert key == extraction.record_key(dataclasses.replace(clips[0], id="b", line=9), settings)
    moved = shutil.copytree(root, tmp_path / "moved")  # copy2 keeps times
    assert key == extraction.record_key(dataclasses.replace(clips[0], video=moved / "0.mp4"), settings)
    others = [
        extraction.record_key(changed(clips[0], start_time=0.05), settings),
        extraction.record_key(changed(clips[0], end_time=1.05), settings),
        extraction.record_key(changed(clips[0], caption="x"), settings),
        extraction.record_key(clips[0], settings | {"mode": "44k"}),
        extraction.record_key(dataclasses.replace(clips[0], video=root / "1.mp4"), settings),
    ]
    assert len({key, *others}) == 6 and np.all([len(name) < 150 for name in others])
