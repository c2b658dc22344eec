"""Where what a run shows goes: the console, metrics.jsonl for machines, plots, TensorBoard and Weights & Biases."""

import contextlib
import datetime
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from mmaudio_jax import boards, plots
from mmaudio_jax.files import atomic_file, writing

Value = float | Float[np.ndarray, " k"]

PLOTS = "plots"  # of a workdir

CONSOLE = {  # tag: (label, format)
    "train/loss": ("loss", ".4f"),
    "train/loss_t0.0-0.3": ("t<.3", ".3f"),
    "train/loss_t0.3-0.7": (".3–.7", ".3f"),
    "train/loss_t0.7-1.0": ("t≥.7", ".3f"),
    "train/velocity_norm": ("|v|", ".2f"),
    "train/target_norm": ("|target|", ".2f"),
    "train/velocity_cosine": ("cos", ".3f"),
    "train/grad_norm": ("grad", ".3f"),
    "train/learning_rate": ("lr", ".2e"),
    "train/samples_per_second": ("samples/s", ".1f"),
    "train/mfu": ("mfu", ".1%"),
    "train/data_wait": ("data wait", ".0%"),
    "validation/loss": ("validation loss", ".4f"),
    "samples/log_mel_distance": ("samples: log-mel distance (dB)", ".1f"),
    "samples/onset_f1": ("onsets F1", ".0%"),
    "samples/silence": ("silence", ".0%"),
    "samples/clipping": ("clipping", ".2%"),
}


EACH = "validation/loss/"  # of the feature sets, where there are several
WIDTH = 6  # of a number on the console
NAMED = 8  # examples on the console, at most


class Clock:
    """Times training alone: without compilation, validation and saving.

    Args:
        step: where the run starts.
        num_steps: its end.
    """

    def __init__(self, step: int, num_steps: int):
        self._num_steps = num_steps
        self.start(step)

    def start(self, step: int) -> None:
        """Counts from here."""
        self._step, self._since, self._waited = step, time.perf_counter(), 0.0

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Within, something else than training is done."""
        begin = time.perf_counter()
        yield
        self._since += time.perf_counter() - begin

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within, training waits for data."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    def rates(self, step: int, step_size: int) -> dict[str, float]:
        """Since the last call, or the start: examples a second, the share of the time that data was waited for, and
        the seconds that the rest of the run will take; nothing where there was no step.
        """
        steps, seconds, waited = step - self._step, time.perf_counter() - self._since, self._waited
        self.start(step)
        if not steps:
            return {}
        return {
            "train/samples_per_second": steps * step_size / seconds,
            "train/data_wait": waited / seconds,
            "train/seconds_left": (self._num_steps - step) * seconds / steps,
        }


class MetricWriter:
    """Writes what a run shows to all places, and keeps the progress bar.

    Args:
        workdir: gets metrics.jsonl, plots and TensorBoard's event files.
        start_step: where the run goes on; what an interrupted run had written after it is dropped.
        num_steps: the run's end, for the remaining time.
        wandb: the Weights & Biases project that gets it all as well, or None.
        settings: what the run is, for that project.
    """

    def __init__(self, workdir: Path, start_step: int, num_steps: int, wandb: str | None, settings: Mapping[str, Any]):
        self._workdir, self._path = workdir, workdir / "metrics.jsonl"
        if self._path.exists():
            self._truncate(start_step)
        self._boards = boards.open_boards(workdir, start_step, wandb, settings)
        self._file = open(self._path, "a", buffering=1)
        self._bar = tqdm(total=num_steps, initial=start_step, unit=" steps", dynamic_ncols=True, disable=None)

    def _truncate(self, step: int) -> None:
        lines = self._path.read_text().splitlines()
        with atomic_file(self._path) as temporary:
            temporary.write_text("".join(line + "\n" for line in lines if _step(line) <= step and step))

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Records {tag: value} at a step; an array, of means over bins of t, in metrics.jsonl alone."""
        self._append(step, {tag: _json(value) for tag, value in values.items()})
        numbers = {tag: value for tag, value in values.items() if not np.ndim(value)}
        for board in self._boards:
            for tag, value in numbers.items():
                board.add_scalar(tag, value, step)
        part = next(iter(numbers)).partition("/")[0]  # a column without a value keeps its place
        shown = [
            f"{label} {f'{numbers[tag]:{form}}' if tag in numbers else '–':>{WIDTH}}"
            for tag, (label, form) in CONSOLE.items()
            if tag.startswith(part)
        ]
        shown += [f"{tag.removeprefix(EACH)} {value:.4f}" for tag, value in numbers.items() if tag.startswith(EACH)]
        if "train/seconds_left" in numbers:
            shown.append(f"left {datetime.timedelta(seconds=round(numbers['train/seconds_left']))}")
        self._bar.write(f"step {step:>6}  " + "  ".join(shown))

    def plot(self, step: int, tag: str, bins: Float[np.ndarray, " k"]) -> None:
        """Draws means over bins of t into `plots/TAG/STEP.png`."""
        path = self._workdir / PLOTS / tag.replace("/", "_") / f"{step:06d}.png"
        plots.save_bins(path, bins, tag)
        self.picture(step, tag, path)

    def picture(self, step: int, tag: str, path: Path) -> None:
        """Shows a PNG file."""
        image = plots.read_picture(path)
        for board in self._boards:
            board.add_image(tag, image, step, dataformats="HWC")

    def sound(self, step: int, tag: str, audio: Float[np.ndarray, " l"], sample_rate: int) -> None:
        """Lets a sound be heard."""
        for board in self._boards:
            board.add_audio(tag, np.clip(audio, -1, 1), step, sample_rate)

    def warn(self, step: int, what: str, names: Sequence[str]) -> None:
        """Records that something is amiss with a step, and what its examples are called."""
        self._append(step, {"warning": what, "examples": names})
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        self._bar.write(f"step {step:>6}  {what}; its examples are {', '.join(names[:NAMED])}{more}")

    def _append(self, step: int, content: Mapping[str, Any]) -> None:
        with writing(self._path):
            self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **content}) + "\n")

    def progress(self, step: int) -> None:
        """Moves the progress bar."""
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Flushes everything to disk."""
        self._bar.close()
        with writing(self._workdir), self._file:
            for board in self._boards:
                board.close()
            self._file.flush()
            os.fsync(self._file.fileno())


class NoWriter:
    """Takes the place of a `MetricWriter` in all processes but the main one."""

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Nothing."""

    def plot(self, step: int, tag: str, bins: Float[np.ndarray, " k"]) -> None:
        """Nothing."""

    def picture(self, step: int, tag: str, path: Path) -> None:
        """Nothing."""

    def sound(self, step: int, tag: str, audio: Float[np.ndarray, " l"], sample_rate: int) -> None:
        """Nothing."""

    def warn(self, step: int, what: str, names: Sequence[str]) -> None:
        """Nothing."""

    def progress(self, step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _json(value: Value) -> float | None | list[float | None]:
    """As JSON has it, which has no NaN."""
    if np.ndim(value):
        return [_json(float(each)) for each in value]
    return value if math.isfinite(value) else None


def _step(line: str) -> float:
    """The step of a line of metrics.jsonl; a line cut off by a kill counts as never written."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
