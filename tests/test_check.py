"""`mmaudio_jax.data.check` names every fault that is planted, and none of a clean set."""

import json
import re
import sys
from fractions import Fraction

import numpy as np
import pytest
from media_files import tone, write_media

from mmaudio_jax.data import media
from mmaudio_jax.data.check import __main__ as check
from mmaudio_jax.data.check import duplicates
from mmaudio_jax.data.example import Metadata, example_shapes
from mmaudio_jax.data.part import PartName, PartWriter
from mmaudio_jax.data.records import FeatureWriter
from mmaudio_jax.encoders import Encoders

SHAPES = example_shapes("16k", 1.0, clip_dim=8, sync_dim=6, text_dim=4)
COUNT = 12
THINGS = ("a dog", "a drum", "rain", "a door", "gravel", "a bell")


def example(rng) -> dict[str, np.ndarray]:
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    return arrays | {"std": np.abs(arrays["std"]) + 0.1}


def rows_and_examples():
    """A clean set: twelve examples of six videos, of which four train, one validates and one tests."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "id": f"clip{i}",
            "caption": f"{THINGS[i // 2]}, {'near' if i % 2 else 'far'}",
            "original_video": f"video{i // 2}",
            "split": "train" if i < 8 else "val" if i < 10 else "test",
        }
        for i in range(COUNT)
    ]
    return rows, [example(rng) for _ in range(COUNT)]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a set of several shards, whatever is wrong with the examples."""

    def call(rows, examples):
        monkeypatch.setattr("mmaudio_jax.data.part.check_arrays", lambda *_: None)
        monkeypatch.setattr("mmaudio_jax.data.part.SHARD_BYTES", 30_000)
        with FeatureWriter(tmp_path / "set", "16k", 1.0, SHAPES) as writer:
            for row, arrays in zip(rows, examples, strict=True):
                writer.append(row, arrays)
        return tmp_path / "set"

    return call


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`python -m mmaudio_jax.data.check SET …`: (exit code, {name: found by the checks}, what it printed)."""

    def call(path, *options):
        report = tmp_path / "report.json"
        report.unlink(missing_ok=True)
        monkeypatch.setattr(sys, "argv", ["check", str(path), "--json", str(report), *map(str, options)])
        with pytest.raises(SystemExit) as end:
            check.main()
        printed = capsys.readouterr()
        found = json.loads(report.read_text())["checks"] if report.exists() else []
        return end.value.code, {each["name"]: each for each in found}, printed.out + printed.err

    return call


def named(found, verdict):
    return {name for name, each in found.items() if each["verdict"] == verdict}


def test_a_clean_set_has_neither_faults_nor_warnings(write, run):
    code, found, printed = run(write(*rows_and_examples()))
    assert code == 0 and not named(found, "fault") and not named(found, "warning")
    assert "12, 0.00333 h" in printed and "8 train, 2 val, 2 test, by the column split" in printed
    assert "0 of" in printed and "6; the largest has 2 examples" in printed
    assert "needs --root" in printed and "needs --weights" in printed


def set_values(index, array, value, rows=...):
    def edit(_, examples):
        examples[index][array][rows] = value

    return edit


def copy_arrays(source, target, *names):
    def edit(_, examples):
        for name in names:
            examples[target][name] = examples[source][name].copy()

    return edit


def nearly(source, target):
    def edit(_, examples):
        noise = np.random.default_rng(1).standard_normal(SHAPES["mean"]).astype(np.float32)
        examples[target]["mean"] = examples[source]["mean"] + 0.001 * noise

    return edit


def set_rows(values, *indices):
    def edit(rows, _):
        for index in indices:
            rows[index].update(values)

    return edit


def together(*edits):
    def edit(rows, examples):
        for each in edits:
            each(rows, examples)

    return edit


PLANTED = [
    ("NaN", set_values(3, "clip_f", np.nan, (2, 1)), {"NaN": ("clip3", "clip_f, row 2 of 8")}),
    ("inf", set_values(4, "mean", np.inf, (5, 0)), {"infinity": ("clip4", "mean, row 5 of 32")}),
    ("zeros", set_values(5, "sync_f", 0, 7), {"rows of zeros": ("clip5", "sync_f, row 7 of 16")}),
    ("constant", set_values(6, "text_f", 0.5, 70), {"rows of one value": ("clip6", "text_f, row 70 of 77")}),
    ("std", set_values(7, "std", -0.1, (0, 1)), {"standard deviations not above 0": ("clip7", "row 0")}),
    (
        "twice",
        together(copy_arrays(0, 1, "mean", "clip_f"), set_rows({"caption": "a dog, far"}, 1)),
        {"the same sound and caption twice": ("clip0", "(id 'clip1')")},
    ),
    ("another caption", copy_arrays(0, 1, "mean"), {"the same sound with another caption": ("clip0", "clip1")}),
    ("same picture", copy_arrays(0, 1, "clip_f"), {"the same picture with another sound": ("clip0", "clip1")}),
    ("nearly", nearly(0, 1), {"nearly the same sound": ("clip0", "(id 'clip1')")}),
    (
        "source leak",
        set_rows({"original_video": "video0"}, 8),
        {"sources in two splits": ("clip0", "'video0' is in train and val")},
    ),
    (
        "content leak",
        copy_arrays(0, 10, "mean", "clip_f"),
        {
            "the same content in two splits": ("clip0", "the sound is in train and test"),
            "the same sound with another caption": ("clip0", "clip10"),
        },
    ),
    (
        "near leak",
        nearly(0, 10),
        {
            "nearly the same sound in two splits": ("clip0", "train and test"),
            "nearly the same sound": ("clip0", "clip10"),
        },
    ),
    ("split", set_rows({"split": "trian"}, 2, 3), {"unknown values of the column split": ("clip2", "'trian'")}),
    ("short", set_rows({"caption": "x"}, 2), {"captions under 3 letters": ("clip2", "'x'")}),
    (
        "long",
        set_rows({"caption": "far " * 80}, 2),
        {"captions over 77 tokens, of which CLIP reads the first": ("clip2", "82 tokens")},
    ),
    (
        "alike",
        set_rows({"caption": "a sound"}, *range(7)),
        {"one caption for most examples": ("clip0", "'a sound' is the caption of 7 of 12 examples")},
    ),
    ("double id", set_rows({"id": "clip1"}, 5), {"double ids": ("clip1", "(id 'clip1')")}),
    (
        "one number",
        set_values(9, "mean", 0.3),
        {
            "rows of one value": ("clip9", "mean, rows 0, 1, 2 and 29 more of 32"),
            "latents of silence": ("clip9", "changes by 0 at most"),
        },
    ),
    (
        "silence",
        lambda _, examples: examples[9].update(mean=np.tile(examples[9]["mean"][:1], (32, 1))),
        {"latents of silence": ("clip9", "changes by 0 at most")},
    ),
    (
        "still",
        lambda _, examples: examples[9].update(clip_f=np.tile(examples[9]["clip_f"][:1], (8, 1))),
        {"pictures that never change": ("clip9", "8 rows")},
    ),
    (
        "shape",
        lambda _, examples: examples[1].update(mean=np.ones((3, 20), np.float32)),
        {"missing or misshapen arrays": ("clip1", "mean is float32 (3, 20)")},
    ),
    ("missing", lambda _, examples: examples[1].pop("sync_f"), {"missing or misshapen arrays": ("clip1", "sync_f")}),
    (
        "two of one example",
        together(set_values(3, "clip_f", np.nan, (2, 1)), set_values(3, "std", 0, (4, 5))),
        {"NaN": ("clip3", "clip_f"), "standard deviations not above 0": ("clip3", "row 4")},
    ),
]
WARNINGS = {
    "the same sound with another caption",
    "the same picture with another sound",
    "nearly the same sound",
    "nearly the same sound in two splits",
    "pictures that never change",
    "captions under 3 letters",
    "captions over 77 tokens, of which CLIP reads the first",
    "one caption for most examples",
}


@pytest.mark.parametrize(("edit", "expected"), [case[1:] for case in PLANTED], ids=[case[0] for case in PLANTED])
def test_a_planted_fault_is_named_with_its_row(edit, expected, write, run):
    rows, examples = rows_and_examples()
    edit(rows, examples)
    code, found, printed = run(write(rows, examples))
    assert named(found, "fault") == expected.keys() - WARNINGS
    assert named(found, "warning") == expected.keys() & WARNINGS
    assert code == int(bool(expected.keys() - WARNINGS))
    for name, (id, what) in expected.items():
        (place, *_) = found[name]["places"]
        assert place["id"] == id and what in place["what"]
        assert place["row"] == [row["id"] for row in rows].index(id) + 2  # the header is line 1
        assert f"row {place['row']} (id '{id}')" in printed


def shard(path, index):
    return path / "part-00000-of-00001" / f"shard-{index:05d}.array_record"


def flip(path):
    raw = bytearray(shard(path, 1).read_bytes())
    raw[len(raw) // 2] ^= 255
    shard(path, 1).write_bytes(raw)


def truncate(path):
    shard(path, 1).write_bytes(shard(path, 1).read_bytes()[:-2000])


def shorten(path):
    table = path / "part-00000-of-00001" / "clips.tsv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-2]))


def flip_a_record(path):
    raw = bytearray(shard(path, 1).read_bytes())
    raw[1000] ^= 1
    shard(path, 1).write_bytes(raw)


def exchange(path):
    table = path / "part-00000-of-00001" / "clips.tsv"
    header, first, second, *others = table.read_text().splitlines(keepends=True)
    table.write_text("".join([header, second, first, *others]))


@pytest.mark.parametrize(
    ("damage", "name", "what"),
    [
        (flip, "files of another size or SHA-256 than was written", "shard-00001.array_record has another content"),
        (truncate, "files of another size or SHA-256 than was written", "shard-00001.array_record has "),
        (flip_a_record, "records that cannot be read", "its record in shard-00001.array_record cannot be read"),
        (exchange, "a table that does not fit the examples", "has other ids than were written, or in another order"),
        (shorten, "a table that does not fit the examples", "has 12 examples but .*clips.tsv has 10 rows"),
    ],
)
def test_damaged_files_do_not_hide_other_faults(damage, name, what, write, run):
    rows, examples = rows_and_examples()
    examples[11]["mean"][3, 4] = np.nan
    rows[5]["id"] = "clip1"
    path = write(rows, examples)
    assert shard(path, 2).exists()
    damage(path)
    code, found, printed = run(path)
    assert code == 1 and found[name]["count"] == 1
    assert re.search(what, found[name]["places"][0]["what"])
    assert found["NaN"]["count"] == 1 and found["double ids"]["count"] == 1


def test_without_its_table_a_set_s_examples_are_told_by_number(write, run):
    rows, examples = rows_and_examples()
    examples[11]["mean"][3, 4] = np.nan
    path = write(rows, examples)
    (path / "part-00000-of-00001" / "clips.tsv").unlink()
    code, found, printed = run(path, "--report", path / "report.html")
    assert code == 1 and named(found, "fault") == {"NaN", "a table that does not fit the examples"}
    assert "there is no table" in printed and "example 11: mean, row 3 of 32" in printed


def test_a_place_names_its_part(run, tmp_path, monkeypatch):
    monkeypatch.setattr("mmaudio_jax.data.part.check_arrays", lambda *_: None)
    rows, examples = rows_and_examples()
    examples[9]["mean"][3, 4] = np.nan
    for index in range(2):
        folder = tmp_path / "set" / str(PartName(index, 2))
        folder.mkdir(parents=True)
        with PartWriter(folder, Metadata("16k", 1.0, SHAPES, 0, dtype="bfloat16")) as writer:
            for i in range(6 * index, 6 * index + 6):
                writer.append(rows[i], examples[i])
    _, found, printed = run(tmp_path / "set")
    assert named(found, "fault") == {"NaN"}
    assert "part-00001-of-00002/clips.tsv row 5 (id 'clip9'): mean, row 3 of 32" in printed


def test_an_empty_caption_of_stored_text_is_a_fault_and_without_it_a_warning(write, run):
    rows, examples = rows_and_examples()
    path = write(rows, examples)
    table = path / "part-00000-of-00001" / "clips.tsv"
    table.write_text(table.read_text().replace("a dog, near", ""))
    code, found, _ = run(path)
    assert code == 1 and named(found, "fault") == {"empty captions of stored text features"}
    assert found["empty captions of stored text features"]["places"][0]["id"] == "clip1"


def test_without_a_column_a_run_s_own_split_is_looked_at(write, run):
    rows, examples = rows_and_examples()
    for row in rows:
        del row["split"]
    for i in range(1, COUNT):
        examples[i]["mean"] = examples[0]["mean"]
    _, found, printed = run(write(rows, examples), "--validation_fraction", "0.5", "--seed", "3")
    assert "6 train, 6 val, by a run with validation_fraction=0.5 and seed=3" in printed
    assert found["the same content in two splits"]["verdict"] == "fault"
    assert found["sources in two splits"]["verdict"] == "ok"


def test_rows_that_say_no_side_are_where_they_are_in_training(write, run):
    rows, examples = rows_and_examples()
    rows[0]["original_video"], rows[0]["split"] = rows[9]["original_video"], ""  # whose clip validates
    rows[1]["split"] = ""
    _, found, printed = run(write(rows, examples))
    assert "3 val, 7 train, 2 test, by the column split" in printed
    assert found["sources in two splits"]["verdict"] == "ok"
    assert found["unknown values of the column split"]["verdict"] == "ok"


def test_the_page_needs_nothing_else(write, run, tmp_path):
    rows, examples = rows_and_examples()
    rows[2]["caption"], examples[3]["mean"][0, 0] = "<script>alert(1)</script> $x_", np.nan
    page = tmp_path / "report.html"
    run(write(rows, examples), "--report", page)
    text = page.read_text()
    assert "<script" not in text and "http" not in text and 'src="data:image/png;base64,' in text
    assert text.index(">NaN<") < text.index("double ids")  # faults come first
    assert "(id &#x27;clip3&#x27;)" in text and "<title>" in text


def test_near_duplicates_among_many_are_those_that_were_planted():
    rng = np.random.default_rng(0)
    sketches = rng.standard_normal((20_000, duplicates.SKETCH)).astype(np.float32)
    sketches[[7, 19_999]] = sketches[[3, 100]] + 1e-3
    hashes = np.arange(20_000, dtype=np.uint64)
    hashes[5] = hashes[4]
    sketches[5] = sketches[4]  # the same is not nearly the same
    assert sorted(duplicates.near(sketches, hashes, np.ones(20_000, bool))) == [(3, 7), (100, 19_999)]


# with the videos


@pytest.fixture(scope="module")
def encoders(demo_weights):
    return Encoders(demo_weights)


@pytest.fixture
def filmed(tmp_path, encoders):
    """Twelve clips of noise bursts, and the set of their latents: (root, rows, examples)."""
    root = tmp_path / "videos"
    root.mkdir()
    rng = np.random.default_rng(0)
    rows, examples = rows_and_examples()
    for i, (row, arrays) in enumerate(zip(rows, examples, strict=True)):
        burst = np.zeros(44_100 * 6 // 5)
        start = rng.integers(10_000, 30_000)
        burst[start : start + 8_000] = 0.3 * rng.standard_normal(8_000)
        write_media(root / f"{i}.mp4", count=30, audio=(burst + 1e-3)[None].astype(np.float32))
        row.update(video_path=f"{i}.mp4", start_time="0", end_time="1")
        sound = media.read_audio(root / f"{i}.mp4", 0.0, 1.0, 16_000, 16_384)
        mean, std = encoders.encode_audio(sound[None], "16k")
        arrays.update(mean=mean[0], std=std[0])
    return root, rows, examples


def test_clips_whose_latents_are_theirs(filmed, write, run, demo_weights):
    root, rows, examples = filmed
    path = write(rows, examples)
    _, found, _ = run(path, "--root", root, "--recordings", 4)
    assert found["clips that cannot be read again"]["note"] == "0 of 4 clips"
    assert found["latents that are early or late"]["note"] == "needs --weights"
    code, found, printed = run(path, "--root", root, "--weights", demo_weights)
    assert code == 0 and not named(found, "fault"), printed
    assert not named(found, "left out") and found["latents that are early or late"]["note"] == "0 of 12 clips"


def test_offsets_between_picture_and_sound(filmed, write, run, demo_weights):
    root, rows, examples = filmed
    write_media(root / "3.mp4", count=40, audio=tone(1.2, 44_100), audio_start=Fraction(2, 5))
    examples[5]["mean"] = np.roll(examples[5]["mean"], 6, axis=0)
    examples[6]["mean"] = examples[0]["mean"][::-1].copy()
    (root / "7.mp4").unlink()
    code, found, _ = run(write(rows, examples), "--root", root, "--weights", demo_weights)
    assert code == 1
    (place,) = found["picture and sound that begin apart"]["places"]
    assert place["id"] == "clip3"
    assert re.search(r"begins 0\.3\d\d s after the picture", place["what"])  # 0.4 s less the run-up of AAC
    (place,) = found["latents that are early or late"]["places"]
    assert place["id"] == "clip5" and place["what"] == "0.192 s late"
    others = found["latents of another sound than the clip's"]["places"]
    assert [place["id"] for place in others] == ["clip3", "clip6"]
    (place,) = found["clips that cannot be read again"]["places"]
    assert place["id"] == "clip7" and "no such file" in place["what"]
