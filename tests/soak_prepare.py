"""Kills a preparation again and again, and compares the tables that it leaves with those of another: `make soak`.

    python tests/soak_prepare.py [--kills 20] [--seed 0]

The preparation is the command with its decoding processes, on rendered files of which some cannot be used. Each kill is
a SIGKILL at a random moment: as it starts, as files are looked at, as it writes. Prints how many files had been looked
at when each came, and a verdict; the exit code is 0 if every byte of both tables is the same, and nothing else is left.
"""

import random
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import kills  # noqa: E402
from media_files import tone, write_media  # noqa: E402

ROOT = Path(__file__).parent.parent
RATE = 16_000
FILES, COPIES = 24, 6  # videos that are rendered, and how often each is there, under a name of its own
AHEAD = 30  # files that a start goes on for, at most, before the kill is prepared
DELAYS = {"files": 0.2, "end": 0.1, "start": 4.0}  # seconds: the kill comes within so many of its moment
LIST, REJECTED, KEPT = "clips.tsv", "clips.rejected.tsv", "clips.inspected.jsonl"


def write_files(folder: Path) -> Path:
    """Files with captions, among them such that are silent, cut off, or without sound."""
    folder.mkdir()
    for i in range(FILES):
        seconds = 2.2 + i / 10
        sound = None if i % 8 == 5 else (i % 8 != 6) * tone(seconds, RATE)
        video = write_media(
            folder / f"0_{i}.mp4", fps=10, count=round(10 * seconds), size=(64, 64), audio=sound, rate=RATE
        )
        if i % 8 == 7:
            video.write_bytes(video.read_bytes()[:3000])
        for copy in range(COPIES):
            path = folder / f"{copy}_{i}.mp4"
            if copy:
                path.write_bytes(video.read_bytes() + bytes(copy))  # another content, as doubles are left out
            path.with_suffix(".txt").write_text(f"sound {i}, {copy}")
    return folder


def start(videos: Path, out: Path) -> subprocess.Popen:
    """Starts the command, as the first of a process group."""
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mmaudio_jax.data.prepare", videos, "--out", out / LIST, "--duration", "2"]
    with open(out.with_suffix(".log"), "a") as log:
        words = [*map(str, command), "--val", "0.2", "--workers", "2"]
        return subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def finish(videos: Path, out: Path) -> None:
    """Runs to the end."""
    assert start(videos, out).wait() == 0, out.with_suffix(".log").read_text()


def done(out: Path) -> int:
    """How many files have been looked at."""
    kept = out / KEPT
    return kept.read_bytes().count(b'{"version"') if kept.exists() else 0


def soak(videos: Path, killed: Path, whole: Path, count: int, seed: int) -> list[str]:
    """Kills a preparation so often, each start going on with what the last one left; then lets it finish.

    Args:
        videos: the files.
        killed: folder of its tables; where a start came to its end before the kill, it begins anew.
        whole: folder of those of one that has finished.
        count: of kills; their moments take turns.
        seed: of all that is random.

    Returns:
        The files that were ever others than those of `whole`.
    """
    rng, wrong = random.Random(seed), set()
    for i, moment in kills.moments([*DELAYS], count):
        goals = {"start": 0, "files": done(killed) + rng.randint(1, AHEAD), "end": FILES * COPIES}
        process = start(videos, killed)
        kills.kill_when(process, lambda goal=goals[moment]: done(killed) >= goal, DELAYS[moment], rng)
        ended = (killed / LIST).exists()
        print(f"kill {i}, {moment}: {'the table is there' if ended else done(killed)}", flush=True)
        if ended:
            wrong |= {name for name in (LIST, REJECTED) if (killed / name).read_bytes() != (whole / name).read_bytes()}
            for path in killed.iterdir():
                path.unlink()
    finish(videos, killed)
    wrong |= {name for name in (LIST, REJECTED) if (killed / name).read_bytes() != (whole / name).read_bytes()}
    return sorted(wrong | {path.name for path in killed.iterdir()} - {LIST, REJECTED, KEPT})


def main() -> int:
    """The command line."""
    args = kills.parse_arguments(__doc__, 20)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        videos = write_files(folder / "videos")
        finish(videos, folder / "whole")
        wrong = soak(videos, folder / "killed", folder / "whole", args.kills, args.seed)
    print(f"DIFFERENT: {', '.join(wrong)}" if wrong else f"ok: {args.kills} kills; every byte as without them")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
