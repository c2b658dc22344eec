"""Which run a checkpoint is of: what of a run may be otherwise when it goes on, and what to do about the rest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmaudio_jax.errors import UserError

ADVICE = {  # where the value cannot be given
    "base.fingerprint": "the base's weights are not those that the run began with: bring them back",
    "data.ids_sha256": "--config.data names other clips than the run's, or repeats or splits them otherwise: "
    "name the old ones",
    "config.num_steps": "a run's length is part of its schedule; to train on, start another run from it "
    "(--config.lora.start) or from what python -m mmaudio_jax.merge makes of it",
    "start": "a run cannot begin as another adapter once it has begun: leave config.lora.start as it was",
    "start.fingerprint": "config.lora.start names another adapter than the one that the run began as: name that one",
}
# what a resumed run may have otherwise: how it is shown, read, shared out and kept, and where the same things lie
MAY_CHANGE = (
    *("config.log_every", "config.workers", "config.mesh.data", "config.mesh.fsdp", "config.weights", "config.data"),
    *("config.remat", "config.samples", "config.wandb", "config.lora.start"),
    *("base.path", "start.path", "start.step", "data.files", "mmaudio_jax_version"),
)


def check_same(stored: Any, asked: Any, workdir: Path, name: str = "") -> None:
    """Raises a UserError unless what is asked for is the run that a checkpoint holds, up to what may change.

    Args:
        stored, asked: what the run is: a mapping of mappings, or a value in it.
        workdir: of the run.
        name: of the value, with dots; empty for the whole.
    """
    if name in MAY_CHANGE:
        return
    if isinstance(asked, Mapping) and isinstance(stored, Mapping):
        for key in {**asked, **stored}:
            check_same(stored.get(key), asked.get(key), workdir, f"{name}.{key}" if name else key)
    elif (list(stored) if isinstance(stored, tuple) else stored) != (
        list(asked) if isinstance(asked, tuple) else asked
    ):
        raise UserError(
            f"{workdir} holds another run: its {name} is {stored!r}, now it is {asked!r}; "
            f"{ADVICE.get(name, 'give the old value to go on with it')}, or choose another --workdir"
        )
