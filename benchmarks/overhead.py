"""What logging and saving cost a LoRA run: `python benchmarks/overhead.py [--model small_16k] [--batch 1]`.

Takes turns between blocks of steps alone, blocks with a line of measures after every step, and blocks that begin with a
checkpoint and a snapshot of two averages, which are then written beside the steps; a block ends when its last step is
computed and all is written. The differences of each kind's fastest are the cost of a line and of a save, and these, at
the pace of configs/lora_16k.py, their share of a run's time. Examples are 8 s long, weights and features random.
"""

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path

import workload  # puts the repository on the path

import jax  # isort: skip

from absl import logging

from configs import lora_16k
from mmaudio_jax import numerics, train_step
from mmaudio_jax.checkpoint import Progress, RunCheckpoints, Snapshots
from mmaudio_jax.metrics import MetricWriter
from mmaudio_jax.models.mmaudio import PRESETS

SHIPPED = lora_16k.get_config()
KINDS = ("steps alone", "a line after each", "a save at the first")


class Steps:
    """A run's steps, with what is written of them."""

    def __init__(self, model: str, batch_size: int, dtype, workdir: Path):
        averages = SHIPPED.ema.sigma_rels
        mesh = workload.one_device()
        self._step, shapes = workload.training(PRESETS[model], batch_size, dtype, mesh, averages=averages)
        self._state, *self._rest = workload.filled(shapes)
        self._writer = MetricWriter(workdir, 0, 10**6, None, {})
        self._checkpoints, self._snapshots = RunCheckpoints(workdir, {}), Snapshots(workdir, 0)
        self._at = 0

    def block(self, kind: str, count: int) -> float:
        """Seconds of so many steps."""
        begin = time.perf_counter()
        for i in range(count):
            self._state, measures = self._step(self._state, *self._rest)
            self._at += 1
            if kind == "a line after each":
                values = {f"train/{name}": value for name, value in train_step.means([measures]).items()}
                with contextlib.redirect_stdout(io.StringIO()):
                    self._writer.write(self._at, values)
            if kind == "a save at the first" and i == 0:
                self._snapshots.save(self._at, self._state["ema"])
                self._checkpoints.save(self._at, self._state, Progress(), loss=0.0)
        jax.block_until_ready(self._state)
        self._snapshots.wait()
        self._checkpoints.wait()
        return time.perf_counter() - begin

    def close(self) -> None:
        """Ends all writing."""
        self._writer.close()
        self._snapshots.close()
        self._checkpoints.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(PRESETS), default="small_16k")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5, help="of a block")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    dtype = numerics.compute_dtype("auto")
    logging.set_verbosity(logging.ERROR)  # Orbax warns of saves that follow one another
    print(f"{jax.devices()[0].device_kind}, {dtype.name}, jax {jax.__version__}; {args.model}, batch {args.batch}")
    with tempfile.TemporaryDirectory() as workdir:
        steps = Steps(args.model, args.batch, dtype, Path(workdir))
        for kind in KINDS:  # compilation, and whatever else happens once
            steps.block(kind, 1)
        seconds = {kind: [] for kind in KINDS}
        for _ in range(args.rounds):
            for kind in KINDS:
                seconds[kind].append(steps.block(kind, args.steps))
        steps.close()
    alone, lines, save = (min(seconds[kind]) for kind in KINDS)
    step, line, save = alone / args.steps, (lines - alone) / args.steps, save - alone
    shares = (line / SHIPPED.log_every / step, save / SHIPPED.eval_every / step)
    print("| | seconds | every | of the time |\n|---|---|---|---|")
    print(f"| a step | {step:.3f} | | |")
    print(f"| a line of measures | {line:.4f} | {SHIPPED.log_every} steps | {shares[0]:.2%} |")
    print(f"| a checkpoint and a snapshot | {save:.3f} | {SHIPPED.eval_every} steps | {shares[1]:.2%} |")
    print(f"| both | | | {sum(shares):.2%} |")


if __name__ == "__main__":
    main()
