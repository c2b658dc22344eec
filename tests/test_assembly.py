"""What becomes of captions and files, whatever is in the files: none is decoded here."""

import pytest

from mmaudio_jax.data.prepare import __main__ as prepare
from mmaudio_jax.data.prepare import assembly, lists
from mmaudio_jax.data.prepare.cutting import Lengths
from mmaudio_jax.data.prepare.folder import MediaFolder
from mmaudio_jax.data.prepare.inspection import Inspection


@pytest.fixture
def assemble(tmp_path, monkeypatch):
    """Clips of 2 s of files of 4 s, {name: its .txt, or None}, and of a file of captions, if there is one."""

    def inspect_all(root, names, cache, workers):
        return {name: Inspection(sha256=name, video_end=4000, audio_end=4000) for name in names}

    monkeypatch.setattr(assembly, "inspect_all", inspect_all)

    def call(files, captions=""):
        for name, text in files.items():
            path = tmp_path / "media" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            if text is not None:
                path.with_suffix(".txt").write_text(text, encoding="utf-8")
        listed = tmp_path / "captions"
        listed.write_text(captions, encoding="utf-8")
        entries = lists.read_captions(listed) if captions else []
        choices = assembly.Choices(Lengths(2000, 2000, 2000))
        return assembly.assemble(MediaFolder(tmp_path / "media"), entries, False, None, choices)

    return call


def test_an_id_is_never_taken_for_an_option(assemble):
    names = ["-dash.mp4", "_-x.mp4", "---.mp4", f"{'a' * 10}-{'b' * (assembly.STEM - 1)}.mp4"]
    found = assemble(dict.fromkeys(names, "a bell"))
    assert len(found.rows) == 8 and not any(row["id"].startswith("-") for row in found.rows)


def test_a_bad_row_names_its_file_which_does_not_fall_back_on_the_text_beside_it(assemble):
    files = {"a.mp4": "knocks", "b.mp4": "rain", "c.mp4": None}
    found = assemble(files, "file,caption,start,end\na,steps,3,1\nc,wind,0,2\nc,hail,x,2\nd,snow,2,1\n")
    assert [(row["video_path"], row["caption"], row["end_time"]) for row in found.rows] == [
        ("b.mp4", "rain", "2"),
        ("b.mp4", "rain", "4"),
        ("c.mp4", "wind", "2"),
    ]
    told = [(row["reason"], row["row"], row["video_path"], row["caption"]) for row in found.rejected]
    assert told == [("bad row", "2", "a.mp4", "steps"), ("bad row", "4", "c.mp4", "hail"), ("bad row", "5", "", "snow")]
    assert "end 1 is not after start 3" in found.rejected[0]["detail"] and '"d"' in found.rejected[2]["content"]


@pytest.mark.parametrize(("columns", "told"), [("caption,label", True), ("caption,words", False)])
def test_of_two_columns_of_captions_the_one_that_counts_is_told(assemble, tmp_path, capsys, columns, told):
    assemble({"a.mp4": None, "b.mp4": None}, f"file,{columns}\na,rain,water\nb,wind,air\n")
    choices = assembly.Choices(Lengths(2000, 2000, 2000))
    prepare.prepare(tmp_path / "media", tmp_path / "clips.tsv", choices, captions_file=tmp_path / "captions")
    said = "has several columns that may say what is heard: the first of caption, label, text counts, not label"
    assert (said in capsys.readouterr().out) == told
