"""Downloads from a local server that breaks off, lies, redirects, or serves other bytes."""

import dataclasses
import hashlib
import http.server
import re
import shutil
import sys
import threading

import filelock
import pytest

from convert import fetch, released
from mmaudio_jax.errors import UserError

NAME = "v1-16.pth"


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at every path; `fault` says how badly. Remembers the ranges that were asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.fault, self.ranges, self.etag = b"", None, [], '"1"'
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.ranges.append(asked)
        if server.fault == "gone":
            return self.send_error(404)
        if server.fault == "redirect" and "moved" not in self.path:
            self.send_response(302)
            self.send_header("Location", f"{server.address}/moved{self.path}")
            return self.end_headers()
        known = self.headers.get("If-Range", server.etag) == server.etag
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and known and server.fault != "no ranges" else 0
        if start and start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            return self.end_headers()
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", server.etag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body) - 10 if server.fault == "says too little" else len(body)))
        self.end_headers()
        if server.fault in ("breaks off", "no ranges"):
            body = body[: len(body) // 2 + 1] if len(server.ranges) < 3 else body
        if server.fault == "always breaks off":
            body = b""
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.content = bytes(range(256)) * 64
        yield server
        server.shutdown()


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.mark.parametrize("fault", [None, "redirect", "breaks off", "no ranges"])
def test_the_whole_file_comes(server, tmp_path, fault):
    server.fault = fault
    fetch.download(f"{server.address}/{NAME}", tmp_path / NAME, md5(server.content))
    assert (tmp_path / NAME).read_bytes() == server.content and [p.name for p in tmp_path.iterdir()] == [NAME]
    if fault == "breaks off":
        assert server.ranges[1:] == ["bytes=8193-", "bytes=12289-"]


def test_a_download_of_before_is_gone_on_with(server, tmp_path):
    part = tmp_path / f"{NAME}.part"
    part.write_bytes(server.content[:1000])
    fetch.download(f"{server.address}/{NAME}", tmp_path / NAME, md5(server.content))
    assert server.ranges == ["bytes=1000-"] and (tmp_path / NAME).read_bytes() == server.content
    part.write_bytes(server.content)  # stopped between the last byte and the end
    fetch.download(f"{server.address}/{NAME}", tmp_path / NAME, md5(server.content))
    assert not part.exists()


@pytest.mark.parametrize(
    ("fault", "message", "left"),
    [
        ("gone", "cannot be had: 404", []),
        ("always breaks off", "breaks off (0 of 16,384 bytes came); start again", [f"{NAME}.etag", f"{NAME}.part"]),
        ("says too little", "the published file has", []),
    ],
)
def test_what_is_not_the_file_is_not_kept(server, tmp_path, fault, message, left):
    server.fault = fault
    with pytest.raises(UserError, match=re.escape(message)):
        fetch.download(f"{server.address}/{NAME}", tmp_path / NAME, md5(server.content))
    assert sorted(path.name for path in tmp_path.iterdir()) == left


@pytest.mark.parametrize("etag", ['"1"', '"2"', None])
def test_without_a_hash_only_the_same_version_is_gone_on_with(server, tmp_path, etag):
    (tmp_path / f"{NAME}.part").write_bytes(server.content[:1000] if etag == '"1"' else b"other" * 100)
    if etag:
        (tmp_path / f"{NAME}.etag").write_text(etag)
    fetch.download(f"{server.address}/{NAME}", tmp_path / NAME, None)
    assert (tmp_path / NAME).read_bytes() == server.content and [p.name for p in tmp_path.iterdir()] == [NAME]
    assert server.ranges == [{'"1"': "bytes=1000-", '"2"': "bytes=500-", None: None}[etag]]


def test_a_source_is_a_folder_or_a_web_address(small_release, monkeypatch, capsys, tmp_path):
    code, _, error = run(monkeypatch, capsys, "tiny", "--out", tmp_path / "w", "--source", "ftp://somewhere")
    assert code == 1 and "it must be a folder, or begin with https:// or http://" in error


def test_other_bytes_are_named_and_not_kept(server, tmp_path):
    with pytest.raises(UserError, match=f"has MD5 {md5(server.content)}, the published file has {'0' * 32}: it is not"):
        fetch.download(f"{server.address}/{NAME}", tmp_path / NAME, "0" * 32)
    assert not list(tmp_path.iterdir())


def test_nobody_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    with pytest.raises(UserError, match="127.0.0.1:9/x breaks off .*; start again"):
        fetch.download("http://127.0.0.1:9/x", tmp_path / "x", None)


@pytest.fixture
def small_release(golden, monkeypatch, tmp_path):
    """One model of one small file, in a folder as a mirror has it."""
    file = golden.checkpoint("flow_tiny.pth")
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    shutil.copy(file, mirror / "flow_tiny.pth")
    entry = released.File("tiny", ("https://nowhere.invalid/flow_tiny.pth",), 0.01, md5(file.read_bytes()))
    monkeypatch.setattr(released, "MODELS", {"tiny": ("tiny",)})
    monkeypatch.setattr(released, "FILES", (entry,))
    monkeypatch.setattr(released, "BY_FOLDER", {"tiny": entry})
    return mirror


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["fetch", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        fetch.main()
    return stopped.value.code, *capsys.readouterr()


@pytest.mark.parametrize("keep", [False, True])
def test_a_model_is_brought_converted_and_then_there(server, small_release, monkeypatch, capsys, tmp_path, keep):
    server.content = (small_release / "flow_tiny.pth").read_bytes()
    out = tmp_path / "weights"
    arguments = ["tiny", "--out", out, "--source", server.address, *(["--keep"] if keep else [])]
    code, printed, _ = run(monkeypatch, capsys, *arguments)
    assert code == 0 and "CC-BY-NC" in printed and (out / "tiny" / "metadata.json").exists()
    assert (out / "originals" / "flow_tiny.pth").exists() == keep == (out / "originals").exists()
    asked = len(server.ranges)
    code, printed, _ = run(monkeypatch, capsys, *arguments)
    assert code == 0 and "is in" in printed and len(server.ranges) == asked  # what is there is not asked for


def test_what_another_address_had_begun_is_cleared_away(server, small_release, monkeypatch, tmp_path):
    server.content = (small_release / "flow_tiny.pth").read_bytes()
    entry = released.BY_FOLDER["tiny"]
    sources = (f"{server.address}/flow_tiny.safetensors", f"{server.address}/flow_tiny.pth")
    both = dataclasses.replace(entry, sources=sources, beside=(f"{server.address}/config.json",))
    (tmp_path / "flow_tiny.pth.part").write_bytes(b"begun")
    (tmp_path / "config.json").write_text("{}")
    with fetch.original(both, tmp_path, None, keep=True):
        pass
    assert sorted(p.name for p in tmp_path.glob("*.*")) == ["config.json", "flow_tiny.safetensors"]
    server.fault = "gone"
    with fetch.original(both, tmp_path, None, keep=True):  # all of it is there: nobody is asked
        pass


def test_a_second_fetch_into_a_folder_is_refused(small_release, monkeypatch, capsys, tmp_path):
    with filelock.FileLock(tmp_path / ".fetch.lock"):
        code, _, error = run(monkeypatch, capsys, "tiny", "--out", tmp_path, "--source", small_release)
    assert code == 1 and "another fetch is at work in" in error
    assert run(monkeypatch, capsys, "tiny", "--out", tmp_path, "--source", small_release)[0] == 0


def test_a_folder_of_files_is_a_source_and_stays(small_release, monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, capsys, "tiny", "--out", tmp_path / "w", "--source", small_release)[0] == 0
    assert (small_release / "flow_tiny.pth").exists() and (tmp_path / "w" / "tiny").is_dir()
    (small_release / "flow_tiny.pth").write_bytes(b"other")
    code, _, error = run(monkeypatch, capsys, "tiny", "--out", tmp_path / "v", "--source", small_release)
    assert code == 1 and "another file, or damaged; bring it anew" in error and not list((tmp_path / "v").glob("[!.]*"))


def test_the_list_and_a_name_that_does_not_exist(monkeypatch, capsys, tmp_path):
    code, printed, _ = run(monkeypatch, capsys, "--list", "--out", tmp_path)
    assert code == 0 and "large_44k_v2: large_44k_v2, vae_44k, bigvgan_44k, synchformer, clip; 10.7 GB" in printed
    assert "af93cde404179f58e3919ac085b8033b" in printed and not list(tmp_path.iterdir())
    code, _, error = run(monkeypatch, capsys, "large_16k")
    assert code == 1 and "large_16k is no model; there are small_16k," in error


def test_what_stands_in_for_a_network_is_not_there(demo_weights, tmp_path):
    (tmp_path / "vae_16k").symlink_to(demo_weights / "vae_16k")
    with pytest.raises(UserError, match="vae_16k is an untrained stand-in of the demo's; choose another --out"):
        fetch.fetch(["small_16k"], tmp_path, source=str(tmp_path))
    assert re.search(r"vae_16k .*no: something else", fetch.listing(tmp_path))
    (tmp_path / "small_16k").mkdir()
    with pytest.raises(UserError, match="small_16k holds no weights that can be read; remove it, and start again"):
        fetch.fetch(["small_16k"], tmp_path, source=str(tmp_path))
