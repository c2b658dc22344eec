import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmaudio_jax.data.prepare import lists
from mmaudio_jax.errors import UserError

CAPTIONS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1).map(lists.clean).filter(bool)


@pytest.fixture
def write(tmp_path):
    def write(content, name="list", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(content.encode(encoding))
        return path

    return write


def test_vggsound(write):
    text = '---g-f_I2yQ,1,people marching,test\n--0PQM4-hqg,30,"waterfall burbling, near",train\nbad,x,y,z\n'
    one, two, bad = lists.read_list(write(text))
    assert one.names[:3] == ("---g-f_I2yQ_000001", "---g-f_I2yQ_1", "---g-f_I2yQ") and one.id == one.names[0]
    assert two.caption == "waterfall burbling, near" and two.source == "--0PQM4-hqg" and one.split == "test"
    assert (two.span, two.segment) == (None, (30_000, 40_000))
    assert two.columns == {"original_video": "--0PQM4-hqg", "original_start_time": "30", "original_end_time": "40"}
    assert bad.line == 3 and "youtube id, start in seconds, label, and train or test" in bad.fault


def test_audiocaps(write):
    text = 'audiocap_id,youtube_id,start_time,caption\n97151,vfY_TJq7n_U,130,"Rustling, then a vehicle"\n7,a,x,c\n'
    one, bad = lists.read_list(write(text, encoding="utf-8-sig"))
    assert one.id == "97151" and one.source == "vfY_TJq7n_U" and one.caption == "Rustling, then a vehicle"
    assert {"vfY_TJq7n_U_000130", "vfY_TJq7n_U_130", "vfY_TJq7n_U", "YvfY_TJq7n_U", "97151"} == set(one.names)
    assert (one.span, one.segment) == (None, (130_000, 140_000))
    assert "start_time 'x' is not a number of seconds" in bad.fault and bad.line == 3


def test_wavcaps(write):
    data = [
        {"id": "180913", "caption": "A bell\nrings.", "duration": 3.5, "href": "h", "tags": ["x"]},
        {"id": 7, "caption": "wind", "file_name": "wind.wav"},
        {"id": None, "caption": "x"},
        {"id": "8", "caption": ["x"]},
    ]
    one, two, *bad = lists.read_list(write(json.dumps({"num_captions_per_audio": 1, "data": data})))
    assert (one.id, one.caption, one.names) == ("180913", "A bell rings.", ("180913",))
    assert one.columns == {"duration": "3.5", "href": "h"}
    assert two.names == ("7", "wind.wav")
    assert "id is empty" in bad[0].fault and "caption is ['x'], not text" in bad[1].fault


def test_moviegen_as_its_authors_publish_it(write):
    text = (
        '{"id": 0, "video_prompt": "A person bites an apple.", "audio_prompt": "juicy crunches.", '
        '"music_prompt": "A piano piece."}\n{"id": 32, "video_prompt": "A walk.", "audio_prompt": "footsteps."}\n'
        '{"video_prompt": "A cat.", "audio_prompt": "a purr."}\n{"id": 4, "video_prompt": "x", "audio_prompt": ["a"]}\n'
    )
    one, two, *bad = lists.read_list(write(text, "MovieGenAudioBenchSfxMusic.jsonl"))
    assert (one.id, one.names, one.caption, one.span, one.split) == ("0", ("0",), "juicy crunches.", None, "")
    assert one.columns == {"video_prompt": "A person bites an apple.", "music_prompt": "A piano piece."}
    assert (two.line, two.id, two.caption) == (2, "32", "footsteps.")
    assert "id is empty" in bad[0].fault and "audio_prompt is ['a'], not text" in bad[1].fault


def test_moviegen_as_a_folder_of_records(tmp_path, write):
    write('{\n"video_prompt": "A dog.",\n"audio_prompt": "barking."\n}', "10.jsonl")
    write('{"id": "other", "audio_prompt": "rain.", "tags": ["x"]}\n', "2.jsonl")
    write("{", "3.jsonl")
    write('{"audio_prompt": "a"}\n{"audio_prompt": "b"}\n', "4.jsonl")
    write('{"caption": "a"}', "5.jsonl")
    write("", "6.jsonl")
    write("a film", "10.mp4")
    one, two, *bad = lists.read_list(tmp_path)
    assert (one.id, one.names, one.caption, one.columns) == ("10", ("10",), "barking.", {"video_prompt": "A dog."})
    assert (two.id, two.caption, two.columns) == ("2", "rain.", {})
    assert [entry.fault.split(" ")[0] for entry in bad] == ["3.jsonl:", "4.jsonl:", "5.jsonl:", "6.jsonl:"]
    assert "no audio_prompt" in bad[2].fault and all("not one record" in bad[i].fault for i in (0, 1, 3))
    (single,) = lists.read_list(write('{"id": "7", "audio_prompt": "wind."}', "7.jsonl"))
    assert (single.id, single.caption) == ("7", "wind.")


def test_the_published_tables(write):
    (one,) = lists.read_list(write("id\tlabel\nabc_000001\train on tin\n"))
    assert (one.names, one.caption, one.id, one.split) == (("abc_000001",), "rain on tin", "abc_000001", "")
    (one,) = lists.read_list(write("id\tcaption\tsplit\n5\train, loud\tvalidation\n"))
    assert (one.caption, one.split) == ("rain, loud", "val")


def test_this_project_s_own_table(write):
    header = "id\tvideo_path\tstart_time\tend_time\tcaption\toriginal_video\tsplit\n"
    rows = "a/b\tx/1.mp4\t0.5\t8.5\ta dog\tlong.mp4\tval\nc\tx.mp4\t3\t2\tc\t\t\nd\tx.mp4\t0\t2\tc\t\tdev1\n"
    one, *bad = lists.read_list(write(header + rows))
    assert (one.names, one.id, one.span, one.source, one.split) == (("x/1.mp4",), "a/b", (500, 8500), "long.mp4", "val")
    assert "end_time 2 is not after start_time 3" in bad[0].fault and "the split is 'dev1'" in bad[1].fault
    (one,) = lists.read_list(
        write("video_path\tstart_time\tend_time\tcaption\ttitle_folder\nx/c1.mp4\t0\t8\tr\tStorm\n")
    )
    assert (one.id, one.source) == ("Storm_c1", "Storm")


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "is empty"),
        ("a,b\nc,d\n", "is no list of a known kind; it may be a table with .*VGGSound"),
        ('{"rows": []}', "is no list of a known kind"),
        ('{"data": 1}', "is no list of a known kind"),
        ('{"data": [', "begins like JSON but is none"),
        ("id\tlabel\nx\n", "row 2 has 1 values for 2 columns"),
        ("id\tid\tlabel\n", "names a column twice"),
        ('id\tlabel\na\t"b\n', "row 2: .*in quotes"),
        ('[{"id": "a", "caption": "b"}]', "begins as a JSON array"),
        ("id;label\na;b, c\n", "separated by semicolons; save it with tabs or commas"),
    ],
)
def test_what_is_no_list_is_one_sentence(write, content, message):
    with pytest.raises(UserError, match=message):
        lists.read_list(write(content))


