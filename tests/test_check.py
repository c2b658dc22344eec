"""`mmaudio_jax.data.check` names every fault that is planted, and none of a clean set."""

import re

import numpy as np
import pytest
from checked_sets import COUNT, SHAPES, named, rows_and_examples

from mmaudio_jax.data.check import __main__ as check
from mmaudio_jax.data.check import duplicates
from mmaudio_jax.data.example import Metadata
from mmaudio_jax.data.part import PartName, PartWriter
from mmaudio_jax.data.records import FeatureWriter, open_features
from mmaudio_jax.errors import UserError


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


def test_a_clean_set_has_neither_faults_nor_warnings(write, run_check):
    code, found, printed = run_check(write(*rows_and_examples()))
    assert code == 0 and not named(found, "fault") and not named(found, "warning")
    assert "12, 0.00333 h" in printed and "8 train, 2 val, 2 test, by the column split" in printed
    assert (
        f"\n0 of {len(found)} checks found faults, 0 give warnings" in printed
        and "6; the largest has 2 examples" in printed
    )
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
        {"the same sound and caption twice": ("clip0", "'clip1' (part")},
    ),
    ("another caption", copy_arrays(0, 1, "mean"), {"the same sound with another caption": ("clip0", "clip1")}),
    ("same picture", copy_arrays(0, 1, "clip_f"), {"the same picture with another sound": ("clip0", "clip1")}),
    ("nearly", nearly(0, 1), {"nearly the same sound": ("clip0", "'clip1' (part")}),
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
        "same text",
        copy_arrays(0, 6, "text_f"),
        {"the same text features for different captions": ("clip0", "as 'clip6' (part")},
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
    ("double id", set_rows({"id": "clip1"}, 5), {"double ids": ("clip1", "'clip1' (part")}),
    (
        "one number",
        set_values(9, "mean", 0.3),
        {
            "rows of one value": ("clip9", "mean, rows 0, 1, 2 and 29 more of 32"),
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
    ("case", set_rows({"id": "Clip1"}, 5), {"ids that differ in case alone": ("clip1", "'Clip1' (part")}),
    ("id", set_rows({"id": "../../evil"}, 5), {"ids that cannot name a file": ("../../evil", "cannot name a file")}),
    ("1e20", set_values(3, "clip_f", 1e20, (2, 1)), {"values out of all measure": ("clip3", "clip_f, row 2 of 8")}),
    (
        "× 50",
        lambda _, examples: examples[4].update(mean=50 * examples[4]["mean"]),
        {"values out of all measure": ("clip4", "mean has values up to ")},
    ),
    (
        "two of one example",
        together(set_values(3, "clip_f", np.nan, (2, 1)), set_values(3, "std", 0, (4, 5))),
        {"NaN": ("clip3", "clip_f"), "standard deviations not above 0": ("clip3", "row 4")},
    ),
]
WARNINGS = {
    "ids that differ in case alone",
    "ids that cannot name a file",
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
def test_a_planted_fault_is_named_with_its_row(edit, expected, write, run_check):
    rows, examples = rows_and_examples()
    edit(rows, examples)
    code, found, printed = run_check(write(rows, examples))
    assert named(found, "fault") == expected.keys() - WARNINGS
    assert named(found, "warning") == expected.keys() & WARNINGS
    assert code == int(bool(expected.keys() - WARNINGS))
    for name, (id, what) in expected.items():
        (place, *_) = found[name]["places"]
        assert place["id"] == id and what in place["what"]
        assert place["row"] == [row["id"] for row in rows].index(id) + 2  # the header is line 1
        assert f"{id!r} (part-00000-of-00001/clips.tsv row {place['row']})" in printed


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
def test_damaged_files_do_not_hide_other_faults(damage, name, what, write, run_check):
    rows, examples = rows_and_examples()
    examples[11]["mean"][3, 4] = np.nan
    rows[5]["id"] = "clip1"
    path = write(rows, examples)
    assert shard(path, 2).exists()
    damage(path)
    code, found, printed = run_check(path)
    assert code == 1 and found[name]["count"] == 1
    assert re.search(what, found[name]["places"][0]["what"])
    assert found["NaN"]["count"] == 1 and found["double ids"]["count"] == 1


def test_without_its_table_a_set_s_examples_are_told_by_number(write, run_check):
    rows, examples = rows_and_examples()
    examples[11]["mean"][3, 4] = np.nan
    path = write(rows, examples)
    (path / "part-00000-of-00001" / "clips.tsv").unlink()
    code, found, printed = run_check(path, "--report", path / "report.html")
    assert code == 1 and named(found, "fault") == {"NaN", "a table that does not fit the examples"}
    assert "there is no table" in printed and "example 11: mean, row 3 of 32" in printed


def test_a_place_names_its_part(run_check, tmp_path, monkeypatch):
    monkeypatch.setattr("mmaudio_jax.data.part.check_arrays", lambda *_: None)
    rows, examples = rows_and_examples()
    examples[9]["mean"][3, 4] = np.nan
    for index in range(2):
        folder = tmp_path / "set" / str(PartName(index, 2))
        folder.mkdir(parents=True)
        with PartWriter(folder, Metadata("16k", 1.0, SHAPES, 0, dtype="bfloat16")) as writer:
            for i in range(6 * index, 6 * index + 6):
                writer.append(rows[i], examples[i])
    _, found, printed = run_check(tmp_path / "set")
    assert named(found, "fault") == {"NaN"}
    assert "'clip9' (part-00001-of-00002/clips.tsv row 5): mean, row 3 of 32" in printed


@pytest.mark.parametrize("caption", ["", "a cat"])
def test_a_caption_that_was_changed_since_is_a_fault(write, run_check, caption):
    rows, examples = rows_and_examples()
    path = write(rows, examples)
    table = path / "part-00000-of-00001" / "clips.tsv"
    table.write_text(table.read_text().replace("a dog, near", caption))
    code, found, _ = run_check(path)
    empty = set() if caption else {"empty captions of stored text features"}
    assert code == 1 and named(found, "fault") == {"text features of another caption", *empty}
    assert (
        "has other captions than those that were encoded"
        in found["text features of another caption"]["places"][0]["what"]
    )
    for name in empty:
        assert found[name]["places"][0]["id"] == "clip1"
    with pytest.raises(UserError, match="has other captions than those that were encoded; put them back"):
        open_features(path).ids  # noqa: B018


def test_without_a_column_a_run_s_own_split_is_looked_at(write, run_check):
    rows, examples = rows_and_examples()
    for row in rows:
        del row["split"]
    for i in range(1, COUNT):
        examples[i]["mean"] = examples[0]["mean"]
    _, found, printed = run_check(write(rows, examples), "--validation_fraction", "0.5", "--seed", "3")
    assert "6 train, 6 val, by a run with validation_fraction=0.5 and seed=3" in printed
    assert found["the same content in two splits"]["verdict"] == "fault"
    assert found["sources in two splits"]["verdict"] == "ok"


def test_rows_that_say_no_side_are_where_they_are_in_training(write, run_check):
    rows, examples = rows_and_examples()
    rows[0]["original_video"], rows[0]["split"] = rows[9]["original_video"], ""  # whose clip validates
    rows[1]["split"] = ""
    _, found, printed = run_check(write(rows, examples))
    assert "3 val, 7 train, 2 test, by the column split" in printed
    assert found["sources in two splits"]["verdict"] == "ok"
    assert found["unknown values of the column split"]["verdict"] == "ok"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--validation_fraction", "2"], "--validation_fraction is 2; it must lie in [0, 1)"),
        (["--validation_fraction", "nan"], "--validation_fraction is nan; it must lie in [0, 1)"),
        (["--weights", "wno"], "there is no folder wno; --weights must name the folder of converted weights"),
    ],
)
def test_an_option_that_cannot_be_is_told_whatever_the_set_has(write, run_check, options, message):
    rows, examples = rows_and_examples()
    path = write([{**row, "split": "train"} for row in rows], examples)
    code, _, printed = run_check(path, *options)
    assert (code, printed) == (1, f"error: {message}\n")


