"""Checks a feature set and shows how its data lie: `python -m mmaudio_jax.data.check SET --report report.html`.

It reads everything once: the shards' bytes, the table, every array of every example. With --root it looks at the videos
too, with --weights it compares with the released model. The exit code is 1 if there are faults, 0 if there are none or
only warnings.
"""

import argparse
import collections
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tqdm

from mmaudio_jax import errors, weights
from mmaudio_jax.data.check import page, recordings, tables, texts
from mmaudio_jax.data.check.examples import ReleasedStatistics, Scan
from mmaudio_jax.data.check.findings import Check, Distribution, Place, Report, Rows, Verdict, fault, left_out
from mmaudio_jax.data.example import StoredFeatures
from mmaudio_jax.data.records import RecordFeatures, open_features
from mmaudio_jax.data.workers import WORKERS
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_file
from mmaudio_jax.sequence import MODES, lengths

ENCODERS = "encoders other than those in --weights"
FILES = "files of another size or SHA-256 than was written"
SHOWN = 3  # places that the console names
MARKS = {Verdict.OK: "ok", Verdict.WARNING: "WARNING", Verdict.FAULT: "FAULT", Verdict.LEFT_OUT: "–"}


class Reference(NamedTuple):
    """What a folder of weights has to compare with.

    Attributes:
        statistics: of the latents that the model was trained on.
        encode: the encoders of sounds and videos that are those which the set was made with.
        encode_captions: CLIP; likewise.
        encoders: which are others than those that the set was made with.
        silence: its latent, if there is a VAE.
    """

    statistics: ReleasedStatistics
    encode: recordings.Encode
    encode_captions: texts.Encode | None
    encoders: Check
    silence: np.ndarray | None


def load_reference(root: Path, model: str | None, features: StoredFeatures) -> Reference:
    """What the weights folder has for a set's audio mode.

    Args:
        root: the folder of converted weights.
        model: a flow network in it; None: the first that has the set's latent channels.
        features: the set.

    Raises:
        UserError: there is no such network.
    """
    from mmaudio_jax.encoders import Encoders

    mode, channels = features.metadata.mode, features.metadata.shapes["mean"][1]
    known = {path.parent.name: weights.read_metadata(path.parent) for path in sorted(root.glob("*/metadata.json"))}
    fitting = [name for name, each in known.items() if each["config"].get("latent_dim") == channels]
    model = model or next((name for name in fitting if known[name]["network"] == "mmaudio"), None)
    if model is None:
        raise UserError(f"{root} has no flow network of {channels} latent channels, as {features.path} has")
    params = weights.load(root / model, "mmaudio", only=("latent_mean", "latent_std")).params
    mean, std = (np.asarray(params[f"latent_{name}"], np.float64).ravel() for name in ("mean", "std"))
    if len(mean) != channels:
        raise UserError(f"{root / model} has {len(mean)} latent channels, {features.path} has {channels}")
    made_with = {name: mark for name, mark in features.metadata.encoders.items() if name in known}
    others = [name for name, fingerprint in made_with.items() if known[name]["fingerprint"] != fingerprint]
    check = fault(ENCODERS) if made_with else left_out(ENCODERS, "the set does not tell its encoders")
    for name in others:
        check.add(Place(f"the set was made with another {name} than {root / name}"))
    encoders = Encoders(root)
    widths = {name: shape[1] for name, shape in features.metadata.shapes.items()}

    def same(name: str, **sizes: str) -> bool:
        """Whether there is a network of this name that the set may have been made with, by the sizes of its arrays."""
        config = known[name]["config"] if name in known.keys() - others else None
        return config is not None and all(config.get(size) == widths[array] for array, size in sizes.items())

    def hear(audio):
        return encoders.encode_audio(audio, mode)[0]

    clip = same("clip", clip_f="embed_dim", text_f="text_width")
    encode = recordings.Encode(
        hear if same(f"vae_{mode}") else None,
        (lambda frames: encoders.encode_clip_frames(frames[None])[0]) if clip else None,
        (lambda frames: encoders.encode_sync_frames(frames[None])[0]) if same("synchformer", sync_f="width") else None,
    )
    silence = np.zeros((1, lengths(features.metadata.duration, MODES[mode]).samples), np.float32)
    return Reference(
        (mean, std),
        encode,
        encoders.encode_captions if clip else None,
        check,
        encode.audio(silence)[0] if encode.audio else None,
    )


