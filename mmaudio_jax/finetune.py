"""From a folder of captioned videos to an adapter: `python -m mmaudio_jax.finetune FOLDER --model small_16k --out RUN`.

It runs this project's own commands, each as it is printed: prepare, features, check, sounds of the base, train, sounds
with the adapter. Stopped or killed, the same command goes on.
"""

import argparse
import collections
import hashlib
import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from mmaudio_jax import commands, errors, weights
from mmaudio_jax.data import media, part
from mmaudio_jax.data.clips import clips_of
from mmaudio_jax.data.example import KEY, StoredFeatures, recipe_of, source_of
from mmaudio_jax.data.records import open_features
from mmaudio_jax.data.table import Row, Table, read_table, write_table
from mmaudio_jax.data.wording import count
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_file
from mmaudio_jax.sequence import MAX_DURATION, MIN_DURATION

SMALL, MEDIUM = 10, 50  # source videos that the sizes small and medium suit, at most
SHORTEST = 2.0  # seconds of a clip that is kept unless another length is asked for
SIZES = ("small", "medium", "large")
# how the configs divide their 3000 steps: shorter runs are divided alike
EVERY, WARMUP, STEPS = 300, 200, 3000
OWN = {"model": "--model", "weights": "--weights", "data": "--out", "num_steps": "--steps"}  # keys that this sets
SOUND_COLUMNS = ("id", "video_path", "start_time", "end_time", "caption")
TRAINED_COLUMNS = (*SOUND_COLUMNS, "split")  # what of a clip a run is trained on


class Model(NamedTuple):
    """A released model: its audio representation, and the file of configs/ that trains an adapter on it."""

    mode: str
    config: str


MODELS = {
    "small_16k": Model("16k", "lora_16k"),
    "small_44k": Model("44k", "lora_44k"),
    "medium_44k": Model("44k", "lora_44k"),
    "large_44k": Model("44k", "lora_44k_large_v2"),
    "large_44k_v2": Model("44k", "lora_44k_large_v2"),
}


class Folder:
    """What lies where in the folder of a fine-tuning."""

    def __init__(self, path: Path):
        self.path = path
        self.clips, self.features, self.report = path / "clips.tsv", path / "features", path / "report.html"
        self.sounds, self.before, self.after = path / "sounds.tsv", path / "before", path / "after"
        self.run, self.trained = path / "run", path / ".trained.tsv"  # a run, and the clips that it began with
        self.metrics = self.run / "metrics.jsonl"
        self.best = self.run.with_name(f"{self.run.name}@best")
        self._done = path / ".done.json"  # what the results that are there were made of

    def made_of(self, result: str) -> str | None:
        """What a result was made of, as `note` was told; None if there is none."""
        return self._notes().get(result)

    def note(self, result: str, made_of: str) -> None:
        """Remembers what a result was made of."""
        with atomic_file(self._done) as temporary:
            temporary.write_text(json.dumps(self._notes() | {result: made_of}, indent=2) + "\n")

    def _notes(self) -> dict[str, str]:
        try:
            return dict(json.loads(self._done.read_text()))
        except (FileNotFoundError, ValueError, TypeError):  # then all is made again
            return {}


# The steps' commands


def once(folder: Folder, command: Sequence[str], results: Sequence[Path], inputs: Sequence[Path]) -> int:
    """Runs a command that makes `results` unless they are there, made by the same command of the same inputs.

    Args:
        folder: remembers that, by the name of the first result.
        command: its words.
        results: files; those of before are removed first, so that none is there that was not made now.
        inputs: files that decide the results.

    Returns:
        The exit code.
    """
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in inputs]
    made_of = hashlib.sha256(json.dumps([list(command), digests]).encode()).hexdigest()
    name = str(results[0].relative_to(folder.path))
    if folder.made_of(name) == made_of and all(path.is_file() for path in results):
        commands.show(command)
        print("done before")
        return 0
    folder.note(name, "")  # what a failure leaves is of nothing
    for path in results:
        path.unlink(missing_ok=True)
    code = commands.run(command)
    if code == 0:
        folder.note(name, made_of)
    return code


def with_recipes(table: Table, features: StoredFeatures) -> list[Row]:
    """The clips, each with what decided its features, which another video changes and one that was touched does not."""
    recipes = {row["id"]: recipe_of(row) for row in features.table.rows}
    return [row | {KEY: recipes.get(row["id"], "")} for row in table.rows]


