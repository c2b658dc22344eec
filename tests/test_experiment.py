"""A LoRA run as its user has it: what it writes, how it goes on, and what it refuses."""

import contextlib
import dataclasses
import io
import json
import logging
import os
import re
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from random_networks import FIRST_SHARD, WIDTH
from small_run import ROOT, command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import lora_16k
from mmaudio_jax import augment, checkpoint, config, experiment, sharding, trees, weights
from mmaudio_jax.data import records
from mmaudio_jax.data.example import example_shapes
from mmaudio_jax.data.mixture import Mixture
from mmaudio_jax.data.records import FeatureWriter
from mmaudio_jax.errors import UserError

SMALL = {"batch_size": 4, "accumulation": 2, "num_steps": 6, "eval_every": 2, "log_every": 2, "workers": 0}


def train(config, workdir, dry_run=False):
    """A run on one device."""
    experiment.run(config, workdir, dry_run, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def small_config(small_weights, small_features):
    """The shipped config, made small."""
    values = lora_16k.get_config("medium").to_dict()
    values |= {"weights": str(small_weights), "data": str(small_features), **SMALL}
    values["lora"] |= {"rank": 4, "targets": ("qkv",)}
    values["samples"] = None
    return config.from_mapping(experiment.TrainConfig, values)


@pytest.fixture(scope="module")
def finished(small_config, tmp_path_factory):
    """(workdir, log of compilations) of a run that nothing interrupted."""
    workdir, messages = tmp_path_factory.mktemp("run") / "whole", []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("jax._src.interpreters.pxla")
    logger.addHandler(handler)
    with jax.log_compiles():
        train(small_config, workdir)
    logger.removeHandler(handler)
    return workdir, messages


def test_the_checkpoint_is_the_adapter_and_what_it_belongs_to(small_config, finished):
    adapter = checkpoint.load_adapter(finished[0])
    assert adapter.step == 6 and len(adapter.params) == 14 and all(".lora_" in path for path in adapter.params)
    assert any(leaf.any() for path, leaf in adapter.params.items() if path.endswith("lora_b"))
    base = weights.load(Path(small_config.weights) / "small_16k", "mmaudio")
    assert adapter.run["base"] == {"path": str(base.directory), "fingerprint": base.metadata["fingerprint"]}
    assert weights.fingerprint(base.params) == base.metadata["fingerprint"]  # training left the base as it was
    assert adapter.run["config"]["lora"]["rank"] == 4
    assert adapter.run["data"]["duration"] == 1.0


def test_measures_reach_jsonl_and_tensorboard(finished):
    rows = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in train] == [2, 4, 6]
    assert [row["step"] for row in rows if "validation/loss" in row] == [0, 2, 4, 6]
    names = {
        "loss",
        "velocity_norm",
        "target_norm",
        "velocity_cosine",
        "grad_norm",
        "learning_rate",
        "samples_per_second",
    }
    assert names <= {tag.removeprefix("train/") for tag in train[-1]}
    assert {tag for row in train for tag in row} >= {f"train/loss_t{r}" for r in ("0.0-0.3", "0.3-0.7", "0.7-1.0")}
    board = EventAccumulator(str(finished[0] / "tensorboard")).Reload()
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx([row["train/loss"] for row in train])


def test_the_train_step_and_the_evaluation_compile_once(finished):
    compiled = [message for message in finished[1] if re.match(r"Compiling jit\(step\)", message)]
    assert len(compiled) == 2, compiled


def test_a_finished_run_started_again_changes_nothing(small_config, finished, capsys):
    before = (finished[0] / "metrics.jsonl").read_text()
    train(small_config, finished[0])
    assert "has come to step 6 and so is finished" in capsys.readouterr().out
    assert (finished[0] / "metrics.jsonl").read_text() == before


def test_augmentation_is_for_training_and_a_run_that_goes_on_draws_the_same(small_config, finished, tmp_path):
    everything = augment.AugmentConfig(feature_noise=0.5, mixup=1.0, mixup_alpha=1.0, time_mask=0.5)
    augmented = dataclasses.replace(small_config, augment=everything)
    train(augmented, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "6")
    train(augmented, tmp_path / "again")
    whole, again = (checkpoint.load_adapter(tmp_path / name) for name in ("whole", "again"))
    assert whole.step == again.step == 6
    assert all((whole.params[path] == again.params[path]).all() for path in whole.params)
    assert measured(tmp_path / "whole", "validation/loss")[0] == measured(finished[0], "validation/loss")[0]
    trained, plain = (measured(folder, "train/loss")[2] for folder in (tmp_path / "whole", finished[0]))
    assert trained != pytest.approx(plain, rel=1e-3)


