"""Clips to a part of a feature set, so that nothing that is done is done again.

While a part is being made, its maker holds `.part-00000-of-00001.lock` in the set's folder, which stays, and
`.part-00000-of-00001.work` there holds

    records/   what is done: a record a clip, named by all that decides it
    new/       the part as it is put together from them, and from the part that is there already
    old/       that part, for the moment between two renames

and is gone when the part is in its place.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tqdm

from mmaudio_jax.data import part
from mmaudio_jax.data.captions import CONTEXT_LENGTH, is_cut
from mmaudio_jax.data.clips import Clip
from mmaudio_jax.data.example import KEY, Metadata, check_arrays, widened
from mmaudio_jax.data.part import WHOLE, PartName, PartWriter
from mmaudio_jax.data.records import parts_in
from mmaudio_jax.data.shard import Records
from mmaudio_jax.data.table import Row, read_table, write_table
from mmaudio_jax.data.wording import count
from mmaudio_jax.data.workers import NoProcess, read_ahead
from mmaudio_jax.decoding import Media, read_media
from mmaudio_jax.encoders import Encoders
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_file, make_folder, writing

PADDED = "-padded"  # ends the name of a record that `--short skip` would not have made
LOG_INTERVAL = 60.0  # seconds from one word on the progress to the next where nobody watches


def encode(encoders: Encoders, clip: Clip, media: Media, mode: str) -> dict[str, np.ndarray]:
    """The arrays of a clip's feature example; a clip alone, so that they depend on no other."""
    mean, std = encoders.encode_audio(media.audio[None], mode)
    arrays = {"mean": mean[0], "std": std[0], "latents": np.int32(media.latents)}
    if media.clip_frames is not None:
        arrays["clip_f"] = encoders.encode_clip_frames(media.clip_frames[None])[0]
        arrays["sync_f"] = encoders.encode_sync_frames(media.sync_frames[None])[0]
    return arrays | {"text_f": encoders.encode_captions([clip.caption])[0]}


