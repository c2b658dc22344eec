"""Tasks: the single sounds that rows ask for, with the names of their results and all that decides them."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmaudio_jax.data.part import WHOLE, PartName
from mmaudio_jax.errors import UserError
from mmaudio_jax.generation.names import Template, check_distinct, words
from mmaudio_jax.generation.rows import Row
from mmaudio_jax.request import Request

VERSION = 1  # of the keys: to be raised when the same request comes to sound differently


@dataclasses.dataclass(frozen=True)
class Task:
    """One sound to make.

    Attributes:
        row: that asks for it.
        name: of its results.
        request: of the row, with the seed of this sample.
        key: names all that decides it, see `task_key`; empty before that is known.
    """

    row: Row
    name: str
    request: Request
    key: str = ""

    @property
    def source(self) -> Path | None:
        """Its video or picture, if it has one."""
        return self.request.video or self.request.image


@dataclasses.dataclass(frozen=True)
class Failure:
    """A sound that could not be made, or all of a row that cannot be used."""

    row: Row
    name: str
    reason: str

    @property
    def columns(self) -> dict[str, str]:
        """Its row of failed.tsv."""
        return {"row": self.row.where, "name": self.name, "reason": self.reason} | {
            name: value for name, value in self.row.columns.items() if name not in ("row", "name", "reason")
        }


def tasks_of(rows: Sequence[Row], template: Template, samples: int = 1, part: PartName = WHOLE) -> list[Task | Failure]:
    """The sounds of the rows that a process of several makes, `samples` of each, their seeds counting up.

    Rows take turns among the processes.

    Raises:
        UserError: two of them would be called the same.
    """
    found: list[list[Task | Failure]] = []
    for number, row in enumerate(rows, 1):
        if row.request is None:
            found.append([Failure(row, row.id, row.fault)] * samples)
            continue
        found.append([])
        source = row.request.video or row.request.image
        for sample in range(samples):
            try:
                request = dataclasses.replace(row.request, seed=row.request.seed + sample)
                name = template.name(
                    id=row.id,
                    stem=source.stem if source else "",
                    words=words(request.prompt),
                    row=number,
                    sample=sample,
                    seed=request.seed,
                )
                found[-1].append(Task(row, name, request))
            except (UserError, ValueError) as error:
                found[-1].append(Failure(row, row.id, str(error)))
    check_distinct((one.name, one.row.where) for ones in found for one in ones if isinstance(one, Task))
    return list(itertools.chain(*found[part.index :: part.count]))


def task_key(request: Request, provenance: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Names all that decides a sound and its files: a hash of request, weights, settings, and the state of the video.

    Args:
        request: whose adapters do not count.
        provenance: of the model, with those adapters.
        settings: of the run and its results.
    """
    fields = {name: value for name, value in dataclasses.asdict(request).items() if name != "adapters"}
    fields |= {name: fields[name] and Path(fields[name]).name for name in ("video", "image")}
    made_with = {name: value for name, value in provenance.items() if name not in ("versions", "adapters")}
    adapters = [[adapter["fingerprint"], adapter["weight"]] for adapter in provenance["adapters"]]
    said = [VERSION, fields, made_with, adapters, settings, state_of(request.video or request.image)]
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def state_of(path: Path | None) -> list[int]:
    """Size and time of a file; nothing of one that is not there."""
    try:
        about = path.stat() if path else None
    except OSError:
        about = None
    return [about.st_size, about.st_mtime_ns] if about else []
