"""Adapters to and from the tools of others: python -m convert.adapter RUN --to peft --out mine

  --to peft         a folder that PEFT loads: adapter_config.json and adapter_model.safetensors
  --to safetensors  the same tensors as one file, its settings in the header
  --to merged       base and adapter as one file in the published names and layouts
  --from peft       the other way: RUN is a folder of PEFT's or such a file, --out a run that sample.py takes

Layers are named by their published paths, which are ours too.
"""

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import mmaudio_jax
from convert.rules import TABLES
from mmaudio_jax import errors, lora, trees, weights
from mmaudio_jax.checkpoint import Adapter, RunCheckpoints, load_adapter
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_directory, atomic_file
from mmaudio_jax.sampling import load_flow_network

PREFIX = "base_model.model."  # of PEFT's names
MMAUDIO = next(table for table in TABLES if table.network == "mmaudio")
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
# settings of PEFT that change what an adapter computes, and the only value of each that is LoRA as it is here
PLAIN = {"use_dora": False, "use_rslora": False, "bias": "none", "fan_in_fan_out": False, "rank_pattern": {}}
PLAIN |= {"alpha_pattern": {}, "modules_to_save": None, "layers_to_transform": None, "peft_type": "LORA"}


def to_peft(adapter: Adapter) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """PEFT's config and tensors of an adapter.

    A (in, r) becomes lora_A.weight (r, in), of a convolution (k, in, r) → (r, in, k); B (r, out) becomes lora_B.weight
    (out, r), of a convolution (out, r, 1).
    """
    settings = _lora_settings(adapter)
    tensors = {}
    for path, a in adapter.params.items():
        if not path.endswith(".lora_a"):
            continue
        layer = path.removesuffix(".lora_a")
        a, b = np.asarray(a), np.asarray(adapter.params[f"{layer}.lora_b"]).T
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = np.ascontiguousarray(a.transpose(2, 1, 0) if a.ndim == 3 else a.T)
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = np.ascontiguousarray(b[..., None] if a.ndim == 3 else b)
    layers = sorted({path.rpartition(".")[0] for path in adapter.params})
    config = PLAIN | {
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": layers,
        "base_model_name_or_path": Path(adapter.run["base"]["path"]).name,
        "inference_mode": True,
        "task_type": None,
        # ours: the weights that it was trained on
        "base_fingerprint": adapter.run["base"]["fingerprint"],
    }
    return config, tensors


def from_peft(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], base: weights.Weights) -> Adapter:
    """An adapter of `base` from PEFT's config and tensors.

    Raises:
        UserError: it is more than plain LoRA, was made for another network or rank, or for other weights.
    """
    for name, plain in PLAIN.items():
        if (config.get(name, plain) or plain) != plain:
            raise UserError(f"the adapter's {name} is {config[name]!r}; only {plain!r} can be imported")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise UserError(f"{CONFIG} has no r and lora_alpha")
    if config.get("base_fingerprint", base.metadata["fingerprint"]) != base.metadata["fingerprint"]:
        raise UserError(f"the adapter was trained on other weights than those of {base.directory}")
    params, wrong = {}, []
    for name, tensor in tensors.items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])(?:\.default)?\.weight", name)
        kernel = base.params.get(f"{match[1]}.kernel") if match else None
        if kernel is None:
            wrong.append(f"{name} belongs to no layer of {base.directory}")
            continue
        array, which = np.asarray(tensor, np.float32), match[2].lower()
        if which == "b" and array.ndim == 3:
            array = array[..., 0]
        array = np.ascontiguousarray(array.transpose(2, 1, 0) if array.ndim == 3 else array.T)
        shape = (*kernel.shape[:-1], rank) if which == "a" else (rank, kernel.shape[-1])
        if array.shape != shape:
            wrong.append(
                f"{name} is {tuple(tensor.shape)}, which does not fit a layer of {kernel.shape} at rank {rank}"
            )
        params[f"{match[1]}.lora_{which}"] = array
    layers = sorted({path.rpartition(".")[0] for path in params})
    wrong += [
        f"{layer} has one half only" for layer in layers if not {f"{layer}.lora_a", f"{layer}.lora_b"} <= set(params)
    ]
    if wrong or not params:
        raise UserError("\n  ".join(["the adapter does not fit:", *(wrong or ["it has no tensors"])]))
    patterns = {layer: re.escape(layer) for layer in layers}
    settings = lora.LoRAConfig(rank, float(alpha), float(config.get("lora_dropout", 0.0)), tuple(layers), patterns)
    run = {
        "config": {"model": base.directory.name, "lora": dataclasses.asdict(settings)},
        "base": {"path": str(base.directory), "fingerprint": base.metadata["fingerprint"]},
        "mmaudio_jax_version": mmaudio_jax.__version__,
    }
    return Adapter(params, 0, run)


def read_peft(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Config and tensors of a PEFT folder, or of one file with its settings in the header."""
    file = path / TENSORS if path.is_dir() else path
    try:
        with safe_open(file, "numpy") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
            settings = (stored.metadata() or {}).get(CONFIG)
        text = (path / CONFIG).read_text() if path.is_dir() else settings
        if text is None:
            raise UserError(f"{path} has no settings of an adapter in its header; give the folder with {CONFIG}")
        config = json.loads(text)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is no adapter of PEFT's ({error})") from None
    return config, tensors


def _lora_settings(adapter: Adapter) -> lora.LoRAConfig:
    settings = adapter.run["config"]["lora"]
    if settings is None:
        raise UserError("the run trained all weights, so there is no adapter; use --to merged")
    return lora.LoRAConfig(**settings)


@errors.main
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m convert.adapter", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="workdir of a training run; with --from, PEFT's folder")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--to", choices=["peft", "safetensors", "merged"], help="what to make of the run")
    way.add_argument("--from", dest="source", choices=["peft"], help="what RUN is instead")
    parser.add_argument("--base", type=Path, help="its base, e.g. weights/small_16k (default: where the run found it)")
    parser.add_argument("--out", type=Path, required=True, help="the folder or file to make")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    if args.out.exists():
        raise UserError(f"{args.out} exists already; remove it or choose another place")
    if args.source:
        if args.base is None:
            raise UserError("--from needs --base, the weights folder that the adapter belongs to")
        imported = from_peft(*read_peft(args.run), weights.load(args.base, "mmaudio"))
        with atomic_directory(args.out) as folder:
            checkpoints = RunCheckpoints(folder, imported.run)
            checkpoints.save(imported.step, {"params": imported.params})
            checkpoints.close()
        print(f"{trees.count(imported.params):,} parameters are in {args.out}; give it to sample.py as --adapter")
        return
    adapter = load_adapter(args.run)
    base = args.base or Path(adapter.run["base"]["path"])
    if args.to == "merged":
        merged = load_flow_network(base, args.run)
        with atomic_file(args.out) as temporary:
            save_file(MMAUDIO.published(merged.params), temporary)
        print(f"{trees.count(merged.params):,} parameters are in {args.out}")
        return
    adapter.check_base(weights.read_metadata(base)["fingerprint"], base)
    config, tensors = to_peft(adapter)
    text = json.dumps(config, indent=2) + "\n"
    if args.to == "safetensors":
        with atomic_file(args.out) as temporary:
            save_file(tensors, temporary, metadata={CONFIG: text})
    else:
        with atomic_directory(args.out) as folder:
            save_file(tensors, folder / TENSORS)
            (folder / CONFIG).write_text(text)
    print(f"{len(tensors) // 2} layers, {sum(t.size for t in tensors.values()):,} parameters are in {args.out}")


if __name__ == "__main__":
    main()
