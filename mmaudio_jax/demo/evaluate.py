"""Listens to a model of the small world: does the picture say when, and do the words say what?

    python -m mmaudio_jax.demo.evaluate --weights W --model demo_16k [--adapter RUN] --data SET --scenes scenes.json

generates a sound for every example of a feature set, with its own conditions, with the videos shuffled, and with the
captions shuffled, and measures each against what is true of the scene.
"""

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tqdm
from jaxtyping import Float, Int

from mmaudio_jax import errors
from mmaudio_jax.data import records
from mmaudio_jax.data.example import FeatureSet
from mmaudio_jax.demo import ruler
from mmaudio_jax.demo.world import KINDS, MATERIALS, NEW_MATERIAL
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_file
from mmaudio_jax.pipeline import Features, Pipeline
from mmaudio_jax.request import Request

BATCH = 8
CONDITIONS = ("as they are", "videos shuffled", "captions shuffled")


class Heard(NamedTuple):
    """What was generated for a scene, and how it measures."""

    wave: Float[np.ndarray, " l"]
    onset_f1: float
    material: str | None


class Score(NamedTuple):
    """Means over scenes: onset F1, and the share whose material is right; None of no scenes."""

    onset_f1: float | None
    material: float | None


def read_scenes(path: Path, ids: Sequence[str]) -> list[dict[str, Any]]:
    """What is true of each example: kind, material and contacts.

    Raises:
        UserError: the file is not there or damaged, or belongs to other examples.
    """
    try:
        scenes = json.loads(Path(path).read_text())
        return [scenes[name] for name in ids]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); render the scenes again") from None
    except KeyError as error:
        raise UserError(f"{path} says nothing of {error}: it was rendered with other scenes") from None


def others(count: int, condition: str) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Whose video and whose caption each of `count` scenes gets."""
    own = np.arange(count)
    if condition == "videos shuffled":
        return np.roll(own, len(KINDS) + 1), own  # nobody keeps the own one, nor one of its kind
    if condition == "captions shuffled":
        return own, np.random.default_rng(0).permutation(count)
    return own, own


def listen(
    pipeline: Pipeline, features: FeatureSet, scenes: Sequence[Mapping[str, Any]], condition: str, sync: bool = True
) -> list[Heard]:
    """Generates and measures a sound for every scene; without `sync` the sync stream stays empty."""
    videos, captions = others(len(features), condition)
    duration, heard = features.metadata.duration, []
    for start in tqdm.trange(0, len(features), BATCH, desc=condition, leave=False, disable=None):
        rows = range(start, min(start + BATCH, len(features)))
        batch = [conditions(features, videos[i], captions[i], sync) for i in rows]
        requests = [Request(prompt=features.captions[captions[i]], duration=duration, seed=i) for i in rows]
        for i, sound in zip(rows, pipeline.generate(requests, batch, 2 * BATCH).sounds(), strict=True):
            onset_f1, material = ruler.onset_f1(sound.audio, scenes[i]["contacts"]), ruler.material(sound.audio)
            heard.append(Heard(sound.audio, onset_f1, material))
    return heard


def conditions(features: FeatureSet, video: int, caption: int, sync: bool) -> Features:
    """The video features of one example and the caption's of another."""
    seen, said = features[video], features[caption]
    return Features(seen["clip_f"], seen["sync_f"] if sync else None, said["text_f"], None)


def score(heard: Sequence[Heard], scenes: Sequence[Mapping[str, Any]], new: bool) -> Score:
    """Of the scenes with the new material, or of the others."""
    chosen = [(h, s) for h, s in zip(heard, scenes, strict=True) if (s["material"] == NEW_MATERIAL) == new]
    if not chosen:
        return Score(None, None)
    return Score(
        float(np.mean([h.onset_f1 for h, _ in chosen])),
        float(np.mean([h.material == s["material"] for h, s in chosen])),
    )


def table(rows: Mapping[str, Sequence[Heard]], scenes: Sequence[Mapping[str, Any]]) -> str:
    """One line a row: onset F1 and material right, for the base's materials and for the new one."""
    known = ", ".join(name for name in MATERIALS if name != NEW_MATERIAL)
    lines = [f"{'':<28}{known:>24}{NEW_MATERIAL:>24}", f"{'':<28}" + 2 * f"{'onset F1':>12}{'material':>12}"]
    for name, heard in rows.items():
        pair = [value for new in (False, True) for value in score(heard, scenes, new)]
        lines.append(f"{name:<28}" + "".join(f"{'–' if v is None else f'{v:.1%}':>12}" for v in pair))
    return "\n".join(lines)


@errors.main
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m mmaudio_jax.demo.evaluate", description=__doc__.split(":")[0])
    parser.add_argument("--weights", type=Path, required=True, help="the weights folder")
    parser.add_argument("--model", default="demo_16k", help="flow network in it")
    parser.add_argument("--adapter", type=Path, help="workdir of a training run")
    parser.add_argument("--data", required=True, help="a feature set of rendered scenes")
    parser.add_argument("--scenes", type=Path, required=True, help="the scenes.json that was rendered with them")
    parser.add_argument("--without_sync", action="store_true", help="leave the sync stream empty")
    parser.add_argument("--out", type=Path, help="also write the scores here, as JSON")
    args = parser.parse_args()
    pipeline = Pipeline.from_pretrained(args.weights, args.model, args.adapter)
    features = records.open_features(args.data)
    scenes = read_scenes(args.scenes, features.ids)
    hear = functools.partial(listen, pipeline, features, scenes, sync=not args.without_sync)
    rows = {condition: hear(condition) for condition in CONDITIONS}
    print(table(rows, scenes))
    if args.out:
        scores = {
            name: {which: score(heard, scenes, which == "new")._asdict() for which in ("known", "new")}
            for name, heard in rows.items()
        }
        with atomic_file(args.out) as temporary:
            temporary.write_text(json.dumps(scores, indent=2) + "\n")


if __name__ == "__main__":
    main()
