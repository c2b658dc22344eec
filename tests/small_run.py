"""A small run of the shipped lora_16k config as its user has it: a process of its own, and what it leaves."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parent.parent
STEPPING = "the first step is compiled first"  # what the trainer says when it has restored all, and begins
TIMES = {
    "time",
    "train/samples_per_second",
    "train/mfu",
    "train/data_wait",
    "train/seconds_left",
}  # of no two runs the same
KINDS = ("checkpoints", "ema")  # folders of checkpoints in a workdir
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a checkpoint that is being written


def command(weights, data, workdir, *more: str, **settings) -> list[str]:
    """The command line of a run with an adapter of rank 4; workers and accumulation are as shipped."""
    settings = {"weights": weights, "data": data, "lora.rank": 4, "lora.targets": "('qkv',)", **settings}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    config = "tests/silent_config.py"
    return [sys.executable, "train.py", "--config", config, "--workdir", str(workdir), *flags, *more]


@dataclasses.dataclass(frozen=True)
class SmallRun:
    """A run that may be started several times.

    Attributes:
        workdir: its folder; what it prints comes beside it.
        arguments: its command line.
        cache: folder of compiled programs.
    """

    workdir: Path
    arguments: list[str]
    cache: Path

    @property
    def log(self) -> Path:
        """What it prints, of all its starts."""
        return self.workdir.with_suffix(".log")

    def start(self) -> subprocess.Popen:
        """Starts the process, as the first of a process group."""
        env = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        with open(self.log, "a") as log:
            return subprocess.Popen(self.arguments, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)

    def finish(self) -> None:
        """Runs to the end."""
        assert self.start().wait() == 0, self.log.read_text()

    def printed(self) -> str:
        """All that it has printed."""
        return self.log.read_text() if self.log.exists() else ""

    def rows(self) -> list[dict]:
        """metrics.jsonl, without what measures time."""
        rows = [json.loads(line) for line in self._lines()]
        return [{tag: value for tag, value in row.items() if tag not in TIMES} for row in rows]

    def step(self) -> int:
        """The last that was logged."""
        lines = self._lines()
        return json.loads(lines[-1])["step"] if lines else 0

    def saved(self) -> int:
        """The newest whole checkpoint; 0 without one."""
        return max((int(name) for name in self._names("checkpoints") if name.isdigit()), default=0)

    def unfinished(self) -> set[str]:
        """Checkpoints that are being written."""
        return {f"{kind}/{name}" for kind in KINDS for name in self._names(kind) if UNFINISHED in name}

    def found(self) -> list[int]:
        """The step that each start went on from; 0 where it began."""
        starts = self.printed().split(STEPPING)[:-1]
        return [int(match[1]) if (match := re.search(r"has come to step (\d+)\n", text)) else 0 for text in starts]

    def state(self, step: int) -> dict[str, np.ndarray]:
        """All that a checkpoint holds of the train state: {path: array}."""
        return _leaves(self.workdir / "checkpoints" / str(step))

    def left(self) -> dict[str, np.ndarray]:
        """Every checkpoint and every snapshot of the averages: {path: array}, and the names of what lies there."""
        arrays = {kind: np.array(sorted(self._names(kind))) for kind in KINDS}
        for kind in KINDS:
            for name in filter(str.isdigit, self._names(kind)):
                leaves = _leaves(self.workdir / kind / name)
                arrays |= {f"{kind}/{name}{path}": leaf for path, leaf in leaves.items()}
        return arrays

    def _lines(self) -> list[str]:
        """The whole lines of metrics.jsonl."""
        file = self.workdir / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [line for line in lines if line.endswith("\n")]

    def _names(self, kind: str) -> list[str]:
        folder = self.workdir / kind
        return os.listdir(folder) if folder.exists() else []


def _leaves(checkpoint: Path) -> dict[str, np.ndarray]:
    with ocp.PyTreeCheckpointer() as checkpointer:
        shapes = checkpointer.metadata(checkpoint / "state").item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        tree = checkpointer.restore(checkpoint / "state", restore_args=as_numpy)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def different(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> list[str]:
    """The paths whose arrays are not the same in every bit."""

    def same(path):
        return path in one and path in two and one[path].tobytes() == two[path].tobytes()

    return sorted(path for path in one.keys() | two.keys() if not same(path))
