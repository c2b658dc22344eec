"""The boards that show a run while it trains: TensorBoard, and Weights & Biases for those who ask for it.

A board has the methods of tensorboardX's `SummaryWriter` that `mmaudio_jax.metrics` calls.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_file

TENSORBOARD = "tensorboard"  # of a workdir
WANDB_ID = "wandb_id"  # of a workdir: a run that goes on goes on there, too


def check_wandb(project: str | None) -> None:
    """Raises a UserError if a Weights & Biases project is asked for and the package is not there."""
    if project is not None:
        _wandb()


def open_boards(workdir: Path, start_step: int, project: str | None, settings: Mapping[str, Any]) -> list[Any]:
    """The boards of a run.

    Args:
        workdir: holds TensorBoard's event files, and the id of the Weights & Biases run.
        start_step: where the run goes on; TensorBoard drops what was there after it.
        project: of Weights & Biases; None leaves it out.
        settings: the run's config, shown there.

    Raises:
        UserError: Weights & Biases is asked for and is not there, or refuses.
    """
    from tensorboardX import SummaryWriter

    wandb = [WandbBoard(workdir, project, settings)] if project is not None else []
    return [SummaryWriter(str(workdir / TENSORBOARD), purge_step=start_step + 1 if start_step else 0), *wandb]


class WandbBoard:
    """A run of Weights & Biases; steps that it has already got, as after a kill, it leaves as they are."""

    def __init__(self, workdir: Path, project: str, settings: Mapping[str, Any]):
        self._wandb, file = _wandb(), workdir / WANDB_ID
        try:
            self._run = self._wandb.init(
                project=project,
                name=workdir.name,
                dir=str(workdir),
                id=file.read_text().strip() if file.exists() else None,
                resume="allow",
                config=dict(settings),
            )
        except self._wandb.Error as error:
            raise UserError(
                f"Weights & Biases refuses ({error}); log in with `wandb login`, set WANDB_MODE=offline, or leave "
                "config.wandb out"
            ) from None
        with atomic_file(file) as temporary:
            temporary.write_text(self._run.id + "\n")

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Shows a number."""
        self._run.log({tag: value}, step=step)

    def add_image(self, tag: str, image: UInt8[np.ndarray, "h w 3"], step: int, dataformats: str) -> None:
        """Shows a picture, of which Weights & Biases knows one format alone."""
        self._run.log({tag: self._wandb.Image(image)}, step=step)

    def add_audio(self, tag: str, audio: Float[np.ndarray, " l"], step: int, sample_rate: int) -> None:
        """Lets a sound be heard."""
        self._run.log({tag: self._wandb.Audio(audio, sample_rate=sample_rate)}, step=step)

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()


def _wandb() -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError("config.wandb needs a package that is not there: `pip install wandb`") from None
    return wandb
