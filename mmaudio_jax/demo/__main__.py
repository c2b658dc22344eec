"""`make demo`: a small trained model, heard before and after a LoRA teaches it a new material; on two cores, offline.

Features and LoRA are made by the commands that a user of the released weights types.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import filelock

from mmaudio_jax import errors
from mmaudio_jax.data import audio, media, muxing, records
from mmaudio_jax.data.table import write_table
from mmaudio_jax.demo import evaluate, poster
from mmaudio_jax.demo.stand_ins import save_stand_ins
from mmaudio_jax.demo.world import BASE_MATERIALS, NEW_MATERIAL
from mmaudio_jax.errors import UserError
from mmaudio_jax.pipeline import Pipeline

MARK = ".demo"  # in a folder that the demo made, and may make anew
BASE = Path(__file__).with_name("base")
HELD_OUT, LESSONS = (32, 12), (144, 13)  # (scenes, seed): to listen to, and to train on
# the new material, and enough of the old ones that they are not forgotten: most of the one that sounds nearest
TURNS = ("glass", "metal", "glass", "wood", "metal", "glass", "drum")
BEFORE = f"""\
A small MMAudio, trained on rendered scenes where things fall, bounce, knock and roll, makes sound for scenes that it
never saw. It knows {", ".join(BASE_MATERIALS)}; a LoRA then teaches it {NEW_MATERIAL}. Its encoders and its codec are
untrained stand-ins, so it sounds plain; what it shows is that the picture says when, and the words say what.
"""
AFTER = """\
onset F1: impacts heard within 50 ms of the scene's own. material: scenes that are heard as of their own material; with
captions shuffled, as many as keep theirs by chance. {known} scenes are of {materials}, {new} of {glass}.
The demo took {minutes:.1f} minutes. {out}/sounds has what was generated, with the videos, and an index.tsv;
{out}/poster.png shows it.
docs/demo.md says what is seen here, and how the same commands run with the released weights.
"""


def run(*command: str) -> None:
    """Shows a command and runs it with this interpreter."""
    print(f"\n$ python {shlex.join(command)}", flush=True)
    if subprocess.run([sys.executable, *command]).returncode:
        raise UserError("the demo stopped: the command above failed")


@errors.main
def main() -> None:
    """Renders, extracts, listens, trains and listens again, in --out."""
    parser = argparse.ArgumentParser(prog="python -m mmaudio_jax.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder of everything that the demo makes")
    out = parser.parse_args().out
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise UserError(f"{out} holds other things than a demo's, which would be replaced; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    try:
        with filelock.FileLock(out / ".lock", blocking=False):
            demonstrate(out)
    except filelock.Timeout:
        raise UserError(f"another demo is at work in {out}; wait for it, or choose another --out") from None


def demonstrate(out: Path) -> None:
    """All that the demo does, in a folder of its own."""
    start = time.monotonic()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the steps share a GPU, where there is one
    print(BEFORE)
    weights, lora = out / "weights", out / "run"
    save_stand_ins(weights)
    for part in ("held_out", "lessons", "run", "sounds", "weights/demo_16k"):
        shutil.rmtree(out / part, ignore_errors=True)
    shutil.copytree(BASE, weights / "demo_16k")

    for (count, seed), name, materials in (
        (HELD_OUT, "held_out", (*BASE_MATERIALS, NEW_MATERIAL)),
        (LESSONS, "lessons", TURNS),
    ):
        clips = out / name / "clips"
        size = ("--count", str(count), "--seed", str(seed), "--materials", *materials)
        run("-m", "mmaudio_jax.demo.render", *size, "--out", str(clips))
        media_and_weights = ("--clips", str(clips / "clips.tsv"), "--root", str(clips), "--weights", str(weights))
        where = ("--workers", "0", "--out", str(out / name / "features"))
        run("-m", "mmaudio_jax.features", *media_and_weights, *where)

    features = records.open_features(out / "held_out" / "features")
    scenes = evaluate.read_scenes(out / "held_out" / "clips" / "scenes.json", features.ids)
    rows = {}

    def listen(when: str, adapter: Path | None) -> None:
        pipeline = Pipeline.from_pretrained(weights, "demo_16k", adapter)
        for condition in evaluate.CONDITIONS:
            rows[f"{when}: {condition}"] = evaluate.listen(pipeline, features, scenes, condition)

    print("\nlistening to the base …", flush=True)
    listen("before", None)
    places = (f"--config.weights={weights}", f"--config.data={out / 'lessons' / 'features'}")
    run("train.py", "--config", "configs/demo_lora.py", "--workdir", str(lora), *places)
    print("\nlistening to the base with its LoRA …", flush=True)
    listen("after", lora)

    save_sounds(out, rows, features, scenes)
    print("\n" + evaluate.table(rows, scenes) + "\n")
    new = sum(scene["material"] == NEW_MATERIAL for scene in scenes)
    counts = dict(known=len(scenes) - new, new=new, materials=", ".join(BASE_MATERIALS), glass=NEW_MATERIAL)
    print(AFTER.format(minutes=(time.monotonic() - start) / 60, out=out, **counts))


def save_sounds(out: Path, rows, features, scenes) -> None:
    """Writes sound and video of every scene before and after, their index, and the picture of one known and one new."""
    still = [i for i, caption in enumerate(features.captions) if "wind" not in caption]  # where impacts show best
    known, new = (next(i for i in still if (scenes[i]["material"] == NEW_MATERIAL) == is_new) for is_new in (0, 1))
    rate = poster.CONFIG.mode.sample_rate
    index = []
    for when in ("before", "after"):
        for i, name in enumerate(features.ids):
            heard = rows[f"{when}: as they are"][i]
            wave = heard.wave
            target = out / "sounds" / f"{scenes[i]['material']}_{name}_{when}"
            heard_as = {"onset_f1": f"{heard.onset_f1:.3f}", "heard_as": heard.material or "nothing"}
            index.append({"sound": target.name, "caption": features.captions[i], **heard_as})
            target.parent.mkdir(parents=True, exist_ok=True)
            audio.write_audio(target.with_suffix(".wav"), wave, rate)
            video = out / "held_out" / "clips" / f"{name}.mp4"
            muxing.write_video(target.with_suffix(".mp4"), video, wave, rate, 0.0, features.metadata.duration)

    write_table(out / "sounds" / "index.tsv", index)
    other = evaluate.others(len(scenes), "videos shuffled")[0][known]

    def panel(title: str, row: str | None, i: int, video_of: int | None = None) -> poster.Panel:
        contacts = scenes[i if video_of is None else video_of]["contacts"]
        if row is None:
            video = out / "held_out" / "clips" / f"{features.ids[i]}.mp4"
            wave = media.read_audio(
                video, 0.0, features.metadata.duration, rate, len(rows["before: as they are"][i].wave)
            )
        else:
            wave = rows[row][i].wave
        return poster.Panel(f"{title}: “{features.captions[i]}”", wave, contacts)

    poster.save_poster(
        out / "poster.png",
        [
            [
                panel("true sound", None, known),
                panel("generated", "before: as they are", known),
                panel(
                    "generated for another scene's video, its impacts marked", "before: videos shuffled", known, other
                ),
            ],
            [
                panel("true sound", None, new),
                panel("generated before LoRA", "before: as they are", new),
                panel("generated after LoRA", "after: as they are", new),
            ],
        ],
    )


if __name__ == "__main__":
    main()
