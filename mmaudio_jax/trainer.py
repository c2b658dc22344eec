"""The training loop: steps, validation, measures and checkpoints of one run. It knows no network and no data by name.

`train` takes a network as its definition and leaves, its loss, and its data; experiment.py makes them for MMAudio.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import filelock
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mmaudio_jax import boards, distributed, ema, optim, sharding, train_step, trees
from mmaudio_jax.checkpoint import RunCheckpoints, Snapshots
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_file
from mmaudio_jax.metrics import Clock, MetricWriter, NoWriter

LOCK = ".lock"  # of a workdir: held by the run that is at work in it
START_AGAIN = 75  # exit code of a run that was told to stop and has saved; sysexits.h calls it EX_TEMPFAIL

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """What decides a run, whatever is trained.

    Attributes:
        seed: of every draw, and of the order of examples.
        batch_size: examples a micro-batch.
        accumulation: micro-batches an optimizer step.
        num_steps: optimizer steps.
        log_every: steps between lines of training measures.
        eval_every: steps between validations, each followed by a checkpoint.
        keep_last: the newest checkpoints that are kept, beside the one of the lowest validation loss.
        keep_every: checkpoints of multiples of this step are kept as well; 0: none for that reason.
        patience: the run ends after so many validations without a new lowest loss; 0: never before num_steps.
        max_skipped: the run stops with an error after so many steps in a row that were not finite: their loss,
            gradient or update.
        mesh: how the devices share the work.
        optimizer: AdamW and its schedule.
        ema: averages of the trained leaves to track; None tracks none.
        wandb: the Weights & Biases project that shows the run as well; None: none does.
    """

    seed: int
    batch_size: int
    accumulation: int
    num_steps: int
    log_every: int
    eval_every: int
    keep_last: int
    keep_every: int
    patience: int
    max_skipped: int
    mesh: sharding.MeshConfig
    optimizer: optim.OptimizerConfig
    ema: ema.EMAConfig | None
    wandb: str | None

    def __post_init__(self):
        least = dict.fromkeys(("keep_every", "patience"), 0)
        positive = ("batch_size", "accumulation", "num_steps", "log_every", "eval_every", "keep_last", "max_skipped")
        for name, bound in {**dict.fromkeys(positive, 1), **least}.items():
            if getattr(self, name) < bound:
                raise UserError(f"config.{name} is {getattr(self, name)}; it must be at least {bound}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"config.seed is {self.seed}; it must lie in [0, 2³²)")
        if self.wandb == "":
            raise UserError("config.wandb is empty; name a project of Weights & Biases, or leave it out")
        boards.check_wandb(self.wandb)

    @property
    def step_size(self) -> int:
        """Examples an optimizer step."""
        return self.batch_size * self.accumulation


class Network(NamedTuple):
    """A network's definition, the leaves that are trained, which the run takes over, and the others."""

    graphdef: nnx.GraphDef
    trained: trees.Params
    frozen: trees.Params


class Data(Protocol):
    """Examples, as dicts of arrays with the examples of this process along the first axis."""

    def training(self, start: int) -> Iterator[Batch]:
        """Endless micro-batches, the `start`-th first; `close()` ends it."""

    def validation(self) -> Iterator[Batch]:
        """One pass over what validates."""

    def names(self, step: int) -> list[str]:
        """What the examples of the 1-based optimizer step are called, over all processes."""


class Periodic(NamedTuple):
    """Something that is done before the first step, every so many steps, and at the end.

    Attributes:
        every: steps.
        act: does it, with (step, trained leaves, writer), in every process.
        done: whether it has been done at a step, asked in the main process: what a killed run left out is made up.
    """

    every: int
    act: Callable[[int, trees.Params, Any], None]
    done: Callable[[int], bool]