def check_features(
    features: StoredFeatures,
    *,
    root: Path | None = None,
    reference: Reference | None = None,
    validation_fraction: float = 0.15,
    seed: int = 0,
    most_recordings: int = 1000,
    workers: int = WORKERS,
) -> Report:
    """Makes all checks of a set, however damaged it is.

    Args:
        features: the set, as `open_features(path, damaged=True)` opens it.
        root: the folder that its video_path starts from; None leaves the recordings out.
        reference: None leaves the comparison with a model out.
        validation_fraction, seed: of the split that is looked at where the table has no column `split`.
        most_recordings: clips whose videos and captions are looked at.
        workers: processes that decode, as in `workers.read_ahead`.
    """
    described, of_table = tables.describe(features, validation_fraction, seed)
    rows = described.rows if described.fits else Rows()
    files, scan = read_all(features, rows)
    captions, split = described.captions, described.split
    has_text = np.array([bool(caption.strip()) for caption in captions], bool)
    if described.fits:  # what cannot be read is reported as that
        has_text = np.where(scan.readable, scan.has_text, has_text)
    of_captions, words = tables.check_captions(captions, has_text, described.rows)
    unknown = [""] * len(features)
    of_arrays, distributions, channels = scan.findings(
        captions if described.fits else unknown,
        split.names if described.fits else unknown,
        reference and reference.statistics,
        reference and reference.silence,
    )
    unfit = "no row tells the video"
    read, heard, loudness = left_out(texts.NAME, unfit), recordings.no_recordings(unfit), []
    if described.fits:
        encode = reference and reference.encode_captions
        read = texts.check_texts(features, captions, most_recordings, encode, rows)
        heard = recordings.no_recordings("needs --root")
    if described.fits and root:
        by = reference.encode if reference else recordings.Encode()
        heard, loudness = recordings.check_recordings(features, root, most_recordings, by, scan.typical, rows, workers)
    encoders = reference.encoders if reference else left_out(ENCODERS, "needs --weights")
    by_source, by_split, by_caption = map(collections.Counter, (described.sources, split.names, captions))
    of_sources = Distribution("examples of a source", "examples", np.array(list(by_source.values()), np.float32))
    shares = {"examples of each split": by_split, "examples of each caption": by_caption}
    duration, count = features.metadata.duration, len(features)
    return Report(
        path=str(features.path),
        facts={
            "examples": f"{count}, {count * duration / 3600:.3g} h",
            "without padding": f"{np.nansum(scan.seconds, dtype=np.float64) / 3600:.3g} h",
            "each": f"{duration:g} s at {features.metadata.mode}",
            "with video": str(int(scan.has_video.sum())),
            "with text": str(int(scan.has_text.sum())),
            "sources": f"{len(by_source)}; the largest has {max(by_source.values(), default=0)} examples",
            "split": f"{', '.join(f'{n} {name}' for name, n in by_split.items())}, by {split.origin}",
        },
        checks=[files, *of_table, *of_captions, *of_arrays, encoders, read, *heard],
        shares={what: share for what, share in shares.items() if share},
        distributions=[each for each in (of_sources, words, *distributions, *loudness) if len(each.values)],
        channels=channels,
    )


