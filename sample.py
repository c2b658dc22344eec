"""Puts sound on videos: `python sample.py --weights weights/ --video a.mp4 --prompt "rain" --out out/`.

For every video: the sound (WAV or FLAC), an mp4 of the video with it, and a picture of its spectrogram. Without a
video, a prompt alone makes sound from text; a clips.tsv makes a batch.
"""

import argparse
import dataclasses
import itertools
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmaudio_jax import errors, numerics
from mmaudio_jax.errors import UserError
from mmaudio_jax.flow_matching import MAX_GUIDANCE
from mmaudio_jax.sequence import MAX_DURATION, MIN_DURATION, ROUNDING, SYNC_FPS, lengths

MAX_PROMPT_NAME = 60  # characters of a prompt that become a file name


@dataclasses.dataclass(frozen=True)
class Request:
    """One sound to make, `duration` seconds from `start` of the video, or from the prompt alone."""

    name: str
    video: Path | None
    start: float
    duration: float
    prompt: str
    seed: int


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--weights", type=Path, default=Path("weights"), help="folder of converted weights")
    add("--model", default="small_16k", help="flow network in that folder, e.g. large_44k_v2")
    add("--adapter", type=Path, help="workdir of a training run")
    add("--video", type=Path, action="append", default=[], help="a video; may be given several times")
    add("--clips", type=Path, help="clips.tsv: a sound for each of its rows, the caption being the prompt")
    add("--root", type=Path, help="with --clips: the folder that video_path starts from")
    add("--prompt", default="", help="what is to be heard")
    add("--negative_prompt", default="", help="what is not to be heard")
    add("--duration", type=float, default=8.0, help="seconds; a shorter video shortens it")
    add("--seed", type=int, default=0, help="of the first sample; the next ones count up")
    add("--steps", type=int, default=25, help="Euler steps")
    add("--cfg_strength", type=float, default=4.5, help="guidance; 0 for none")
    add("--batch_size", type=int, default=4, help="samples at once")
    add("--dtype", choices=numerics.DTYPES, default="auto", help="compute dtype; auto: by the device")
    add("--matmul_precision", choices=numerics.PRECISIONS, default="default", help="of matrix products")
    add("--format", choices=["wav", "flac"], default="wav", help="of the sound file")
    add("--out", type=Path, default=Path("out"), help="folder of the results")
    add("--overwrite", action="store_true", help="replace results that exist")
    args = parser.parse_args()
    for name in ("steps", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}; it must be at least 1")
    if not 0 <= args.seed < 2**31:
        raise UserError(f"--seed is {args.seed}; it must lie in [0, 2³¹)")
    if not 0 <= args.cfg_strength <= MAX_GUIDANCE:
        raise UserError(f"--cfg_strength is {args.cfg_strength:g}; it must lie in [0, {MAX_GUIDANCE:g}]")
    if not MIN_DURATION <= args.duration <= MAX_DURATION:
        raise UserError(f"--duration is {args.duration:g}; it must lie in [{MIN_DURATION}, {MAX_DURATION:g}] seconds")
    if args.clips and (args.video or args.prompt):
        raise UserError("--clips brings its own videos and captions; leave --video and --prompt out")
    if bool(args.clips) != bool(args.root):
        raise UserError("--clips and --root go together")
    if not (args.clips or args.video or args.prompt.strip()):
        raise UserError("there is nothing to make sound for: give --video, --prompt or --clips")
    return args


def requests(args: argparse.Namespace) -> list[Request]:
    """What the command line asks for, with names for the results."""
    seeds = itertools.count(args.seed)
    if args.clips:
        from mmaudio_jax.data.clips import read_clips

        return [
            Request(
                clip.id,
                clip.video,
                clip.start_time,
                capped(clip.end_time - clip.start_time, args.duration),
                clip.caption,
                seed,
            )
            for clip, seed in zip(read_clips(args.clips, args.root), seeds, strict=False)
        ]
    if not args.video:
        name = re.sub(r"\W+", "_", args.prompt.lower()).strip("_")[:MAX_PROMPT_NAME] or "sound"
        return [Request(name, None, 0.0, args.duration, args.prompt, args.seed)]
    found = [
        Request(video.stem, video, 0.0, args.duration, args.prompt, seed)
        for video, seed in zip(args.video, seeds, strict=False)
    ]
    names = [request.name for request in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"{names.count(name)} videos are called {name}, and so would be their sounds; run them apart"
            )
    return found


