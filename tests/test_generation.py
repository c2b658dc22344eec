"""sample.py end to end, on small networks and rendered clips: what it makes, makes again, and refuses."""

import errno
import json
import os
import shutil
import sys
import types

import av
import jax
import numpy as np
import pytest
import safetensors
import soundfile
from media_files import write_media
from test_adapters import trained

import sample
from mmaudio_jax import checkpoint, pipeline, sampling, weights
from mmaudio_jax.data import media
from mmaudio_jax.data.table import read_table, write_table
from mmaudio_jax.demo.render import render_clips
from mmaudio_jax.encoders import Encoders
from mmaudio_jax.generation import manifest, outputs
from mmaudio_jax.plots import read_picture

LENGTH = 16_000  # samples of a sound of one second
ROWS = [
    {"id": "ball", "video": "scene_00000.mp4", "prompt": "a ball", "seed": "3"},
    {"id": "wood", "video": "scene_00001.mp4", "prompt": "wood", "steps": "4", "solver": "midpoint"},
    {"id": "late", "video": "scene_00000.mp4", "prompt": "later", "start": "0.2", "cfg_strength": "0.5"},
    {"id": "brief", "video": "scene_00001.mp4", "prompt": "brief", "duration": "0.8", "video_strength": "2"},
    {"id": "words", "prompt": "rain", "negative_prompt": "wind"},
]
BAD = [
    {"id": "broken", "video": "broken.mp4", "prompt": "nothing"},
    {"id": "endless", "prompt": "rain", "duration": "36000"},
    {"id": "outside", "video": "../../a.mp4", "prompt": "rain"},
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder with two rendered videos of a little over one second, and a broken one."""
    folder = render_clips(tmp_path_factory.mktemp("clips"), 2, seed=3, duration=1.2).parent
    (folder / "broken.mp4").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def command(small_weights):
    """Runs sample.py on one device; returns (exit code, stdout, stderr)."""

    def call(capsys, *arguments):
        flags = ["--weights", small_weights, "--duration", 1, "--steps", 2, "--workers", 0, "--batch_size", 1]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
            patch.setattr(sys, "argv", ["sample.py", *map(str, [*flags, *arguments])])
            patch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
            sample.main()
        return end.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def run(command, capsys):
    return lambda *arguments: command(capsys, *arguments)


@pytest.fixture(scope="module")
def batch(command, videos, tmp_path_factory):
    """The folder of a batch with bad rows, its table, and what was printed."""
    folder = tmp_path_factory.mktemp("batch")
    write_table(folder / "rows.tsv", [*ROWS, *BAD])

    flags = ["--rows", folder / "rows.tsv", "--root", videos, "--out", folder / "out", "--batch_size", 2]
    code, *_ = command(types.SimpleNamespace(readouterr=lambda: ("", "")), *flags)
    assert code == 1
    return folder


@pytest.fixture
def again(batch, run, videos, tmp_path):
    """The folder of the same batch, and the command that made it."""
    shutil.copytree(batch, tmp_path / "batch")
    out = tmp_path / "batch" / "out"

    def call(*arguments, rows=ROWS):
        write_table(out.parent / "rows.tsv", rows)
        return run("--rows", out.parent / "rows.tsv", "--root", videos, "--out", out, *arguments)

    return out, call


def lines(out):
    return {line["name"]: line for path in sorted(out.glob("manifest*.jsonl")) for line in map(json.loads, path.open())}


def seconds(path):
    with av.open(str(path)) as container:
        return {stream.type: float(stream.duration * stream.time_base) for stream in container.streams}


def times(out):
    return {path.name: path.stat().st_mtime_ns for path in out.glob("[!.]*") if path.suffix != ".tsv"}


def test_a_batch_with_bad_rows(batch):
    out = batch / "out"
    names = {row["id"] for row in ROWS}
    assert {path.stem for path in out.glob("*.wav")} == names == lines(out).keys()
    for name in names:
        wave, rate = soundfile.read(out / f"{name}.wav")
        assert rate == 16_000 and len(wave) == LENGTH * (0.8 if name == "brief" else 1) and np.abs(wave).max() > 0
        assert read_picture(out / f"{name}.png").shape[2] == 3
    assert {path.stem for path in out.glob("*.mp4")} == names - {"words"}
    assert seconds(out / "ball.mp4") == pytest.approx({"video": 1.0, "audio": 1.0}, abs=0.05)
    failed = read_table(out / "failed.tsv").rows
    assert [row["id"] for row in failed] == ["endless", "outside", "broken"]
    assert "duration is 36000" in failed[0]["reason"] and failed[0]["row"] == f"{batch / 'rows.tsv'} row 8"
    assert "leads out of" in failed[1]["reason"] and "not a media file" in failed[2]["reason"]
    assert [path.name for path in out.glob(".*")] == [".manifest.jsonl.lock"]


def test_every_result_says_how_it_came_about(batch):
    out = batch / "out"
    line = lines(out)["wood"]
    expected = {"prompt": "wood", "seed": 0, "steps": 4, "solver": "midpoint", "video": "scene_00001.mp4"}
    expected |= {"cfg_strength": 4.5, "model": "small_16k", "adapters": [], "duration": 1.0}
    for name, value in expected.items():
        assert line[name] == value
    assert line["versions"].keys() == {"mmaudio_jax", "jax"} and line["weights"].keys() > {"small_16k", "clip"}
    assert line["row"] == f"{batch / 'rows.tsv'} row 3" and 0 < line["checks"]["peak"] <= 1
    with av.open(str(out / "wood.mp4")) as video:
        told = json.loads(video.metadata["comment"])
        assert video.metadata["title"] == "wood" and expected.items() <= told.items()
    with soundfile.SoundFile(out / "wood.wav") as sound:
        assert sound.title == "wood" and json.loads(sound.comment) == told


def test_what_is_finished_is_left_alone_and_loads_no_network(again, monkeypatch):
    out, call = again
    before = times(out)
    monkeypatch.setattr(pipeline.Pipeline, "from_pretrained", None)
    code, said, error = call()
    assert code == 0 and not error and f"5 sound(s) are in {out}, 5 of them from before" in said
    assert times(out) == before and not (out / "failed.tsv").exists()
    code, _, error = call(rows=[*ROWS, *BAD])
    assert code == 1 and times(out) == before
    assert f"error: 5 of 8 made; 3 failed, see {out / 'failed.tsv'}" in error and "Traceback" not in error


def test_what_has_changed_is_made_again_and_nothing_else(again):
    out, call = again
    before, sounds = times(out), {name: (out / f"{name}.wav").read_bytes() for name in ("ball", "wood", "words")}
    os.truncate(out / "late.png", 1000)
    changed = [{**ROWS[0], "seed": "4"}, {**ROWS[1], "prompt": "stone"}, *ROWS[2:]]
    assert call(rows=changed)[0] == 0
    after = times(out)
    names = {name.split(".")[0] for name in before if after[name] != before[name]}
    assert names == {"ball", "wood", "late", "manifest"} and after.keys() == before.keys()
    assert read_picture(out / "late.png").size and (out / "words.wav").read_bytes() == sounds["words"]
    assert all((out / f"{name}.wav").read_bytes() != sounds[name] for name in ("ball", "wood"))
    assert lines(out)["ball"]["seed"] == 4
    assert call("--no_video", rows=changed[4:])[0] == 0  # another setting, of which words have nothing
    assert lines(out)["words"]["files"].keys() == {"sound", "spectrogram"}


def test_a_sound_does_not_depend_on_its_batch(again, tmp_path, videos, run):
    out, _ = again
    write_table(tmp_path / "one.tsv", ROWS[:1])
    code, *_ = run("--rows", tmp_path / "one.tsv", "--root", videos, "--out", tmp_path / "one")
    alone, batched = (soundfile.read(folder / "ball.wav")[0] for folder in (tmp_path / "one", out))
    assert code == 0 and np.abs(alone - batched).max() < 1e-3


def test_files_of_others_are_kept_unless_asked(run, videos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "rain.wav").write_text("mine")
    code, _, error = run("--prompt", "rain", "--out", out)
    assert code == 1 and f"{out / 'rain.wav'} exists already; choose another --out or --name" in error
    assert (out / "rain.wav").read_text() == "mine" and sorted(path.name for path in out.glob("[!.]*")) == [
        "failed.tsv",
        "rain.wav",
    ]
    assert run("--prompt", "rain", "--out", out, "--overwrite")[0] == 0
    assert len(soundfile.read(out / "rain.wav")[0]) == LENGTH and not (out / "failed.tsv").exists()
    video = videos / "scene_00000.mp4"
    before = video.read_bytes()
    (tmp_path / "row.tsv").write_text("id\tvideo\nscene_00000\tscene_00001.mp4\nelse\tscene_00000.mp4\n")
    code, _, error = run("--rows", tmp_path / "row.tsv", "--root", videos, "--out", videos, "--overwrite", "--start", 9)
    assert code == 1 and "scene_00000.mp4 is one of the videos themselves" in error
    (videos / "failed.tsv").unlink()
    code, _, error = run(video, "--out", videos, "--overwrite")
    assert code == 1 and "scene_00000.mp4 is one of the videos themselves" in error and video.read_bytes() == before


def test_folders_pictures_samples_and_settings(run, tmp_path):
    source, out = tmp_path / "videos", tmp_path / "out"
    (source / "below").mkdir(parents=True)
    write_media(source / "below" / "short.mp4", count=20)
    write_media(source / "still.png", count=1, codec="png", pix_fmt="rgb24")
    flags = ["--samples", 2, "--name", "{seed}/{id}", "--format", "flac", "--latents", "--no_picture"]
    code, said, error = run(source, "--out", out, "--prompt", "a ball", "--seed", 5, *flags, "--no_video")
    assert code == 0, error
    assert "short.mp4 has 0.80 s, not 1 s; its sound is as short" in error and "4 sound(s) are in" in said
    made = {str(path.relative_to(out)) for path in out.rglob("[!.]*") if path.is_file()} - {"manifest.jsonl"}
    kinds = ("flac", "safetensors")
    motion = tmp_path / "motion"
    code, _, error = run(source, "--out", motion, "--no_clip", "--no_picture", "--no_video")
    assert code == 1 and "still.png is a still picture, which only CLIP sees" in error
    assert [line["use_clip"] for line in lines(motion).values()] == [False]
    assert made == {f"{seed}/{id}.{kind}" for seed in (5, 6) for id in ("below/short", "still") for kind in kinds}
    assert len(soundfile.read(out / "5/below/short.flac")[0]) == 12_800
    with safetensors.safe_open(out / "5/still.safetensors", "numpy") as file:
        assert file.get_tensor("latent").shape == (32, 20) and json.loads(file.metadata()["comment"])["seed"] == 5


def test_a_part_of_a_video_encoded_and_as_loud_as_asked(run, videos, tmp_path):
    out = tmp_path / "out"
    flags = ["--start", 0.2, "--encode_video", "--loudness", "lufs", "--no_picture"]
    code, _, error = run(videos / "scene_00000.mp4", "--out", out, "--prompt", "a ball", *flags)
    line = lines(out)["scene_00000"]
    assert code == 0 and line["start"] == 0.2 and line["files"].keys() == {"sound", "video"}, error
    assert line["loudness"] == "lufs" and line["checks"]["loudness_lufs"] == pytest.approx(-23, abs=0.2)
    wave, _ = soundfile.read(out / "scene_00000.wav")
    assert np.abs(wave).max() == pytest.approx(line["checks"]["peak"], abs=1e-3) and line["gain_db"] < 0
    with av.open(str(out / "scene_00000.mp4")) as made, av.open(str(videos / "scene_00000.mp4")) as source:
        packets = [{bytes(packet) for packet in file.demux(video=0) if packet.size} for file in (made, source)]
    assert len(packets[0]) == 25 and not packets[0] & packets[1]
    assert run(videos / "scene_00000.mp4", "--out", out, "--prompt", "a ball", *flags[2:], "--no_video")[0] == 2
    assert run(videos / "scene_00000.mp4", "--out", out, "--prompt", "a ball", "--no_picture")[0] == 0
    with av.open(str(out / "scene_00000.mp4")) as made:  # made again with other settings: copied
        assert {bytes(packet) for packet in made.demux(video=0) if packet.size} <= packets[1]


def test_a_video_is_looked_at_once_and_its_features_are_kept(run, videos, tmp_path, monkeypatch):
    looked = []
    read, encode = media.read_frames, Encoders.encode_clip_frames
    monkeypatch.setattr(media, "read_frames", lambda *a: looked.append("decoded") or read(*a))
    monkeypatch.setattr(Encoders, "encode_clip_frames", lambda *a: looked.append("encoded") or encode(*a))
    arguments = [videos / "scene_00000.mp4", "--out", tmp_path / "out", "--cache", tmp_path / "cache", "--no_video"]
    assert run(*arguments, "--samples", 3)[0] == 0 and looked == ["decoded", "encoded"]
    first = (tmp_path / "out" / "scene_00000_0.wav").read_bytes()
    shutil.rmtree(tmp_path / "out")
    assert run(*arguments, "--name", "{stem}_{seed}")[0] == 0 and looked == ["decoded", "encoded"]
    (kept,) = (tmp_path / "cache").rglob("*.features")
    whole = kept.read_bytes()
    for damage in (b"", whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        kept.write_bytes(damage)
        shutil.rmtree(tmp_path / "out")
        assert run(*arguments, "--name", "{stem}_{seed}")[0] == 0 and looked.pop() == "encoded"
    assert (tmp_path / "out" / "scene_00000_0.wav").read_bytes() == first
    (tmp_path / "file").write_text("")
    code, _, error = run(*arguments, "--out", tmp_path / "other", "--cache", tmp_path / "file")
    assert code == 1 and "file is a file; --cache must name a folder" in error


def test_a_prompt_that_clip_does_not_read_to_its_end(run, tmp_path):
    prompt = " ".join(f"thunder{i}" for i in range(60))
    code, _, error = run("--prompt", prompt, "--out", tmp_path / "out", "--no_picture")
    assert code == 0 and "warning: --prompt: CLIP reads the prompt up to “…" in error
    shown = error.split("up to “…")[1].split("”, not “")
    assert shown[0].strip() + " " + shown[1].split("…”")[0] in prompt or shown[0] + shown[1].split("…”")[0] in prompt


def test_parts_of_a_batch_make_the_whole(run, tmp_path):
    table, out = tmp_path / "rows.jsonl", tmp_path / "out"
    table.write_text("".join(json.dumps({"id": str(i), "prompt": f"{i}"}) + "\n" for i in range(3)))
    for i, made in enumerate((2, 1)):
        code, said, _ = run("--rows", table, "--out", out, "--shard", f"{i}/2", "--no_picture")
        assert code == 0 and f"{made} sound(s) are in" in said
    assert sorted(path.name for path in out.glob("[!.]*")) == [
        *("0.wav", "1.wav", "2.wav", "manifest-00000-of-00002.jsonl", "manifest-00001-of-00002.jsonl")
    ]
    code, said, _ = run("--rows", table, "--out", out, "--no_picture")
    assert code == 0 and "3 sound(s) are in" in said and "3 of them from before" in said


def test_adapters_of_a_row_and_of_the_flag(run, small_weights, tmp_path):
    base = weights.load(small_weights / "small_16k", "mmaudio")
    for name, seed in (("one", 1), ("two", 2)):
        checkpoint.save_adapter(tmp_path / name, trained(base, seed))
    rows = [{"id": "flag", "prompt": "rain"}, {"id": "row", "prompt": "rain", "adapter": f"{tmp_path / 'two'}*0.5"}]
    foreign = trained(base, 3)
    foreign.run["base"]["fingerprint"] = "another"
    checkpoint.save_adapter(tmp_path / "foreign", foreign)
    rows += [{"id": name, "prompt": "rain", "adapter": str(tmp_path / name)} for name in ("nowhere", "foreign")]
    write_table(tmp_path / "rows.tsv", rows)
    flags = ["--adapter", f"{tmp_path / 'one'}*0.25", "--adapter", tmp_path / "two"]
    code, _, error = run("--rows", tmp_path / "rows.tsv", "--out", tmp_path / "out", *flags, "--no_picture")
    assert code == 1 and "nowhere is no training run" in error and "2 of 4 made; 2 failed" in error
    assert f"row 5: the adapter {tmp_path / 'foreign'}: the run started from" in error
    told = {name: [use["weight"] for use in line["adapters"]] for name, line in lines(tmp_path / "out").items()}
    assert told == {"flag": [0.25, 1.0], "row": [0.5]}
    waves = [soundfile.read(tmp_path / "out" / f"{name}.wav")[0] for name in told]
    assert np.abs(waves[0] - waves[1]).max() > 1e-3
    flags[1] = f"{tmp_path / 'one'}*0.75"
    code, said, _ = run("--rows", tmp_path / "rows.tsv", "--out", tmp_path / "out", *flags, "--no_picture")
    assert code == 1 and "2 sound(s) are in" in said and "1 of them from before" in said


def test_a_length_compiles_once(run, tmp_path):
    table = tmp_path / "rows.jsonl"
    rows = [{"id": str(i), "prompt": f"{i}", "steps": 2 + i, "duration": 1 + 0.5 * (i % 2)} for i in range(8)]
    rows[2] |= {"cfg_strength": 0.5}
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = sampling.sample._cache_size()
    assert run("--rows", table, "--out", tmp_path / "out", "--no_picture")[0] == 0
    assert sampling.sample._cache_size() <= before + 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_ends_the_run_and_a_restart_goes_on(run, tmp_path, monkeypatch, number):
    table, out = tmp_path / "rows.jsonl", tmp_path / "out"
    table.write_text("".join(json.dumps({"id": str(i), "prompt": f"{i}"}) + "\n" for i in range(6)))
    append, left = manifest._append, [2]

    def filling(path, text):
        if path.name == "manifest.jsonl":
            left[0] -= 1
            if left[0] < 0:
                raise OSError(number, os.strerror(number), str(path))
        append(path, text)

    monkeypatch.setattr(manifest, "_append", filling)
    code, _, error = run("--rows", table, "--out", out, "--no_picture")
    (sentence,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert code == 1 and sentence == f"error: {out}: {os.strerror(number)}; make room and start again"
    assert len(lines(out)) == 2
    monkeypatch.undo()
    code, said, _ = run("--rows", table, "--out", out, "--no_picture")
    assert code == 0 and "6 sound(s) are in" in said and "2 of them from before" in said
    assert sorted(path.name for path in out.glob("[!.]*")) == [*(f"{i}.wav" for i in range(6)), "manifest.jsonl"]


def test_a_sound_that_cannot_be_written_costs_itself_alone(run, tmp_path, monkeypatch):
    write_table(tmp_path / "rows.tsv", [{"id": name, "prompt": name} for name in ("one", "two", "three")])
    write = outputs.Outputs.write

    def broken(self, sound, folder):
        if sound.request.prompt == "one":
            sound.audio[3] = np.nan
        if sound.request.prompt == "two":
            raise KeyError("what a library raises")
        return write(self, sound, folder)

    monkeypatch.setattr(outputs.Outputs, "write", broken)
    code, _, error = run("--rows", tmp_path / "rows.tsv", "--out", tmp_path / "out", "--no_picture", "--samples", 2)
    assert code == 1 and "row 2: the sound is not finite" in error and "2 of 6 made; 4 failed" in error
    assert "row 3: KeyError: 'what a library raises'" in error and error.count("row 3") == 1
    names = ["failed.tsv", "manifest.jsonl", "three_0.wav", "three_1.wav"]
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == names


def test_too_little_memory_is_one_sentence(run, tmp_path, monkeypatch):
    def generate(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")

    monkeypatch.setattr(pipeline.Pipeline, "generate", generate)
    code, _, error = run("--prompt", "rain", "--out", tmp_path / "out")
    assert code == 1 and "error: the device has too little memory for batches of 1" in error
    assert not (tmp_path / "out").exists()


def test_all_local_devices_share_a_batch_and_programs_are_kept(run, tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr(pipeline.Pipeline, "from_pretrained", lambda *_, **given: told.update(given) or 1 / 0)
    monkeypatch.setattr(jax.config, "update", lambda name, value: told.update({name: value}))
    flags = ["--dtype", "bfloat16", "--matmul_precision", "high", "--compilation_cache", "programs"]
    with pytest.raises(ZeroDivisionError):
        run("--prompt", "rain", "--out", tmp_path / "out", *flags)
    assert told.pop("jax_compilation_cache_dir") == "programs"
    assert told == {"dtype": "bfloat16", "precision": "high", "devices": jax.devices()[:1]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to make sound for"),
        (["--prompt", "  "], "there is nothing to make sound for"),
        (["--prompt", "x", "--duration", "0.1"], "--duration is 0.1; it must lie in [0.64, 60] seconds"),
        (["--prompt", "x", "--duration", "nan"], "--duration is nan"),
        (["--prompt", "x", "--duration", "36000"], "--duration is 36000"),
        (["--prompt", "x", "--seed", "-1"], "--seed is -1; it must be a whole number from 0"),
        (["--prompt", "x", "--cfg_strength", "nan"], "--cfg_strength is nan"),
        (["--prompt", "x", "--video_strength", "-1"], "--video_strength is -1"),
        (["--prompt", "x", "--shift", "0"], "--shift is 0"),
        (["--prompt", "x", "--steps", "0"], "--steps is 0"),
        (["--prompt", "x", "--samples", "0"], "--samples is 0; it must be at least 1"),
        (["--prompt", "x", "--batch_size", "0"], "--batch_size is 0"),
        (["--prompt", "x", "--workers", "-1"], "--workers is -1"),
        (["--prompt", "x", "--root", "."], "--root is the folder of the videos of --rows or --list"),
        (["--prompt", "x", "--name", "{title}"], "--name has the field {title}; there are id,"),
        (["--prompt", "x", "--name", "../{id}"], "--name '../{id}' cannot be used"),
        (["--prompt", "x", "--samples", "2", "--name", "{id}"], "would both be called x"),
        (["--prompt", "x", "--shard", "2/2"], "--shard is '2/2'"),
        (["--prompt", "x", "--model", "large_44k"], "there are no weights in"),
        (["--prompt", "x", "--adapter", "nowhere"], "nowhere is no training run"),
        (["--prompt", "x", "--adapter", "a*2"], "the adapter 'a*2' is not understood"),
        (["--rows", "nowhere.tsv"], "there is no file nowhere.tsv"),
        (["--list", "nowhere.csv"], "there is no file nowhere.csv"),
        (["tests/golden", "--prompt", "x"], "no media file is in"),
    ],
)
def test_mistakes(run, arguments, message, tmp_path):
    code, _, error = run("--out", tmp_path / "out", *arguments)
    assert code == 1 and message in error and "Traceback" not in error and not (tmp_path / "out").exists()
    assert error.count("error: ") == 1


def test_a_video_that_is_not_there(run, tmp_path):
    code, _, error = run("nowhere.mp4", "--out", tmp_path / "out")
    assert code == 1 and "error: nowhere.mp4: no such file" in error and "0 of 1 made; 1 failed, see" in error