def test_a_dry_run_tells_layers_leaves_memory_and_operations_and_writes_nothing(
    small_config, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sharding, "SMALL", 1024)
    split = dataclasses.replace(small_config, mesh=sharding.MeshConfig(1, 2), accumulation=1)
    experiment.run(split, tmp_path / "run", dry_run=True, devices=jax.devices()[:2])
    out = capsys.readouterr().out
    assert re.search(r"qkv +\.\*\\\.attn\\\.qkv +4 +16 +7 +7,168", out) and "4 examples a step for 6 steps" in out
    assert not (tmp_path / "run").exists()
    table = [line.split("  ") for line in out[out.index("leaf  ") : out.index("memory of")].splitlines()[1:]]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in table]
    assert len(rows) < 70 and sum(int(row[1]) for row in rows if row[-1] == "trained") == 14
    assert ["fused_blocks.*.attn.qkv.lora_a", "1", "(64, 4)", "float32", "whole", "trained"] in rows
    assert ["fused_blocks.*.attn.qkv.kernel", "1", "(64, 192)", "float32", "split over fsdp, axis 1", "frozen"] in rows
    told = re.search(r"on each device: .* \(arguments ([\d.]+) MiB, .* ([\d.]+) [KM]iB take the .* temporaries", out)
    params = trees.count(weights.load(Path(small_config.weights) / "small_16k", "mmaudio").params)
    assert 0.5 < float(told[1]) * 2**20 / (params * 4) < 0.8  # half of what is large, and the batch
    assert re.search(r"operations: [\d.]+ TFLOP a step of 4 examples", out)


