import pytest

from mmaudio_jax.data.clips import read_clips
from mmaudio_jax.data.table import read_table, write_table
from mmaudio_jax.errors import UserError

HEADER = "id\tvideo_path\tstart_time\tend_time\tcaption\toriginal_video"


@pytest.fixture
def clips(tmp_path):
    """Writes clips.tsv and reads it with a root folder beside it."""

    def read(*lines, encoding="utf-8"):
        path = tmp_path / "clips.tsv"
        path.write_bytes("\n".join(lines).encode(encoding) + b"\n")
        (tmp_path / "videos").mkdir(exist_ok=True)
        return read_clips(path, tmp_path / "videos")

    return read


def test_a_row_becomes_a_clip_with_its_provenance(clips, tmp_path):
    (clip,) = clips(HEADER, "a\tone/a.mp4\t1.5\t9.5\ta dog, \tlong.mp4")
    assert (clip.id, clip.start_time, clip.end_time, clip.caption) == ("a", 1.5, 9.5, "a dog,")
    assert clip.video == (tmp_path / "videos/one/a.mp4").resolve() and clip.line == 2
    assert clip.columns["original_video"] == "long.mp4" and clip.columns["id"] == "a"


def test_without_an_id_column_the_id_is_title_folder_and_stem(clips):
    (clip,) = clips("video_path\tstart_time\tend_time\tcaption\ttitle_folder", "x/clip_01.mp4\t0\t8\train\tStorm")
    assert clip.id == "Storm_clip_01" == clip.columns["id"]


def test_a_byte_order_mark_and_empty_lines_are_skipped_and_rows_keep_their_line(clips):
    found = clips(HEADER, "", "ä\ta.mp4\t0\t8\tc\t", "b\tb.mp4\t0\t8\tc\t", encoding="utf-8-sig")
    assert [(clip.id, clip.line) for clip in found] == [("ä", 3), ("b", 4)]


@pytest.mark.parametrize(
    "row, message",
    [
        ("a/b\tv.mp4\t0\t8\tc\t", r"row 2: the id 'a/b' cannot name a file"),
        ("a\\b\tv.mp4\t0\t8\tc\t", r"row 2: the id .* cannot name a file"),
        ("..\tv.mp4\t0\t8\tc\t", r"row 2: the id '\.\.' cannot name a file"),
        (".hidden\tv.mp4\t0\t8\tc\t", r"row 2: the id '\.hidden' cannot"),
        (" \tv.mp4\t0\t8\tc\t", r"row 2: the id ' ' cannot name a file"),
        ("a\t../v.mp4\t0\t8\tc\t", r"row 2: video_path '../v.mp4' leads out of .*--root"),
        ("a\t/etc/passwd\t0\t8\tc\t", r"row 2: video_path '/etc/passwd' leads out of"),
        ("a\t\t0\t8\tc\t", r"row 2: video_path is empty"),
        ("a\tv.mp4\tzero\t8\tc\t", r"row 2: start_time 'zero' is not a number of seconds"),
        ("a\tv.mp4\t-1\t8\tc\t", r"row 2: start_time '-1' is not a number of seconds"),
        ("a\tv.mp4\t0\tnan\tc\t", r"row 2: end_time 'nan' is not a number of seconds"),
        ("a\tv.mp4\t8\t8\tc\t", r"row 2: end_time 8 is not after start_time 8"),
        ("a\tv.mp4\t0\t8\t \t", r"row 2: the caption is empty"),
        ("a\tv.mp4\t0\t8\t\u200b\t", r"row 2: the caption is empty"),
        ("a\tv.mp4\t0\t8", r"row 2 has 4 values for 6 columns"),
    ],
)
def test_a_bad_row_is_named(clips, row, message):
    with pytest.raises(UserError, match=message):
        clips(HEADER, row)


def test_both_rows_of_a_duplicate_id_are_named(clips):
    with pytest.raises(UserError, match="rows 2 and 4 have the same id 'a'"):
        clips(HEADER, "a\ta.mp4\t0\t8\tc\t", "b\tb.mp4\t0\t8\tc\t", "a\tc.mp4\t0\t8\tc\t")


