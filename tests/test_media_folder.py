import os

import pytest

from mmaudio_jax.data.prepare.folder import MediaFolder
from mmaudio_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "root"
    for name in ("b.mp4", "a.WAV", "x/b.mp4", "x/y/c d.mkv", ".hidden/d.mp4", ".e.mp4", "notes.txt", "x/clips.tsv"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_media_are_found_below_in_order_and_nothing_else(folder):
    assert MediaFolder(folder).names == ["a.WAV", "b.mp4", "x/b.mp4", "x/y/c d.mkv"]


def test_links_are_not_followed_and_told(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/f.mp4").touch()
    (folder / "link.mp4").symlink_to(tmp_path / "elsewhere/f.mp4")
    (folder / "round").symlink_to(folder)
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    found = MediaFolder(folder)
    assert len(found.names) == 4
    (remark,) = found.remarks
    assert "symbolic links are not followed, and here are 3, the first" in remark


def test_what_cannot_be_read_is_a_remark(folder, monkeypatch):
    scandir = os.scandir

    def refusing(path):
        if os.fspath(path).endswith("/x"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    with open(os.path.join(os.fsencode(folder), b"\xff.mp4"), "w"):
        pass
    monkeypatch.setattr(os, "scandir", refusing)
    found = MediaFolder(folder)
    assert found.names == ["a.WAV", "b.mp4"]
    assert f"the folder {folder}/x cannot be read (Permission denied)" in found.remarks
    assert any("1 file left out whose name is not in UTF-8" in remark for remark in found.remarks)


def test_a_folder_without_media_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"no media file is in .*looked for \.3gp"):
        MediaFolder(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        MediaFolder(tmp_path / "nowhere")
    (tmp_path / "a.mp4").touch()
    with pytest.raises(UserError, match="a.mp4 is a file; name the folder that it is in"):
        MediaFolder(tmp_path / "a.mp4")


def test_a_name_means_a_path_then_a_name_then_a_stem(folder):
    (folder / "x/y/c d.wav").touch()
    (folder / "cafe\u0301.mp3").touch()
    found = MediaFolder(folder)
    assert found.locate(["b.mp4"]) == "b.mp4"  # a path, though x/b.mp4 has the name, too
    assert found.locate(["./x//b.mp4"]) == "x/b.mp4" == found.locate([f"{found.root}/x/b.mp4"]) == found.locate(["x/b"])
    assert found.locate(["c d.wav"]) == "x/y/c d.wav"
    assert found.locate(["nothing", "c d"]) == "x/y/c d.mkv"  # the video of the two
    assert found.locate(["caf\u00e9"]) == "cafe\u0301.mp3"
    for names, message in (
        (["../root2/b"], "there is no ../root2/b in"),
        ([".e.mp4"], "there is no .e.mp4"),
        (["b"], "b may be b.mp4 or x/b.mp4; name it by its path"),
        ([], "the row names no file"),
    ):
        with pytest.raises(LookupError, match=message):
            found.locate(names)


def test_captions_beside_files(folder, tmp_path):
    (folder / "b.txt").write_text("\ufeffa dog", encoding="utf-8")
    (folder / "a.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "secret").write_text("secret")
    (folder / "x/b.txt").symlink_to(tmp_path / "secret")
    found = MediaFolder(folder)
    assert found.beside("b.mp4") == "a dog" and found.beside("x/b.mp4") is None
    with pytest.raises(ValueError, match="a.txt beside it is no text in UTF-8 .*save it as UTF-8"):
        found.beside("a.WAV")
