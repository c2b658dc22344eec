"""Checks converted weights, once, before they are relied on: python -m convert.verify weights/

Of each folder: that it holds what was written (content hash, shapes, finite values), whether it was made of a
published file byte for byte, and signs that the weights are trained. The exit code is 1 if any check failed.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from convert import released, sanity
from convert.sanity import Finding
from mmaudio_jax import errors, weights
from mmaudio_jax.errors import UserError

SIGNS = {"clip": sanity.clip, "synchformer": sanity.synchformer}  # of a network on its own


def integrity(directory: Path) -> Iterator[Finding]:
    """Origin, content and values of one weights folder."""
    metadata = weights.read_metadata(directory)
    published = released.BY_FOLDER.get(directory.name)
    if md5 := metadata.get("md5"):
        known = published is not None and published.md5 is not None
        yield Finding(
            "MD5 of its file", md5, published.md5 if known else "not published", not known or md5 == published.md5
        )
    network = metadata["network"]
    loaded = weights.load(directory, weights.STAND_INS.get(network, network))
    fingerprint = weights.fingerprint(loaded.params)
    same = fingerprint == metadata["fingerprint"]
    yield Finding("content hash", fingerprint[:12], metadata["fingerprint"][:12], same)
    unfit = [path for path, leaf in loaded.params.items() if not np.isfinite(leaf).all()]
    yield Finding("leaves with NaN or infinity", ", ".join(unfit[:3]) or "0", "0", not unfit)


def signs(root: Path, name: str, network: str) -> Iterator[Finding]:
    """Signs that a network is trained; none for what cannot be tried on its own."""
    if network == "mmaudio":
        yield from sanity.flow(root, name)
    elif network in SIGNS and name == network:  # the encoders are taken by their names
        yield from SIGNS[network](root)
    elif network == "bigvgan":
        mode = name.removeprefix("bigvgan_")
        if (root / f"vae_{mode}").is_dir():
            yield from sanity.codec(root, mode)


def verify(root: Path) -> Iterator[tuple[str, Finding]]:
    """Every finding, with the folder that it is of, as it is made.

    Raises:
        UserError: the folder has no weights.
    """
    folders = sorted(path.parent for path in root.glob("*/metadata.json"))
    if not folders:
        raise UserError(f"there are no weights in {root}; bring them with `python -m convert.fetch MODEL --out {root}`")
    for directory in folders:
        findings = []
        try:
            for finding in integrity(directory):
                findings.append(finding)
                yield directory.name, finding
            if all(finding.passed for finding in findings):  # what is damaged is not worth trying
                network = weights.read_metadata(directory)["network"]
                yield from ((directory.name, finding) for finding in signs(root, directory.name, network))
        except UserError as error:
            yield directory.name, Finding("reading it", str(error), "", False)


@errors.main
def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m convert.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path, nargs="?", default=Path("weights"), help="folder of converted weights")
    args = parser.parse_args()
    print(f"{'':<8}{'check':<66}{'found':<34}trained weights give")
    failed, before = 0, None
    for name, finding in verify(args.weights):
        if name != before:
            print(name)
        failed, before = failed + (not finding.passed), name
        verdict = "ok" if finding.passed else "FAILED"
        print(f"{verdict:<8}{finding.what:<66}{finding.found:<34}{finding.needs}".rstrip(), flush=True)
    again = "; fetch or convert these networks again, then try the signs of their training, too"
    print(f"{failed} checks failed{again}" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    main()
