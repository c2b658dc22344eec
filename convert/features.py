"""Feature sets of other tools, both ways:

    python -m convert.features data/mine --to tensordict --out data/mine_tensordict
    python -m convert.features data/theirs --to records --out data/theirs_records

`tensordict` is what the published tools read: a TensorDict memory-map folder, and its table beside it as a .tsv with
`id` and `label` (`caption` for sounds without video). It knows no padding, no example without a caption, and either
all examples have a video or none has: a set that it cannot hold is refused. Training reads both kinds.
"""

import argparse
import contextlib
import json
from pathlib import Path

import tqdm

from mmaudio_jax import errors
from mmaudio_jax.data import tensordict
from mmaudio_jax.data.example import VIDEO, StoredFeatures
from mmaudio_jax.data.records import FeatureWriter, RecordFeatures, open_features
from mmaudio_jax.data.table import write_table
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_directory

TYPE = {"_type": "<class 'tensordict._td.TensorDict'>", "_format_version": 1, "_class": "tensordict:TensorDict"}


def to_tensordict(features: StoredFeatures, out: Path) -> None:
    """Writes a TensorDict memory-map folder and its table; the conditions in float32.

    Raises:
        UserError: the layout cannot hold an example (names the first), one is damaged, or the places are taken.
    """
    table = tensordict.table_of(out)
    if table.exists():
        raise UserError(f"{table} exists already; choose another place")
    has_video = bool(features[0]["has_video"])
    names = [name for name in tensordict.PUBLISHED if has_video or name not in VIDEO]
    with atomic_directory(out) as folder:
        shapes = {name: (len(features), *features.metadata.shapes[name]) for name in names}
        with contextlib.ExitStack() as stack:
            # written, not mapped: a map of a file that the disk has no room for would end the process
            files = {name: stack.enter_context(tensordict.file_of(folder, name).open("wb")) for name in names}
            for i in tqdm.trange(len(features), unit=" examples", disable=None):
                features.check_example(i)
                example = features[i]
                if fault := _fault(example, has_video):
                    raise UserError(
                        f"{features.path} cannot be a TensorDict folder, as its example {features.ids[i]!r} {fault}"
                    )
                for name, file in files.items():
                    file.write(example[name].astype("<f4").tobytes())
        entry = {"device": "cpu", "dtype": "torch.float32", "is_nested": False}
        entries = {tensordict.PUBLISHED[name]: {**entry, "shape": list(shape)} for name, shape in shapes.items()}
        (folder / "meta.json").write_text(json.dumps({**entries, "shape": [], "device": "cpu", **TYPE}))
        column = "label" if has_video else "caption"
        rows = zip(features.ids, features.captions, features.table.rows, strict=True)
        told = [{"id": id, column: text} | _provenance(row) for id, text, row in rows]
        write_table(table, told, ["id", column])


def to_records(features: StoredFeatures, out: Path) -> None:
    """Writes a feature set of this project's own.

    Raises:
        UserError: an example is damaged, or the place is taken.
    """
    metadata = features.metadata
    with FeatureWriter(out, metadata.mode, metadata.duration, metadata.shapes, metadata.encoders) as writer:
        rows = zip(features.ids, features.captions, features.table.rows, strict=True)
        for i, (id, caption, row) in enumerate(tqdm.tqdm(rows, total=len(features), unit=" examples", disable=None)):
            features.check_example(i)
            writer.append({"id": id, "caption": caption} | _provenance(row), features.read(i))


def _fault(example, has_video: bool) -> str | None:
    """Why the layout cannot hold an example; None if it can."""
    if example["has_video"] != has_video:
        kind = "no" if has_video else "a"
        return f"has {kind} video, unlike the first: put the rows of each kind in a table of its own, and extract both"
    if example["latents"] < len(example["mean"]):
        return "is padded: extract the features with --short skip"
    return None if example["has_text"] else "has no caption"


def _provenance(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if name not in ("id", "label", "caption")}


@errors.main
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m convert.features", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("features", type=Path, metavar="SET", help="a feature set of either kind")
    parser.add_argument("--to", choices=["tensordict", "records"], required=True, help="what to make of it")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    args = parser.parse_args()
    if args.out.exists():
        raise UserError(f"{args.out} exists already; choose another place")
    features = open_features(args.features)
    if isinstance(features, RecordFeatures) == (args.to == "records"):
        raise UserError(f"{args.features} is of the kind {args.to} already")
    (to_records if args.to == "records" else to_tensordict)(features, args.out)
    print(f"{len(features)} examples are in {args.out}")


if __name__ == "__main__":
    main()
