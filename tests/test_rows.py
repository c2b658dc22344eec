"""What sound is asked for: files, folders, tables with overrides, and lists of known data sets."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmaudio_jax.data.part import PartName
from mmaudio_jax.data.table import write_table
from mmaudio_jax.errors import UserError
from mmaudio_jax.generation import rows
from mmaudio_jax.generation.names import Template
from mmaudio_jax.generation.tasks import Failure, tasks_of
from mmaudio_jax.request import AdapterUse, Request

DEFAULTS = {"prompt": "rain", "duration": 8.0, "seed": 3, "steps": 25}


@pytest.fixture
def folder(tmp_path):
    for name in ("b.mp4", "x/a.MOV", "x/y/c.png", "x/sound.wav", ".hidden.mp4", "notes.txt", "out/made.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def write(folder, records, suffix="tsv"):
    path = folder / f"rows.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    else:
        write_table(path, [{name: str(value) for name, value in record.items()} for record in records])
        path.write_text(path.read_text().replace("\t", "," if suffix == "csv" else "\t"))
    return path


def read(folder, *records, root=None, suffix="tsv", warn=lambda _: None, **defaults):
    return rows.rows_of_table(write(folder, records, suffix), root, DEFAULTS | defaults, warn)


def test_a_folder_is_all_its_videos_and_pictures_but_for_the_results(folder):
    warnings = []
    found = rows.rows_of_paths([folder, Path("z/else.mp4")], DEFAULTS, folder / "out", warnings.append)
    assert [row.id for row in found] == ["b", "x/a", "x/y/c", "else"] and not warnings
    assert [row.request.video for row in found][:2] == [folder / "b.mp4", folder / "x/a.MOV"]
    with pytest.raises(UserError, match="--out is .*, the folder of the videos themselves"):
        rows.rows_of_paths([folder], DEFAULTS, folder, warnings.append)
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="no media file is in"):
        rows.rows_of_paths([folder / "empty"], DEFAULTS, folder / "out", warnings.append)


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl"])
def test_each_column_goes_before_its_flag(folder, suffix):
    values = {"negative_prompt": "wind", "start": 0.5, "duration": 2.5, "seed": 7, "steps": 12, "solver": "midpoint"}
    values |= {"shift": 2.0, "cfg_strength": 3.0, "video_strength": 6.0}
    record = {"id": "one", "video": "b.mp4", "prompt": "hail", "adapter": "runs/a*0.5", **values}
    one, two, three = read(folder, record, {"image": "x/y/c.png"}, {"prompt": "thunder", "seed": 0}, suffix=suffix)
    uses = (AdapterUse(Path("runs/a"), 0.5),)
    assert (one.id, one.where) == ("one", f"{folder}/rows.{suffix} row {1 if suffix == 'jsonl' else 2}")
    assert one.request == Request(video=folder / "b.mp4", prompt="hail", adapters=uses, **values)
    assert two.request == Request(image=folder / "x/y/c.png", **DEFAULTS) and two.id == "c"
    assert three.request == Request(**DEFAULTS | {"prompt": "thunder", "seed": 0}) and three.id == "thunder"


def test_a_table_of_clips_is_one_of_rows(folder):
    clip = {"id": "one", "video_path": "b.mp4", "start_time": 1, "end_time": 4, "caption": "hail", "title": "x"}
    warnings = []
    one, two = read(folder, clip, clip | {"end_time": 20}, warn=warnings.append)
    given = dict(video=folder / "b.mp4", prompt="hail", start=1.0, duration=3.0, made=3.2)  # of the few lengths
    assert one.request == Request(**DEFAULTS | given)
    assert two.request.duration == 8 and warnings == [f"{folder}/rows.tsv: columns that are not used: title"]


def test_clips_of_sound_alone_are_made_for_their_words(folder):
    clip = {
        "id": "one",
        "video_path": "x/sound.WAV",
        "start_time": 1,
        "end_time": 4,
        "caption": "hail",
        "cut": "regular",
    }
    warnings = []
    one, two, three = read(folder, clip, clip | {"id": ""}, clip | {"caption": ""}, warn=warnings.append)
    assert one.request == Request(**DEFAULTS | dict(prompt="hail", duration=3.0, made=3.2)) and two.id == "sound"
    assert three.request.video == folder / "x/sound.WAV"  # which has no picture, as the decoder will say
    assert warnings == [f"{folder}/rows.tsv: 2 rows of sound without a picture: made for the words alone"]


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"video": "../b.mp4"}, "'../b.mp4' leads out of .*; --root must name a folder that holds every video"),
        ({"video": "/etc/passwd"}, "leads out of"),
        ({"image": "x/../../c.png"}, "leads out of"),
        ({"video": "link/b.mp4"}, "leads out of"),
        ({"video": "a\0.mp4"}, "leads out of"),
        ({"video": "b.mp4", "image": "x/y/c.png"}, "a sound is made for one of them"),
        ({"prompt": "  "}, "there is nothing to make sound for"),
        ({"duration": 0}, r"duration is 0; it must lie in \[0.64, 60\] seconds"),
        ({"duration": -1}, "duration is -1"),
        ({"duration": 36000}, "duration is 36000"),
        ({"duration": "nan"}, "duration is nan"),
        ({"duration": "long"}, "duration is 'long'; it must be a number"),
        ({"video": "b.mp4", "start": -1}, "start is -1"),
        ({"video": "b.mp4", "start_time": 3, "end_time": 3}, "end_time 3 is not after start_time 3"),
        ({"steps": 2.5}, "steps is '2.5'; it must be a whole number"),
        ({"steps": 0}, "steps is 0; it must be a whole number from 1 to 1000"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**31}, "seed is 2147483648"),
        ({"solver": "heun"}, "solver is 'heun'; it must be one of euler, midpoint, adams_bashforth"),
        ({"cfg_strength": "inf"}, "cfg_strength is inf"),
        ({"adapter": "runs/a*2"}, "the adapter 'runs/a.2' is not understood"),
        ({"prompt": True}, "prompt is True, which is neither text nor a number"),
        ({"prompt": ["rain"]}, "which is neither text nor a number"),
    ],
)
def test_a_bad_row_costs_itself_alone(folder, record, fault, tmp_path_factory):
    (folder / "link").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    bad, good = read(folder, {"prompt": "a", **record}, {"prompt": "hail"}, suffix="jsonl", prompt="")
    assert bad.request is None and good.request.prompt == "hail"
    with pytest.raises(UserError, match=fault):
        raise UserError(bad.fault)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name\tseed\na\t1\n", "rows.tsv has the columns name, seed; rows need video, image or prompt"),
        ("video\tvideo_path\na\tb\n", "has the columns video and video_path, which say the same"),
        ("video\tprompt\n", "has no rows"),
        ("video\tprompt\na\n", "row 2 has 1 values for 2 columns"),
        ("", "is empty"),
        ('{"video": "a"}\n{', "row 2 is no JSON"),
    ],
)
def test_a_table_that_is_none_is_one_sentence(tmp_path, text, message):
    (tmp_path / "rows.tsv").write_text(text)
    with pytest.raises(UserError, match=message):
        rows.rows_of_table(tmp_path / "rows.tsv", None, DEFAULTS, lambda _: None)


@given(st.dictionaries(st.sampled_from(sorted(rows.COLUMNS)), st.one_of(st.text(), st.floats(), st.integers())))
def test_any_row_is_a_request_or_has_a_reason(record):
    columns = {name: rows.COLUMNS[name] for name in record}
    row = rows._of_record("row 2", record, columns, Path("/videos"), DEFAULTS)
    assert (row.request is None) == bool(row.fault)
    if row.request and row.request.video:
        assert row.request.video.resolve().is_relative_to("/videos")


def test_lists_as_they_are_published(folder):
    (folder / "vgg").mkdir()
    (folder / "vgg" / "abc_000030.mp4").touch()
    vggsound = folder / "vggsound.csv"
    vggsound.write_text("abc,30,dog barking,test\ndef,10,rain,test\n")
    one, two = rows.rows_of_list(vggsound, folder / "vgg", DEFAULTS, lambda _: None)
    assert one.id == "abc_000030"
    assert one.request == Request(**DEFAULTS | dict(video=folder / "vgg/abc_000030.mp4", prompt="dog barking"))
    assert two.request is None and "there is no def_000010 in" in two.fault
    audiocaps = folder / "audiocaps.csv"
    audiocaps.write_text("audiocap_id,youtube_id,start_time,caption\n7,abc,30,A dog barks\n8,abc,30,A dog\n")
    one, two = rows.rows_of_list(audiocaps, None, DEFAULTS, lambda _: None)
    assert (one.id, one.request) == ("7", Request(**DEFAULTS | {"prompt": "A dog barks"})) and two.id == "8"
    one, _ = rows.rows_of_list(audiocaps, folder / "vgg", DEFAULTS, lambda _: None)
    assert one.request.video == folder / "vgg/abc_000030.mp4"
    moviegen = folder / "moviegen.jsonl"
    moviegen.write_text('{"id": "abc_000030", "audio_prompt": "a dog barks"}\n')
    (one,) = rows.rows_of_list(moviegen, folder / "vgg", DEFAULTS, lambda _: None)
    assert (one.request.video, one.request.prompt) == (folder / "vgg/abc_000030.mp4", "a dog barks")
    (folder / "vgg" / "abc_000030.mp4").rename(folder / "vgg" / "abc_000030.wav")
    one, _ = rows.rows_of_list(audiocaps, folder / "vgg", DEFAULTS, lambda _: None)
    assert one.fault.endswith("abc_000030.wav: sound without a picture")


def test_samples_count_their_seeds_up_and_rows_take_turns_among_processes(folder):
    found = read(folder, {"prompt": "a"}, {"prompt": ""}, {"prompt": "c", "seed": 2**31 - 1}, prompt="")
    template = Template("{id}_{seed}")
    a0, a1, nothing, _, last, beyond = tasks_of(found, template, samples=2)
    assert (a0.name, a1.name, a1.request.seed) == ("a_3", "a_4", 4) and isinstance(nothing, Failure)
    assert last.request.seed == 2**31 - 1 and "seed is 2147483648" in beyond.reason
    parts = [tasks_of(found, template, 2, PartName(i, 2)) for i in range(2)]
    assert parts == [[a0, a1, last, beyond], [nothing, nothing]]
    assert beyond.columns["row"] == f"{folder}/rows.tsv row 4" and beyond.columns["prompt"] == "c"


def test_two_rows_of_one_name_are_named(folder):
    found = read(folder, {"prompt": "a", "seed": 1}, {"prompt": "a", "seed": 2})
    with pytest.raises(UserError, match="results of .* row 2 and .* row 3 would both be called a"):
        tasks_of(found, Template("{id}"))
    assert [task.name for task in tasks_of(found, Template("{row:03d}_{id}"))] == ["001_a", "002_a"]
