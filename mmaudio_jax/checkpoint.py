"""Checkpoints of a run: the trained leaves, optimizer state and step, and what they belong to. Never the base."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mmaudio_jax import trees
from mmaudio_jax.errors import UserError, reading
from mmaudio_jax.files import atomic_directory

State = Mapping[str, Any]  # of a run, as of `mmaudio_jax.training`

ADVICE = {  # where the value cannot be given
    "data.ids_sha256": "--config.data names a set of other clips than the run's: name the old one",
    "config.num_steps": "a run's length is part of its schedule; to train on, merge it (python -m mmaudio_jax.merge) "
    "and start from that",
}
ALONE = "alone"  # in what is kept of a run: its leaves are all there is, it cannot go on
FOLDER = "checkpoints"  # of a workdir
SNAPSHOTS = "ema"  # of a workdir: all averages, to make others of
KEEP = 3  # the newest checkpoints that are kept
# what a resumed run may have otherwise: how it is shown, read and shared out, and where the same base lies
MAY_CHANGE = (
    *("config.log_every", "config.workers", "config.mesh.data", "config.mesh.fsdp", "config.weights", "config.data"),
    *("base.path", "mmaudio_jax_version"),
)


class _Kept:
    """A manager that is closed when its `with` ends."""

    _manager: ocp.CheckpointManager

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


class RunCheckpoints(_Kept):
    """The checkpoints in `workdir/checkpoints`, written in the background, each whole or not there.

    Args:
        workdir: the run's folder.
        run: what the run is, JSON values: `config`, `base` and `data` (what they are, and where), version. It is
            stored with every checkpoint; opening a folder that holds another run's is an error.
        read_only: looks at what is there, and makes nothing.

    Raises:
        UserError: the folder belongs to another run (names the first key that differs).
    """

    def __init__(self, workdir: Path, run: Mapping[str, Any], read_only: bool = False):
        self._run = dict(run)
        options = ocp.CheckpointManagerOptions(max_to_keep=None if read_only else KEEP, read_only=read_only)
        self._manager = _open(workdir, options)
        self.latest_step: int | None = self._manager.latest_step()
        try:
            if self.latest_step is not None:
                stored = _read_run(self._manager, self.latest_step)
                if ALONE in stored:
                    raise UserError(f"{workdir} holds trained weights and no run; choose another --workdir")
                _check_same("", stored, self._run, workdir)
        except UserError:
            self.close()
            raise

    def save(self, step: int, state: State) -> None:
        """Starts saving; the state has been copied when this returns."""
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), run=ocp.args.JsonSave(self._run)),
        )

    def restore(self, like: State) -> State:
        """The newest state; `like` gives structure, shapes and shardings, as of `training.abstract_state`."""
        return _restore_tree(self._manager, self.latest_step, like)


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
        self._manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(dict(averages))))

    def wait(self) -> None:
        """Waits until all snapshots are on disk."""
        self._manager.wait_until_finished()

    def widths(self, step: int) -> list[str]:
        """The σ_rel of a step's averages, as they are spelt in `load`."""
        with _reading(self._manager, step):
            return sorted(self._manager.item_metadata(step)["state"].tree)

    def load(self, step: int) -> dict[str, trees.Params]:
        """{σ_rel: params} of a step, on the first local device."""
        return _restore_local(self._manager, step)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What a run has trained, an adapter or all weights: its leaves, its step, and the run that it comes from."""

    params: trees.Params
    step: int
    run: dict[str, Any]

    def check_base(self, fingerprint: str, directory: Path) -> None:
        """Raises a UserError unless these weights, those in `directory`, are what the run started from."""
        base = self.run["base"]
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
            checkpoints.save(adapter.step, {"params": adapter.params})


def read_run(workdir: Path) -> dict[str, Any]:
    """What a run is, as its newest checkpoint tells; see `load_adapter`."""
    with _opened(workdir) as (manager, step):
        return _read_run(manager, step)


def load_adapter(workdir: Path) -> Adapter:
    """The newest trained leaves of a run.

    Raises:
        UserError: the folder holds no checkpoint.
    """
    with _opened(workdir) as (manager, step):
        return Adapter(_restore_local(manager, step, "params")["params"], step, _read_run(manager, step))


@contextlib.contextmanager
def _opened(workdir: Path) -> Iterator[tuple[ocp.CheckpointManager, int]]:
    if not (workdir / FOLDER).is_dir():
        there = f"there is no folder {FOLDER} in it" if workdir.exists() else "it does not exist"
        raise UserError(f"{workdir} is no training run: {there}")
    with _open(workdir, ocp.CheckpointManagerOptions(read_only=True)) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"{workdir} holds no checkpoint yet; the first is saved after the first validation")
        yield manager, step


def _open(workdir: Path, options: ocp.CheckpointManagerOptions, folder: str = FOLDER) -> ocp.CheckpointManager:
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager((workdir / folder).absolute(), options=options, item_handlers=handlers)


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
    advice = "remove that folder to go on from the one before, or choose another --workdir"
    return reading(manager.directory / str(step), advice)


def _read_run(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    return _restore(manager, step, "run", ocp.args.JsonRestore())


def _check_same(name: str, stored: Any, asked: Any, workdir: Path) -> None:
    if isinstance(asked, Mapping) and isinstance(stored, Mapping):
        for key in asked:
            _check_same(f"{name}.{key}" if name else key, stored.get(key), asked[key], workdir)
    elif name not in MAY_CHANGE and (list(stored) if isinstance(stored, tuple) else stored) != (
        list(asked) if isinstance(asked, tuple) else asked
    ):
        raise UserError(
            f"{workdir} holds another run: its {name} is {stored!r}, now it is {asked!r}; "
            f"{ADVICE.get(name, 'give the old value to go on with it')}, or choose another --workdir"
        )
