"""First check of an accelerator: parity, LoRA training and sampling at full small_16k size, with times and memory.

    python benchmarks/gpu_smoke.py [--batch 8] [--steps 10]

Needs jax, flax, optax, jaxtyping and safetensors, no network and no file beside the repository: weights come from the
golden recipe, features from a seed. Prints a table, and exits with 1 if parity fails.
"""

import argparse
import functools
import sys
import tempfile

import workload  # puts the repository on the path
from workload import timed

sys.path.insert(0, str(workload.ROOT / "tests" / "golden"))

import jax
import jax.numpy as jnp
import numpy as np
import recipe
from flax import nnx

from convert import checkpoint_file, matching
from mmaudio_jax import sampling, train_step, trees
from mmaudio_jax.models.mmaudio import PRESETS

CONFIG = PRESETS["small_16k"]
# dtype, precision: the error that parity allows (the published network has 0.024 in bfloat16 throughout)
MODES = {"float32 highest": (jnp.float32, "highest", 1e-5), "bfloat16": (jnp.bfloat16, "default", 0.016)}


def peak_memory() -> str:
    """The device's peak so far, where the backend tells."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return f"{stats['peak_bytes_in_use'] / 2**30:.2f} GiB" if "peak_bytes_in_use" in stats else "not told"


def report(what: str, value: str) -> None:
    print(f"{what:<44} {value}", flush=True)


def velocity(graphdef: nnx.GraphDef, params: trees.Params, *args) -> jax.Array:
    return trees.merge(graphdef, params)(*args)


def parity(params: trees.Params) -> bool:
    """Velocity against the golden vector, in both precisions."""
    with np.load(workload.ROOT / "tests" / "golden" / "expected" / "flow_small_16k.npz") as file:
        expected = file["flow"].astype(np.float64)
    shapes = {"latent": (2, 250, 20), "clip": (2, 64, 1024), "sync": (2, 192, 768), "text": (2, 77, 1024)}
    latent, *features = (recipe.tensor(f"input.{key}", shape, 1) for key, shape in shapes.items())
    good = True
    for name, (dtype, precision, bound) in MODES.items():
        graphdef = workload.definition(CONFIG, dtype=dtype, precision=precision)
        apply = jax.jit(functools.partial(velocity, graphdef))
        flow = np.asarray(apply(params, latent, np.array([0.15, 0.85], np.float32), *features), np.float64)
        error = np.linalg.norm(flow - expected) / np.linalg.norm(expected)
        good &= bool(error <= bound)
        report(f"parity, {name}", f"{error:.2e} (at most {bound:g}) {'ok' if error <= bound else 'FAILED'}")
    return good


def train(base: trees.Params, batch_size: int, steps: int) -> None:
    """LoRA steps in bfloat16 on seeded features."""
    step, state, rest = workload.lora_step(CONFIG, base, batch_size, jnp.bfloat16)
    losses = []

    def one():
        nonlocal state
        state, measures = step(state, *rest)
        losses.append(measures)
        return measures

    first, seconds = timed(one, steps)
    report(
        f"LoRA step, batch {batch_size}",
        f"{1e3 * seconds:.1f} ms ({batch_size / seconds:.2g} samples/s; first {first:.1f} s)",
    )
    loss = train_step.means(losses[:1])["loss"], train_step.means(losses[-1:])["loss"]
    report("loss, first and last step", f"{loss[0]:.4f} → {loss[1]:.4f}; compiled {step._cache_size()} time(s)")


def generate(params: trees.Params, batch_size: int) -> None:
    """8-second latents, 25 guided Euler steps, in bfloat16."""
    arguments = workload.sampler_arguments(CONFIG, params, batch_size, jnp.bfloat16)
    first, seconds = timed(lambda: sampling.sample(*arguments), 3)
    report(
        f"25 guided Euler steps, batch {batch_size}",
        f"{seconds:.3f} s ({8 * batch_size / seconds:.2g} s of sound/s; first {first:.1f} s)",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    report("device", f"{jax.local_devices()[0].device_kind}, jax {jax.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        file = recipe.write_checkpoint("mmaudio_small_16k.pth", folder, seed=1)
        params = jax.device_put(matching.recognise(checkpoint_file.read(file)).parameters(), jax.local_devices()[0])
    good = parity(params)
    train(params, args.batch, args.steps)
    report("peak memory after training", peak_memory())
    generate(params, args.batch)
    report("peak memory after sampling", peak_memory())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