def fitted(request: Request) -> Request:
    """The request, shortened with a warning to what its video has."""
    if request.video is None:
        return request
    from mmaudio_jax.data import media

    info = media.probe(request.video)
    if not info.has_video:
        raise UserError(f"{request.video} has no video stream")
    duration = capped(info.video_duration - request.start, request.duration)
    if MIN_DURATION <= duration < request.duration:
        print(
            f"warning: {request.video} has {duration:.2f} s, not {request.duration:g} s; its sound is as short",
            file=sys.stderr,
        )
    return dataclasses.replace(request, duration=duration)


def capped(there: float, asked: float) -> float:
    """Seconds to make: what is asked for, or what is there, in whole sync frames so that few lengths compile."""
    return asked if there >= asked - ROUNDING else math.floor((there + ROUNDING) * SYNC_FPS) / SYNC_FPS


def outputs(request: Request, folder: Path, sound: str) -> dict[str, Path]:
    """The files of a request, by suffix; `sound` is wav or flac."""
    suffixes = [sound, "png", *(["mp4"] if request.video else [])]
    return {suffix: folder / f"{request.name}.{suffix}" for suffix in suffixes}


def check_outputs(paths: Sequence[Path], sources: Sequence[Path], overwrite: bool) -> None:
    """Raises a UserError if a result would take the place of a source, or, without `overwrite`, of any file."""
    kept = {source.resolve() for source in sources}
    for path in paths:
        if path.resolve() in kept:
            raise UserError(f"{path} is one of the videos themselves; choose another --out")
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists already; choose another --out, or give --overwrite")


def batches(items: Sequence[Request], size: int) -> Iterator[list[Request]]:
    """Groups of one duration, each full but the last of its duration: few shapes compile."""
    for _, group in itertools.groupby(sorted(items, key=lambda r: r.duration), key=lambda r: r.duration):
        group = list(group)
        yield from (group[start : start + size] for start in range(0, len(group), size))


@errors.main
def main() -> int:
    """Makes the sounds; 1 if some could not be made."""
    args = parse_arguments()
    asked = requests(args)
    results = {request.name: outputs(request, args.out, args.format) for request in asked}
    check_outputs(
        [path for paths in results.values() for path in paths.values()],
        [request.video for request in asked if request.video],
        args.overwrite,
    )
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"{args.out} is a file; --out must name a folder")

    failed: list[str] = []

    def attempt(request: Request, function):
        try:
            return function(request)
        except (UserError, OSError) as error:
            failed.append(request.name)
            known = "" if request.name in str(error) else f"{request.name}: "
            print(f"error: {known}{error}", file=sys.stderr)
            return None

    usable = [request for request in (attempt(r, fitted) for r in asked) if request]
    if not usable:
        return 1

    import tqdm

    from mmaudio_jax import plots, sampling
    from mmaudio_jax.data import audio as sound
    from mmaudio_jax.data import media, muxing

    pipeline = sampling.Pipeline.load(
        args.weights,
        args.model,
        args.adapter,
        dtype=numerics.compute_dtype(args.dtype),
        precision=args.matmul_precision,
    )
    args.out.mkdir(parents=True, exist_ok=True)

    def features(request: Request) -> sampling.Features:
        lengths(request.duration, pipeline.mode)
        frames = media.read_frames(request.video, request.start, request.duration) if request.video else None
        return pipeline.features(frames, request.prompt, args.negative_prompt)

    def write(request: Request, audio) -> None:
        paths, rate = results[request.name], pipeline.mode.sample_rate
        sound.write_audio(paths[args.format], audio, rate)
        plots.save_spectrogram(paths["png"], audio, rate)
        if request.video:
            muxing.write_video(paths["mp4"], request.video, audio, rate, request.start, request.duration)

    interval = 0.1 if sys.stderr.isatty() else 60.0
    with tqdm.tqdm(total=len(usable), unit=" samples", mininterval=interval) as bar:
        for batch in batches(usable, args.batch_size):
            encoded = [(request, found) for request in batch if (found := attempt(request, features))]
            if encoded:
                chosen, conditions = zip(*encoded, strict=True)
                waves = pipeline.generate(
                    conditions,
                    [request.seed for request in chosen],
                    chosen[0].duration,
                    num_steps=args.steps,
                    cfg_strength=args.cfg_strength,
                )
                for request, wave in zip(chosen, waves, strict=True):
                    attempt(request, lambda request: write(request, wave))  # noqa: B023 - called at once
            bar.update(len(batch))
    for request in usable:
        if request.name not in failed:
            print(*results[request.name].values())
    if failed and len(asked) > 1:
        raise UserError(f"{len(failed)} of {len(asked)} could not be made: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    main()
