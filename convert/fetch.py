"""Brings released weights and converts them: python -m convert.fetch large_44k_v2 --out weights/

A model's name brings everything that it needs and that is not in --out already; `all` brings every model.
"""

import argparse
import contextlib
import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock
import jax
from tqdm import tqdm

from convert import released
from convert.conversion import convert
from mmaudio_jax import errors, weights
from mmaudio_jax.errors import UserError

CHUNK = 1 << 20
TIMEOUT = 30  # seconds without a byte
TRIES = 5  # in a row that bring nothing, per address
PAUSE = 2.0  # seconds before the second try, and longer before each next one


class _Broken(Exception):
    """A download ended before its time; the next try goes on."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect unless it leaves https."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise UserError(f"{req.full_url} redirects to {newurl}, which is not https; give another --source")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(address: str, path: Path, md5: str | None) -> None:
    """Downloads to `path`, whole and of the right hash or not at all; a broken download is gone on with.

    What has come so far waits in `path`.part, also for the next start of the program.

    Args:
        address: http or https.
        path: the file to make.
        md5: that the file must have; None: any.

    Raises:
        UserError: the address cannot be reached or does not have the file, or the bytes are not the right ones (then
            none is kept).
    """
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _download_on(address, part, md5 is not None)
            break
        except _Broken as error:
            reason = error
        came = part.exists() and part.stat().st_size > before
        failures = 1 if came else failures + 1
        if failures == TRIES:
            raise UserError(f"{address} breaks off ({reason}); start again to go on, or give another --source")
        time.sleep(PAUSE * failures)
    found = _md5(part)
    if md5 and found != md5:
        part.unlink()
        part.with_suffix(".etag").unlink(missing_ok=True)
        raise UserError(f"{path.name} from {address} has MD5 {found}, the published file has {md5}: it is not kept")
    part.rename(path)
    part.with_suffix(".etag").unlink(missing_ok=True)


def _download_on(address: str, part: Path, hashed: bool) -> None:
    """Adds to what is there already of the same version of the file.

    Raises:
        _Broken: it ended before the length that the server told, or the server is out of order for now.
        UserError: the server does not have it.
    """
    version = part.with_suffix(".etag")  # the server's name of the version that `part` is of
    etag = version.read_text() if version.exists() else ""
    # without a hash or a version to go by, what is there may be of another file
    there = part.stat().st_size if part.exists() and (hashed or etag) else 0
    headers = {"Range": f"bytes={there}-"} if there else {}
    if there and etag:
        headers["If-Range"] = etag
    try:
        response = urllib.request.build_opener(_Redirects).open(
            urllib.request.Request(address, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing lies beyond what is there: all of it, or of another file
            if error.headers.get("Content-Range", "").rpartition("/")[2] == str(there):
                return
            part.unlink()
            raise _Broken("the file has changed at the source") from None
        if error.code < 500 and error.code not in (408, 429):
            raise UserError(f"{address} cannot be had: {error.code} {error.reason}") from None
        raise _Broken(f"{error.code} {error.reason}") from None
    except (http.client.HTTPException, OSError) as error:
        raise _Broken(getattr(error, "reason", None) or error or type(error).__name__) from None
    with response:
        if there and response.headers.get("Content-Range", "").split("-")[0] != f"bytes {there}":
            there = 0  # the server sends all of it again
        version.write_text(response.headers.get("ETag", ""))
        length = response.headers.get("Content-Length")
        total = there + int(length) if length else None
        with (
            open(part, "r+b" if there else "wb") as file,
            tqdm(total=total, initial=there, desc=part.stem, unit="B", unit_scale=True, disable=None) as bar,
        ):
            file.seek(there)
            file.truncate()
            while chunk := _read(response):
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and part.stat().st_size != total:
            raise _Broken(f"{part.stat().st_size:,} of {total:,} bytes came")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except (http.client.HTTPException, OSError) as error:
        raise _Broken(error) from None


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextlib.contextmanager
def original(file: released.File, downloads: Path, source: str | None, keep: bool) -> Iterator[Path]:
    """A published file on disk: from a folder of files, from downloads of before, or brought now.

    Args:
        file: which.
        downloads: folder of what is brought.
        source: a folder or an address that has all files under their names, in place of the published addresses.
        keep: leaves what was brought in `downloads`.

    Raises:
        UserError: no source has it whole, or it has the wrong hash.
    """
    if source and "://" not in source:
        yield _from_folder(file, Path(source))
        return
    if source and not source.startswith(("https://", "http://")):
        raise UserError(f"--source is {source}; it must be a folder, or begin with https:// or http://")
    addresses = [_at(source, address) for address in file.sources] if source else file.sources
    problems = []
    for address in addresses:
        path = downloads / address.rpartition("/")[2]
        try:
            for other in (_at(source, address) for address in file.beside):
                if not (beside := downloads / other.rpartition("/")[2]).exists():
                    download(other, beside, None)
            kept = path.exists() and (file.md5 is None or _md5(path) == file.md5)
            if not kept:
                download(address, path, file.md5)
        except UserError as error:
            problems.append(str(error))
            continue
        try:
            yield path
        except UserError as error:
            raise UserError(f"{error}; {path} is kept: remove it to bring it anew") from None
        if not (keep or kept):
            for brought in (path, *(downloads / other.rpartition("/")[2] for other in file.beside)):
                brought.unlink()
        for other in addresses:  # what another address had begun to bring
            for suffix in ("part", "etag"):
                (downloads / f"{other.rpartition('/')[2]}.{suffix}").unlink(missing_ok=True)
        return
    raise UserError("\n  ".join([f"{file.name} cannot be brought:", *problems]))


def _at(source: str | None, address: str) -> str:
    """An address, or its file under another source."""
    return f"{source.rstrip('/')}/{address.rpartition('/')[2]}" if source else address


def _from_folder(file: released.File, folder: Path) -> Path:
    found = [path for address in file.sources if (path := folder / address.rpartition("/")[2]).is_file()]
    if not found:
        raise UserError(f"{folder} has no {file.name}")
    if file.md5 and (md5 := _md5(found[0])) != file.md5:
        raise UserError(
            f"{found[0]} has MD5 {md5}, the published file has {file.md5}: another file, or damaged; bring it anew"
        )
    return found[0]


def fetch(models: Sequence[str], out: Path, *, source: str | None = None, keep: bool = False) -> list[Path]:
    """Brings and converts what is not in `out` yet; returns the folders that were made.

    Raises:
        UserError: see `original` and `convert`, or another fetch is at work in `out`; what was converted before stays.
    """
    if source and "://" not in source and not Path(source).is_dir():
        raise UserError(f"there is no folder {source}; --source is a folder of files or an address")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out must name a folder")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(out / ".fetch.lock", blocking=False):
            return _fetch(models, out, source, keep)
    except filelock.Timeout:
        raise UserError(f"another fetch is at work in {out}; wait for it, or choose another --out") from None


def _fetch(models: Sequence[str], out: Path, source: str | None, keep: bool) -> list[Path]:
    needed = dict.fromkeys(folder for model in models for folder in released.MODELS[model])
    missing = [folder for folder in needed if not is_there(out / folder)]
    downloads, made = out / "originals", []
    for folder in missing:
        with original(released.BY_FOLDER[folder], downloads, source, keep) as path:
            report = convert(path, out)
            if report.directory.name != folder:
                shutil.rmtree(report.directory)
                raise UserError(f"{path} is {report.directory.name}, where {folder} is needed")
            made.append(report.directory)
            print(f"{report.directory}: {report.elements:,} elements", flush=True)
    if downloads.is_dir() and not any(downloads.iterdir()):
        downloads.rmdir()
    return made


def is_there(directory: Path) -> bool:
    """Whether these weights are there.

    Raises:
        UserError: they are the demo's stand-ins, or something else is in their place.
    """
    if not directory.exists():
        return False
    try:
        network = weights.read_metadata(directory)["network"]
    except UserError:
        raise UserError(f"{directory} holds no weights that can be read; remove it, and start again") from None
    if network in weights.STAND_INS:
        raise UserError(f"{directory} is an untrained stand-in of the demo's; choose another --out")
    return True


def listing(out: Path) -> str:
    """What every model needs: size, hash, and whether it is in `out`."""
    lines = []
    for model, folders in released.MODELS.items():
        size = sum(released.BY_FOLDER[folder].gigabytes for folder in folders)
        lines.append(f"{model}: {', '.join(folders)}; {size:.1f} GB")
    lines.append(f"\n{'folder':<14}{'file':<30}{'GB':>6}  {'MD5 as published':<34}{'in ' + str(out)}")
    for file in released.FILES:
        try:
            there = "yes" if is_there(out / file.folder) else "no"
        except UserError:
            there = "no: something else has its place"
        lines.append(
            f"{file.folder:<14}{file.name:<30}{file.gigabytes:>6.2f}  {file.md5 or 'not published':<34}{there}"
        )
    return "\n".join(lines)


@errors.main
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m convert.fetch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = [*released.MODELS, "all"]
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"one of {', '.join(choices)}")
    parser.add_argument("--out", type=Path, default=Path("weights"), help="where the folders go (default: weights)")
    parser.add_argument("--source", help="a folder with the files, or the address of a mirror that has them by name")
    parser.add_argument("--keep", action="store_true", help="keep the originals, in OUT/originals")
    parser.add_argument("--list", action="store_true", help="show models, files, sizes and hashes, and stop")
    args = parser.parse_args()
    if args.list:
        print(listing(args.out) + "\n\n" + released.NOTICE)
        return
    unknown = [model for model in args.models if model not in choices]
    if unknown or not args.models:
        what = f"{unknown[0]} is no model" if unknown else "no model is named"
        raise UserError(f"{what}; there are {', '.join(choices)}")
    jax.config.update("jax_platforms", "cpu")  # nothing here is worth an accelerator's memory
    models = list(released.MODELS) if "all" in args.models else args.models
    if not fetch(models, args.out, source=args.source, keep=args.keep):
        print(f"all that {', '.join(args.models)} needs is in {args.out} already")
    print(released.NOTICE)


if __name__ == "__main__":
    main()