def test_a_split_is_one_that_training_knows_and_the_same_for_a_whole_source(clips):
    header = f"{HEADER}\tsplit"
    rows = ["a\ta.mp4\t0\t8\tc\tlong\t", "b\tb.mp4\t0\t8\tc\tlong\tval ", "c\tc.mp4\t0\t8\tc\t\ttrain"]
    assert [clip.side for clip in clips(header, *rows)] == ["", "val", "train"]
    with pytest.raises(UserError, match="row 5: the split is 'valid'; it must be train, val, test, or empty"):
        clips(header, *rows, "d\tc.mp4\t8\t16\tc\t\tvalid")
    with pytest.raises(UserError, match="rows 4 and 5 are clips of the source 'c.mp4' on two sides .*, train and test"):
        clips(header, *rows, "d\tc.mp4\t8\t16\tc\t\ttest")
    with pytest.raises(UserError, match="rows 3 and 5 are clips of the source 'long' on two sides .*, val and train;"):
        clips(header, *rows, "d\td.mp4\t8\t16\tc\tlong\ttrain")


def test_a_link_out_of_the_root_is_refused(clips, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "elsewhere.mp4").touch()
    (tmp_path / "videos/v.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    with pytest.raises(UserError, match="leads out of"):
        clips(HEADER, "a\tv.mp4\t0\t8\tc\t")


def test_a_bad_table_is_one_sentence(clips, tmp_path):
    with pytest.raises(UserError, match="no column start_time, end_time .it has id, video_path, caption."):
        clips("id\tvideo_path\tcaption", "a\tv.mp4\tc")
    with pytest.raises(UserError, match="tabs, not commas: `python -m mmaudio_jax.data.prepare FOLDER --list .*clips"):
        clips("id,video_path,start_time,end_time,caption", "a,v.mp4,0,8,c")
    with pytest.raises(UserError, match="no column id"):
        clips("video_path\tstart_time\tend_time\tcaption", "v.mp4\t0\t8\tc")
    with pytest.raises(UserError, match="has no clips"):
        clips(HEADER)
    with pytest.raises(UserError, match="names a column twice"):
        clips(HEADER + "\tid", "a\tv.mp4\t0\t8\tc\t\ta")
    with pytest.raises(UserError, match="no tab-separated table in UTF-8 .*; save it as UTF-8"):
        clips(HEADER, "ä\tv.mp4\t0\t8\tc\t", encoding="latin-1")
    with pytest.raises(UserError, match="is empty"):
        clips("")
    with pytest.raises(UserError, match="there is no table .*nowhere.tsv"):
        read_clips(tmp_path / "nowhere.tsv", tmp_path)
    with pytest.raises(UserError, match="there is no folder .*nowhere"):
        clips(HEADER, "a\tv.mp4\t0\t8\tc\t")
        read_clips(tmp_path / "clips.tsv", tmp_path / "nowhere")


@pytest.mark.parametrize("caption", ['"unclosed', '"Boom" he said', '"gravel\nd\tfine\ne\t"quoted"'])
def test_a_stray_quote_swallows_no_row_and_is_told_where_its_row_begins(tmp_path, caption):
    (tmp_path / "clips.tsv").write_text(f'id\tcaption\na\t"two\nlines"\n\nb\t{caption}\nc\tfine\n')
    with pytest.raises(UserError, match=r"clips.tsv row 5: a quote that is not closed, or text .* is put in quotes"):
        read_table(tmp_path / "clips.tsv")


def test_a_table_survives_tabs_quotes_and_line_breaks(tmp_path):
    rows = [{"id": "a", "caption": 'he says\t"no"\nand leaves'}, {"id": "b", "other": "ü"}]
    write_table(tmp_path / "t.tsv", rows)
    table = read_table(tmp_path / "t.tsv")
    assert table.columns == ["id", "caption", "other"]
    assert table.rows == [{**rows[0], "other": ""}, {**rows[1], "caption": ""}]
