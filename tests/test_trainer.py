"""The training loop on a network of its own: nothing in it is MMAudio's. A linear layer learns with a LoRA."""

import errno
import json
import math
import os

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmaudio_jax import checkpoint, ema, lora, optim, sharding, trainer, trees
from mmaudio_jax.errors import UserError
from mmaudio_jax.metrics import MetricWriter

LORA = lora.LoRAConfig(2, 2.0, False, 0.0, ("layer",), {"layer": "layer"}, ranks={}, alphas={}, start=None)
CONFIG = trainer.LoopConfig(
    seed=0,
    batch_size=4,
    accumulation=1,
    num_steps=8,
    log_every=1,
    eval_every=2,
    keep_last=1,
    keep_every=0,
    patience=0,
    max_skipped=3,
    mesh=sharding.MeshConfig(1, 1),
    optimizer=optim.OptimizerConfig(1e-2, "constant", 0, 0.9, 0.999, 1e-8, 0.0, 1.0),
    ema=ema.EMAConfig((0.1,), 4),
    wandb=None,
)


class Toy(nnx.Module):
    """y = xW + b."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.layer(x)


def loss(model, batch, key):
    """Mean square error; nothing is drawn."""
    error = jnp.mean(jnp.square(model(batch["x"]) - batch["y"]), axis=-1)
    return error.mean(), {"loss": (error.sum(), jnp.float32(error.size))}


class Examples:
    """Seeded batches: a linear map is to be learnt; `spoil` are the steps whose numbers are not finite."""

    def __init__(self, spoil=(), unlearnable=False):
        self.spoil, self.unlearnable = spoil, unlearnable

    def batch(self, seed, spoilt=False):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((4, 3), np.float32)
        y = rng.standard_normal((4, 2), np.float32) if self.unlearnable else x[:, :2]
        return {"x": x * (np.float32(np.inf) if spoilt else 1), "y": y}

    def training(self, start):
        step = start
        while True:
            step += 1
            yield self.batch(step, step in self.spoil)

    def validation(self):
        yield self.batch(10**6)

    def names(self, step):
        return [f"example {i} of step {step}" for i in range(4)]


def train(workdir, data=None, periodic=None, **changes):
    config = trainer.LoopConfig(**{**{k: getattr(CONFIG, k) for k in CONFIG.__dataclass_fields__}, **changes})
    graphdef, leaves = trees.split(lora.insert(Toy(nnx.Rngs(0)), LORA, rngs=nnx.Rngs(1)))
    network = trainer.Network(graphdef, *trees.partition(leaves, trees.mask([lora.ADAPTER], leaves)))
    return trainer.train(
        config,
        network,
        loss,
        data or Examples(),
        workdir=workdir,
        identity={"config": {"toy": True}, "base": {}},
        key=jax.random.key(0),
        mesh=sharding.make_mesh(config.mesh, jax.devices()[:1]),
        full_speed=1e6,
        periodic=periodic,
    )


def lines(workdir, tag):
    """{step: value} of a measure."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[tag] for row in rows if tag in row}


def kept(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_it_learns_and_leaves_what_every_run_leaves(tmp_path):
    assert train(tmp_path / "run", num_steps=60, eval_every=30) == 0
    validation = lines(tmp_path / "run", "validation/loss")
    assert list(validation) == [0, 30, 60] and validation[60] < 0.5 * validation[0]
    assert set(checkpoint.load_adapter(tmp_path / "run").params) == {"layer.lora_a", "layer.lora_b"}
    assert lines(tmp_path / "run", "train/seconds_left")[60] == 0
    assert all(0 <= share <= 1 for share in lines(tmp_path / "run", "train/data_wait").values())
    step, average = ema.synthesise(tmp_path / "run", None, 0.1)
    assert step == 60 and set(average) == {"layer.lora_a", "layer.lora_b"}


def test_the_newest_the_best_and_every_nth_checkpoint_are_kept(tmp_path):
    rising = dict(optimizer=optim.OptimizerConfig(10.0, "constant", 0, 0.9, 0.999, 1e-8, 0.0, 1.0))  # it gets worse
    train(tmp_path / "run", **rising)
    losses = lines(tmp_path / "run", "validation/loss")
    best = min((2, 4, 6), key=losses.get)
    assert losses[best] < losses[8] and kept(tmp_path / "run") == [best, 8]
    assert checkpoint.load_adapter(tmp_path / "run@best").step == best
    assert checkpoint.load_adapter(tmp_path / "run").step == 8
    with pytest.raises(UserError, match=f"has no checkpoint 3; there are 8, {best}"):
        checkpoint.load_adapter(tmp_path / "run@3")
    train(tmp_path / "more", **rising, keep_last=2, keep_every=4)
    assert kept(tmp_path / "more") == sorted({best, 4, 6, 8})


def test_a_run_out_of_patience_ends_and_stays_ended(tmp_path, capsys):
    data = Examples(unlearnable=True)
    optimizer = optim.OptimizerConfig(3.0, "constant", 0, 0.9, 0.999, 1e-8, 0.0, 1.0)
    train(tmp_path / "run", data, patience=2, num_steps=40, optimizer=optimizer)
    losses = lines(tmp_path / "run", "validation/loss")
    best = min(losses, key=losses.get)
    assert list(losses)[-1] == best + 4 < 40 and kept(tmp_path / "run")[-1] == best + 4
    assert f"2 validations brought no loss below the {losses[best]:.4f} of step {best}" in capsys.readouterr().out
    train(tmp_path / "run", data, patience=2, num_steps=40, optimizer=optimizer)
    assert lines(tmp_path / "run", "validation/loss") == losses


def test_spoilt_steps_are_named_and_change_nothing(tmp_path):
    train(tmp_path / "run", Examples(spoil=(3, 4)))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["examples"][0]) for row in rows if "warning" in row] == [
        (3, "example 0 of step 3"),
        (4, "example 0 of step 4"),
    ]
    assert lines(tmp_path / "run", "train/skipped")[3] == 1 and lines(tmp_path / "run", "train/skipped")[5] == 0
    assert math.isfinite(lines(tmp_path / "run", "validation/loss")[8])


