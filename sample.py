"""Makes sound for videos, pictures and words: `python sample.py videos/ --prompt "rain" --out out`."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import jax

from mmaudio_jax import distributed, errors, numerics
from mmaudio_jax.data.part import PartName
from mmaudio_jax.data.prepare.lists import clean
from mmaudio_jax.data.workers import WORKERS
from mmaudio_jax.errors import UserError
from mmaudio_jax.generation import loudness, names, rows, run, tasks
from mmaudio_jax.generation.outputs import FORMATS, Outputs
from mmaudio_jax.request import Request, parse_adapters
from mmaudio_jax.solvers import SOLVERS

COMPILED = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mmaudio_jax"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: something is asked for that cannot be.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.split(":")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    given = parser.add_argument_group("what sound is made for").add_argument
    given("inputs", nargs="*", type=Path, metavar="FILE", help="videos, pictures, and folders of them")
    given("--video", type=Path, action="append", default=[], help="likewise; may be given several times")
    given("--rows", "--clips", type=Path, help="TSV, CSV or JSON lines: a row a sound, its columns before the flags")
    given("--list", type=Path, help="VGGSound, AudioCaps, WavCaps or MovieGen, as they are published")
    given("--root", type=Path, help="the folder of the videos of --rows (by default that of the table) or --list")

    asked = parser.add_argument_group("the sound, where a row says nothing else").add_argument
    asked("--prompt", default="", help="what is to be heard; without a video, sound is made for it alone")
    asked("--negative_prompt", default="", help="what is not to be heard")
    asked("--start", type=float, default=0.0, help="seconds within the video")
    asked("--duration", type=float, default=8.0, help="seconds; a shorter video shortens it")
    asked("--seed", type=int, default=0, help="of each row's first sample; the next ones count up")
    asked("--steps", type=int, default=25, help="evaluations of the network")
    asked("--solver", choices=list(SOLVERS), default="euler", help="of the flow")
    asked("--shift", type=float, default=1.0, help="of the steps: above 1 they are smaller near the noise")
    asked("--cfg_strength", type=float, default=4.5, help="guidance; up to 1 there is none")
    asked("--video_strength", type=float, help="guidance by the video, if it is to be another than that by the words")
    asked("--no_clip", action="store_true", help="let the video's motion alone drive the sound")
    adapter_help = "training run, RUN@best, RUN@STEP, each with *WEIGHT from 0 to 1; several with commas, or repeated"
    asked("--adapter", action="append", default=[], metavar="RUN", help=adapter_help)

    results = parser.add_argument_group("results")
    result, video = results.add_argument, results.add_mutually_exclusive_group().add_argument
    result("--out", type=Path, default=Path("out"), help="folder of the results")
    name_help = f"template of their names, with {', '.join(f'{{{field}}}' for field in names.FIELDS)}"
    result("--name", default=argparse.SUPPRESS, help=f"{name_help} (default: {{id}}, or {{id}}_{{seed}} of several)")
    result("--samples", type=int, default=1, help="sounds of each row")
    result("--format", choices=FORMATS, default="wav", help="of the sound file")
    result("--loudness", choices=loudness.HOWS, default="none", help="as it comes, peak −1 dBFS, or −23 LUFS")
    video("--no_video", action="store_true", help="write no videos")
    video("--encode_video", action="store_true", help="encode the picture as H.264 instead of copying it")
    result("--no_picture", action="store_true", help="write no spectrograms")
    result("--latents", action="store_true", help="write the latents as well")
    result("--overwrite", action="store_true", help="replace files that this program has not written")

    machine = parser.add_argument_group("the machine").add_argument
    machine("--weights", type=Path, default=Path("weights"), help="folder of converted weights")
    machine("--model", default="small_16k", help="flow network in that folder, e.g. large_44k_v2")
    machine("--batch_size", type=int, default=4, help="guided sounds at once on each device")
    machine("--workers", type=int, default=WORKERS, help="processes that decode videos; 0: threads")
    machine("--dtype", choices=numerics.DTYPES, default="auto", help="compute dtype; auto: by the device")
    machine("--matmul_precision", choices=numerics.PRECISIONS, default="default", help="of matrix products")
    shard_help = "make part I of N, from 0 (by default as SLURM says, or all)"
    machine("--shard", metavar="I/N", help=shard_help)
    machine("--cache", type=Path, help="folder that keeps features of videos, for other prompts and seeds")
    compiled_help = f"folder that keeps compiled programs (by default as JAX is told, or {COMPILED})"
    machine("--compilation_cache", type=Path, help=compiled_help)
    args = parser.parse_intermixed_args(arguments)
    for name, least in (("samples", 1), ("batch_size", 1), ("workers", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} is {getattr(args, name)}; it must be at least {least}")
    if args.root and not (args.rows or args.list):
        raise UserError("--root is the folder of the videos of --rows or --list; give one of them, or leave it out")
    if not (args.inputs or args.video or args.rows or args.list or args.prompt.strip()):
        raise UserError("there is nothing to make sound for: give a video, a folder, --rows, --list, or --prompt")
    return args


def asked_for(args: argparse.Namespace, part: PartName) -> list[tasks.Task | tasks.Failure]:
    """The sounds that the command line asks this process for.

    Raises:
        UserError: a flag has no possible value, or files cannot be read as what they are given for.
    """
    fields = ("prompt", "negative_prompt", "start", "duration", "seed", "steps", "solver", "shift", "cfg_strength")
    defaults = {name: getattr(args, name) for name in (*fields, "video_strength")} | {"use_clip": not args.no_clip}
    defaults |= {name: clean(defaults[name]) for name in ("prompt", "negative_prompt")}
    try:
        Request(**defaults | {"video": Path("any")})
    except UserError as error:
        raise UserError(f"--{error}") from None
    found = rows.rows_of_paths([*args.inputs, *args.video], defaults, args.out, run.warn)
    if args.rows:
        found += rows.rows_of_table(args.rows, args.root, defaults, run.warn)
    if args.list:
        found += rows.rows_of_list(args.list, args.root, defaults, run.warn)
    if not (args.inputs or args.video or args.rows or args.list):
        found = rows.rows_of_words(defaults)
    template = names.Template(getattr(args, "name", "{id}" if args.samples == 1 else "{id}_{seed}"))
    return tasks.tasks_of(found, template, args.samples, part)


@errors.main
def main() -> None:
    """Makes the sounds."""
    args = parse_arguments()
    part = distributed.part_name(args.shard)
    asked = asked_for(args, part)
    if args.compilation_cache or jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(args.compilation_cache or COMPILED))
    settings = run.Settings(
        weights=args.weights,
        model=args.model,
        adapters=parse_adapters(",".join(args.adapter)),
        out=args.out,
        outputs=Outputs(
            format=args.format,
            video="none" if args.no_video else "encode" if args.encode_video else "copy",
            picture=not args.no_picture,
            latents=args.latents,
            loudness=args.loudness,
        ),
        dtype=args.dtype,
        precision=args.matmul_precision,
        batch_size=args.batch_size,
        workers=args.workers,
        cache=args.cache,
        overwrite=args.overwrite,
        part=part,
    )
    run.run(asked, settings)


if __name__ == "__main__":
    main()