def damage(workdir, how):
    """Spoils the newest checkpoint, of step 6."""
    newest = workdir / "checkpoints" / "6"
    if how in ("run", "state"):
        shutil.rmtree(newest / how)
    for file in (newest / "state").rglob("d/*"):
        content = bytearray(file.read_bytes())
        if how == "byte":
            content[len(content) // 2] ^= 1
        file.write_bytes({"half": content[: len(content) // 2], "empty": b""}.get(how, content))


@pytest.mark.parametrize("how", ["run", "state", "half", "empty", "byte"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(finished, tmp_path, capsys, how):
    shutil.copytree(finished[0], tmp_path / "run")
    damage(tmp_path / "run", how)
    assert checkpoint.load_adapter(tmp_path / "run").step == 4
    assert re.search(r"warning: .*checkpoints/6 is damaged", capsys.readouterr().out)
    with pytest.raises(UserError, match=r"checkpoints/6 is damaged"):
        checkpoint.load_adapter(tmp_path / "run@6")


@pytest.mark.parametrize("how", ["run", "byte"])
def test_a_run_goes_on_from_before_a_damaged_checkpoint(small_config, finished, tmp_path, capsys, how):
    shutil.copytree(finished[0], tmp_path / "run")
    damage(tmp_path / "run", how)
    train(small_config, tmp_path / "run")
    assert re.search(r"warning: .*checkpoints/6 is damaged(.*\n)*.*has come to step 4\n", capsys.readouterr().out)
    assert (tmp_path / "run" / "damaged" / "6").is_dir()
    again, whole = (checkpoint.load_adapter(path).params for path in (tmp_path / "run", finished[0]))
    assert all((again[path] == whole[path]).all() for path in whole)


def test_what_lies_beside_the_leaves_is_guarded_too(finished, tmp_path):
    for item, found, changed in (
        ("metrics", b'"loss": ', b'"loss": 9'),
        ("progress", b'"best_step": ', b'"best_step": 1'),
        ("progress", b"best_loss", b"best_hoss"),
        ("run", b'"num_steps": 6', b'"num_steps": 4'),
    ):
        run = shutil.copytree(finished[0], tmp_path / f"{item}{changed}")
        (file,) = (path for path in (run / "checkpoints" / "6" / item).iterdir() if found in path.read_bytes())
        file.write_bytes(file.read_bytes().replace(found, changed))
        with pytest.raises(UserError, match="checkpoints/6 is damaged"):
            checkpoint.load_adapter(Path(f"{run}@6"))
        assert checkpoint.load_adapter(run).step == 4


def test_losses_that_cannot_be_read_cost_their_checkpoint(small_config, finished, tmp_path, capsys):
    run = shutil.copytree(finished[0], tmp_path / "run")
    for file in (run / "checkpoints" / "6" / "metrics").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"checkpoints/6 is damaged: its losses cannot be read; remove it"):
        checkpoint.load_adapter(Path(f"{run}@best"))
    train(small_config, run)
    assert re.search(r"checkpoint\(s\) 6 are now in .*/damaged\n(.*\n)*.*come to step 4", capsys.readouterr().out)


def test_a_run_without_a_name_is_one_sentence(finished):
    with pytest.raises(UserError, match="no training run is named"):
        checkpoint.load_adapter(Path(""))
    with pytest.raises(UserError, match="names no checkpoint; write whole@best"):
        checkpoint.load_adapter(Path(f"{finished[0]}@"))


def test_without_a_whole_checkpoint_nothing_is_begun_anew(small_config, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    for step in (2, 4):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    damage(tmp_path / "run", "byte")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match="no checkpoint in .*run can be read"):
        train(small_config, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def second_stage(small_config, start, **lora):
    """One step, at twice the rank, from an adapter."""
    adapter = dataclasses.replace(small_config.lora, **{"ranks": {"qkv": 8}, "start": start and str(start)} | lora)
    return dataclasses.replace(small_config, lora=adapter, num_steps=1, accumulation=1, ema=None)


@pytest.fixture(scope="module")
def stages(small_config, finished, tmp_path_factory):
    """(workdir of the first stage, of the second, what the second printed)."""
    folder = tmp_path_factory.mktemp("stages")
    shutil.copytree(finished[0], folder / "one")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        train(second_stage(small_config, folder / "one@4"), folder / "two")
    return folder / "one", folder / "two", out.getvalue()


def measured(workdir, tag):
    """{step: value} of a measure."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row[tag] for row in rows if tag in row}


def test_a_run_begins_where_its_start_was(stages):
    one, two, printed = stages
    assert f"the adapter begins as that of {one}@4, step 4" in printed
    first, second = measured(one, "validation/loss"), measured(two, "validation/loss")
    assert second[0] == pytest.approx(first[4], rel=1e-6) and second[0] != pytest.approx(first[0], rel=1e-6)
    start, adapter = checkpoint.load_adapter(one.with_name("one@4")), checkpoint.load_adapter(two)
    fingerprint = weights.fingerprint(start.params)
    assert adapter.run["start"] == {"path": f"{one}@4", "step": 4, "fingerprint": fingerprint}
    assert {leaf.shape[-1] for path, leaf in adapter.params.items() if path.endswith("lora_a")} == {8}


def test_a_run_goes_on_without_its_start_but_from_no_other(small_config, stages, capsys):
    one, two, _ = stages
    moved = one.rename(one.with_name("moved"))
    try:
        for start in (f"{one}@4", f"{moved}@4"):
            train(second_stage(small_config, start), two)
            assert "has come to step 1 and so is finished" in capsys.readouterr().out
        for start, message in (
            (
                f"{moved}@6",
                "holds another run: config.lora.start names another adapter than the one",
            ),
            (f"{one}@6", "one is no training run: it does not exist"),
            (None, "its start is {.*, now it is None"),
        ):
            with pytest.raises(UserError, match=message):
                train(second_stage(small_config, start), two, dry_run=True)
        with pytest.raises(UserError, match="its config.lora.ranks.qkv is 8, now it is None"):
            train(second_stage(small_config, f"{one}@4", ranks={}), two, dry_run=True)
    finally:
        moved.rename(one)


def test_a_start_that_does_not_fit_is_refused(small_config, finished, tmp_path):
    adapter = checkpoint.load_adapter(finished[0])
    for name, change in (
        ("elsewhere", {"base": {"path": "weights/other", "fingerprint": "of another"}}),
        ("whole", {"config": adapter.run["config"] | {"lora": None}}),
    ):
        checkpoint.save_adapter(tmp_path / name, dataclasses.replace(adapter, run=adapter.run | change))
    for start, lora, message in (
        (tmp_path / "elsewhere", {}, "started from weights/other, whose weights are not those of .*small_16k"),
        (tmp_path / "whole", {}, "whole, a run of all weights; merge it"),
        (finished[0], {"ranks": {"qkv": 3}}, r"adapts \S+\.attn\.qkv at rank 4, qkv has rank 3"),
        (tmp_path, {}, "is no training run"),
    ):
        with pytest.raises(UserError, match=message):
            train(second_stage(small_config, start, **lora), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_looks_at_the_workdir(small_config, finished, capsys):
    train(small_config, finished[0], dry_run=True)
    assert "has come to step 6 and so is finished" in capsys.readouterr().out
    longer = dataclasses.replace(small_config, num_steps=8)
    with pytest.raises(UserError, match=r"its config.num_steps is 6, now it is 8; a run's length is part of its sched"):
        train(longer, finished[0], dry_run=True)


def test_features_of_another_encoder_are_refused(small_config, small_features, tmp_path):
    features = records.open_features(small_features)
    made = {"vae_16k": "of another"}
    with FeatureWriter(tmp_path / "set", "16k", 1.0, features.metadata.shapes, made) as writer:
        for i, row in enumerate(features.table.rows):
            writer.append(row, features.read(i))
    with pytest.raises(UserError, match="was made with another vae_16k than"):
        train(dataclasses.replace(small_config, data=str(tmp_path / "set")), tmp_path / "run")


def test_a_damaged_example_stops_the_run_before_it_writes_anything(small_config, tmp_path):
    shapes = example_shapes("16k", 1.0, clip_dim=WIDTH, sync_dim=WIDTH, text_dim=WIDTH)
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    with FeatureWriter(tmp_path / "set", "16k", 1.0, shapes) as writer:
        for i in range(3):
            writer.append({"id": f"{i}", "caption": "x"}, arrays)
    records = tmp_path / "set" / FIRST_SHARD
    content = bytearray(records.read_bytes())
    place = content.rindex(np.ones(shapes["mean"], np.float32).tobytes())
    content[place : place + 4] = np.float32(np.nan).tobytes()
    records.write_bytes(content)
    damaged = dataclasses.replace(small_config, data=str(tmp_path / "set"))
    with pytest.raises(UserError, match=r"is damaged at row"):
        train(damaged, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_reads_its_set_again_only_if_its_files_have_changed(
    small_config, finished, small_features, tmp_path, monkeypatch
):
    features, workdir = shutil.copytree(small_features, tmp_path / "set"), tmp_path / "run"
    config = dataclasses.replace(small_config, data=str(features))
    shutil.copytree(finished[0], workdir)
    read = []
    monkeypatch.setattr(Mixture, "check", lambda *_: read.append(1))
    train(config, workdir)  # copies keep their times
    assert not read
    os.utime(features / FIRST_SHARD, ns=(1, 1))
    train(config, workdir)
    train(config, tmp_path / "another")
    assert len(read) == 2


def test_another_run_s_workdir_is_refused_by_the_key_that_differs(small_config, finished):
    changed = dataclasses.replace(
        small_config, optimizer=dataclasses.replace(small_config.optimizer, learning_rate=1e-3)
    )
    with pytest.raises(
        UserError, match=r"holds another run: its config.optimizer.learning_rate is 0.0001, now it is 0.001"
    ):
        train(changed, finished[0])


def test_a_workdir_that_is_no_place_for_a_run_is_refused_at_once(small_config, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    for workdir, message in (
        ("videos", "videos holds other things than a run, the first a.mp4; choose a new or an empty --workdir"),
        ("videos/a.mp4", "a.mp4 is a file; --workdir must name a folder"),
        ("videos/a.mp4/run", "a.mp4 is a file; --workdir must name a folder"),
    ):
        with pytest.raises(UserError, match=message):
            train(dataclasses.replace(small_config, weights="no folder"), tmp_path / workdir)
    assert [path.name for path in tmp_path.rglob("*")] == ["videos", "a.mp4"]
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "train-7.log").touch()  # as of `… > runs/mine/train.log`, or a cluster's
    for fine in ("logs", "new/folder"):
        experiment.check_workdir(tmp_path / fine)
    for left in (".lock", "checkpoints"):  # of a run that was killed, or copied
        (tmp_path / left / left).mkdir(parents=True)
        (tmp_path / left / "log.txt").touch()
        experiment.check_workdir(tmp_path / left)


def test_weights_that_are_not_there_name_the_command(small_config, tmp_path):
    missing = dataclasses.replace(small_config, weights=str(tmp_path))
    with pytest.raises(UserError, match=r"there are no weights in .*small_16k.*; bring them with `python -m convert"):
        train(missing, tmp_path / "run")


def test_features_of_another_model_are_refused(small_config, tmp_path):
    shapes = example_shapes("44k", 1.0, clip_dim=WIDTH, sync_dim=WIDTH, text_dim=WIDTH)
    with FeatureWriter(tmp_path / "set", "44k", 1.0, shapes) as writer:
        for i in range(2):
            arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
            writer.append({"id": f"{i}", "caption": "x"}, arrays)
    with pytest.raises(UserError, match="has 40 latent channels, small_16k needs 20"):
        train(dataclasses.replace(small_config, data=str(tmp_path / "set")), tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.lora.rnk=3"], "no such config key: rnk (did you mean rank?); the file of --config lists them"),
        (
            ["--config.augment.frequency_mask=0.1"],
            "frequency_mask is refused: a latent's channels are not bins",
        ),
        (["--config.loraa.rank=3"], "no such config key: loraa (did you mean lora?)"),
        (["--workdir="], "--workdir is empty; name the folder of the run"),
        (["--config.lora.ranks={'mlp': 8}"], "lora.ranks names 'mlp', which is not in lora.targets: qkv"),
        (["--config.batch_size=0"], "config.batch_size is 0; it must be at least 1"),
        (["--config.batch_size=x"], "flag --config.batch_size=x: invalid literal"),
    ],
)
def test_the_command_line_answers_a_mistake_in_one_sentence(small_config, tmp_path, flags, message):
    done = subprocess.run(
        command(small_config.weights, small_config.data, tmp_path, *flags), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
