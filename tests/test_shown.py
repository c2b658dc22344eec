"""What a run shows and when: a toy network in the real loop."""

import dataclasses
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_trainer
from flax import nnx
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_train_step import RECIPE, Toy, toy_batch

from mmaudio_jax import train_step, trainer, trees
from mmaudio_jax.errors import UserError

CONFIG = dataclasses.replace(
    test_trainer.CONFIG,
    batch_size=8,
    accumulation=2,
    num_steps=6,
    log_every=2,
    eval_every=3,
    optimizer=RECIPE,
    ema=None,
)
FULL_SPEED = 1e6


def loss(model, batch, key):
    error = jnp.mean(jnp.square(model(batch["x"]) - batch["y"]), axis=-1)
    count = jnp.array([0.0, 1.0, 0.0, 1.0])
    by_t = jnp.array([0.0, error[0], 0.0, error[1]])
    return error.mean(), {"loss": (error.sum(), jnp.float32(error.size)), "loss_by_t": (by_t, count)}


class Data:
    def training(self, start):
        while True:
            yield {name: value[0] for name, value in toy_batch(start).items()}
            start += 1

    def validation(self):
        yield {name: value[0] for name, value in toy_batch(99).items()}

    def names(self, step):
        return [f"example of step {step}"]


def train(workdir, one_device, periodic=None, full_speed=FULL_SPEED, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    graphdef, params = trees.split(Toy(nnx.Rngs(0)))
    identity = {"config": dataclasses.asdict(config), "base": {}, "data": {}}
    network = trainer.Network(graphdef, params, {})
    places = dict(workdir=workdir, identity=identity, key=jax.random.key(0), mesh=one_device)
    assert trainer.train(config, network, loss, Data(), **places, full_speed=full_speed, periodic=periodic) == 0
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def steps(rows, tag):
    return [row["step"] for row in rows if tag in row]


@pytest.fixture(scope="module")
def shown(tmp_path_factory, one_device):
    """(workdir, rows of metrics.jsonl, steps that something else was done at) of a whole run."""
    workdir, acted = tmp_path_factory.mktemp("shown") / "run", []
    act = trainer.Periodic(
        4, lambda step, params, writer: acted.append((step, sorted(params))), lambda step: step in dict(acted)
    )
    return workdir, train(workdir, one_device, act), acted


def test_each_interval_is_its_own_key(shown, tmp_path, one_device):
    _, rows, acted = shown
    assert steps(rows, "train/loss") == [2, 3, 4, 6] and steps(rows, "validation/loss") == [0, 3, 6]
    assert acted == [(step, ["layer.bias", "layer.kernel"]) for step in (0, 4, 6)]
    rows = train(tmp_path / "run", one_device, log_every=5, eval_every=4)
    assert steps(rows, "train/loss") == [4, 5, 6] and steps(rows, "validation/loss") == [0, 4, 6]


def test_a_measure_over_t_is_a_list_a_plot_and_an_image(shown):
    workdir, rows, _ = shown
    values = [row["validation/loss_by_t"] for row in rows if "validation/loss" in row]
    assert all(value[0] is value[2] is None and value[1] > 0 and value[3] > 0 for value in values)
    plots = workdir / "plots" / "validation_loss_by_t"
    assert sorted(path.name for path in plots.iterdir()) == ["000000.png", "000003.png", "000006.png"]
    board = EventAccumulator(str(workdir / "tensorboard")).Reload()
    assert [event.step for event in board.Images("validation/loss_by_t")] == [0, 3, 6]


def test_the_same_draws_validate_each_time(shown, tmp_path, one_device):
    still = train(tmp_path / "run", one_device, optimizer=dataclasses.replace(RECIPE, learning_rate=1e-30))
    assert len({row["validation/loss"] for row in still if "validation/loss" in row}) == 1


def test_mfu_is_the_share_of_full_speed(shown):
    for row in shown[1]:
        if "train/mfu" in row:
            assert row["train/mfu"] == pytest.approx(row["train/samples_per_second"] / FULL_SPEED, rel=1e-6)
    board = EventAccumulator(str(shown[0] / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/mfu")] == steps(shown[1], "train/mfu") == [2, 3, 4, 6]


def test_a_transfer_that_nobody_asked_for_stops_the_run(tmp_path, one_device, monkeypatch):
    def left_on_the_host(batches, count, mesh):
        return ({name: np.stack([value] * count) for name, value in batch.items()} for batch in batches)

    monkeypatch.setattr(train_step, "micro_batched", left_on_the_host)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(tmp_path / "run", one_device)


class WandB(types.ModuleType):
    """Weights & Biases, as far as a run uses it; keeps what it is told."""

    Error = type("Error", (Exception,), {})

    def __init__(self):
        super().__init__("wandb")
        self.begun, self.logged, self.ended = [], [], 0

    def init(self, **options):
        if options["project"] == "of another":
            raise self.Error("permission denied")
        self.begun.append(options)
        self.id = options["id"] or "new"
        return self

    def log(self, values, step):
        self.logged += [(step, tag, value) for tag, value in values.items()]

    def Image(self, image):
        return ("image", image.shape, image.dtype)

    def Audio(self, audio, sample_rate):
        return ("audio", len(audio), sample_rate)

    def finish(self):
        self.ended += 1


def test_weights_and_biases_gets_what_tensorboard_does(tmp_path, one_device, monkeypatch):
    wandb = WandB()
    monkeypatch.setitem(sys.modules, "wandb", wandb)

    def act(step, params, writer):
        writer.sound(step, "samples/a", np.zeros(100, np.float32), 16_000)
        if step == 5 and wandb.begun == wandb.begun[:1]:
            raise KeyboardInterrupt  # a run that is stopped

    periodic = trainer.Periodic(5, act, lambda step: False)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", one_device, periodic, wandb="mine")
    rows = train(tmp_path / "run", one_device, periodic, wandb="mine")
    first, again = wandb.begun
    assert first["project"] == "mine" and first["id"] is None and again["id"] == "new" and wandb.ended == 2
    assert first["resume"] == "allow" and first["config"]["config"]["batch_size"] == CONFIG.batch_size
    logged = {(step, tag): value for step, tag, value in wandb.logged}
    for row in rows:
        for tag, value in row.items():
            if "/" in tag and not isinstance(value, list):
                assert logged[row["step"], tag] == value
    assert logged[6, "validation/loss_by_t"][0] == "image" and logged[0, "samples/a"] == ("audio", 100, 16_000)


def test_weights_and_biases_is_not_touched_unless_asked_for(tmp_path, one_device, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    with pytest.raises(UserError, match="`pip install wandb`"):
        train(tmp_path / "run", one_device, wandb="mine")
    assert not (tmp_path / "run").exists()
    assert train(tmp_path / "run", one_device, num_steps=1)


def test_a_refusal_of_weights_and_biases_is_one_sentence(tmp_path, one_device, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", WandB())
    with pytest.raises(UserError, match="Weights & Biases refuses .permission denied.; log in with `wandb login`"):
        train(tmp_path / "run", one_device, wandb="of another")
    with pytest.raises(UserError, match="config.wandb is empty"):
        dataclasses.replace(CONFIG, wandb="")


def test_what_is_shown_may_change_in_a_run_that_goes_on(shown, one_device, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", WandB())
    assert train(shown[0], one_device, wandb="mine", log_every=1) == shown[1]  # it is finished
    with pytest.raises(UserError, match="its config.eval_every is 3, now it is 2"):
        train(shown[0], one_device, eval_every=2)