def read_all(features: StoredFeatures, rows: Rows) -> tuple[Check, Scan]:
    """Reads every file and every example, once: a file that has just been hashed is in the system's memory."""
    check, scan = fault(FILES), Scan(features.metadata, rows)
    if not isinstance(features, RecordFeatures):
        check = left_out(FILES, "no hashes are kept of them")
    with tqdm.tqdm(total=len(features), desc="checking", unit=" examples", delay=2, disable=None) as bar:
        for indices, damage in features.files():
            if damage:
                check.add(Place(damage))
            read = features.read_guarded if damage else features.read  # a hash a record tells which are damaged
            for index in indices:
                try:
                    arrays = read(index)
                except ValueError as error:
                    scan.unreadable(index, error)
                else:
                    scan.add(index, arrays)
                bar.update()
    return check, scan


def show(report: Report) -> None:
    """Prints a report as a table."""
    for name, fact in report.facts.items():
        print(f"{name + ':':<17}{fact}")
    print(f"\n{'':<9}{'check':<58}{'found':<22} where")
    for check in report.checks:
        places = [str(place) for place in check.places[:SHOWN]]
        more = [f"and {check.count - SHOWN} more"] if check.count > SHOWN else []
        first, *others = [*places, *more] or [""]
        print(f"{MARKS[check.verdict]:<9}{check.name:<58}{check.number:<22} {first}".rstrip())
        for place in others:
            print(f"{'':<89}{place}")
    print(f"\n{report.summary}")


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[Path]:
    """As of `atomic_file`, the file being there."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    with atomic_file(path) as temporary:
        temporary.touch()
        yield temporary


@errors.main
def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mmaudio_jax.data.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("features", type=Path, help="the feature set")
    add("--report", type=Path, help="write a page to look at, .html")
    add("--json", type=Path, help="write what was found for machines")
    add("--root", type=Path, help="the folder that video_path starts from: look at the videos too")
    add("--recordings", type=int, default=1000, help="videos and captions to look at, at most (default 1000)")
    workers_help = f"processes that decode (default {WORKERS}); 0: threads, and a decoder's crash ends the report"
    add("--workers", type=int, default=WORKERS, help=workers_help)
    add("--weights", type=Path, help="the folder of converted weights: compare with the released model")
    add("--model", help="which flow network of --weights; by default the first that fits")
    add("--validation_fraction", type=float, default=0.15, help="of the run whose split is checked (default 0.15)")
    add("--seed", type=int, default=0, help="of that run (default 0); a column split of the table comes first")
    args = parser.parse_args()
    if args.recordings < 1:
        raise UserError(f"--recordings is {args.recordings}; it must be at least 1")
    if args.workers < 0:
        raise UserError(f"--workers is {args.workers}; it must be at least 0")
    if not 0 <= args.validation_fraction < 1:
        raise UserError(f"--validation_fraction is {args.validation_fraction:g}; it must lie in [0, 1)")
    if args.root and not args.root.is_dir():
        raise UserError(f"there is no folder {args.root}; --root must name the folder that video_path starts from")
    if args.weights and not args.weights.is_dir():
        raise UserError(f"there is no folder {args.weights}; --weights must name the folder of converted weights")
    features = open_features(args.features, damaged=True)
    with contextlib.ExitStack() as stack:  # a place that cannot be written is known before all is read
        page_file, json_file = (path and stack.enter_context(_writable(path)) for path in (args.report, args.json))
        report = check_features(
            features,
            root=args.root,
            reference=load_reference(args.weights, args.model, features) if args.weights else None,
            validation_fraction=args.validation_fraction,
            seed=args.seed,
            most_recordings=args.recordings,
            workers=args.workers,
        )
        show(report)
        if page_file:
            page_file.write_text(page.render(report), encoding="utf-8")
        if json_file:
            json_file.write_text(json.dumps(report.asdict(), indent=2) + "\n", encoding="utf-8")
    return 1 if report.count(Verdict.FAULT) else 0


if __name__ == "__main__":
    main()