def train(
    config: LoopConfig,
    network: Network,
    loss: train_step.Loss,
    data: Data,
    *,
    workdir: Path,
    identity: Mapping[str, Any],
    key: jax.Array,
    mesh: Mesh,
    full_speed: float,
    periodic: Periodic | None = None,
    validation_loss: train_step.Loss | None = None,
) -> int:
    """Trains, or goes on training, in `workdir`.

    Args:
        config: of the loop.
        network: what is trained.
        loss: as `mmaudio_jax.train_step` says.
        data: what it is trained on.
        workdir: gets checkpoints, measures and averages.
        identity: what the run is, JSON values with the key `config`; a workdir of another is refused.
        key: all randomness of the run, the same in every process.
        mesh: the devices.
        full_speed: examples a second that they could do if they did nothing but multiply; mfu is the share of it.
        periodic: what else is done now and then, such as listening.
        validation_loss: what validates; None: `loss` does.

    Returns:
        The exit code: 0, or `START_AGAIN` if the run was told to stop (SIGTERM) and has saved where it is.

    Raises:
        UserError: the workdir is another run's or in use, too many steps in a row were not finite, or a
            validation was not.
    """
    with contextlib.ExitStack() as stack:
        stop_asked = stack.enter_context(distributed.stop_requests())
        stack.enter_context(_alone_in(workdir))
        checkpoints = stack.enter_context(RunCheckpoints(workdir, identity, config.keep_last, config.keep_every))
        run = _Run(config, network, loss, validation_loss or loss, data, key, mesh, full_speed, periodic)
        run.begin(workdir, identity, checkpoints, stack)
        if run.finished:
            return 0
        if distributed.is_main():
            with atomic_file(workdir / "config.json") as temporary:
                temporary.write_text(json.dumps(identity["config"], indent=2) + "\n")
        return run.go(stop_asked)


@contextlib.contextmanager
def _alone_in(workdir: Path) -> Iterator[None]:
    """Holds the lock of a workdir; the system releases it when the main process ends, however it does."""
    lock = filelock.FileLock(workdir / LOCK, blocking=False)
    with distributed.together():
        if distributed.is_main():
            workdir.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except filelock.Timeout:
                raise UserError(
                    f"another run is at work in {workdir}; wait for its end, or choose another --workdir"
                ) from None
    try:
        yield
    finally:
        lock.release()


