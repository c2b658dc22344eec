"""What a device computes and moves when a step is shared out: `python benchmarks/scaling.py [--models tiny small_16k]`.

Compiles the training step for 1, 2, 4 and 8 devices, fake ones of the CPU, and runs nothing. For each mesh: the FLOPs
that one device computes; how many bytes the collective operations in the compiled program's text make; and how many a
device sends for that in rings (of n devices, an all-gather of b bytes sends b·(n − 1)/n, an all-reduce twice that).
The batch is the same for all meshes.
"""

import argparse
import math
import re

import workload  # puts the repository on the path
from workload import LORA

import jax  # isort: skip

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402

from mmaudio_jax import sharding  # noqa: E402
from mmaudio_jax.models.mmaudio import PRESETS  # noqa: E402

MESHES = [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4), (1, 8)]
TRAINED = {"LoRA": LORA, "all weights": None}
BATCH = 8
QUICKLY = {"xla_backend_optimization_level": 0}  # of the machine code, which nobody runs
BYTES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1, "f64": 8, "s64": 8, "u8": 1, "s8": 1}
SENT = {  # operation: bytes that a device of a ring of n sends, by those of the operation's result
    "all-gather": lambda size, n: size * (n - 1) / n,
    "all-reduce": lambda size, n: 2 * size * (n - 1) / n,
    "reduce-scatter": lambda size, n: size * (n - 1),
    "all-to-all": lambda size, n: size * (n - 1) / n,
    "collective-permute": lambda size, n: size,
}


def collectives(text: str, devices: int) -> dict[str, tuple[int, float]]:
    """{operation: (bytes of its results, bytes that a device sends)} of a compiled program's text."""
    totals = dict.fromkeys(SENT, (0, 0.0))
    pattern = rf"= (.*?) ({'|'.join(SENT)})(?:-start)?\((.*)"
    for shapes, operation, rest in re.findall(pattern, text):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        size = sum(BYTES[kind] * math.prod(int(x) for x in shape.split(",") if x) for kind, shape in arrays)
        result, sent = totals[operation]
        totals[operation] = (result + size, sent + SENT[operation](size, _group(rest, devices)))
    return totals


def _group(rest: str, devices: int) -> int:
    """How many devices take part: `replica_groups=` lists them, or counts them, or names axes of a mesh."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(counted[2])
    if named := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])  # an axis, or a part of one and its size
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    return devices


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(PRESETS), default=["tiny", "small_16k"])
    parser.add_argument("--accumulation", type=int, default=1)
    args = parser.parse_args()
    print(f"jax {jax.__version__}; {args.accumulation} micro-batch(es) of {BATCH}, float32; MB a device and step")
    print(f"| model | trained | data × fsdp | GFLOP | by one device's | {' | '.join(SENT)} | sent |")
    print("|---" * (5 + len(SENT) + 1) + "|")
    for model in args.models:
        for trained, adapter in TRAINED.items():
            alone = None
            for data, fsdp in MESHES:
                mesh = sharding.make_mesh(sharding.MeshConfig(data, fsdp), jax.devices()[: data * fsdp])
                variant = dict(adapter=adapter, accumulation=args.accumulation)
                step, shapes = workload.training(PRESETS[model], BATCH, jnp.float32, mesh, **variant)
                compiled = step.lower(*shapes).compile(QUICKLY)
                flops = compiled.cost_analysis()["flops"]
                alone = alone or flops
                moved = collectives(compiled.as_text(), mesh.size)
                cells = [model, trained, f"{data} × {fsdp}", f"{flops / 1e9:.4g}", f"{flops / alone:.3f}"]
                cells += [f"{result / 1e6:.4g}" for result, _ in moved.values()]
                cells.append(f"{sum(sent for _, sent in moved.values()) / 1e6:.4g}")
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