def extract(
    clips: Sequence[Clip],
    encoders: Encoders,
    out: str | os.PathLike,
    *,
    mode: str,
    duration: float,
    name: PartName = WHOLE,
    dtype: str = "float32",
    short: str = "skip",
    workers: int = 0,
) -> None:
    """Writes one part of the feature set of all clips that can be used, or brings it up to date.

    Args:
        clips: all rows of clips.tsv; the part takes a block of them.
        encoders: the networks.
        out: the set's folder; the clips that cannot be used are listed in the part's failed.tsv.
        mode: '16k' or '44k'.
        duration: seconds of each clip, from its start.
        name: which part of how many.
        dtype: that conditions are stored in, of `example.DTYPES`.
        short: what becomes of clips that are too short, of `decoding.SHORT`.
        workers: processes that decode, as in `workers.read_ahead`.

    Raises:
        UserError: some clips could not be used (the others are written), or none could (nothing is written but
            the table of reasons beside `out`); or the part cannot be made here, or is being made.
    """
    out = Path(out)
    metadata = Metadata(mode, duration, encoders.shapes(mode, duration), 0, encoders.fingerprints(mode), dtype)
    _check_place(out, name)
    block = [clips[i] for i in name.block(len(clips))]
    with _work(out, name) as work:
        old = _Old(out / str(name), metadata)
        settings = {**dataclasses.asdict(metadata), "numerics": encoders.numerics}
        _hand_over(old, clips, out, name, settings)
        names = [*old.keys, *(file.stem for file in (work / "records").iterdir())]
        done = _by_key(name for name in names if short == "pad" or not name.endswith(PADDED))
        wanted = {clip.id: record_key(clip, settings) for clip in block}
        keys = {id: done.get(key, key) for id, key in wanted.items()}
        todo = [clip for clip in block if wanted[clip.id] not in done]
        _check_none_is_lost(todo, old, out / str(name))
        read = functools.partial(read_media, mode=mode, duration=duration, short=short)

        def keep(clip: Clip, arrays: Mapping[str, np.ndarray]) -> None:
            if arrays["latents"] < metadata.shapes["mean"][0]:
                keys[clip.id] += PADDED
            with atomic_file(_record(work, keys[clip.id])) as temporary:
                temporary.write_bytes(part.pack(arrays, dtype))

        reasons = _encode(todo, keep, len(block) - len(todo), encoders, read, metadata, workers) if todo else {}
        rows = [{**clip.columns, KEY: keys[clip.id]} for clip in block if clip.id not in reasons]
        failed = [{**clip.columns, "reason": reasons[clip.id]} for clip in block if clip.id in reasons]
        ids = part.hash_values(clip.id for clip in clips)
        if failed and not rows and (name == WHOLE or old.rows):
            listed = out.with_name(f"{out.name}.failed.tsv")
            write_table(listed, failed)
            kept = f"; {out / str(name)} stays as it was" if old.rows else ""
            raise UserError(f"none of the {len(block)} clips could be used; the reasons are in {listed}{kept}")
        changed = not old.is_as(rows, failed, ids)
        if changed:
            with writing(out), PartWriter(work / "new", metadata, ids) as writer:
                for row in tqdm.tqdm(rows, desc="putting together", unit=" clips", delay=2, leave=False, disable=None):
                    writer.append(row, old.read(row[KEY]) if row[KEY] in old.keys else _read(work, row[KEY], metadata))
                if failed:
                    write_table(work / "new" / part.FAILED, failed)
            _put_in_place(work, out / str(name))
    place = out if name == WHOLE else out / str(name)
    encoded = len(todo) - len(reasons)
    counts = {
        "encoded now": encoded,
        "encoded before": len(rows) - encoded,
        "without a picture": writer.without_video if changed else 0,
    }
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    dropped = len({row["id"] for row in old.rows} - {clip.id for clip in clips})
    told += f"; dropped {dropped} that the table no longer has" if dropped else ""
    print(f"{place} has {count(len(rows), 'clip')}: {told}{'' if changed else '; nothing has changed'}")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(block)} clips could not be used; the reasons are in "
            f"{out / str(name) / part.FAILED}, and the other {len(rows)} are in {place}"
        )


def record_key(clip: Clip, settings: Mapping[str, object]) -> str:
    """Names all that decides a clip's record: a hash of row and settings; then the size and time of the file, if any.

    Args:
        clip: a row of clips.tsv.
        settings: of the extraction; what JSON can hold.
    """
    said = [clip.columns["video_path"].strip(), clip.start_time, clip.end_time, clip.caption, settings]
    digest = hashlib.sha256(json.dumps([part.SCHEMA_VERSION, *said], sort_keys=True).encode()).hexdigest()
    with contextlib.suppress(OSError):
        about = clip.video.stat()
        return f"{digest}-{about.st_size:x}-{about.st_mtime_ns:x}"
    return digest


