"""A mixture of feature sets, as `config.data` names it: `data/vggsound*5, data/audiocaps, data/clotho`.

`*5` has a set's examples come five times in an epoch. Every example is in the mixture once, whatever its set's repeat:
it is checked once, it validates once, and it counts once in statistics of the data.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmaudio_jax.data.example import Batch, Example, FeatureSet, Metadata, StoredFeatures, widened
from mmaudio_jax.data.records import open_features
from mmaudio_jax.errors import UserError

REPEAT = r"[1-9][0-9]{0,3}"


class Share(NamedTuple):
    """A folder, and how often its examples come in an epoch."""

    path: str
    repeat: int


def parse(text: str) -> list[Share]:
    """The parts of `SET[*REPEAT], …`.

    Raises:
        UserError: a part is empty, a repeat is no whole number from 1 to 9999, or a set is named twice.
    """
    parts: list[Share] = []
    for written in text.split(","):
        path, _, repeat = map(str.strip, written.rpartition("*") if "*" in written else (written, "", "1"))
        if not path:
            raise UserError(f"the data {text!r} has a part that names no feature set; write it as SET*5, SET, SET")
        if not re.fullmatch(REPEAT, repeat):
            raise UserError(
                f"the data {text!r} repeats {path} {repeat!r} times; it must be a whole number from 1 to 9999: {path}*5"
            )
        if os.path.abspath(path) in (os.path.abspath(part.path) for part in parts):
            raise UserError(f"the data {text!r} names {path} twice; to have it more often, write {path}*2")
        parts.append(Share(path, int(repeat)))
    return parts


def open_mixture(text: str) -> "Mixture":
    """Opens the feature sets that the text names; errors as of `parse`, `open_features` and `Mixture`."""
    parts = parse(text)
    return Mixture([open_features(part.path) for part in parts], [part.repeat for part in parts])


class Mixture(FeatureSet):
    """Several feature sets as one, or one as it is: the examples of the first, then those of the second, and so on.

    Every example has `set` (), int32, besides: the place of its set. Where there are several, ids begin with the name
    of the set. Sources do not: a video that is in two sets is one video, and so never both trains and validates.

    Attributes:
        sets: as they were given.
        names: what the sets are called, by their folders.
        places: (examples,) int, which of the sets each example is in.
        repeats: (examples,) int, how often each comes in an epoch.
    """

    def __init__(self, sets: Sequence[StoredFeatures], repeats: Sequence[int]):
        """Puts sets together.

        Args:
            sets: at least one.
            repeats: one a set.

        Raises:
            UserError: two sets have the same name, or differ in mode, duration, shapes or encoders.
        """
        self.sets = tuple(sets)
        self.names = tuple(features.path.absolute().name for features in sets)
        sizes = [len(features) for features in sets]
        self.places = np.repeat(np.arange(len(sets)), sizes)
        self.repeats = np.asarray(repeats)[self.places]
        self._starts = np.cumsum(sizes) - sizes
        path = sets[0].path if len(sets) == 1 else ", ".join(str(features.path) for features in sets)
        super().__init__(path, _common(sets, self.names))

    def __getitem__(self, index: int) -> Example:
        """The example; errors as of its set."""
        place, within = self.locate(range(len(self))[index])
        example = self.sets[place][within]
        if self.sets[place].metadata.dtype != self.metadata.dtype:
            example = widened(example)
        return example | {"set": np.int32(place)}

    def read_into(self, index: int, batch: Batch, place: int) -> None:
        """As of its set."""
        which, within = self.locate(range(len(self))[index])
        if self.sets[which].metadata.dtype != self.metadata.dtype:
            return super().read_into(index, batch, place)
        self.sets[which].read_into(within, batch, place)
        batch["set"][place] = which

    def check_example(self, index: int) -> None:
        """As of its set."""
        place, within = self.locate(index)
        self.sets[place].check_example(within)

    def locate(self, index: int) -> tuple[int, int]:
        """(which of the sets an example is in, its index there)."""
        place = int(self.places[index])
        return place, int(index - self._starts[place])

    @property
    def state(self) -> str:
        """As of `FeatureSet`."""
        return " ".join(features.state for features in self.sets)

    @property
    def ids(self) -> list[str]:
        """One id an example, NAME/ID where there are several sets."""
        if len(self.sets) == 1:
            return self.sets[0].ids
        return [f"{name}/{id}" for name, features in zip(self.names, self.sets, strict=True) for id in features.ids]

    @property
    def captions(self) -> list[str]:
        """As of `FeatureSet`."""
        return [caption for features in self.sets for caption in features.captions]

    @property
    def sources(self) -> list[str]:
        """As of `FeatureSet`."""
        return [source for features in self.sets for source in features.sources]

    @property
    def recipes(self) -> list[str]:
        """As of `FeatureSet`."""
        return [recipe for features in self.sets for recipe in features.recipes]

    @property
    def sides(self) -> list[str]:
        """As of `FeatureSet`."""
        return [side for features in self.sets for side in features.sides]


def _common(sets: Sequence[StoredFeatures], names: Sequence[str]) -> Metadata:
    """The metadata of all; a UserError if they cannot train together."""
    first, encoders = sets[0], {}
    for i, (features, name) in enumerate(zip(sets, names, strict=True)):
        if name in names[:i]:
            other = sets[names.index(name)].path
            raise UserError(f"{other} and {features.path} are both called {name}, by which a set is told: rename one")
        mine, theirs = (_traits(s.metadata) for s in (first, features))
        differ = [f"its {what} is {theirs[what]}, not {mine[what]}" for what in mine if theirs[what] != mine[what]]
        differ += [
            f"its {network} is another than that of {encoders[network][1]}"
            for network, fingerprint in features.metadata.encoders.items()
            if encoders.setdefault(network, (fingerprint, features.path))[0] != fingerprint
        ]
        if differ:
            raise UserError(
                f"{features.path} cannot be mixed with {first.path}: {', '.join(differ)}; extract its features again"
            )
    return dataclasses.replace(
        first.metadata,
        count=sum(len(features) for features in sets),
        dtype=first.metadata.dtype if len({features.metadata.dtype for features in sets}) == 1 else "float32",
        encoders={network: fingerprint for network, (fingerprint, _) in encoders.items()},
    )


def _traits(metadata: Metadata) -> dict[str, object]:
    """What must be the same in all sets, by what it is called."""
    return {"mode": metadata.mode, "duration": metadata.duration} | {
        f"shape of {name}": tuple(shape) for name, shape in metadata.shapes.items()
    }
