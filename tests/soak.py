"""Kills a training run again and again, and compares what it leaves with a run that nothing interrupted: `make soak`.

    python tests/soak.py [--kills 20] [--seed 0]

The run is the shipped lora_16k config through the command line, with two workers, its accumulation and saving in the
background, on small random weights and features. Each kill is a SIGKILL at a random moment: in the middle of a save,
within a step, or while the run starts. Prints a table of them and a verdict; the exit code is 0 if checkpoints,
averages and measures are in every bit those of the other run, nothing else lies there, and every start went on from
the newest whole checkpoint.
"""

import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import kills  # noqa: E402
from absl import logging  # noqa: E402
from random_networks import save_random_features, save_random_weights  # noqa: E402
from small_run import SmallRun, command, different  # noqa: E402

EVERY = 3  # steps between checkpoints
AHEAD = 7  # steps that a start goes on for, at most, before the kill is prepared
MOMENTS = ("save", "step", "start")
DELAYS = {"save": 0.03, "step": 0.3, "start": 6.0}  # seconds: the kill comes within so many of its moment


class Kill(NamedTuple):
    """One start of the run, and its end.

    Attributes:
        found: the step that it went on from; None: it did not come to that.
        doing: what it did when it was killed.
        left: the newest whole checkpoint after that; 0 without one.
    """

    found: int | None
    doing: str
    left: int


def settings(count: int) -> dict[str, object]:
    """A run so long that it is not finished before the last kill."""
    sizes = {"batch_size": 2, "accumulation": 2, "num_steps": (AHEAD + 2 * EVERY) * count}
    sizes |= {"eval_every": EVERY, "log_every": 1, "workers": 2}
    return {**sizes, "ema.snapshot_every": EVERY}


def kill(run: SmallRun, moment: str, rng: random.Random) -> Kill:
    """Starts the run and kills it at such a moment."""
    before, starts = run.unfinished(), len(run.found())
    process = run.start()

    def wait(happened: Callable[[], object]) -> None:
        while not happened():
            if process.poll() is not None:
                raise RuntimeError(f"the run ended with code {process.returncode} before its kill:\n{run.printed()}")
            time.sleep(0.002)

    if moment != "start":
        wait(lambda: len(run.found()) > starts)
        goal = run.saved() + rng.randint(1, AHEAD)
        wait(lambda: run.step() >= goal)
    if moment == "save":
        wait(lambda: run.unfinished() - before)
    kills.kill_when(process, lambda: True, DELAYS[moment], rng)
    if len(run.found()) == starts:
        return Kill(None, "starting", run.saved())
    saving = sorted(name.partition(".")[0] for name in run.unfinished() - before)
    doing = f"after step {run.step()}" + (f", saving {' and '.join(saving)}" if saving else "")
    return Kill(run.found()[-1], doing, run.saved())


def soak(run: SmallRun, count: int, seed: int) -> list[str]:
    """Kills a run so often, lets it finish, and prints the table.

    Args:
        run: not started yet, as long as `settings` says.
        count: of kills; their moments take turns.
        seed: of all that is random.

    Returns:
        Which starts did not go on from the newest whole checkpoint.
    """
    rng, wrong, left = random.Random(seed), [], 0
    print("| kill | went on from step | killed | newest whole checkpoint |\n|---|---|---|---|")
    for i, moment in kills.moments(MOMENTS, count):
        one = kill(run, moment, rng)
        if one.found not in (None, left):
            wrong.append(f"start {i} went on from step {one.found} where {left} was saved")
        left = one.left
        print(f"| {i} | {'–' if one.found is None else one.found} | {one.doing} | {one.left} |", flush=True)
    run.finish()
    if run.found()[-1] != left:
        wrong.append(f"the last start went on from step {run.found()[-1]} where {left} was saved")
    print(f"| | {run.found()[-1]} | never: it came to its end | {run.saved()} |")
    return wrong


def compare(killed: SmallRun, whole: SmallRun) -> list[str]:
    """What the two have left that is not the same in every bit."""
    wrong = different(killed.left(), whole.left())
    return wrong + (["metrics.jsonl"] if killed.rows() != whole.rows() else [])


def main() -> int:
    """The command line."""
    args = kills.parse_arguments(__doc__, 20)
    logging.set_verbosity(logging.ERROR)  # Orbax warns that it reads a part of a checkpoint
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_random_weights(folder / "weights", seed=0)
        save_random_features(folder / "set", seed=0)

        def small_run(name: str) -> SmallRun:
            line = command(folder / "weights", folder / "set", folder / name, **settings(args.kills))
            return SmallRun(folder / name, line, folder / "cache")

        whole, killed = small_run("whole"), small_run("killed")
        whole.finish()
        wrong = soak(killed, args.kills, args.seed) + compare(killed, whole)
        count, steps = len(killed.left()), killed.step()
    for what in wrong:
        print(f"DIFFERENT: {what}")
    if not wrong:
        print(f"ok: {args.kills} kills in {steps} steps; all {count} arrays and every measure as without them")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
