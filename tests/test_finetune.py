"""One command from a folder of videos to an adapter: what it asks for, what it does again, and the whole of it."""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from media_files import numbered_frame, tone, write_media

from convert import released
from mmaudio_jax import commands, finetune
from mmaudio_jax.data.example import example_shapes
from mmaudio_jax.data.part import WHOLE
from mmaudio_jax.data.records import FeatureWriter
from mmaudio_jax.data.table import read_table, write_table
from mmaudio_jax.errors import UserError

ROOT = Path(__file__).parent.parent


def write_video(path, i):
    """A video and a caption like no other's."""
    audio = tone(1.2, 16_000, frequency=200.0 * (i + 1))
    picture = lambda k, w, h: numbered_frame(k + 100 * i, w, h)  # noqa: E731
    write_media(path, count=30, audio=audio, rate=16_000, picture=picture)
    path.with_suffix(".txt").write_text(f"tone number {i}, steady and clear\n")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune") / "videos"
    folder.mkdir()
    for i in range(4):
        write_video(folder / f"{i}.mp4", i)
    return folder


def test_from_a_folder_to_an_adapter_that_is_heard(videos, demo_weights, tmp_path):
    weights, out = tmp_path / "weights", tmp_path / "run"
    shutil.copytree(demo_weights, weights)
    (weights / "demo_16k").rename(weights / "small_16k")
    words = ["--weights", weights, "--duration", "1", "--val", "0.3", "--steps", "2", "--sounds", "1"]
    small = {"accumulation": 1, "batch_size": 2, "workers": 0, "samples.every": 2, "samples.count": 1}
    words += [f"--config.{key}={value}" for key, value in (small | {"samples.num_steps": 2}).items()]
    command = [sys.executable, "-m", "mmaudio_jax.finetune", str(videos), "--out", str(out), *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = [line.split()[2:4] for line in done.stdout.splitlines() if line.startswith("$ python ")]
    modules = [words[1] if words[0] == "-m" else words[0] for words in shown]
    data = ["mmaudio_jax.data.prepare", "mmaudio_jax.features", "mmaudio_jax.data.check"]
    assert modules == [*data, "sample.py", "train.py", "sample.py"] and "done before" not in done.stdout
    assert "configs/lora_16k.py:small" in done.stdout
    (clip,) = read_table(out / "sounds.tsv").rows
    assert read_table(out / "clips.tsv").rows[int(clip["video_path"][0])]["split"] == "val"
    for when in ("before", "after"):
        names = {path.name for path in (out / when).glob("[!.]*")}
        assert names == {"manifest.jsonl", *(f"{clip['id']}.{kind}" for kind in ("wav", "png", "mp4"))}
    assert (out / "before" / f"{clip['id']}.wav").read_bytes() != (out / "after" / f"{clip['id']}.wav").read_bytes()
    losses = [json.loads(line).get("validation/loss") for line in (out / "run" / "metrics.jsonl").open()]
    first, *later = [loss for loss in losses if loss]
    assert f"validation loss {first:.4f} of the base → {min(later):.4f}" in done.stdout
    assert f"sample.py VIDEO --weights {weights}" in done.stdout and (out / "report.html").exists()
    assert f"--adapter {out / 'run@best'} --duration 1 --prompt WORDS --out out" in done.stdout
    # a run is trained on the clips that it began with: that others are there is told before they are extracted
    caption = videos / "0.txt"
    said = caption.read_text()
    caption.write_text("a kettle sings\n")
    changed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    caption.write_text(said)
    assert changed.returncode == 1 and "1 clip changed (first '0_" in changed.stderr
    assert changed.stdout.count("$ python ") == 1 and "choose another --out, or remove" in changed.stderr
    # every input is as it was: what is not gone on with by its own command is not made again
    folder, features = finetune.Folder(out), finetune.open_features(out / "features")
    args = argparse.Namespace(folder=videos, weights=weights, model="small_16k", duration=1.0, sounds=1)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    finetune.check(args, folder)
    finetune.listen(args, folder, [clip["id"]], None)
    finetune.listen(args, folder, [clip["id"]], folder.best)
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert finetune.choose_sounds(args, folder, features) == [clip["id"]]


PREPARE = {"captions": None, "list": None, "val": 0.1, "min_duration": 1.0, "stride": None}


@pytest.fixture
def made(tmp_path):
    """(makes a result of an input, whether it was made now, result, input)."""
    source, result = tmp_path / "input", tmp_path / "result"
    source.write_text("one")
    code = "import pathlib, sys; t = pathlib.Path(sys.argv[1]).read_text(); pathlib.Path(sys.argv[2]).write_text(t)"

    def make(code=code):
        before = result.stat().st_mtime_ns if result.exists() else None
        command = ["-c", f"{code}; sys.exit(t == 'bad')", str(source), str(result)]
        assert finetune.once(finetune.Folder(tmp_path), command, [result], [source]) == (source.read_text() == "bad")
        return before != result.stat().st_mtime_ns

    return make, source, result


CLIP = {"start_time": "0", "end_time": "1", "caption": "a tone", "split": "train", "record_key": "k"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"c": CLIP, "d": CLIP}, r"2 clips added \(first 'c'\); to train"),
        ({"b": None}, r"1 clip gone \(first 'b'\); to train"),
        ({"a": CLIP | {"caption": "a kettle"}}, r"1 clip changed \(first 'a'\); to train"),
        ({"a": CLIP | {"split": "val"}, "b": None}, r"1 clip gone \(first 'b'\), 1 clip changed \(first 'a'\)"),
        ({"b": CLIP | {"record_key": "other video"}}, r"1 clip changed \(first 'b'\); .* remove .*run \(what is extr"),
        ({"a": CLIP | {"warnings": "still"}}, None),
    ],
)
def test_a_run_goes_on_with_the_clips_that_it_began_with_alone(change, said, tmp_path):
    def rows(clips):
        return [{"id": id, "video_path": f"{id}.mp4", **clip} for id, clip in clips.items() if clip]

    folder, columns = finetune.Folder(tmp_path), (*finetune.TRAINED_COLUMNS, finetune.KEY)
    then = {"a": CLIP, "b": CLIP}
    now = rows(then | change)
    finetune.check_run(folder, now, columns)
    folder.run.mkdir()
    finetune.check_run(folder, now, columns)  # made when nothing was noted
    write_table(folder.trained, rows(then))
    if said is None:
        finetune.check_run(folder, now, columns)
        return
    with pytest.raises(UserError, match=said):
        finetune.check_run(folder, now, columns)
    folder.run.rmdir()
    finetune.check_run(folder, now, columns)


