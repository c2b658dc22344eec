"""Shows one example of a feature set: `python -m mmaudio_jax.data.show SET ID --weights weights --out shown`.

It prints the example's row, its arrays and their statistics, and writes the sound of its latent, as the VAE and the
vocoder decode it, and the spectrogram. With --root also frames of the video beside the spectrogram, and the video with
the decoded sound.
"""

import argparse
import difflib
import heapq
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mmaudio_jax import errors, plots, sampling
from mmaudio_jax.data import audio, media, muxing
from mmaudio_jax.data.clips import INTERVAL, Interval, interval_of
from mmaudio_jax.data.example import Example, StoredFeatures
from mmaudio_jax.data.records import open_features
from mmaudio_jax.errors import UserError
from mmaudio_jax.sequence import CLIP_FPS

NEAREST = 3  # ids that are named instead of an unknown one
LIKELY = 1000  # ids that are compared letter by letter with it


def find(features: StoredFeatures, id: str) -> int:
    """The index of an example.

    Raises:
        UserError: there is none of this id; names those that are most like it.
    """
    ids = features.ids
    if id in ids:
        return ids.index(id)
    likely = heapq.nlargest(LIKELY, ids, lambda other: _same_ends(id, other))  # difflib is slow
    near = difflib.get_close_matches(id, likely, NEAREST, cutoff=0.0)
    raise UserError(f"{features.path} has no example {id!r}; the nearest of its {len(ids)} ids: {', '.join(near)}")


def _same_ends(one: str, other: str) -> int:
    """How many letters at the beginning and at the end two ids have in common: all but one after one slip."""
    return sum(len(os.path.commonprefix(pair)) for pair in ((one, other), (one[::-1], other[::-1])))


def describe(features: StoredFeatures, index: int, example: Example) -> Iterator[str]:
    """The lines that tell of an example: its row, then its arrays."""
    row, frames = features.table.rows[index], features.metadata.shapes["mean"][0]
    named = {"id": row["id"], "caption": features.captions[index], "source": features.sources[index]}
    yield f"row {features.table.lines[index]} of {features.table_name(index)}"
    for name, value in (named | row).items():
        yield f"  {name:<20}{value if value.isprintable() else repr(value)}"  # a console obeys control characters
    own, duration = int(example["latents"]), features.metadata.duration
    yield f"{duration * own / frames:g} s of its own ({own} of {frames} latent frames) at {features.metadata.mode}"
    yield f"  {'array':<8}{'shape':<14}{'least':>10}{'mean':>10}{'most':>10}{'std':>10}"
    for name, shape in features.metadata.shapes.items():
        there = example["has_text"] if name == "text_f" else example["has_video"] or name in ("mean", "std")
        array = example[name]
        numbers = "".join(f"{value:>10.3g}" for value in (array.min(), array.mean(), array.max(), array.std()))
        yield f"  {name:<8}{'×'.join(map(str, shape)):<14}{numbers if there else 'none stored'}"


def decode(weights: Path, features: StoredFeatures, example: Example) -> tuple[Float[np.ndarray, " l"], int]:
    """The sound of the example's latent without its padding, and its rate.

    Raises:
        UserError: the weights folder has not the VAE and the vocoder of the set's mode.
    """
    metadata = features.metadata
    length, channels = metadata.shapes["mean"]
    mode, *networks = sampling.Decoder.load(weights, f"the mode {metadata.mode}", channels)
    seconds = metadata.duration * int(example["latents"]) / length
    sound = np.asarray(sampling.decode(*networks, example["mean"][None]))[0]
    return sound[: round(seconds * mode.sample_rate)], mode.sample_rate


def write(out: Path, name: str, sound: Float[np.ndarray, " l"], rate: int, clip: Interval | None) -> list[Path]:
    """Writes sound and picture, and of a clip its frames and its video; returns the files.

    Raises:
        UserError: the clip's file is missing or damaged; nothing is written.
    """
    wave, picture, seconds = out / f"{name}.wav", out / f"{name}.png", len(sound) / rate
    filmed = clip is not None and media.has_video(clip.video)
    frames = media.read_frames(clip.video, clip.start_time, seconds)[0] if filmed else None
    audio.write_audio(wave, sound, rate)
    plots.save_spectrogram(picture, sound, rate)
    if not filmed:
        return [wave, picture]
    sheet, video = out / f"{name}_frames.png", out / f"{name}.mp4"
    plots.save_contact_sheet(sheet, frames, np.arange(len(frames)) / CLIP_FPS, sound, rate)
    muxing.write_video(video, clip.video, sound, rate, clip.start_time, seconds)
    return [wave, picture, sheet, video]


@errors.main
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mmaudio_jax.data.show",
        usage="%(prog)s SET --weights WEIGHTS [--root ROOT] [--out OUT] [--] ID",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("features", type=Path, metavar="SET", help="the feature set")
    add("id", metavar="ID", help="of the example; one that begins with a dash comes last, after --")
    add("--weights", type=Path, required=True, help="the folder of converted weights, for the VAE and the vocoder")
    add("--root", type=Path, help="the folder that video_path starts from: show the video too")
    add("--out", type=Path, default=Path("out"), help="folder of what is written (default out)")
    args = parser.parse_args()
    features = open_features(args.features)
    index = find(features, args.id)
    features.check_example(index)
    example = features[index]
    clip = None
    if args.root:
        features.table.require(*INTERVAL)
        try:
            clip = interval_of(features.table.rows[index], args.root.resolve())
        except ValueError as error:
            raise UserError(f"row {features.table.lines[index]} of {features.table_name(index)}: {error}") from None
        if not clip.video.is_file():
            raise UserError(f"there is no file {clip.video}; --root must name the folder that video_path starts from")
    print("\n".join(describe(features, index, example)))
    sound, rate = decode(args.weights, features, example)
    for path in write(args.out, args.id.replace("/", "_"), sound, rate, clip):
        print(path)


if __name__ == "__main__":
    main()