@pytest.mark.parametrize("saves", [checkpoint.RunCheckpoints, checkpoint.Snapshots])
def test_a_save_that_fails_is_told_with_the_next_line_of_measures(tmp_path, monkeypatch, saves):
    def fail():
        raise RuntimeError(f"write() failed: {os.strerror(errno.ENOSPC)}")

    def save(self, *args):
        real(self, *args)
        self.wait()  # so that it has ended when it is asked after
        monkeypatch.setattr(self._manager, "wait_until_finished", fail)

    real = saves.save
    monkeypatch.setattr(saves, "save", save)
    with pytest.raises(OSError, match="No space left on device") as error:
        train(tmp_path / "run", ema=ema.EMAConfig((0.1,), 2))
    assert error.value.filename == str(tmp_path / "run" / ("ema" if saves is checkpoint.Snapshots else "checkpoints"))
    assert list(lines(tmp_path / "run", "train/loss")) == [1, 2]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux alone has it")
def test_measures_that_find_no_room_name_the_file(tmp_path):
    writer = MetricWriter(tmp_path, 0, 1, None, {})
    writer._file.close()
    writer._file = open("/dev/full", "a", buffering=1)
    for act, place in ((lambda: writer.write(1, {"train/loss": 1.0}), "metrics.jsonl"), (writer.close, "")):
        with pytest.raises(OSError, match="No space left on device") as error:
            act()
        assert error.value.filename == str(tmp_path / place)


def test_too_many_spoilt_steps_in_a_row_stop_the_run_with_the_checkpoint_from_before(tmp_path):
    with pytest.raises(UserError, match="3 steps in a row, up to 6, had no finite .* with the checkpoint of step 3"):
        train(tmp_path / "run", Examples(spoil=range(4, 9)), eval_every=3)
    assert kept(tmp_path / "run") == [3]
    train(tmp_path / "whole", eval_every=3, num_steps=3)
    params = (checkpoint.load_adapter(tmp_path / name).params for name in ("run", "whole"))
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, params), strict=True))


def test_two_runs_in_one_workdir_are_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with filelock.FileLock(tmp_path / "run" / ".lock"), pytest.raises(UserError, match="another run is at work in"):
        train(tmp_path / "run")
    assert train(tmp_path / "run") == 0


def test_a_periodic_act_sees_the_leaves_before_training_at_its_steps_and_at_the_end(tmp_path):
    seen = {}

    def act(step, params, writer):
        if step in kill:
            kill.remove(step)
            raise KeyboardInterrupt
        assert step not in seen
        seen[step] = float(params["layer.lora_b"].sum())

    periodic, kill = (
        trainer.Periodic(3, act, lambda step: step in seen),
        [3, 8],
    )  # stopped in the middle, and at the end
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", periodic=periodic, eval_every=3)
    assert list(seen) == [0, 3, 6]
    train(tmp_path / "run", periodic=periodic, eval_every=3)
    train(tmp_path / "run", periodic=periodic, eval_every=3)
    assert list(seen) == [0, 3, 6, 8] and len(set(seen.values())) == 4


def test_a_validation_that_is_no_number_stops_the_run_with_the_checkpoint_from_before(tmp_path):
    class Spoilt(Examples):
        def validation(self):
            self.passes = getattr(self, "passes", 0) + 1
            yield self.batch(10**6, spoilt=self.passes == 4)

    with pytest.raises(UserError, match="validation loss of step 6 is not finite: the run stops with the .* of step 4"):
        train(tmp_path / "run", Spoilt())
    assert checkpoint.load_adapter(tmp_path / "run").step == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_last": 0}, "config.keep_last is 0; it must be at least 1"),
        ({"keep_every": -1}, "config.keep_every is -1; it must be at least 0"),
        ({"patience": -1}, "config.patience is -1; it must be at least 0"),
        ({"max_skipped": 0}, "config.max_skipped is 0; it must be at least 1"),
        ({"seed": -1}, "config.seed is -1"),
    ],
)
def test_a_config_out_of_range_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", **changes)
