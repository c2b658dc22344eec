"""Makes a weights folder of a run: `python -m mmaudio_jax.merge RUN --out weights/mine`.

An adapter is merged into its base; a run that trained all weights has them written as they are. The folder serves as
`--model mine` of sample.py, and as the base of further training.
"""

import argparse
from pathlib import Path

from mmaudio_jax import errors, weights
from mmaudio_jax.adapters import load_flow_network
from mmaudio_jax.checkpoint import load_adapter


@errors.main
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m mmaudio_jax.merge", description=__doc__.split(":")[0])
    parser.add_argument("run", type=Path, help="workdir of a training run")
    parser.add_argument("--base", type=Path, help="the weights folder that it started from, where that has moved")
    parser.add_argument("--out", type=Path, required=True, help="the weights folder to make")
    args = parser.parse_args()
    if args.out.exists():
        raise errors.UserError(f"{args.out} exists already; choose another place")
    trained = load_adapter(args.run)
    merged = load_flow_network(args.base or Path(trained.run["base"]["path"]), trained)
    provenance = {"source": f"step {trained.step} of {args.run}", "base": trained.run["base"]}
    if "licence" in merged.metadata:  # of what it was trained from
        provenance["licence"] = merged.metadata["licence"]
    weights.save(args.out, merged.network, merged.config, merged.params, provenance)
    print(f"step {trained.step} of {args.run} is in {args.out}")


if __name__ == "__main__":
    main()
