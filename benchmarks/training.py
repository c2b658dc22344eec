"""Time and memory of a training step: `python benchmarks/training.py [--models small_16k …] [--batch 8] [--steps 3]`.

For a LoRA (rank 64 on qkv and the FFNs) and for all weights, with one and with four micro-batches a step: GiB as the
compiled program needs them, seconds of a step, seconds of an example as a ratio to the first row's, and the model FLOPs
utilisation (MFU, arXiv 2204.02311): what the loss and its gradient need, by the seconds and the peak of a large matrix
product in the same dtype, measured just before. `--compile_only` runs nothing, and so tells the memory of what does not
fit. Weights and features are random; examples are 8 s long.
"""

import argparse

import workload  # puts the repository on the path
from workload import LORA, memory, timed

import jax  # isort: skip

from mmaudio_jax import flops, numerics
from mmaudio_jax.models.mmaudio import PRESETS

BASELINE = "LoRA, 1 micro-batch"
VARIANTS = {
    BASELINE: dict(adapter=LORA, accumulation=1),
    "LoRA, 4 micro-batches": dict(adapter=LORA, accumulation=4),
    "all weights, 1 micro-batch": dict(adapter=None, accumulation=1),
    "all weights, 4 micro-batches": dict(adapter=None, accumulation=4),
    "all weights, 1 micro-batch, remat dots": dict(adapter=None, accumulation=1, remat="dots"),
    "all weights, 1 micro-batch, remat blocks": dict(adapter=None, accumulation=1, remat="blocks"),
}


def operations(config, batch_size: int, dtype, variant: dict) -> float:
    """What a step needs, as XLA counts before it compiles; on the CPU's backend, others count compiled programs.

    What remat computes again is not needed, and not counted.
    """
    variant = {**variant, "remat": "none"}
    step, shapes = workload.training(config, batch_size, dtype, workload.one_device("cpu"), unroll=True, **variant)
    return step.lower(*shapes).cost_analysis()["flops"]


def measure(config, batch_size: int, dtype, variant: dict, steps: int) -> tuple[float, float | None]:
    """(GiB, seconds a step); no seconds without steps."""
    step, shapes = workload.training(config, batch_size, dtype, workload.one_device(), **variant)
    compiled = step.lower(*shapes).compile()
    if not steps:
        return memory(compiled), None
    state, *rest = workload.filled(shapes)

    def one():
        nonlocal state
        state, measures = compiled(state, *rest)
        return measures

    return memory(compiled), timed(one, steps)[1]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(PRESETS), default=["small_16k"])
    parser.add_argument("--batch", type=int, default=8, help="examples a micro-batch")
    parser.add_argument("--steps", type=int, default=3, help="that are timed")
    parser.add_argument("--dtype", choices=numerics.DTYPES, default="auto")
    parser.add_argument("--compile_only", action="store_true")
    args = parser.parse_args()
    dtype = numerics.compute_dtype(args.dtype)
    print(f"{jax.devices()[0].device_kind}, {dtype.name}, jax {jax.__version__}; micro-batches of {args.batch}")
    if not args.compile_only:
        most = flops.peak(dtype, "default")
        print(f"peak of a matrix product: {most / 1e12:.3g} TFLOP/s")
    print(f"| model | trained | GiB | TFLOP a step | s a step | s an example, by that of {BASELINE} | MFU |")
    print("|---|---|---|---|---|---|---|")
    for model in args.models:
        baseline = None
        for name, variant in VARIANTS.items():
            needed = operations(PRESETS[model], args.batch, dtype, variant)
            gib, seconds = measure(PRESETS[model], args.batch, dtype, variant, 0 if args.compile_only else args.steps)
            cells = [model, name, f"{gib:.2f}", f"{needed / 1e12:.3g}"]
            if seconds is not None:
                example = seconds / variant["accumulation"]
                baseline = baseline or example
                cells += [f"{seconds:.3g}", f"{example / baseline:.2f}", f"{needed / seconds / most:.0%}"]
            else:
                cells += ["–"] * 3
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
