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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

import mmaudio_jax
from convert import matching
from convert.rules import TABLES
from mmaudio_jax import errors, lora, trees, weights
from mmaudio_jax.adapters import load_flow_network
from mmaudio_jax.checkpoint import Adapter, load_adapter, save_adapter
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_directory, atomic_file

SHOWN = 5  # tensors that do not fit are named
PREFIX = "base_model.model."  # of PEFT's names
MMAUDIO = next(table for table in TABLES if table.network == "mmaudio")
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
FINGERPRINT = "base_fingerprint"  # in the header: of the weights that it was trained on
# of PEFT's further settings: the values of each that are LoRA as it is here
PLAIN = {
    "peft_type": ["LORA"],
    "bias": ["none"],
    "use_dora": [False],
    "fan_in_fan_out": [False],
    "modules_to_save": [None],
    "init_lora_weights": [True, False, "gaussian"],  # others change the base's weights, too
    "alora_invocation_tokens": [None],
}


def to_peft(adapter: Adapter) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """PEFT's config and tensors of an adapter.

    A (in, r) becomes lora_A.weight (r, in), of a convolution (k, in, r) → (r, in, k); B (r, out) becomes lora_B.weight
    (out, r), of a convolution (out, r, 1).
    """
    settings = adapter.lora
    if settings is None:
        raise UserError("the run trained all weights, so there is no adapter; use --to merged")
    owner = lora.targeted(lora.adapted_layers(adapter.params), settings)
    tensors = {}
    for layer in owner:
        a, b = np.asarray(adapter.params[f"{layer}.lora_a"]), np.asarray(adapter.params[f"{layer}.lora_b"]).T
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = np.ascontiguousarray(a.transpose(2, 1, 0) if a.ndim == 3 else a.T)
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = np.ascontiguousarray(b[..., None] if a.ndim == 3 else b)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "use_rslora": settings.rslora,
        "rank_pattern": {layer: settings.ranks[name] for layer, name in owner.items() if name in settings.ranks},
        "alpha_pattern": {layer: settings.alphas[name] for layer, name in owner.items() if name in settings.alphas},
        "lora_dropout": settings.dropout,
        "target_modules": sorted(owner),
        "base_model_name_or_path": Path(adapter.run["base"]["path"]).name,
    }
    return config, tensors


def from_peft(config: Any, tensors: Mapping[str, np.ndarray], made_for: str | None, base: weights.Weights) -> Adapter:
    """An adapter of `base` from PEFT's config and tensors; `made_for` is its base's fingerprint, where that is known.

    Raises:
        UserError: it is more than plain LoRA, was made for another network or rank, or for other weights.
    """
    config = config if isinstance(config, dict) else {}
    for name, plain in PLAIN.items():
        if name in config and config[name] not in plain:
            raise UserError(f"the adapter's {name} is {config[name]!r}; only {plain[0]!r} can be imported")
    parts = {name: re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", name) for name in tensors}
    named = {match[1] for match in parts.values() if match}
    dropout = config.get("lora_dropout") or 0.0
    if type(dropout) not in (int, float):
        raise UserError(f"{CONFIG} must give a number as lora_dropout; it has {dropout!r}")
    ranks = _by_layer(config, "r", "rank_pattern", named, (int,))
    alphas = _by_layer(config, "lora_alpha", "alpha_pattern", named, (int, float))
    params, wrong = {}, []
    for name, tensor in tensors.items():
        match = parts[name]
        kernel = base.params.get(f"{match[1]}.kernel") if match else None
        if kernel is None:
            wrong.append(f"{name} belongs to no layer of {base.directory}")
            continue
        if fault := matching.fault(tensor):
            wrong.append(f"{name} {fault}")
        array, which, rank = np.asarray(tensor, np.float32), match[2].lower(), ranks[match[1]]
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
        shown = wrong[:SHOWN] + [f"and {len(wrong) - SHOWN} more"] * (len(wrong) > SHOWN)
        raise UserError("\n  ".join([f"the adapter does not fit {base.directory}:", *(shown or ["it has no tensors"])]))
    if made_for and made_for != base.metadata["fingerprint"]:
        raise UserError(
            f"the adapter was made for other weights than those of {base.directory}: name its own as --base"
        )
    patterns = {layer: re.escape(layer) for layer in layers}
    settings = lora.LoRAConfig(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        rslora=bool(config.get("use_rslora")),
        dropout=float(dropout),
        targets=tuple(layers),
        patterns=patterns,
        ranks={layer: rank for layer, rank in ranks.items() if rank != config["r"]},
        alphas={layer: float(alpha) for layer, alpha in alphas.items() if alpha != config["lora_alpha"]},
        start=None,
    )
    about = {"path": str(base.directory), "fingerprint": base.metadata["fingerprint"]}
    config = {"model": base.directory.name, "lora": dataclasses.asdict(settings)}
    return Adapter(params, 0, {"config": config, "base": about, "mmaudio_jax_version": mmaudio_jax.__version__})


def _by_layer(config: Mapping[str, Any], name: str, own: str, layers: Iterable[str], kinds: tuple[type, ...]):
    """{layer: its r or lora_alpha}: of the first pattern under `own` that fits the end of its path, as in PEFT."""
    default, patterns = config.get(name), config.get(own) or {}
    if not isinstance(patterns, dict) or any(type(value) not in kinds for value in (default, *patterns.values())):
        raise UserError(f"{CONFIG} must give numbers as {name} and {own}; it has {default!r} and {patterns!r}")
    try:
        return {
            layer: next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)), default)
            for layer in layers
        }
    except re.error as error:
        raise UserError(f"{CONFIG} has a key in {own} that is not a regular expression: {error}") from None


