"""Size, memory and speed of every released model: `python benchmarks/models.py [--models small_16k …]`.

For each: parameters of the flow network; memory of a LoRA step (rank 64 on qkv and the FFNs) and of making 8-second
sounds (flow network, VAE and vocoder; 25 guided steps) at batch 1 and 8, as the compiled programs need it with the
weights; seconds of a step and of a sound at batch 1. The last lines are the encoders, on one frame, segment and
caption. Weights are random, and the compute dtype is the device's: bfloat16 on a GPU, float32 on a CPU.
"""

import argparse

import workload  # puts the repository on the path
from workload import GIB, memory, timed

import jax  # isort: skip
import numpy as np

from mmaudio_jax import numerics, sampling, trees, weights
from mmaudio_jax.encoders import encode_images, encode_segments, encode_tokens
from mmaudio_jax.models import bigvgan, clip, mmaudio, synchformer, vae
from mmaudio_jax.sequence import mode_of

MODELS = ("small_16k", "small_44k", "medium_44k", "large_44k", "large_44k_v2")
BATCHES = (1, 8)


def lora_step(flow: weights.Weights, dtype) -> list[str]:
    """Memory at each batch size, seconds at the first."""
    cells = []
    for batch in BATCHES:
        step, state, rest = workload.lora_step(flow.config, flow.params, batch, dtype)
        compiled = step.lower(state, *rest).compile()
        cells.append(f"{memory(compiled):.1f}")
        if batch == BATCHES[0]:

            def one():
                nonlocal state
                state, measures = compiled(state, *rest)  # noqa: B023 - called at once
                return measures

            seconds = timed(one, 2)[1]
    return [*cells, f"{seconds:.2f}"]


def generate(flow: weights.Weights, dtype) -> list[str]:
    """Memory at each batch size, seconds at the first."""
    mode = mode_of(flow.config.latent_dim).name
    coder = workload.random_weights("vae", vae.PRESETS[f"vae_{mode}"])
    vocoder = workload.random_weights("bigvgan", bigvgan.PRESETS[f"bigvgan_{mode}"])
    flow, cells = flow.cast(dtype), []
    for batch in BATCHES:
        arguments = workload.sampler_arguments(flow.config, flow.params, batch, dtype)
        sample = sampling.sample.lower(*arguments).compile()
        latent = jax.ShapeDtypeStruct(arguments[2].shape, np.float32)
        decoder = (coder.graphdef(), coder.params, vocoder.graphdef(), vocoder.params, latent)
        decode = sampling.decode.lower(*decoder).compile()
        # both programs' weights stay while one of them runs
        cells.append(f"{max(memory(sample) + held(coder, vocoder), memory(decode) + held(flow)):.1f}")
        if batch == BATCHES[0]:
            seconds = timed(lambda: decode(coder.params, vocoder.params, sample(*arguments[1:])), 1)[1]  # noqa: B023
    return [*cells, f"{seconds:.1f}"]


def held(*networks: weights.Weights) -> float:
    """GiB of the networks' weights."""
    return sum(leaf.nbytes for network in networks for leaf in network.params.values()) / GIB


def encoders(dtype) -> None:
    """Parameters and seconds of CLIP and Synchformer."""
    eye = workload.random_weights("clip", clip.PRESETS["clip"])
    motion = workload.random_weights("synchformer", synchformer.PRESETS["synchformer"])
    for network, encode, items in (
        (eye, encode_images, np.ones((1, 384, 384, 3), np.uint8)),
        (eye, encode_tokens, np.ones((1, 77), np.int32)),
        (motion, encode_segments, np.ones((1, 16, 224, 224, 3), np.uint8)),
    ):
        graphdef, params = network.graphdef(dtype=dtype), network.cast(dtype).params
        seconds = timed(lambda: encode(graphdef, params, items), 2)[1]  # noqa: B023 - called at once
        size = f"{trees.count(params) / 1e6:.0f} M parameters, {held(network):.1f} GiB in float32"
        print(f"{encode.__name__}: {network.network}, {size}; {seconds:.3f} s", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--dtype", choices=numerics.DTYPES, default="auto")
    args = parser.parse_args()
    dtype = numerics.compute_dtype(args.dtype)
    print(f"{jax.devices()[0].device_kind}, {dtype.name}, jax {jax.__version__}")
    print("| model | parameters | LoRA step, GiB at batch 1 | 8 | s | 8 s of sound, GiB at batch 1 | 8 | s |")
    print("|---|---|---|---|---|---|---|---|")
    for model in args.models:
        flow = workload.random_weights("mmaudio", mmaudio.PRESETS[model])
        row = [model, f"{trees.count(flow.params) / 1e6:.0f} M"]
        row += lora_step(flow, dtype) + generate(flow, dtype)
        print(f"| {' | '.join(row)} |", flush=True)
    encoders(dtype)


if __name__ == "__main__":
    main()