def test_a_video_that_was_only_touched_is_the_same_clip():
    def told(key):
        rows = [{"id": "a"}, {"id": "could not be used"}]
        features = SimpleNamespace(table=SimpleNamespace(rows=[{"id": "a", "record_key": key}]))
        return finetune.with_recipes(SimpleNamespace(rows=rows), features)

    assert told("digest-1f-2e") == told("digest-1f-2f") != told("digest-2f-2e")


def test_what_is_whole_is_not_made_again(made, capsys):
    make, source, result = made
    assert make() and not make() and capsys.readouterr().out.endswith("done before\n")
    source.write_text("two")
    assert make() and result.read_text() == "two" and not make()
    result.unlink()
    assert make() and not make()
    source.write_text("bad")
    assert make() and make()  # what failed is tried again
    source.write_text("two")
    assert make() and not make()


def test_damaged_notes_are_made_again(made):
    make, source, _ = made
    assert make()
    source.with_name(".done.json").write_text("{")
    assert make() and not make()


@pytest.mark.parametrize(
    ("code", "exit_code"), [("sys.exit(75)", 75), ("sys.exit(1)", 1), ("os.kill(os.getpid(), 9)", 137)]
)
def test_what_fails_ends_it_with_its_exit_code(code, exit_code):
    with pytest.raises(SystemExit) as stopped:
        commands.must(["-c", f"import os, sys; {code}"])
    assert stopped.value.code == exit_code