def check_run(folder: Folder, clips: Iterable[Row], columns: Sequence[str]) -> None:
    """Raises a UserError if a run is there that began with clips which differ from these in these columns."""
    if not (folder.run.exists() and folder.trained.exists()):
        return
    then, now = (
        {row["id"]: [row.get(name, "") for name in columns] for row in rows}
        for rows in (read_table(folder.trained).rows, clips)
    )
    differences = {
        "added": [id for id in now if id not in then],
        "gone": [id for id in then if id not in now],
        "changed": [id for id in now if id in then and now[id] != then[id]],
    }
    if said := [f"{count(len(ids), 'clip')} {what} (first {ids[0]!r})" for what, ids in differences.items() if ids]:
        raise UserError(
            f"the clips are others than those that {folder.run} began to train on: {', '.join(said)}; to train on them "
            f"as they are now, choose another --out, or remove {folder.run} (what is extracted stays), and start again"
        )


# What is asked for


def check_weights(root: Path, model: str) -> None:
    """Raises a UserError unless a weights folder has every network that a model needs."""
    mode = MODELS[model].mode
    networks = {model: "mmaudio", f"vae_{mode}": "vae", f"bigvgan_{mode}": "bigvgan"}
    networks |= {"synchformer": "synchformer", "clip": "clip"}
    if missing := [name for name in networks if not (root / name / "metadata.json").is_file()]:
        raise UserError(
            f"there is no {', '.join(missing)} in {root}, and {model} needs them all; bring them with "
            f"`python -m convert.fetch {model} --out {root}`"
        )
    for name, network in networks.items():
        weights.read_config(root / name, network)


def check_features(args: argparse.Namespace, folder: Folder) -> None:
    """Raises a UserError if the features that are there are of another mode or duration than is asked for."""
    try:
        made = open_features(folder.features).metadata
    except UserError:  # there are none yet, or the extraction says what is wrong with them
        return
    then, now = (made.mode, made.duration), (MODELS[args.model].mode, args.duration)
    if then != now:
        said, asked = (f"{duration:g} s at {mode}" for mode, duration in (then, now))
        raise UserError(f"{folder.features} has clips of {said}, not {asked}; choose another --out")


def read_settings(words: Sequence[str], config: str) -> dict[str, str]:
    """The values of `--config.KEY=VALUE`, by key.

    Raises:
        UserError: a word is no such setting, or its key is none of the config's, or one that this command sets.
    """
    known = importlib.import_module(f"configs.{config}").get_config()
    settings = {}
    for word in words:
        found = re.fullmatch(r"--config\.([\w.]+)=(.*)", word, re.DOTALL)
        if not found:
            raise UserError(f"{word!r} is no option; settings are given to train.py as --config.KEY=VALUE")
        key, value = found.groups()
        if key in OWN:
            raise UserError(f"--config.{key} is set by this command; give {OWN[key]}")
        group = known
        for name in key.split("."):
            if not isinstance(group, ConfigDict) or name not in group:
                raise UserError(f"no such config key: {key}; configs/{config}.py lists them")
            group = group[name]
        settings[key] = value
    return settings


def size_for(sources: int) -> str:
    """The size of the configs that suits a number of source videos."""
    return "small" if sources <= SMALL else "medium" if sources <= MEDIUM else "large"


