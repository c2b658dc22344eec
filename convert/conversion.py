"""One checkpoint file to one weights folder."""

import dataclasses
import hashlib
import os
from pathlib import Path

from tqdm import tqdm

from convert import bigvgan_json, checkpoint_file, matching, released
from mmaudio_jax import trees, weights
from mmaudio_jax.errors import UserError

CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Report:
    """What was recognised and written."""

    directory: Path
    network: str
    elements: int
    tensors: int
    ignored: dict[str, list[str]]
    others: dict[str, str]
    published_as: str | None


def convert(path: str | os.PathLike, out: str | os.PathLike, *, overwrite: bool = False, quiet: bool = False) -> Report:
    """Writes OUT/PRESET from a published file, whole or not at all.

    Args:
        path: .pth, .pt, .bin or .safetensors, in any floating-point precision; recognised from its tensors.
        out: the folder that all weights lie in.
        overwrite: replaces OUT/PRESET if it is there.
        quiet: shows no progress.

    Raises:
        UserError: the file is damaged or does not fit (see `checkpoint_file.read`, `matching.recognise`), or
            OUT/PRESET exists or cannot be written.
    """
    path = Path(path)
    checkpoint = checkpoint_file.read(path)
    recognised = matching.recognise(checkpoint)
    if recognised.preset == "bigvgan_44k":  # the 16 kHz one is published without
        bigvgan_json.check_beside(path, recognised.config)
    directory = Path(out) / recognised.preset
    if directory.exists() and not overwrite:
        raise UserError(f"{directory} exists already; convert {path.name} with --overwrite to replace it")
    md5, sha256 = _hashes(path, quiet)
    total = trees.count(recognised.table.parameters(recognised.preset))
    with tqdm(
        total=total, desc=f"{recognised.preset}", unit=" elements", unit_scale=True, disable=quiet or None
    ) as bar:
        try:
            params = recognised.parameters(progress=bar.update)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    provenance = {"source": path.name, "md5": md5, "sha256": sha256}
    if published := released.BY_FOLDER.get(recognised.preset):
        provenance["licence"] = published.licence
    try:
        weights.save(directory, recognised.table.network, recognised.config, params, provenance, overwrite=overwrite)
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error.strerror or error}") from None
    return Report(
        directory=directory,
        network=recognised.table.network,
        elements=total,
        tensors=len(checkpoint.tensors),
        ignored=dict(recognised.ignored),
        others=checkpoint.others,
        published_as=released.MD5.get(md5),
    )


def _hashes(path: Path, quiet: bool) -> tuple[str, str]:
    """MD5 (by which the files are published) and SHA-256, in one pass."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with (
        open(path, "rb") as file,
        tqdm(total=path.stat().st_size, desc="hashes", unit="B", unit_scale=True, disable=quiet or None) as bar,
    ):
        while chunk := file.read(CHUNK):
            md5.update(chunk)
            sha256.update(chunk)
            bar.update(len(chunk))
    return md5.hexdigest(), sha256.hexdigest()