class _Old:
    """The part that is in its place already, if there is one: what of it can be taken over."""

    def __init__(self, path: Path, metadata: Metadata):
        """Reads it.

        Raises:
            UserError: it was made with other settings, or its table is not that of its records.
        """
        self.rows: list[Row] = []
        self.keys: dict[str, int] = {}  # of its records
        self._failed, self._part, self._whole = [], None, True
        if not path.exists():
            return
        self._part = part.read_part(path)
        if self._part.schema_version != part.SCHEMA_VERSION:
            raise UserError(f"{path} was made by an earlier release: choose another --out, or remove it")
        if differ := _differences(self._part.metadata, metadata):
            raise UserError(f"{path} was made with {'; '.join(differ)}: choose another --out, or remove it")
        if (path / part.FAILED).exists():
            self._failed = read_table(path / part.FAILED).rows
        self.rows = self._part.read_rows()
        shards, first = self._part.shards, 0
        self._records = Records([(path / shard.name, shard.count) for shard in shards])
        for shard in tqdm.tqdm(shards, f"checking {path}", unit=" shards", delay=2, leave=False, disable=None):
            own = range(first, first + shard.count)
            first += shard.count
            if fault := shard.fault(path, whole=True):
                self._whole, own = False, [i for i in own if self._is_intact(i)]
                print(f"{fault}: {shard.count - len(own)} of its clips are encoded again", file=sys.stderr)
            self.keys |= {self.rows[i][KEY]: i for i in own if KEY in self.rows[i]}

    def _is_intact(self, index: int) -> bool:
        try:
            self._records.guarded(index)
        except ValueError:
            return False
        return True

    def read(self, key: str) -> dict[str, np.ndarray]:
        """The arrays of a record."""
        return widened(part.unpack(self._records.guarded(self.keys[key])))

    def is_as(self, rows: Sequence[Row], failed: Sequence[Row], clips: str) -> bool:
        """Whether it is what would be made."""
        return (
            self._part is not None
            and self._whole
            and (self._part.clips, self.rows, self._failed) == (clips, list(rows), list(failed))
        )


def _differences(then: Metadata, now: Metadata) -> list[str]:
    """How what a part was made with is another than it is now, in words."""
    told = [{"mode": each.mode, "duration": f"{each.duration:g} s", "dtype": each.dtype} for each in (then, now)]
    differ = [f"{what} {told[0][what]}, not {told[1][what]}" for what in told[0] if told[0][what] != told[1][what]]
    differ += [f"another {name}" for name, mark in now.encoders.items() if then.encoders.get(name) != mark]
    return differ or (["arrays of other shapes"] if then.shapes != now.shapes else [])


def _check_none_is_lost(todo: Iterable[Clip], old: _Old, path: Path) -> None:
    """Raises a UserError if a clip that is to be encoded again cannot be, as its video is gone."""
    had = {row["id"] for row in old.rows}
    if gone := [clip for clip in todo if clip.id in had and not clip.video.exists()]:
        raise UserError(
            f"{path} has features of {len(gone)} clip(s), the first {gone[0].id!r}, that would be encoded again, as "
            "their rows have changed, or the kind of device, --compute_dtype or --matmul_precision; but their videos "
            f"are gone, the first {gone[0].video}: bring those back, give what was given before, choose another --out, "
            "or take these rows out of the table"
        )


def _hand_over(old: _Old, clips: Sequence[Clip], out: Path, name: PartName, settings: Mapping[str, object]) -> None:
    """Puts the records of clips that belong to other parts now, as the table has grown, among what those have done."""
    had, known = {row["id"] for row in old.rows}, _by_key(old.keys)
    for other in (PartName(index, name.count) for index in range(name.count) if index != name.index):
        moved = [clips[i] for i in other.block(len(clips)) if clips[i].id in had]
        there = _keys_in(out / str(other)) if moved else set()
        for key in (known.get(record_key(clip, settings)) for clip in moved):
            if key and key not in there:
                with atomic_file(_record(_work_folder(out, other), key)) as temporary:
                    temporary.write_bytes(part.pack(old.read(key), settings["dtype"]))


def _by_key(names: Iterable[str]) -> dict[str, str]:
    """{key: name} of records, also by the key as it is where the video is gone."""
    known = {}
    for name in names:
        key = name.removesuffix(PADDED)
        known |= {key: name, key.partition("-")[0]: name}
    return known