def test_the_page_needs_nothing_else(write, run_check, tmp_path):
    rows, examples = rows_and_examples()
    rows[2]["caption"], examples[3]["mean"][0, 0] = "<script>alert(1)</script> $x_", np.nan
    page = tmp_path / "report.html"
    run_check(write(rows, examples), "--report", page)
    text = page.read_text()
    assert "<script" not in text and "http" not in text and 'src="data:image/png;base64,' in text
    assert text.index(">NaN<") < text.index("double ids")  # faults come first
    assert "&#x27;clip3&#x27; (part-" in text and "<title>" in text


def test_near_duplicates_among_many_are_those_that_were_planted():
    rng = np.random.default_rng(0)
    sketches = rng.standard_normal((20_000, duplicates.SKETCH)).astype(np.float32)
    sketches[[7, 19_999]] = sketches[[3, 100]] + 1e-3
    hashes = np.arange(20_000, dtype=np.uint64)
    hashes[5] = hashes[4]
    sketches[5] = sketches[4]  # the same is not nearly the same
    assert sorted(duplicates.near(sketches, hashes, np.ones(20_000, bool))) == [(3, 7), (100, 19_999)]


def test_what_cannot_be_read_is_no_caption_without_features(write, run_check):
    path = write(*rows_and_examples())
    truncate(path)
    code, found, _ = run_check(path)
    assert code == 1 and not named(found, "warning")


def test_a_report_that_cannot_be_written_is_told_before_anything_is_read(write, run_check, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "check_features", lambda *_, **__: pytest.fail("it read the set"))
    (tmp_path / "file").touch()
    code, _, printed = run_check(write(*rows_and_examples()), "--report", tmp_path / "file/report.html")
    assert code == 1 and f"error: {tmp_path / 'file'} is a file, " in printed
    code, _, printed = run_check(tmp_path / "set", "--report", tmp_path)
    assert code == 1 and printed == f"error: {tmp_path} is a folder; name a file\n"