WAITS = """
import pathlib, signal, sys, time
def stop(*_): sys.exit(75)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_who_stops_it_stops_the_command_that_is_at_work(number, exit_code, tmp_path):
    command = ["-c", WAITS, str(tmp_path / "ready")]
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs ignore it
        f"from mmaudio_jax import commands; commands.GRACE = 0.1; commands.must({command!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, number)
    assert process.wait(30) == exit_code


def test_the_config_and_its_size_follow_from_model_and_videos():
    assert list(finetune.MODELS) == list(released.MODELS)
    assert [finetune.size_for(n) for n in (2, 10, 11, 50, 51)] == ["small", "small", "medium", "medium", "large"]
    assert finetune.schedule(None) == {}
    assert finetune.schedule(3000) == {
        **dict.fromkeys(("eval_every", "samples.every", "ema.snapshot_every"), "300"),
        "num_steps": "3000",
        "optimizer.warmup_steps": "200",
    }
    assert {finetune.schedule(n)["eval_every"] for n in (3000, 30_000)} == {"300"}
    assert finetune.schedule(600)["eval_every"] == "60" and finetune.schedule(600)["optimizer.warmup_steps"] == "40"
    assert finetune.schedule(1)["eval_every"] == "1" and finetune.schedule(1)["optimizer.warmup_steps"] == "0"


@pytest.mark.parametrize("model", finetune.MODELS)
def test_training_is_told_the_model_and_the_settings_given(model, monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(finetune.commands, "run", lambda command: commands.append(command) or 0)
    settings = finetune.read_settings(["--config.lora.rank=8", "--config.eval_every=7"], finetune.MODELS[model].config)
    args = argparse.Namespace(model=model, weights=Path("w"), size=None, steps=600)
    features = argparse.Namespace(sources=[*range(12), *range(60)], sides=["train", "val"] * 6 + ["test"] * 60)
    finetune.train(args, finetune.Folder(tmp_path), features, settings)
    (words,) = commands
    assert words[0] == "train.py" and words[2] == f"configs/{finetune.MODELS[model].config}.py:medium"
    assert f"--config.model={model}" in words and words[-1] == "--config.lora.rank=8"
    assert [word for word in words if "eval_every" in word] == ["--config.eval_every=7"]


@pytest.fixture
def extracted(videos, tmp_path, monkeypatch):
    """(args, folder, table) of an extraction that ends with exit code 1, as clip 3 cannot be used."""
    monkeypatch.setattr(finetune.commands, "run", lambda command: 1)
    folder = finetune.Folder(tmp_path)
    place = {"start_time": "0", "end_time": "1"}
    videos_of = {f"clip{i}": f"{min(i, 2)}.mp4" for i in range(6)}  # 2.mp4 has four of them
    rows = [
        {"id": id, "video_path": video, **place, "caption": "a tone", "split": "val", "original_video": video}
        for id, video in videos_of.items()
    ]
    write_table(folder.clips, rows)
    shapes = example_shapes("16k", 1.0, clip_dim=4, sync_dim=4, text_dim=4)
    with FeatureWriter(folder.features, "16k", 1.0, shapes) as writer:
        for row in rows[:3] + rows[4:]:
            writer.append(row, {name: np.ones(shape, np.float32) for name, shape in shapes.items()})
    write_table(folder.features / str(WHOLE) / "failed.tsv", [rows[3] | {"reason": "silent"}])
    args = argparse.Namespace(folder=videos, weights=Path("w"), model="small_16k", duration=1.0, sounds=4)
    return args, folder, read_table(folder.clips)


def test_clips_that_cannot_be_used_are_gone_on_without(extracted, capsys):
    args, folder, table = extracted
    features = finetune.extract(args, folder, table)
    assert len(features) == 5 and "going on with 5 clips, without 1 other\n" in capsys.readouterr().out
    assert finetune.choose_sounds(args, folder, features) == ["clip0", "clip1", "clip2", "clip4"]


@pytest.mark.parametrize("what", ["duration", "caption", "row"])
def test_an_extraction_that_failed_otherwise_ends_it(what, extracted):
    args, folder, table = extracted
    if what == "duration":
        args.duration = 0.9
    if what == "caption":
        table.rows[0]["caption"] = "another"
    if what == "row":
        table.rows.append(table.rows[0] | {"id": "new"})
    with pytest.raises(SystemExit) as stopped:
        finetune.extract(args, folder, table)
    assert stopped.value.code == 1


def test_features_of_another_length_or_model_are_told_before_their_table_is_replaced(extracted, tmp_path):
    args, folder, _ = extracted
    finetune.check_features(args, folder)
    finetune.check_features(args, finetune.Folder(tmp_path / "new"))
    args.duration = 0.9
    with pytest.raises(UserError, match="features has clips of 1 s at 16k, not 0.9 s at 16k; choose another --out"):
        finetune.check_features(args, folder)
    args.model = "small_44k"
    with pytest.raises(UserError, match="not 0.9 s at 44k"):
        finetune.check_features(args, folder)


def test_clips_without_a_picture_are_not_listened_to(extracted, monkeypatch, capsys):
    args, folder, table = extracted
    monkeypatch.setattr(finetune.media, "has_video", lambda path: False)
    assert finetune.choose_sounds(args, folder, finetune.extract(args, folder, table)) == []
    assert "no clip that validates has a picture" in capsys.readouterr().out and not folder.sounds.exists()


def test_one_source_cannot_both_train_and_validate(extracted, monkeypatch):
    args, folder, _ = extracted
    monkeypatch.setattr(finetune.commands, "must", lambda command: None)
    with pytest.raises(UserError, match="has 6 clips of 3 source videos, and none is left"):
        finetune.prepare(argparse.Namespace(**vars(args), **PREPARE), folder)


def test_short_clips_are_kept_and_overlap_where_asked(extracted, monkeypatch):
    args, folder, table = extracted
    commands = []
    monkeypatch.setattr(finetune.commands, "must", commands.append)
    rows = [row | {"split": "val" if i else "train"} for i, row in enumerate(table.rows)]
    write_table(folder.clips, rows)
    finetune.prepare(argparse.Namespace(**vars(args), **PREPARE), folder)
    finetune.prepare(argparse.Namespace(**vars(args), **PREPARE | {"min_duration": 0.7, "stride": 0.25}), folder)
    words = [" ".join(command[command.index("--duration") :]) for command in commands]
    assert words[0] == "--duration 1 --min_duration 1 --val 0.1"
    assert words[1] == "--duration 1 --min_duration 0.7 --stride 0.25 --val 0.1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "there is no vae_16k, clip in weights, .*convert.fetch small_16k --out weights"),
        (["--model", "large_44k_v2"], "no large_44k_v2, vae_44k, .*convert.fetch large_44k_v2"),
        (["--model", "tiny"], "invalid choice: 'tiny'"),
        (["--out", "videos/run"], "videos/run lies in videos"),
        (["--out", "file"], "file is a file"),
        (["--steps", "0"], "--steps is 0; it must be at least 1"),
        (["--val", "0"], "--val is 0"),
        (["--min_duration", "9"], r"--min_duration is 9; it must lie in \[0.64, 8\]"),
        (["--duration", "0.1"], "--duration is 0.1"),
        (["--config.batchsize=2"], "no such config key: batchsize; configs/lora_16k.py lists them"),
        (["--config.lora.rank.x=2"], "no such config key: lora.rank.x"),
        (["--config.data=d"], "--config.data is set by this command; give --out"),
        (["--stepps=3"], "'--stepps=3' is no option"),
        (["other"], "'other' is no option"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("videos", "weights/synchformer", "weights/small_16k", "weights/bigvgan_16k"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metadata.json").write_text("{}")
    (tmp_path / "file").touch()
    monkeypatch.setattr(finetune.commands, "run", lambda command: pytest.fail(f"ran {command}"))
    monkeypatch.setattr(sys, "argv", ["finetune", "videos", "--out", "run", *words])
    with pytest.raises(SystemExit) as stopped:
        finetune.main()
    error = capsys.readouterr().err
    assert stopped.value.code in (1, 2) and re.search(said, error), error
    assert not (tmp_path / "run").exists()
