"""Kills an extraction again and again, and compares the set that it leaves with that of one left alone: `make soak`.

    python tests/soak_features.py [--kills 20] [--seed 0]

The extraction is the command with its decoding processes, on small random weights and rendered clips. Each kill is a
SIGKILL at a random moment: within a clip, as the part is put together, as it starts. Prints how many clips were done at
each, and a verdict; the exit code is 0 if every byte of the set is the same, and nothing else lies there.
"""

import dataclasses
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import kills  # noqa: E402
from media_files import save_small_videos  # noqa: E402
from random_networks import save_random_weights  # noqa: E402

from mmaudio_jax.data.table import write_table  # noqa: E402

ROOT = Path(__file__).parent.parent
CLIPS = 40
AHEAD = 12  # clips that a start goes on for, at most, before the kill is prepared
DELAYS = {"clips": 0.3, "end": 0.05, "start": 6.0}  # seconds: the kill comes within so many of its moment


@dataclasses.dataclass(frozen=True)
class Extraction:
    """An extraction that may be started several times.

    Attributes:
        out: the set; what the command prints comes beside it.
        arguments: its command line.
        cache: folder of compiled programs.
    """

    out: Path
    arguments: list[str]
    cache: Path

    def start(self) -> subprocess.Popen:
        """Starts the process, as the first of a process group."""
        env = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        with open(self.out.with_suffix(".log"), "a") as log:
            return subprocess.Popen(self.arguments, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)

    def finish(self) -> None:
        """Runs to the end."""
        assert self.start().wait() == 0, self.out.with_suffix(".log").read_text()

    def done(self) -> int:
        """How many clips are done, of a part that is not."""
        return len(list(self.out.glob(".part-*/records/*")))

    def ends(self) -> bool:
        """Whether the part is being put together."""
        return any(self.out.glob(".part-*/new/*"))

    def left(self) -> dict[str, bytes]:
        """{name: content} of the set."""
        return {str(file.relative_to(self.out)): file.read_bytes() for file in self.out.rglob("*") if file.is_file()}


def prepare(weights: Path, videos: Path, folder: Path, count: int) -> tuple[Extraction, Extraction]:
    """Two extractions of the same `count` clips."""
    rows = [
        {
            "id": f"clip{i}",
            "video_path": f"{i % 3}.mp4",
            "start_time": f"{i / 500}",
            "end_time": "1.1",
            "caption": f"{i}",
        }
        for i in range(count)
    ]
    write_table(folder / "clips.tsv", rows)
    flags = {"clips": folder / "clips.tsv", "root": videos, "weights": weights, "duration": 1, "workers": 2}

    def one(name: str) -> Extraction:
        given = [f"--{key}={value}" for key, value in (flags | {"out": folder / name}).items()]
        return Extraction(folder / name, [sys.executable, "-m", "mmaudio_jax.features", *given], folder / "cache")

    return one("killed"), one("whole")


def soak(killed: Extraction, whole: Extraction, count: int, seed: int) -> list[str]:
    """Kills an extraction so often, each start going on with what the last one left; then lets it finish.

    Args:
        killed: not started yet; where a part came to its place before a kill, it begins anew.
        whole: has finished.
        count: of kills; their moments take turns.
        seed: of all that is random.

    Returns:
        The files of the set that were ever others than those of `whole`.
    """
    rng, wrong = random.Random(seed), set()
    for i, moment in kills.moments([*DELAYS], count):
        goal = killed.done() + rng.randint(1, AHEAD)
        come = {"start": lambda: True, "clips": lambda goal=goal: killed.done() >= goal, "end": killed.ends}
        kills.kill_when(killed.start(), come[moment], DELAYS[moment], rng)
        whole_already = killed.done() == 0 and killed.out.exists() and killed.left().keys() == whole.left().keys()
        print(f"kill {i}, {moment}: {'the part is in its place' if whole_already else killed.done()}", flush=True)
        if whole_already:
            wrong |= different(killed, whole)
            shutil.rmtree(killed.out)
    killed.finish()
    return sorted(wrong | different(killed, whole))


def different(one: Extraction, two: Extraction) -> set[str]:
    """The files that are not the same in both sets."""
    first, second = one.left(), two.left()
    return {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}


def main() -> int:
    """The command line."""
    args = kills.parse_arguments(__doc__, 20)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_random_weights(folder / "weights", seed=0)
        killed, whole = prepare(folder / "weights", save_small_videos(folder / "videos"), folder, CLIPS)
        whole.finish()
        wrong = soak(killed, whole, args.kills, args.seed)
    print(f"DIFFERENT: {', '.join(wrong)}" if wrong else f"ok: {args.kills} kills; every byte as without them")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