def _encode(
    clips: Sequence[Clip],
    keep: Callable[[Clip, Mapping[str, np.ndarray]], None],
    done: int,
    encoders: Encoders,
    read: Callable[[Clip], Media],
    metadata: Metadata,
    workers: int,
) -> dict[str, str]:
    """Gives the arrays of each clip that can be used to `keep`; returns the reasons of the others, by id."""
    reasons: dict[str, str] = {}
    bar = tqdm.tqdm(
        total=done + len(clips),
        initial=done,
        unit=" clips",
        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]",
        mininterval=0.1 if sys.stderr.isatty() else LOG_INTERVAL,
    )
    with bar, read_ahead(clips, read, workers, in_order=False) as ahead:
        for clip, future in ahead:
            if is_cut(clip.caption):
                bar.write(
                    f"warning: {clip.id}: CLIP reads the first {CONTEXT_LENGTH} tokens of the caption, it has more"
                )
            error = future.exception()
            if isinstance(error, NoProcess):
                raise error
            if error is None:
                arrays = encode(encoders, clip, future.result(), metadata.mode)
                try:
                    check_arrays(arrays, metadata.shapes)
                except ValueError as found:
                    error = UserError(str(found))
            elif not isinstance(error, UserError):  # one file that a decoder chokes on must not cost the others
                error = UserError(f"{clip.video}: {type(error).__name__}: {error}")
            if error is None:
                keep(clip, arrays)
            else:
                reasons[clip.id] = str(error)
                bar.write(f"{clip.id}: {error}")
            bar.update()
    return reasons


# The work folder


def _check_place(out: Path, name: PartName) -> None:
    """Raises a UserError unless `out` is new, or a set of as many parts."""
    if not out.exists():
        return
    parts = parts_in(out) if out.is_dir() else set()
    if (
        (out / part.METADATA).exists()
        or not parts
        and (out.is_file() or any(path.suffix != ".lock" for path in out.iterdir()))
    ):
        raise UserError(f"{out} exists already and is no feature set of this release; choose another place")
    if others := {other.count for other in parts} - {name.count}:
        count = others.pop()
        shards = f"with --shard 0/{count} to {count - 1}/{count}" if count > 1 else "without --shard"
        raise UserError(
            f"{out} is a set of {count} part(s), not of {name.count}: go on {shards}, choose another --out, or "
            "remove it"
        )


@contextlib.contextmanager
def _work(out: Path, name: PartName) -> Iterator[Path]:
    """The part's work folder, as its only user, mended if need be; after an error it stays if there is work in it."""
    import filelock

    work, target, lock = _work_folder(out, name), out / str(name), out / f".{name}.lock"
    make_folder(out)
    try:
        with filelock.FileLock(lock, blocking=False):
            (work / "records").mkdir(parents=True, exist_ok=True)
            if (work / "old").exists() and not target.exists():
                os.rename(work / "old", target)
            for unfinished in ("old", "new"):
                shutil.rmtree(work / unfinished, ignore_errors=True)
            (work / "new").mkdir()
            ended = False
            try:
                yield work
                ended = True
            finally:
                if ended or not [*work.glob("records/*"), *work.glob("old")]:
                    shutil.rmtree(work, ignore_errors=True)  # another part may just be handing over a record
                    if set(out.iterdir()) == {lock}:  # nothing came of it
                        lock.unlink()
                        out.rmdir()
    except filelock.Timeout:
        raise UserError(f"another extraction is at work on {target}; wait for it, or choose another --out") from None


def _work_folder(out: Path, name: PartName) -> Path:
    return out / f".{name}.work"


def _keys_in(path: Path) -> set[str | None]:
    """Of the records of a part, if it is there."""
    try:
        return {row.get(KEY) for row in read_table(path / part.TABLE).rows}
    except UserError:
        return set()


def _record(work: Path, key: str) -> Path:
    return work / "records" / f"{key}.safetensors"


def _read(work: Path, key: str, metadata: Metadata) -> dict[str, np.ndarray]:
    """A record that was done; one that a power failure left damaged is removed."""
    file = _record(work, key)
    try:
        arrays = widened(part.unpack(file.read_bytes()))
        check_arrays(arrays, metadata.shapes)
        return arrays
    except ValueError as error:
        file.unlink()
        raise UserError(f"{file} was damaged ({error}) and is removed; start the same command again") from None


def _put_in_place(work: Path, target: Path) -> None:
    """Two renames; a start mends what is killed between them."""
    if target.exists():
        os.rename(target, work / "old")
    os.rename(work / "new", target)
