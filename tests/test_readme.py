"""README's Python runs as it stands, on small networks and a rendered video."""

import re
import shutil
from pathlib import Path

import jax
import pytest
import soundfile

from mmaudio_jax import checkpoint, weights
from mmaudio_jax.data import media
from mmaudio_jax.demo.render import render_clips

README = Path(__file__).parent.parent / "README.md"
LAYER = "fused_blocks.0.attn.qkv"


def adapter(base, seed):
    """A small random adapter, as a run leaves it."""
    shapes = {"lora_a": (64, 2), "lora_b": (2, 192)}
    leaves = {f"{LAYER}.{ab}": jax.random.normal(jax.random.key(seed), shape) for ab, shape in shapes.items()}
    lora = dict(rank=2, alpha=1.0, rslora=False, dropout=0.0, targets=["qkv"], patterns={"qkv": r".*\.attn\.qkv"})
    about = {"path": "weights/small_16k", "fingerprint": base.metadata["fingerprint"]}
    run = {"base": about, "config": {"lora": lora | dict(ranks={}, alphas={}, start=None)}}
    return checkpoint.Adapter(leaves, 3, run)


@pytest.fixture(scope="module")
def place(small_weights, tmp_path_factory):
    """A folder that has what the examples name."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "weights").symlink_to(small_weights)
    base = weights.load(small_weights / "small_16k", "mmaudio")
    for seed, name in enumerate(("mine", "rain")):
        checkpoint.save_adapter(folder / "runs" / name, adapter(base, seed))
    clips = render_clips(folder / "clips", 2, seed=3, duration=1.2)
    for name, video in zip(("a.mp4", "b.mp4"), sorted(clips.parent.glob("*.mp4")), strict=True):
        shutil.copy(video, folder / name)
    return folder


def test_the_python_of_the_readme_runs(place, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    monkeypatch.chdir(place)
    exec(compile("\n".join(blocks), "README.md", "exec"), {"__name__": "readme"})
    audio, rate = soundfile.read(place / "out" / "a.wav")
    assert rate == 16_000 and len(audio) == round(media.probe(place / "a.mp4").video_duration * rate)
    assert media.probe(place / "out" / "a.mp4").has_audio and (place / "out" / "b.flac").exists()