def schedule(steps: int | None) -> dict[str, str]:
    """The settings that a number of steps brings: a shorter run is divided as the configs divide theirs."""
    if steps is None:
        return {}
    every, warmup = max(1, min(EVERY, EVERY * steps // STEPS)), min(WARMUP, WARMUP * steps // STEPS)
    periods = dict.fromkeys(("eval_every", "samples.every", "ema.snapshot_every"), str(every))
    return {"num_steps": str(steps), **periods, "optimizer.warmup_steps": str(warmup)}


# The steps


def prepare(args: argparse.Namespace, folder: Folder) -> Table:
    """The table of clips, of which some train and some validate."""
    command = ["-m", "mmaudio_jax.data.prepare", str(args.folder), "--out", str(folder.clips)]
    command += ["--captions", str(args.captions)] if args.captions else []
    command += ["--list", str(args.list)] if args.list else []
    command += ["--duration", f"{args.duration:g}", "--min_duration", f"{args.min_duration:g}"]
    command += ["--stride", f"{args.stride:g}"] if args.stride is not None else []
    commands.must([*command, "--val", f"{args.val:g}"])
    table = read_table(folder.clips)
    if not {"train", "val"} <= {row["split"] for row in table.rows}:
        sources = len({source_of(row) for row in table.rows})
        raise UserError(
            f"{folder.clips} has {count(len(table.rows), 'clip')} of {count(sources, 'source video')}, and none is "
            f"left to validate, or none to train; add videos to {args.folder}, and start again"
        )
    return table


def extract(args: argparse.Namespace, folder: Folder, table: Table) -> StoredFeatures:
    """The feature set of all clips that can be used."""
    mode = MODELS[args.model].mode
    media_and_weights = ["--clips", str(folder.clips), "--root", str(args.folder), "--weights", str(args.weights)]
    command = ["-m", "mmaudio_jax.features", *media_and_weights, "--out", str(folder.features)]
    command += ["--mode", mode, "--duration", f"{args.duration:g}"]
    if any(float(row["end_time"]) - float(row["start_time"]) < args.duration - 1e-6 for row in table.rows):
        command += ["--short", "pad"]
    code = commands.run(command)
    if code not in (0, 1):
        sys.exit(code)
    if code == 1 and not folder.features.is_dir():
        sys.exit(code)
    features = open_features(folder.features)
    if code == 1:
        failed = [
            row for path in sorted(folder.features.glob(f"part-*/{part.FAILED}")) for row in read_table(path).rows
        ]
        done = {row["id"]: row for row in [*features.table.rows, *failed]}
        same = (features.metadata.mode, features.metadata.duration) == (mode, args.duration)
        if not (same and failed and all(row.items() <= done.get(row["id"], {}).items() for row in table.rows)):
            sys.exit(code)  # something else was wrong than clips
        print(f"going on with {count(len(features), 'clip')}, without {count(len(failed), 'other')}")
    return features


def check(args: argparse.Namespace, folder: Folder) -> None:
    """The report on the feature set; warnings go on."""
    command = ["-m", "mmaudio_jax.data.check", str(folder.features), "--report", str(folder.report)]
    command += ["--root", str(args.folder), "--weights", str(args.weights), "--model", args.model]
    parts = sorted(folder.features.glob("part-*"))
    inputs = [path / name for path in parts for name in (part.METADATA, part.TABLE)]
    inputs.append(args.weights / args.model / "metadata.json")
    if code := once(folder, command, [folder.report], inputs):
        if folder.report.exists():
            raise UserError(
                f"the feature set has faults: {folder.report} shows where; mend those videos or take them "
                f"out of {args.folder}, and start again"
            )
        sys.exit(code)


def choose_sounds(args: argparse.Namespace, folder: Folder, features: StoredFeatures) -> list[str]:
    """Writes the table of the clips to listen to, `--sounds` that validate and have a picture; returns their ids."""
    table = features.table
    validating = [i for i, side in enumerate(features.sides) if side == "val"]
    turns: collections.Counter[str] = collections.Counter()
    by_turn = []  # each source's first clip comes before any source's second
    for i in validating:
        by_turn.append((turns[features.sources[i]], i))
        turns[features.sources[i]] += 1
    clips, chosen = clips_of(table, args.folder), []
    for _, i in sorted(by_turn):
        if len(chosen) == args.sounds:
            break
        if media.has_video(clips[i].video):
            chosen.append({name: clips[i].columns[name] for name in SOUND_COLUMNS})
    if chosen:
        write_table(folder.sounds, chosen, SOUND_COLUMNS)
    elif args.sounds:
        print("\nno clip that validates has a picture, so that none is listened to before and after")
    return [row["id"] for row in chosen]


def listen(args: argparse.Namespace, folder: Folder, ids: Sequence[str], adapter: Path | None) -> None:
    """Sounds of those clips, always from the same seeds, by the base or with an adapter."""
    if not ids:
        return
    out = folder.after if adapter else folder.before
    command = ["sample.py", "--weights", str(args.weights), "--model", args.model]
    command += ["--adapter", str(adapter)] if adapter else []
    command += ["--rows", str(folder.sounds), "--root", str(args.folder), "--duration", f"{args.duration:g}"]
    commands.must([*command, "--out", str(out)])


def train(args: argparse.Namespace, folder: Folder, features: StoredFeatures, settings: Mapping[str, str]) -> None:
    """The run, which goes on where it was."""
    pairs = zip(features.sources, features.sides, strict=True)
    size = args.size or size_for(len({source for source, side in pairs if side != "test"}))
    values = {"model": args.model, "weights": args.weights, "data": folder.features, **schedule(args.steps), **settings}
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    config = f"configs/{MODELS[args.model].config}.py:{size}"
    commands.must(["train.py", "--config", config, "--workdir", str(folder.run), *flags])


def summary(args: argparse.Namespace, folder: Folder, heard: bool) -> str:
    """Where things are, what was gained, and how to go on, as text."""
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    losses = {row["step"]: row["validation/loss"] for row in rows if row.get("validation/loss") is not None}
    first = losses.pop(0)
    best = min(losses, key=losses.get)
    again = ["sample.py", "VIDEO", "--weights", str(args.weights), "--model", args.model, "--adapter", str(folder.best)]
    again += ["--duration", f"{args.duration:g}"] if args.duration != 8 else []
    sounds = f"sounds    {folder.before} and {folder.after}: the same clips and seeds, without and with it\n"
    return (
        f"\nvalidation loss {first:.4f} of the base → {losses[best]:.4f} at step {best}, the lowest\n\n"
        f"adapter   {folder.best}\n{sounds if heard else ''}"
        f"run       {folder.run}: measures, and sounds on the way; tensorboard --logdir {folder.run / 'tensorboard'}\n"
        f"data      {folder.clips}, {folder.features}, {folder.report}\n\n"
        f"sound for another video:\n  python {shlex.join(again)} --prompt WORDS --out out"
    )


def parse_arguments() -> tuple[argparse.Namespace, dict[str, str]]:
    """The command line, and the settings for train.py.

    Raises:
        UserError: something is asked for that cannot be.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mmaudio_jax.finetune",
        description="From a folder of captioned videos to an adapter; --config.KEY=VALUE is handed on to train.py.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folder", type=Path, help="where the videos are, with all folders in it; a caption is NAME.txt beside NAME.mp4")
    add("--model", choices=list(MODELS), default="small_16k", help="what is taught")
    add("--out", type=Path, required=True, help="the folder of all that is made")
    add("--weights", type=Path, default=Path("weights"), help="folder of converted weights")
    said = parser.add_mutually_exclusive_group()
    said.add_argument("--captions", type=Path, help="a file of captions, as of mmaudio_jax.data.prepare")
    said.add_argument("--list", type=Path, help="a table or list of clips, as of mmaudio_jax.data.prepare")
    add("--duration", type=float, default=8.0, help="seconds of a clip")
    least_help = f"seconds of the shortest clip that is kept, and padded (default: {SHORTEST:g}, or --duration if less)"
    add("--min_duration", type=float, default=argparse.SUPPRESS, help=least_help)
    add("--stride", type=float, default=argparse.SUPPRESS, help="seconds from clip to clip (default: --duration)")
    add("--val", type=float, default=0.1, help="share of the source videos that validate")
    size_help = f"of the adapter (default: small up to {SMALL} source videos, medium up to {MEDIUM}, large beyond)"
    add("--size", choices=SIZES, default=argparse.SUPPRESS, help=size_help)
    add("--steps", type=int, default=argparse.SUPPRESS, help="of training (default: as the config says)")
    add("--sounds", type=int, default=4, help="clips that validate, to listen to before and after")
    args, words = parser.parse_known_args()
    args.size, args.steps, args.stride = (getattr(args, name, None) for name in ("size", "steps", "stride"))
    args.min_duration = getattr(args, "min_duration", min(SHORTEST, args.duration))
    settings = read_settings(words, MODELS[args.model].config)
    if not MIN_DURATION <= args.duration <= MAX_DURATION:
        raise UserError(f"--duration is {args.duration:g}; it must lie in [{MIN_DURATION}, {MAX_DURATION:g}] seconds")
    if not MIN_DURATION <= args.min_duration <= args.duration:
        raise UserError(f"--min_duration is {args.min_duration:g}; it must lie in [{MIN_DURATION}, {args.duration:g}]")
    if not 0 < args.val < 1:
        raise UserError(f"--val is {args.val:g}; it must lie in (0, 1)")
    for name, least in (("steps", 1), ("sounds", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}; it must be at least {least}")
    if not args.folder.is_dir():
        raise UserError(f"there is no folder {args.folder}")
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"{args.out} is a file; --out must name a folder")
    if args.out.resolve().is_relative_to(args.folder.resolve()):
        raise UserError(
            f"{args.out} lies in {args.folder}, so that what is made would be taken for your videos; choose "
            "another --out"
        )
    check_weights(args.weights, args.model)
    return args, settings


@errors.main
def main() -> None:
    """The command line."""
    args, settings = parse_arguments()
    folder = Folder(args.out)
    check_features(args, folder)
    table = prepare(args, folder)
    check_run(folder, table.rows, TRAINED_COLUMNS)
    features = extract(args, folder, table)
    clips = with_recipes(table, features)
    check_run(folder, clips, (*TRAINED_COLUMNS, KEY))
    check(args, folder)
    ids = choose_sounds(args, folder, features)
    listen(args, folder, ids, None)
    if not folder.run.exists():
        write_table(folder.trained, clips)
    train(args, folder, features, settings)
    listen(args, folder, ids, folder.best)
    print(summary(args, folder, bool(ids)))


if __name__ == "__main__":
    main()