class _Run:
    """One process's part in a run, from the state that it starts with to its end."""

    def __init__(self, config, network, loss, validation_loss, data, key, mesh, full_speed, periodic):
        self._config, self._network, self._data, self._mesh = config, network, data, mesh
        self._full_speed, self._periodic = full_speed, periodic
        self._train_key, self._eval_key = jax.random.split(key)
        self._optimizer = optim.make_optimizer(config.optimizer, config.num_steps)
        self._train_step = train_step.make_train_step(network.graphdef, loss, self._optimizer, mesh)
        self._eval_step = train_step.make_eval_step(network.graphdef, validation_loss, mesh)
        self._learning_rate = optim.learning_rate(config.optimizer, config.num_steps)
        self._pending: list[tuple[int, train_step.Measures]] = []
        self._skipped = 0  # steps in a row

    def begin(self, workdir, identity, checkpoints, stack) -> None:
        """Takes the newest state, or makes the first, and opens what is written; `stack` closes it."""
        config, trained = self._config, self._network.trained
        averages = config.ema.sigma_rels if config.ema else ()
        abstract = train_step.abstract_state(trained, self._optimizer, self._mesh, averages)
        self._checkpoints, self._stack = checkpoints, stack
        if checkpoints.latest_step is not None:  # these leaves would lie beside those that are restored
            jax.tree.map(lambda leaf: leaf.delete(), trained)
        self._state, self._progress = checkpoints.restore(abstract)
        if self._state is None:
            self._state = train_step.initial_state(trained, self._optimizer, self._mesh, averages)
        self._start = int(self._state["step"])
        self.finished = self._trained and not self._is_due(self._start, last=True)  # nothing is left to do
        if self._start:
            done = " and so is finished" if self.finished else ""
            distributed.say(f"{workdir} has come to step {self._start}{done}")
        self._writer = NoWriter()
        with distributed.together():
            if distributed.is_main() and not self.finished:
                self._writer = MetricWriter(workdir, self._start, config.num_steps, config.wandb, identity)
        stack.callback(self._writer.close)
        self._snapshots = stack.enter_context(Snapshots(workdir, self._start)) if config.ema else None
        self._clock = Clock(self._start, config.num_steps)

    @property
    def _trained(self) -> bool:
        """Whether the last step has been made."""
        return int(self._state["step"]) >= self._config.num_steps or self._out_of_patience

    def _is_due(self, step: int, last: bool) -> bool:
        """Whether what is done now and then is to be done at this step, and has not been."""
        if self._periodic is None or (step % self._periodic.every and not last):
            return False
        return distributed.anywhere(distributed.is_main() and not self._periodic.done(step))

    @property
    def _out_of_patience(self) -> bool:
        return 0 < self._config.patience <= self._progress.since_best

    def go(self, stop_asked: Callable[[int], bool]) -> int:
        config = self._config
        stream = self._data.training(self._start * config.accumulation)
        self._stack.callback(stream.close)
        batches = train_step.micro_batched(stream, config.accumulation, self._mesh)
        if self._start == 0:
            self._validate(0)
        if self._is_due(self._start, self._trained):
            self._periodic.act(self._start, self._state["params"], self._writer)
        end = self._start if self._trained else config.num_steps
        if self._start < end:
            distributed.say("the first step is compiled first, which can take a minute")
        for step in range(self._start + 1, end + 1):
            with self._clock.waiting():
                batch = next(batches)
            with jax.transfer_guard("disallow"):
                self._state, measures = self._train_step(self._state, self._network.frozen, batch, self._train_key)
            self._pending.append((step, measures))
            if step == self._start + 1:  # it is compiled
                jax.block_until_ready(measures)
                self._clock.start(step)
            last, stop = step == config.num_steps, stop_asked(step)
            if step % config.log_every == 0 or step % config.eval_every == 0 or last or stop:
                self._log(step)  # also before a save: who goes on from it starts with none pending
            self._writer.progress(step)
            loss = None
            if step % config.eval_every == 0 or last:
                with self._pause():
                    loss = self._validate(step)
                last = last or self._out_of_patience
            if self._snapshots and (step % config.ema.snapshot_every == 0 or last):
                with self._pause():
                    self._snapshots.save(step, self._state["ema"])
            if loss is not None or stop:
                with self._pause():
                    self._save(step, loss)
            if (last or not stop) and self._is_due(step, last):  # who goes on from here makes it up
                with self._pause():
                    self._periodic.act(step, self._state["params"], self._writer)
            if last:
                break
            if stop:
                distributed.say(f"told to stop: step {step} is saved; start the same command again to go on")
                return START_AGAIN
        if self._out_of_patience:
            distributed.say(
                f"stopped at step {int(self._state['step'])}: {config.patience} validations brought no loss below the "
                f"{self._progress.best_loss:.4f} of step {self._progress.best_step}"
            )
        return 0

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        """Within, the clock of training stands, once the steps so far have been computed."""
        jax.block_until_ready(self._state["step"])
        with self._clock.stopped():
            yield

    def _log(self, step: int) -> None:
        """Fetches the measures of the steps since the last line, and so waits for them."""
        measures = jax.device_get([measures for _, measures in self._pending])
        for saves in filter(None, (self._checkpoints, self._snapshots)):
            saves.check()
        values = {f"train/{name}": value for name, value in train_step.means(measures).items()}
        values["train/learning_rate"] = float(self._learning_rate(step - 1))
        values |= self._clock.rates(step, self._config.step_size)
        if speed := values.get("train/samples_per_second"):
            values["train/mfu"] = speed / self._full_speed
        self._writer.write(step, values)
        for (at, _), of_step in zip(self._pending, measures, strict=True):
            self._skipped = self._skipped + 1 if of_step["skipped"][0] else 0
            if self._skipped:
                self._writer.warn(
                    at, "its loss, gradient or update is not finite: nothing changed", self._data.names(at)
                )
            if self._skipped >= self._config.max_skipped:
                raise UserError(
                    f"{self._skipped} steps in a row, up to {at}, had no finite loss, gradient or update: the run "
                    f"stops {self._left()}; look at the examples that metrics.jsonl names, or start another run with "
                    "a lower learning rate"
                )
        self._pending = []

    def _validate(self, step: int) -> float:
        batches = train_step.on_devices(self._data.validation(), self._mesh)
        params = self._state["params"], self._network.frozen
        values = train_step.means([self._eval_step(*params, batch, self._eval_key) for batch in batches])
        self._writer.write(step, {f"validation/{name}": value for name, value in values.items()})
        for name, value in values.items():
            if np.ndim(value):
                self._writer.plot(step, f"validation/{name}", value)
        if not math.isfinite(values["loss"]):  # a checkpoint of such weights would be of no use
            raise UserError(
                f"the validation loss of step {step} is not finite: the run stops {self._left()}; start another run "
                "with a lower learning rate"
            )
        self._progress = self._progress.after(step, values["loss"])
        return values["loss"]

    def _left(self) -> str:
        step = self._checkpoints.latest_step
        return "without a checkpoint" if step is None else f"with the checkpoint of step {step}"

    def _save(self, step: int, loss: float | None = None) -> None:
        if self._snapshots:  # whoever goes on from this checkpoint has all snapshots before it
            self._snapshots.wait()
        self._checkpoints.save(step, self._state, self._progress, loss)
