"""Kills a batch of sounds again and again, and looks at what is there in the end: `make soak`.

    python tests/soak_generation.py [--kills 10] [--seed 0]

The batch is sample.py on small random weights and rendered clips: 190 rows that can be made and 10 that cannot, among
them videos that are none, rows out of the root, and durations that are not possible. Each kill is a SIGKILL at a random
moment: while the run starts, or makes sounds. Prints how many were finished at each, and a verdict; the exit code is 0
if every sound is there and whole and was finished once, each bad row has its reason, and nothing else lies there.
"""

import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import kills  # noqa: E402
from media_files import save_small_videos  # noqa: E402
from random_networks import save_random_weights  # noqa: E402

from mmaudio_jax.data.table import read_table, write_table  # noqa: E402

ROOT = Path(__file__).parent.parent
GOOD = 190
BAD = [
    {"video": "text.mp4"},
    {"video": "nowhere.mp4"},
    {"video": "../0.mp4"},
    {"video": "sound.wav"},
    {"duration": "0"},
    {"duration": "36000"},
    {"duration": "long"},
    {"steps": "2.5"},
    {"solver": "heun"},
    {"prompt": ""},
]
AHEAD = 30  # sounds that a start goes on for, at most, before the kill is prepared
DELAYS = {"sounds": 0.5, "start": 8.0}  # seconds: the kill comes within so many of its moment


@dataclasses.dataclass(frozen=True)
class Run:
    """A batch that may be started several times.

    Attributes:
        out: the folder of its results; what the command prints comes beside it.
        arguments: its command line.
        cache: folder of compiled programs.
    """

    out: Path
    arguments: list[str]
    cache: Path

    def start(self) -> subprocess.Popen:
        """Starts the process, as the first of a process group."""
        env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(self.cache)}
        env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        with open(self.out.with_suffix(".log"), "a") as log:
            return subprocess.Popen(self.arguments, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)

    def lines(self) -> list[dict]:
        """The whole lines of the manifest."""
        file = self.out / "manifest.jsonl"
        texts = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(text) for text in texts if text.endswith("\n")]


def prepare(weights: Path, videos: Path, folder: Path) -> Run:
    """The batch of good and bad rows, in a random order."""
    rows = [{"id": f"good{i}", "prompt": f"sound {i}", "seed": str(i), "duration": "1"} for i in range(GOOD)]
    for i, row in enumerate(rows):
        row["steps"] = str(1 + i % 3)
        if i % 4 == 0:
            row["video"] = f"{i // 4 % 3}.mp4"
    rows += [{"id": f"bad{i}", "prompt": "a sound", "duration": "1", **bad} for i, bad in enumerate(BAD)]
    random.Random(0).shuffle(rows)
    write_table(folder / "rows.tsv", rows)
    flags = {"rows": folder / "rows.tsv", "root": videos, "weights": weights, "out": folder / "out", "workers": 2}
    given = [f"--{name}={value}" for name, value in flags.items()]
    return Run(folder / "out", [sys.executable, "sample.py", *given, "--no_picture"], folder / "cache")


def soak(run: Run, count: int, seed: int) -> list[str]:
    """Kills the batch so often, each start going on with what the last one left; then lets it finish.

    Args:
        run: not started yet.
        count: of kills; their moments take turns.
        seed: of all that is random.

    Returns:
        What is wrong with what is there then.
    """
    rng, wrong = random.Random(seed), []
    finished: dict[str, tuple[dict, list[int]]] = {}
    for i, moment in kills.moments([*DELAYS], count):
        goal = len(finished) + rng.randint(1, AHEAD) if moment == "sounds" else 0
        kills.kill_when(run.start(), lambda goal=goal: len(run.lines()) >= goal, DELAYS[moment], rng)
        wrong += lost_or_twice(run, finished)
        print(f"kill {i}, {moment}: {len(finished)} of {GOOD} finished", flush=True)
    if (code := run.start().wait()) != 1:
        wrong.append(f"the exit code is {code}")
    return [*wrong, *lost_or_twice(run, finished), *faults(run)]


def lost_or_twice(run: Run, finished: dict[str, tuple[dict, list[int]]]) -> list[str]:
    """The sounds that were finished before and are now others, or gone; takes those that are new into `finished`."""
    found = []
    now: dict[str, tuple[dict, list[int]]] = {}
    for line in run.lines():
        if line["name"] in now:
            found.append(f"{line['name']} was made twice")
        paths = [run.out / file["path"] for file in line["files"].values()]
        now[line["name"]] = line, [path.stat().st_mtime_ns for path in paths]
    found += [f"{name} was lost or made twice" for name, was in finished.items() if now.get(name) != was]
    finished |= now
    return found


def faults(run: Run) -> list[str]:
    """What is wrong with the results of a batch that has come to its end."""
    found, there = [], {str(path.relative_to(run.out)) for path in run.out.rglob("*") if path.is_file()}
    lines = {line["name"]: line for line in run.lines()}
    if lines.keys() != {f"good{i}" for i in range(GOOD)}:
        found.append(f"{len(lines)} sounds are finished, not {GOOD}")
    for file in (file for line in lines.values() for file in line["files"].values()):
        content = (run.out / file["path"]).read_bytes()
        if (len(content), hashlib.sha256(content).hexdigest()) != (file["bytes"], file["sha256"]):
            found.append(f"{file['path']} is not what the manifest tells")
        there.discard(file["path"])
    failed = {row["id"]: row["reason"] for row in read_table(run.out / "failed.tsv").rows}
    if failed.keys() != {f"bad{i}" for i in range(len(BAD))} or not all(failed.values()):
        found.append(f"failed.tsv has reasons for {', '.join(sorted(failed))}")
    if left := there - {"manifest.jsonl", "failed.tsv", ".manifest.jsonl.lock"}:
        found.append(f"also there: {', '.join(sorted(left))}")
    return found


def main() -> int:
    """The command line."""
    args = kills.parse_arguments(__doc__, 10)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_random_weights(folder / "weights", seed=0)
        run = prepare(folder / "weights", save_small_videos(folder / "videos"), folder)
        wrong = soak(run, args.kills, args.seed)
        if wrong:
            print(run.out.with_suffix(".log").read_text()[-3000:])
    print(
        f"WRONG: {'; '.join(wrong)}"
        if wrong
        else f"ok: {args.kills} kills; {GOOD} sounds, {len(BAD)} reasons, none lost and none made twice"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
