"""Which run a checkpoint is of: what of a run may be otherwise when it goes on, and what to do about the rest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmaudio_jax.errors import UserError

WORDS = {  # in what the run is another, and what to do about it, where the values are hashes or not the user's own
    "base.fingerprint": "the base's weights are not those that it began with; bring them back",
    "start.fingerprint": "config.lora.start names another adapter than the one that it began as; name that one",
    "data.encoders": "the features of --config.data were made with other encoders than those that it began with; "
    "bring the old ones back",
    "data.examples": "it was begun by another release, which kept less of what it trains on; go on with that one",
    "data.examples.dtype": "the features of --config.data have another dtype than those that it began with; "
    "bring the old ones back",
    "data.examples.ids": "--config.data names other clips than those that it began with, or repeats or splits them "
    "otherwise; name the old ones",
    "data.examples.captions": "captions in --config.data are not those that it began with; bring the old features back",
    "data.examples.recipes": "the features of --config.data were made of other videos or times than those that it "
    "began with, or with other settings; bring the old ones back",
}
ADVICE = {  # where the value cannot be given
    "config.num_steps": "a run's length is part of its schedule; to train on, start another run from it "
    "(--config.lora.start) or from what python -m mmaudio_jax.merge makes of it",
    "start": "a run cannot begin as another adapter once it has begun: leave config.lora.start as it was",
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
        said = WORDS.get(name) or WORDS.get(name.rpartition(".")[0])  # of an encoder, that of all
        if said is None:
            advice = ADVICE.get(name, "give the old value to go on with it")
            said = f"its {name} is {stored!r}, now it is {asked!r}; {advice}"
        raise UserError(f"{workdir} holds another run: {said}, or choose another --workdir")
