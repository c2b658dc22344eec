"""Released PyTorch checkpoints to weights folders: python -m convert FILE… --out weights/

Reads .pth, .pt, .bin (torch.save's zip form) and .safetensors, without torch and without running the pickles in
them. Each file is recognised from its tensors, whatever its name, and becomes one folder of --out: small_16k,
small_44k, medium_44k, large_44k, large_44k_v2, vae_16k, vae_44k, bigvgan_16k, bigvgan_44k, synchformer or clip.
"""

import argparse
import sys
from pathlib import Path

import jax

from convert import released
from convert.conversion import Report, convert
from mmaudio_jax import errors


@errors.main
def main() -> int:
    """Converts each file, whole or not at all; the exit code is 1 if any could not be."""
    parser = argparse.ArgumentParser(
        prog="python -m convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a published checkpoint")
    parser.add_argument("--out", type=Path, default=Path("weights"), help="where the folders go (default: weights)")
    parser.add_argument("--overwrite", action="store_true", help="replace folders that are there already")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # nothing here is worth an accelerator's memory
    failures = 0
    for path in args.files:
        try:
            print(_describe(path, convert(path, args.out, overwrite=args.overwrite)), flush=True)
        except errors.UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failures += 1
    if failures < len(args.files):
        print(released.NOTICE)
    return 1 if failures else 0


def _describe(path: Path, report: Report) -> str:
    """What was found in a file and made of it."""
    file = released.BY_FOLDER.get(report.directory.name)
    if report.published_as:
        origin = f"byte for byte the published {report.published_as}"
    elif file and file.md5 is None:
        origin = "there is no published MD5 to compare with"
    else:
        origin = "not byte for byte a published file"
    lines = [
        f"{path}: {report.directory.name} ({report.network}), {report.tensors} tensors; {origin}",
        *(f"  ignored {_some(names)}: {why}" for why, names in report.ignored.items()),
        *(f"  left aside {name}, a {kind} and no tensor" for name, kind in report.others.items()),
        f"  {report.elements:,} elements in {report.directory}",
    ]
    return "\n".join(lines)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


if __name__ == "__main__":
    main()