def read_peft(path: Path) -> tuple[Any, dict[str, np.ndarray], str | None]:
    """Config, tensors and the base's fingerprint, where it is told, of a PEFT folder or of one file that has them."""
    file = path / TENSORS if path.is_dir() else path
    try:
        with safe_open(file, "numpy") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
            header = stored.metadata() or {}
        text = (path / CONFIG).read_text() if path.is_dir() else header.get(CONFIG)
        if text is None:
            raise UserError(f"{path} has no settings of an adapter in its header; give the folder with {CONFIG}")
        return json.loads(text), tensors, header.get(FINGERPRINT)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is no adapter of PEFT's ({error})") from None


def write(path: Path, tensors: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    """Writes a .safetensors file, whole or not at all, that whoever may read the folder may read."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(dict(tensors), metadata={"format": "pt", **about}))


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
        raise UserError(f"{args.out} exists already; choose another place")
    if args.source:
        if args.base is None:
            raise UserError("--from needs --base, the weights folder that the adapter belongs to")
        imported = from_peft(*read_peft(args.run), weights.load(args.base, "mmaudio"))
        save_adapter(args.out, imported)
        print(f"{trees.count(imported.params):,} parameters are in {args.out}; give it to sample.py as --adapter")
        return
    adapter = load_adapter(args.run)
    if args.base:
        adapter.check_base(weights.read_metadata(args.base)["fingerprint"], args.base)
    base = args.base or Path(adapter.run["base"]["path"])
    if not base.exists():
        raise UserError(f"the run's base was {base}, which is not there; name its weights folder as --base")
    about = {"source": f"step {adapter.step} of {args.run}", FINGERPRINT: adapter.run["base"]["fingerprint"]}
    if args.to == "merged":
        merged = load_flow_network(base, adapter)
        licence = {"licence": merged.metadata["licence"]} if "licence" in merged.metadata else {}
        write(args.out, MMAUDIO.published(merged.params), about | licence)
        print(f"{trees.count(merged.params):,} parameters are in {args.out}")
        return
    config, tensors = to_peft(adapter)
    text = json.dumps(config, indent=2) + "\n"
    if args.to == "safetensors":
        write(args.out, tensors, about | {CONFIG: text})
    else:
        with atomic_directory(args.out) as folder:
            write(folder / TENSORS, tensors, about)
            (folder / CONFIG).write_text(text)
    print(f"{len(tensors) // 2} layers, {sum(t.size for t in tensors.values()):,} parameters are in {args.out}")


if __name__ == "__main__":
    main()
