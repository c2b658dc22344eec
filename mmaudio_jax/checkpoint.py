"""Checkpoints of a run: the trained leaves, optimizer state and step, and what they belong to. Never the base."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mmaudio_jax import trees
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_directory

State = Mapping[str, Any]  # of a run, as of `mmaudio_jax.training`

ADVICE = {  # where the value cannot be given
    "data.ids_sha256": "--config.data names a set of other clips than the run's: name the old one",
    "config.num_steps": "a run's length is part of its schedule; to train on, merge it (python -m mmaudio_jax.merge) "
    "and start from that",
}
REASON = 160  # characters of a library's message
LONE = 0  # step under which `save_adapter` keeps what has no run that could go on
FOLDER = "checkpoints"  # of a workdir
SNAPSHOTS = "ema"  # of a workdir: all averages, to make others of
KEEP = 3  # the newest checkpoints that are kept
# what a resumed run may have otherwise: how it is shown, read and shared out, and where the same base lies
MAY_CHANGE = (
    *("config.log_every", "config.workers", "config.mesh.data", "config.mesh.fsdp", "config.weights", "config.data"),
    *("base.path", "mmaudio_jax_version"),
)


class RunCheckpoints:
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
        if self.latest_step is not None:
            if self.latest_step == LONE:
                raise UserError(f"{workdir} holds trained weights and no run; choose another --workdir")
            stored = _read_run(self._manager, self.latest_step)
            _check_same("", stored, self._run, workdir)

    def save(self, step: int, state: State) -> None:
        """Starts saving; the state has been copied when this returns."""
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), run=ocp.args.JsonSave(self._run)),
        )

    def restore(self, like: State) -> State:
        """The newest state; `like` gives structure, shapes and devices."""
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        return _restore_tree(self._manager, self.latest_step, target)

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


class Snapshots:
    """The averages that a run has tracked, at all steps that it took snapshots of: `workdir/ema`."""

    def __init__(self, workdir: Path, read_only: bool = False):
        options = ocp.CheckpointManagerOptions(read_only=read_only)
        self._manager = _open(workdir, options, SNAPSHOTS)

    @property
    def steps(self) -> list[int]:
        """Steps with a snapshot, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, averages: Mapping[str, trees.Params]) -> None:
        """Starts saving {σ_rel: params}; one that is there, of a run that was stopped after it, has the same bits."""
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(dict(averages))))

    def load(self, step: int) -> dict[str, trees.Params]:
        """{σ_rel: params} of a step, on the first local device."""
        try:
            stored = self._manager.item_metadata(step)["state"].tree
        except Exception as error:
            raise _damaged(self._manager, step, error) from None
        one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=one_device), stored)
        return _restore_tree(self._manager, step, target)

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


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
        checkpoints = RunCheckpoints(folder, adapter.run)
        checkpoints.save(LONE, {"params": adapter.params})
        checkpoints.close()


def load_adapter(workdir: Path) -> Adapter:
    """The newest trained leaves of a run.

    Raises:
        UserError: the folder holds no checkpoint.
    """
    if not (workdir / FOLDER).is_dir():
        there = f"there is no folder {FOLDER} in it" if workdir.exists() else "it does not exist"
        raise UserError(f"{workdir} is no training run: {there}")
    with _open(workdir, ocp.CheckpointManagerOptions(read_only=True)) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"{workdir} holds no checkpoint yet; the first is saved after the first validation")
        stored = _stored_params(manager, step)
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding) for k, v in stored.items()}
        params = _restore_tree(manager, step, {"params": target}, partial_restore=True)["params"]
        return Adapter(params, step, _read_run(manager, step))


def _open(workdir: Path, options: ocp.CheckpointManagerOptions, folder: str = FOLDER) -> ocp.CheckpointManager:
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager((workdir / folder).absolute(), options=options, item_handlers=handlers)


def _restore(manager: ocp.CheckpointManager, step: int, item: str, args: ocp.args.CheckpointArgs) -> Any:
    try:
        return manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
    except Exception as error:
        raise _damaged(manager, step, error) from None


def _damaged(manager: ocp.CheckpointManager, step: int, error: Exception) -> UserError:
    """What a checkpoint that cannot be read is reported as; Orbax and TensorStore have many exceptions for it."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:REASON]
    return UserError(
        f"{manager.directory / str(step)} is damaged or no checkpoint of this program ({reason}); "
        "remove that folder to go on from the one before, or choose another --workdir"
    )


def _restore_tree(manager: ocp.CheckpointManager, step: int, target: Any, **options) -> Any:
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    return _restore(manager, step, "state", ocp.args.PyTreeRestore(item=target, restore_args=restore_args, **options))


def _stored_params(manager: ocp.CheckpointManager, step: int) -> Mapping[str, Any]:
    """Shape and dtype of each trained leaf, as the checkpoint tells."""
    try:
        return manager.item_metadata(step)["state"].tree["params"]
    except Exception as error:
        raise _damaged(manager, step, error) from None


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
