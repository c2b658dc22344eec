"""What sounds are conditioned on: of each interval of a video decoded and encoded once, and kept if asked."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from mmaudio_jax.decoding import Pictures, read_pictures
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_file
from mmaudio_jax.generation.tasks import Task, state_of
from mmaudio_jax.request import Request

if TYPE_CHECKING:  # it loads the networks' code
    from mmaudio_jax.pipeline import Features, Pipeline

DIGEST = 32  # bytes of the hash that a file of features begins with
SEEN = ("clip_f", "sync_f")  # of the features
VERSION = 1  # of the features: to be raised when the same videos come to be seen differently


class FeatureCache:
    """A folder of features, a file for each interval of each video; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, made_with: Mapping[str, Any]):
        """Names the folder; a UserError if it is a file.

        Args:
            folder: of the files.
            made_with: what decides features beside the videos.
        """
        if folder and folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file; --cache must name a folder")
        self._folder, self._made_with = folder, made_with

    def key(self, request: Request) -> str:
        """Names what is seen of a request: its file as it is now, the interval, and the encoders; empty for nothing."""
        source = request.video or request.image
        if source is None:
            return ""
        said = [str(source.resolve()), state_of(source), [*map(str, request.shown)], self._made_with, VERSION]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def has(self, key: str) -> bool:
        """Whether there is a file of these features."""
        return self._folder is not None and self._file(key).is_file()

    def find(self, key: str) -> dict[str, np.ndarray] | None:
        """The features; None if there are none, or their file is damaged."""
        if not self.has(key):
            return None
        content = self._file(key).read_bytes()
        digest, arrays = content[:DIGEST], content[DIGEST:]
        return safetensors.numpy.load(arrays) if hashlib.sha256(arrays).digest() == digest else None

    def keep(self, key: str, features: Mapping[str, np.ndarray]) -> None:
        """Writes features to their file."""
        if self._folder is not None:
            with atomic_file(self._file(key)) as temporary:
                arrays = safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in features.items()})
                temporary.write_bytes(hashlib.sha256(arrays).digest() + arrays)

    def _file(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.features"


def read_item(item: Request | None) -> Pictures | None:
    """The frames of an item of a `FeatureReader`."""
    return None if item is None else read_pictures(item)


class FeatureReader:
    """The conditions of tasks, in order; what several in a row see is decoded and encoded once.

    Attributes:
        items: what is to be decoded for each task; None where nothing is.
    """

    def __init__(self, tasks: Sequence[Task], pipeline: "Pipeline", cache: FeatureCache):
        """Looks what is to be decoded.

        Args:
            tasks: as they will come.
            pipeline: encodes.
            cache: of what is seen.
        """
        self._pipeline, self._cache = pipeline, cache
        keys = [cache.key(task.request) for task in tasks]
        self._keys = {task.name: key for task, key in zip(tasks, keys, strict=True)}
        before = ["", *keys[:-1]]
        self.items = [
            task.request if key != last and not cache.has(key) else None
            for task, key, last in zip(tasks, keys, before, strict=True)
        ]
        self._seen: tuple[str, dict[str, np.ndarray] | UserError] = ("", {})
        self._heard: tuple[tuple[str, str], Features] | None = None

    def of(self, task: Task, pictures: Callable[[], Pictures | None]) -> "Features":
        """The conditions of the next task.

        Args:
            task: the next one.
            pictures: gives what was decoded of its item, or raises what hindered it.

        Raises:
            UserError: its video cannot be read.
        """
        key = self._keys[task.name]
        if key != self._seen[0]:
            try:
                self._seen = key, self._look(task.request, key, pictures)
            except UserError as error:
                self._seen = key, error
        if isinstance(self._seen[1], UserError):
            raise self._seen[1]
        texts = task.request.prompt, task.request.negative_prompt
        if self._heard is None or self._heard[0] != texts:
            self._heard = texts, self._pipeline.features(None, task.request)
        return self._heard[1]._replace(**self._seen[1])

    def _look(self, request: Request, key: str, pictures: Callable[[], Pictures | None]) -> dict[str, np.ndarray]:
        found = self._cache.find(key) if key else {}
        if found is None:
            decoded = pictures() or read_pictures(request)  # where a file of the cache is damaged
            silent = dataclasses.replace(request, prompt="", negative_prompt="")
            features = self._pipeline.features(decoded, silent)
            found = {name: getattr(features, name) for name in SEEN if getattr(features, name) is not None}
            self._cache.keep(key, found)
        return found
