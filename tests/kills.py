"""What the scripts that kill again and again share: their options, the moments, and a kill that leaves no process."""

import argparse
import itertools
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

PATIENCE = 30  # seconds for the workers of what was killed to end by themselves


def parse_arguments(description: str, kills: int) -> argparse.Namespace:
    """`kills` and `seed`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=kills)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def moments(kinds: Sequence[str], kills: int) -> Iterator[tuple[int, str]]:
    """The number of each kill, from 1, and when it is to come: the kinds take turns."""
    return zip(range(1, kills + 1), itertools.cycle(kinds), strict=False)


def kill_when(process: subprocess.Popen, come: Callable[[], bool], delay: float, rng: random.Random) -> None:
    """Kills a process, the first of its group, within `delay` seconds of when its moment has `come` or it has ended.

    Raises:
        RuntimeError: its workers do not end by themselves.
    """
    while process.poll() is None and not come():
        time.sleep(0.002)
    time.sleep(rng.uniform(0, delay))
    process.kill()
    process.wait()
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise RuntimeError(f"the workers of a killed process are still there after {PATIENCE} s")