def test_what_is_no_text_is_one_sentence(write, tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        lists.read_list(tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match="is a folder without .jsonl files and no list of a known kind; it may be"):
        lists.read_list(tmp_path)
    with pytest.raises(UserError, match="list is no text in UTF-8 .*position 15.*; save it as UTF-8"):
        lists.read_captions(write("file,caption\na,ä\n", encoding="latin-1"))


@given(st.lists(st.tuples(CAPTIONS, CAPTIONS), min_size=1), st.sampled_from(["tsv", "csv", "jsonl"]))
def test_captions_are_read_as_they_were_written(tmp_path_factory, pairs, kind):
    path = tmp_path_factory.getbasetemp() / "captions"
    if kind == "jsonl":
        path.write_text("".join(f"{json.dumps({'name': n, 'text': c})}\n" for n, c in pairs), encoding="utf-8")
    else:
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter={"tsv": "\t", "csv": ","}[kind])
        writer.writerows([("name", "text"), *pairs])
        path.write_text(text.getvalue(), encoding="utf-8", newline="")
    entries = lists.read_captions(path)
    assert [(entry.names, entry.caption) for entry in entries] == [((name,), caption) for name, caption in pairs]


def test_captions_of_parts_and_of_wholes(write):
    text = "video_path,start,end,caption,original_video,id\na.mp4,1.5,4,rain,long,x\nb.mp4,,,wind,,\nc.mp4,4,2,x,,\n"
    part, whole, bad = lists.read_captions(write(text))
    assert (part.span, part.source, part.id) == ((1500, 4000), "long", "x") and whole.span is None
    assert "end 2 is not after start 4" in bad.fault
    with pytest.raises(UserError, match="captions need one that names the file .* and one that says what is heard"):
        lists.read_captions(write("file,words\na,b\n"))
    with pytest.raises(UserError, match="has the column start without its counterpart"):
        lists.read_captions(write("file,caption,start\na,b,0\n"))
    with pytest.raises(UserError, match="begins as a JSON array; write its records instead, each in a line of its own"):
        lists.read_captions(write('[\n{"file": "a", "caption": "b"}\n]'))
    with pytest.raises(UserError, match="row 2 is no JSON"):
        lists.read_captions(write('{"file": "a", "caption": "b"}\n{\n'))


@given(st.text(), st.booleans())
def test_whatever_is_written_is_a_list_or_a_mistake(tmp_path_factory, text, header):
    path = tmp_path_factory.getbasetemp() / "anything"
    path.write_text(("id\tcaption\n" if header else "") + text.encode(errors="ignore").decode(), newline="")
    try:
        entries = lists.read_list(path)
    except UserError:
        return
    for entry in entries:
        assert entry.fault or (entry.names and entry.id)
        assert entry.caption == lists.clean(entry.caption)


def test_control_characters_go_and_emoji_stay():
    assert lists.clean("  a\x00dog\t\r\nbarks \x1b[1m 🐕‍🦺 e\u0301 ") == "a dog barks [1m 🐕‍🦺 é"
    assert len(lists.clean("word " * 2000)) == 9999
    assert lists.clean("\u200b \ufeff\x00\u2060") == "" and lists.clean("می\u200cرود") == "می\u200cرود"


def test_json_captions_of_whole_files_beside_those_of_parts(tmp_path):
    path = tmp_path / "captions.jsonl"
    records = [{"file": "a.mp4", "caption": "rain", "start": 1, "end": 3}, {"file": "b.mp4", "caption": "wind"}]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    one, two = lists.read_captions(path)
    assert one.span == (1000, 3000) and two.span is None and not two.fault
