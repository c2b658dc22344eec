"""Checkpoints of a run: the trained leaves, optimizer state and step, and what they belong to. Never the base."""

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import Array, UInt32
from orbax.checkpoint import checkpoint_managers

from mmaudio_jax import distributed, trees
from mmaudio_jax.errors import Damaged, UserError, reading
from mmaudio_jax.files import atomic_directory, writing
from mmaudio_jax.lora import LoRAConfig
from mmaudio_jax.resumption import check_same

State = Mapping[str, Any]  # of a run, as of `mmaudio_jax.train_step`

ALONE = "alone"  # in what is kept of a run: its leaves are all there is, it cannot go on
FOLDER = "checkpoints"  # of a workdir
SNAPSHOTS = "ema"  # of a workdir: all averages, to make others of
DAMAGED = "damaged"  # of a workdir: checkpoints that could not be read
BEST = "best"  # RUN@best: the checkpoint of the lowest validation loss


class _Kept:
    """A manager that is closed when its `with` ends."""

    _manager: ocp.CheckpointManager

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def check(self) -> None:
        """Raises what a save has met that has ended; waits for none."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until everything is on disk; an OSError that names the folder if it takes no more."""
        with writing(self._manager.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends."""
        self.wait()
        self._manager.close()

    def _save(self, step: int, items: Mapping[str, ocp.args.CheckpointArgs], **options) -> None:
        with writing(self._manager.directory):
            self._manager.save(step, args=ocp.args.Composite(**items), **options)


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a run remembers of its validations: the lowest loss, its step, and how many came after it."""

    best_loss: float = math.inf
    best_step: int = 0
    since_best: int = 0

    def after(self, step: int, loss: float) -> "Progress":
        """With one validation more."""
        if loss < self.best_loss:
            return Progress(loss, step, 0)
        return dataclasses.replace(self, since_best=self.since_best + 1)


class RunCheckpoints(_Kept):
    """The checkpoints in `workdir/checkpoints`, written in the background, each whole or not there.

    Args:
        workdir: the run's folder.
        run: what the run is, JSON values: `config`, `base`, `start` and `data` (what they are, and where), version. It
            is stored with every checkpoint; opening a folder that holds another run's is an error.
        keep_last: how many of the newest are kept; the one of the lowest loss is kept as well.
        keep_every: those of multiples of this step are kept as well; 0 none.
        read_only: looks at what is there, and makes nothing.

    Raises:
        UserError: the folder belongs to another run (names the first key that differs).
    """

    def __init__(
        self, workdir: Path, run: Mapping[str, Any], keep_last: int = 1, keep_every: int = 0, read_only: bool = False
    ):
        self._workdir, self._run = workdir, dict(run)
        if not read_only:
            self._set_aside(_without_losses(workdir / FOLDER))
        policies = [
            checkpoint_managers.LatestN(keep_last),
            checkpoint_managers.BestN(get_metric_fn=_loss, reverse=True, n=1, keep_checkpoints_without_metrics=False),
            *([checkpoint_managers.EveryNSteps(keep_every)] if keep_every else []),
        ]
        preserve = checkpoint_managers.AnyPreservationPolicy(policies)
        self._manager = _open(
            workdir,
            ocp.CheckpointManagerOptions(
                preservation_policy=preserve, read_only=read_only, best_fn=_loss, best_mode="min"
            ),
        )
        try:
            for step in sorted(self._manager.all_steps(), reverse=True):
                with contextlib.suppress(Damaged):  # `restore` deals with it
                    _check_digests(self._manager, step)
                    stored = _read_json(self._manager, step, "run")
                    if ALONE in stored:
                        raise UserError(f"{workdir} holds trained weights and no run; choose another --workdir")
                    check_same(stored, self._run, workdir)
                    break
        except UserError:
            self.close()
            raise

    def save(self, step: int, state: State, progress: Progress, loss: float | None = None) -> None:
        """Starts saving; the state has been copied when this returns. `loss` is the validation's, if there was one."""
        items = {
            "state": ocp.args.PyTreeSave(state),
            "run": ocp.args.JsonSave(self._run),
            "progress": ocp.args.JsonSave(dataclasses.asdict(progress)),
            "checksums": ocp.args.JsonSave(_checksums(state) | _digests(self._run, progress, loss)),
        }
        self._save(step, items, metrics=None if loss is None else {"loss": loss})

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, written or being written; None without one."""
        return self._manager.latest_step()

    def restore(self, like: State) -> tuple[State | None, Progress]:
        """The newest whole state, None if there is none yet, and what the run remembers.

        What is damaged is named, and moved out of the way into `workdir/damaged`.

        Args:
            like: structure, shapes and shardings, as of `train_step.abstract_state`.

        Raises:
            UserError: all are damaged.
        """
        steps, damaged = sorted(self._manager.all_steps(), reverse=True), []
        for step in steps:
            damage = None
            try:
                _check_digests(self._manager, step)
                state = _restore_tree(self._manager, step, like)
                _check_sums(self._manager, step, state)
                progress = Progress(**_read_json(self._manager, step, "progress"))
            except Damaged as error:
                damage = error
            if not distributed.anywhere(damage is not None):
                if damaged:
                    self._set_aside(damaged)
                    self._manager.reload()
                return state, progress
            damaged.append(step)
            distributed.say(f"warning: {damage or f'another process cannot read step {step}'}")
        if damaged:
            raise UserError(f"no checkpoint in {self._workdir} can be read; choose another --workdir")
        return None, Progress()

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Moves checkpoints out of the folder that Orbax looks through."""
        if not steps:
            return
        if distributed.is_main():
            for step in steps:
                aside = self._workdir / DAMAGED / str(step)
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                (self._workdir / FOLDER / str(step)).rename(aside)
        names = ", ".join(map(str, steps))
        distributed.say(f"warning: the damaged checkpoint(s) {names} are now in {self._workdir / DAMAGED}")
        distributed.wait_for_all("damaged checkpoints are set aside")


class Snapshots(_Kept):
    """The averages that a run has tracked, at all steps that it took snapshots of: `workdir/ema`.

    Args:
        workdir: the run's folder.
        step: where the run goes on; snapshots of later steps, of before it was stopped, are removed. None only reads.
    """

    def __init__(self, workdir: Path, step: int | None = None):
        options = ocp.CheckpointManagerOptions(read_only=step is None)
        self._manager = _open(workdir, options, SNAPSHOTS)
        for later in self.steps:
            if step is not None and later > step:
                self._manager.delete(later)

    @property
    def steps(self) -> list[int]:
        """Steps with a snapshot, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, averages: Mapping[str, trees.Params]) -> None:
        """Starts saving {σ_rel: params}."""
        averages = dict(averages)
        items = {"state": ocp.args.PyTreeSave(averages), "checksums": ocp.args.JsonSave(_checksums(averages))}
        self._save(step, items)

    def widths(self, step: int) -> list[str]:
        """The σ_rel of a step's averages, as they are spelt in `load`."""
        with _reading(self._manager, step):
            return sorted(self._manager.item_metadata(step)["state"].tree)

    def load(self, step: int) -> dict[str, trees.Params]:
        """{σ_rel: params} of a step, on the first local device; Damaged if they are not what was saved."""
        averages = _restore_local(self._manager, step)
        _check_sums(self._manager, step, averages)
        return averages


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What a run has trained, an adapter or all weights: its leaves, its step, and the run that it comes from."""

    params: trees.Params
    step: int
    run: dict[str, Any]

    @property
    def lora(self) -> LoRAConfig | None:
        """What is adapted, and how; None: all weights were trained."""
        settings = self.run["config"]["lora"]
        try:
            return LoRAConfig(**settings) if settings else None
        except TypeError:
            raise UserError("the adapter was trained by another release, whose settings are not known here") from None

    def check_base(self, fingerprint: str, directory: Path) -> None:
        """Raises a UserError unless these weights, those in `directory`, are what the run started from."""
        check_base(self.run, fingerprint, directory)


def check_base(run: Mapping[str, Any], fingerprint: str, directory: Path) -> None:
    """Raises a UserError unless these weights, those in `directory`, are what a run started from."""
    base = run["base"]
    if base["fingerprint"] != fingerprint:
        raise UserError(
            f"the run started from {base['path']}, whose weights are not those of {directory}: "
            "name the base that it belongs to"
        )


def save_adapter(path: Path, adapter: Adapter) -> None:
    """Writes an adapter that no run of its own belongs to, as a folder that `load_adapter` reads.

    Raises:
        UserError: the folder exists.
    """
    with atomic_directory(path) as folder:
        with RunCheckpoints(folder, adapter.run | {ALONE: True}) as checkpoints:
            checkpoints.save(adapter.step, {"params": adapter.params}, Progress())


def read_run(workdir: Path) -> dict[str, Any]:
    """What a run is, as its checkpoint tells; see `load_adapter`."""
    with _opened(workdir) as (manager, steps):

        def read(step):
            _check_digests(manager, step)
            return _read_json(manager, step, "run")

        return _newest_whole(steps, read)


def identify(workdir: Path) -> dict[str, Any]:
    """Which checkpoint `load_adapter` would read, and a hash of all that it holds; reads none of its leaves.

    Returns:
        `run`, as the place of that very checkpoint, RUN@STEP; `fingerprint`.
    """
    with _opened(workdir) as (manager, steps):

        def read(step):
            _check_digests(manager, step)
            digest = hashlib.sha256(json.dumps(_read_json(manager, step, "checksums"), sort_keys=True).encode())
            return {"run": f"{manager.directory.parent}@{step}", "fingerprint": digest.hexdigest()}

        return _newest_whole(steps, read)


def load_adapter(workdir: Path) -> Adapter:
    """The newest trained leaves of a run, or those of `RUN@best` or `RUN@STEP`.

    Raises:
        UserError: the folder holds no such checkpoint, or none that is whole.
    """
    with _opened(workdir) as (manager, steps):

        def load(step):
            _check_digests(manager, step)
            state = _restore_local(manager, step, "params")
            _check_sums(manager, step, state)
            return Adapter(state["params"], step, _read_json(manager, step, "run"))

        return _newest_whole(steps, load)


def _newest_whole(steps: Sequence[int], load: Callable[[int], Any]) -> Any:
    """What `load` gives for the first of these steps that is not damaged; names those before it."""
    for step in steps:
        try:
            return load(step)
        except Damaged as error:
            if step == steps[-1]:
                raise
            distributed.say(f"warning: {error}")


@contextlib.contextmanager
def _opened(workdir: Path) -> Iterator[tuple[ocp.CheckpointManager, list[int]]]:
    """The manager of a run, and the steps that are meant, newest first."""
    if not workdir.name:
        raise UserError("no training run is named: the folder is empty")
    name, at, chosen = workdir.name.rpartition("@") if not workdir.exists() else (workdir.name, "", "")
    if at and not chosen:
        raise UserError(f"{workdir} names no checkpoint; write {name}@{BEST}, {name}@STEP, or {name} for the newest")
    workdir = workdir.with_name(name or workdir.name)
    if not (workdir / FOLDER).is_dir():
        there = f"there is no folder {FOLDER} in it" if workdir.exists() else "it does not exist"
        raise UserError(f"{workdir} is no training run: {there}")
    options = ocp.CheckpointManagerOptions(read_only=True, best_fn=_loss, best_mode="min")
    with _open(workdir, options) as manager:
        steps = sorted(manager.all_steps(), reverse=True)
        if not steps:
            raise UserError(f"{workdir} holds no checkpoint yet; the first is saved after the first validation")
        if chosen == BEST:
            if (best := manager.best_step()) is None:
                raise UserError(f"{workdir} has no checkpoint of a validation; name one by its step, {workdir}@STEP")
            steps = [best]
        elif chosen:
            if chosen not in map(str, steps):
                raise UserError(f"{workdir} has no checkpoint {chosen}; there are {', '.join(map(str, steps))}")
            steps = [int(chosen)]
        yield manager, steps


def _loss(metrics: Mapping[str, float]) -> float:
    """The loss; one that was damaged is worse than all."""
    return metrics.get("loss", math.inf)


def _without_losses(folder: Path) -> list[int]:
    """Checkpoints whose losses cannot be read, of which Orbax reads all at once."""
    found = []
    for file in folder.glob("*/metrics/metrics"):
        try:
            json.loads(file.read_text())
        except ValueError:
            found.append(int(file.parts[-3]))
    return sorted(found)


def _open(workdir: Path, options: ocp.CheckpointManagerOptions, folder: str = FOLDER) -> ocp.CheckpointManager:
    handlers = {"state": ocp.PyTreeCheckpointHandler()}
    handlers |= {name: ocp.JsonCheckpointHandler() for name in ("run", "progress", "checksums")}
    try:
        return ocp.CheckpointManager((workdir / folder).absolute(), options=options, item_handlers=handlers)
    except ValueError:
        damaged = ", ".join(str(workdir / folder / str(step)) for step in _without_losses(workdir / folder))
        raise Damaged(f"{damaged} is damaged: its losses cannot be read; remove it") from None


def _restore(manager: ocp.CheckpointManager, step: int, item: str, args: ocp.args.CheckpointArgs) -> Any:
    with _reading(manager, step):
        return manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]


def _restore_tree(manager: ocp.CheckpointManager, step: int, target: Any, **options) -> Any:
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    return _restore(manager, step, "state", ocp.args.PyTreeRestore(item=target, restore_args=restore_args, **options))


def _restore_local(manager: ocp.CheckpointManager, step: int, name: str | None = None) -> Any:
    """The state, or one part of it, in the shapes that the checkpoint tells, on the first local device."""
    with _reading(manager, step):
        stored = manager.item_metadata(step)["state"].tree
        stored = {name: stored[name]} if name else stored
    where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=where), stored)
    return _restore_tree(manager, step, target, partial_restore=name is not None)


def _reading(manager: ocp.CheckpointManager, step: int):
    return reading(manager.directory / str(step), "use the one before it, as RUN@STEP")


def _read_json(manager: ocp.CheckpointManager, step: int, item: str) -> dict[str, Any]:
    return _restore(manager, step, item, ocp.args.JsonRestore())


@jax.jit
def _checksum(leaf: Array) -> UInt32[Array, ""]:
    """A number that any changed bit changes: the words of 32 bits, each times an odd number of its place, summed."""
    words = jax.lax.bitcast_convert_type(leaf, jnp.uint32).ravel()
    return jnp.sum(words * (2 * jnp.arange(words.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)


def _checksums(state: State) -> dict[str, int]:
    """{path: checksum} of all leaves, the same however they are split over devices."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    sums = jax.device_get([_checksum(leaf) for _, leaf in leaves])
    return {jax.tree_util.keystr(path): int(value) for (path, _), value in zip(leaves, sums, strict=True)}


def _check_sums(manager: ocp.CheckpointManager, step: int, state: State) -> None:
    """Raises Damaged unless these leaves are in every bit what was saved; Orbax's format does not notice by itself."""
    stored = _read_json(manager, step, "checksums")
    changed = [path for path, value in _checksums(state).items() if stored.get(path) != value]
    if changed:
        raise Damaged(
            f"{manager.directory / str(step)} is damaged: {changed[0]} and {len(changed) - 1} other leaves "
            "are not what was saved"
        )


def _digests(run: Mapping[str, Any], progress: Progress, loss: float | None) -> dict[str, str]:
    """{item: SHA-256} of what a checkpoint holds beside its leaves, as JSON gives it back."""
    items = {"run": run, "progress": dataclasses.asdict(progress), "loss": loss}
    return {name: hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest() for name, item in items.items()}


def _check_digests(manager: ocp.CheckpointManager, step: int) -> None:
    """Raises Damaged unless what lies beside the leaves is what was saved."""
    stored = _read_json(manager, step, "checksums")
    loss = (manager.metrics(step) or {}).get("loss")
    with _reading(manager, step):
        found = _digests(_read_json(manager, step, "run"), Progress(**_read_json(manager, step, "progress")), loss)
    if changed := [name for name, digest in found.items() if stored.get(name) != digest]:
        raise Damaged(f"{manager.directory / str(step)} is damaged: its {changed[0]} is not what was saved")
