"""Sets for the tests of `mmaudio_jax.data.check`, and what it found of them."""

import os

import numpy as np

from mmaudio_jax.data.check import recordings
from mmaudio_jax.data.example import example_shapes

SHAPES = example_shapes("16k", 1.0, clip_dim=8, sync_dim=6, text_dim=4)
COUNT = 12
THINGS = ("a dog", "a drum", "rain", "a door", "gravel", "a bell")


def example(rng) -> dict[str, np.ndarray]:
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    return arrays | {"std": np.abs(arrays["std"]) + 0.1}


def rows_and_examples():
    """A clean set: twelve examples of six videos, of which four train, one validates and one tests."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "id": f"clip{i}",
            "caption": f"{THINGS[i // 2]}, {'near' if i % 2 else 'far'}",
            "original_video": f"video{i // 2}",
            "split": "train" if i < 8 else "val" if i < 10 else "test",
        }
        for i in range(COUNT)
    ]
    return rows, [example(rng) for _ in range(COUNT)]


def named(found, verdict):
    return {name for name, each in found.items() if each["verdict"] == verdict}


def crash_at_clip3(wanted):
    """In the place of what reads the video of a clip, in a process."""
    return os._exit(1) if wanted.row["id"] == "clip3" else recordings._read(wanted)
