"""How fast sounds come: `python benchmarks/generation.py [--model small_16k] [--batch 1 8 32] [--steps 25] [--small]`.

Sounds of 8 s for rendered videos (640 × 480, 25 frames/s), 25 guided Euler evaluations each. Tells

- by stage the seconds of a batch, the seconds of sound that come of a second, and the same by that of the first batch
  size; videos are read, encoded and written one by one, so that these stages do not depend on the batch;
- of the flow network: an evaluation with guidance, its share of the peak (a matrix product's, in the same run), and
  the same by two evaluations without guidance, which the two conditions would else take; and the conditions, which are
  computed once a sound: their share of all operations, and what it would be if every evaluation computed them;
- the time from `python sample.py` to the first sound, for words alone: with nothing compiled, and with what the first
  start has kept, against importing the program alone;
- with --videos N, `python sample.py` over so many videos at each batch size, with all compiled.

Networks are random and of the model's size (5 GB of disk), or with --small the tests' small ones, whose times say what
all else costs. --steps is how many evaluations are timed: 25 are extrapolated from fewer.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import workload  # puts the repository on the path
from workload import ROOT, SECONDS, STEPS

sys.path.insert(0, str(ROOT / "tests"))

import jax
import jax.numpy as jnp
import numpy as np
from media_files import write_media
from random_networks import save_random_weights

from mmaudio_jax import flops, numerics, sampling, trees, weights
from mmaudio_jax.decoding import read_pictures
from mmaudio_jax.encoders import CPU_SHARE, FRAMES, SEGMENTS, Encoders
from mmaudio_jax.generation.outputs import Outputs
from mmaudio_jax.models import bigvgan, clip, mmaudio, synchformer, vae
from mmaudio_jax.pipeline import Features, Sound
from mmaudio_jax.request import Request
from mmaudio_jax.sequence import SYNC_SEGMENT, SYNC_STRIDE, lengths, mode_of

PROMPT = "rain on a tin roof"


def render(folder: Path, count: int) -> list[Path]:
    """Videos of a moving pattern."""
    down, across, colours = np.ogrid[:480, :640, :3]
    pattern = (127 + 100 * np.sin(2 * np.pi * down / 160) * np.sin(2 * np.pi * across / 128 + colours)).astype(np.uint8)
    folder.mkdir()
    frames = round(25 * SECONDS)
    first = write_media(
        folder / "0.mp4", count=frames, size=(640, 480), picture=lambda k, *_: np.roll(pattern, 3 * k, axis=1)
    )
    for i in range(1, count):
        (folder / f"{i}.mp4").write_bytes(first.read_bytes())
    return [folder / f"{i}.mp4" for i in range(count)]


def save_networks(folder: Path, model: str, small: bool) -> None:
    """Random networks under the released names."""
    if small:
        save_random_weights(folder, 0)
        return
    mode = mode_of(mmaudio.PRESETS[model].latent_dim).name
    configs = {
        model: ("mmaudio", mmaudio.PRESETS[model]),
        f"vae_{mode}": ("vae", vae.PRESETS[f"vae_{mode}"]),
        f"bigvgan_{mode}": ("bigvgan", bigvgan.PRESETS[f"bigvgan_{mode}"]),
        "synchformer": ("synchformer", synchformer.PRESETS["synchformer"]),
        "clip": ("clip", clip.PRESETS["clip"]),
    }
    for name, (network, config) in configs.items():
        weights.save(folder / name, network, config, workload.random_weights(network, config).params)


class Table:
    """Rows of seconds, with what they are by those of the first batch size."""

    def __init__(self):
        self._first: dict[str, float] = {}
        print("| stage | batch | s | s of sound a second | by the first batch |\n|---|---|---|---|---|")

    def row(self, stage: str, batch: int, seconds: float) -> None:
        """A line."""
        rate = batch * SECONDS / seconds
        ratio = rate / self._first.setdefault(stage, rate)
        print(f"| {stage} | {batch} | {seconds:.3g} | {rate:.3g} | {ratio:.2f} |", flush=True)


def media_stages(table: Table, root: Path, dtype, video: Path, folder: Path) -> float:
    """Seconds of a sound outside of the flow network and the decoder: reading, encoders, writing."""
    request = Request(video=video, prompt=PROMPT)
    encoders = Encoders(root, dtype=dtype)
    pictures = read_pictures(request)
    frames, motion = pictures.clip_frames[None], pictures.sync_frames[None]
    share = CPU_SHARE if jax.default_backend() == "cpu" else 1
    encoders.encode_clip_frames(frames[:, : FRAMES // share])  # one chunk: it compiles
    encoders.encode_captions([PROMPT])
    encoders.encode_sync_frames(motion[:, : SYNC_SEGMENT + SYNC_STRIDE * (SEGMENTS // share - 1)])
    sound = _noise(request)
    outputs = Outputs()
    outputs.write(sound, folder)
    stages = {
        "decode": lambda: read_pictures(request),
        "CLIP, frames": lambda: encoders.encode_clip_frames(frames),
        "CLIP, words": lambda: encoders.encode_captions([PROMPT]),
        "Synchformer": lambda: encoders.encode_sync_frames(motion),
        "write": lambda: outputs.write(sound, folder),
    }
    return sum(_stage(table, name, 1, function) for name, function in stages.items())


def decoder_stages(table: Table, root: Path, mode: str, batch: int, latent_shape: tuple[int, ...]) -> float:
    """Seconds of the VAE and the vocoder, which are one program elsewhere."""
    coder, vocoder = weights.load(root / f"vae_{mode}", "vae"), weights.load(root / f"bigvgan_{mode}", "bigvgan")
    coder_def, vocoder_def = coder.graphdef(), vocoder.graphdef()
    to_mel = jax.jit(lambda params, latent: trees.merge(coder_def, params).decode(latent))
    to_sound = jax.jit(lambda params, mel: trees.merge(vocoder_def, params)(mel))
    latent = jnp.ones((batch, *latent_shape))
    mel = to_mel(coder.params, latent)  # compiles
    to_sound(vocoder.params, mel).block_until_ready()
    return _stage(table, "VAE", batch, lambda: to_mel(coder.params, latent)) + _stage(
        table, "vocoder", batch, lambda: to_sound(vocoder.params, mel)
    )


def _stage(table: Table, name: str, batch: int, function: Callable) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    seconds = time.perf_counter() - start
    table.row(name, batch, seconds)
    return seconds


def _noise(request: Request) -> Sound:
    rate = 16_000
    audio = np.random.default_rng(0).normal(0, 0.1, round(SECONDS * rate)).astype(np.float32)
    return Sound(audio, rate, np.zeros((1, 1), np.float32), Features(None, None, None, None), request, {})


class Flow:
    """The flow network at one batch size, with guidance or without."""

    def __init__(self, network: weights.Weights, batch: int, dtype, steps: int, *, guided: bool = True):
        graphdef, params, x0, rows, table, _ = workload.sampler_arguments(
            network.config, network.params, batch, dtype, guided=guided
        )

        def run(count: int) -> float:
            start = time.perf_counter()
            sampling.sample(graphdef, params, x0, rows, table, count).block_until_ready()
            return time.perf_counter() - start

        run(0)  # compiles; the conditions are all that it computes
        self.conditions = run(0)
        self.evaluation = max(run(steps) - self.conditions, 0) / steps
        self.operations = _operations(graphdef, params, x0, rows)

    @property
    def seconds(self) -> float:
        """Of a batch."""
        return self.conditions + STEPS * self.evaluation


def _operations(graphdef, params, x0, rows: sampling.Rows) -> tuple[float, float]:
    """Of the conditions and of one evaluation, for all rows."""
    count, length = len(rows.text_f), x0.shape[1]

    def conditions(params, *features):
        return trees.merge(graphdef, params).conditions(*features, length)

    def velocity(params, x, t, found):
        return trees.merge(graphdef, params).velocity(x, t, found)

    features = rows.clip_f, rows.sync_f, rows.text_f
    found = jax.eval_shape(conditions, params, *features)
    x = jax.ShapeDtypeStruct((count, *x0.shape[1:]), x0.dtype)
    t = jax.ShapeDtypeStruct((count,), x0.dtype)
    return flops.of(conditions, params, *features), flops.of(velocity, params, x, t, found)


def first_sounds(root: Path, model: str, folder: Path) -> None:
    """Seconds until `python sample.py` has made one sound of words."""
    print("\n| the first sound | s | by nothing compiled |\n|---|---|---|")
    cold = _sample(root, model, folder / "cold", "--prompt", PROMPT)
    kept = _sample(root, model, folder / "kept", "--prompt", PROMPT)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import sample, mmaudio_jax.pipeline"], cwd=ROOT, check=True)
    imports = time.perf_counter() - start
    for what, seconds in (("nothing compiled", cold), ("compiled programs kept", kept), ("imports alone", imports)):
        print(f"| {what} | {seconds:.3g} | {seconds / cold:.2f} |", flush=True)


def whole_command(root: Path, model: str, folder: Path, videos: list[Path], batches: list[int]) -> None:
    """Seconds of `python sample.py` over videos."""
    print("\n| sample.py | batch | videos | s | s of sound a second | by the first batch |\n|---|---|---|---|---|---|")
    first = None
    for batch in batches:
        arguments = (*videos, "--prompt", PROMPT, "--batch_size", batch)
        _sample(root, model, folder / f"compile_{batch}", *arguments)
        seconds = _sample(root, model, folder / f"timed_{batch}", *arguments)
        rate = len(videos) * SECONDS / seconds
        first = first or rate
        print(f"| with all compiled | {batch} | {len(videos)} | {seconds:.3g} | {rate:.3g} | {rate / first:.2f} |")


def _sample(root: Path, model: str, out: Path, *arguments) -> float:
    command = [sys.executable, "sample.py", "--weights", root, "--model", model, "--out", out, *arguments]
    command += ["--compilation_cache", root / "compiled"]
    start = time.perf_counter()
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small_16k")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--videos", type=int, default=0)
    args = parser.parse_args()
    dtype = numerics.compute_dtype("auto")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root = folder / "weights"
        save_networks(root, args.model, args.small)
        videos = render(folder / "videos", max(args.videos, 1))
        peak = flops.peak(dtype, "default")
        size = "small networks" if args.small else "full size"
        print(f"{jax.devices()[0].device_kind}, {dtype.name}, jax {jax.__version__}; {args.model}, {size}")
        print(f"the peak of a matrix product: {peak / 1e12:.3g} TFLOP/s\n")
        table = Table()
        (folder / "written").mkdir()
        alone = media_stages(table, root, dtype, videos[0], folder / "written")
        network = weights.load(root / args.model, "mmaudio", dtype)
        mode = mode_of(network.config.latent_dim)
        shape = (lengths(SECONDS, mode).latent, mode.latent_dim)
        flow: list[tuple[int, Flow, Flow]] = []
        for batch in args.batch:
            both = [Flow(network, batch, dtype, args.steps, guided=guided) for guided in (True, False)]
            flow.append((batch, *both))
            table.row("flow", batch, both[0].seconds)
            rest = decoder_stages(table, root, mode.name, batch, shape)
            table.row("all, one after the other", batch, both[0].seconds + rest + batch * alone)
        print(
            "\n| flow network, batch | s an evaluation | share of the peak | by two without guidance | conditions, s |"
        )
        print("|---|---|---|---|---|")
        for batch, guided, plain in flow:
            share = guided.operations[1] / guided.evaluation / peak
            ratio = guided.evaluation / (2 * plain.evaluation)
            print(f"| {batch} | {guided.evaluation:.3g} | {share:.0%} | {ratio:.2f} | {guided.conditions:.3g} |")
        once, each = flow[0][1].operations
        print(f"\nconditions: {once / (once + STEPS * each):.2%} of the operations of {STEPS} evaluations, as they are")
        print(f"computed once; {once / (once + each):.0%} if every evaluation computed them")
        first_sounds(root, args.model, folder)
        if args.videos:
            whole_command(root, args.model, folder, videos, args.batch)


if __name__ == "__main__":
    main()
