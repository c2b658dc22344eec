"""What is asked for: one sound, and all that decides it."""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmaudio_jax.errors import UserError
from mmaudio_jax.sequence import MAX_DURATION, MIN_DURATION, ROUNDING, AudioMode, Lengths, lengths
from mmaudio_jax.solvers import MAX_STEPS, SOLVERS

MAX_STRENGTH = 100.0  # of guidance; what is asked for beyond it is a slip of the hand
MAX_SHIFT = 100.0
MAX_SEED = 2**31


class AdapterUse(NamedTuple):
    """What a run has trained, and how much of it: `weight` 0 leaves the base as it is, 1 takes all."""

    run: Path
    weight: float = 1.0


def parse_adapters(text: str) -> tuple[AdapterUse, ...]:
    """Reads `runs/rain*0.5, runs/wind@best`: runs with the weight that each has, 1 where none is said.

    Raises:
        UserError: a run without a name, or a weight that is no number from 0 to 1.
    """
    uses = []
    for part in filter(None, map(str.strip, text.split(","))):
        run, star, weight = part.rpartition("*")
        try:
            value = float(weight) if star else 1.0
        except ValueError:
            value = math.nan
        if not (run if star else weight).strip() or not 0 <= value <= 1:
            raise UserError(f"the adapter {part!r} is not understood; write RUN or RUN*WEIGHT, the weight from 0 to 1")
        uses.append(AdapterUse(Path((run if star else weight).strip()), value))
    return tuple(uses)


def use_adapters(given: str | Path | Sequence[str | Path | AdapterUse]) -> tuple[AdapterUse, ...]:
    """Adapters as they may be given: text as of `parse_adapters`, a run, or a list of these and of `AdapterUse`s."""
    listed = [given] if isinstance(given, str | Path | AdapterUse) else given
    return tuple(use for one in listed for use in ([one] if isinstance(one, AdapterUse) else parse_adapters(str(one))))


@dataclasses.dataclass(frozen=True)
class Request:
    """One sound to make, for a video, for a picture, or for words alone.

    Attributes:
        video: a video file; one that holds a still picture alone counts as `image`.
        image: a still picture, whose CLIP feature stands at all times; nothing moves in it.
        prompt: what is to be heard.
        negative_prompt: what is not to be heard.
        start: seconds within the video.
        duration: seconds of sound.
        seed: of the noise; the same seed gives the same sound in any batch, order and number of devices.
        steps: evaluations of the network; the midpoint method takes two a step.
        solver: a key of `solvers.SOLVERS`.
        shift: of the times of the steps, see `solvers.times`; 1: equal steps.
        cfg_strength: guidance by video and words, arXiv 2207.12598; up to 1 there is none.
        video_strength: guidance by the video where it is to be another than that by the words, which `cfg_strength` is
            then, also below 1 (arXiv 2211.09800, equation 3); None: one for both. Words alone know no other.
        use_clip: false leaves the CLIP features of the video out, so that its motion alone drives the sound.
        adapters: of the model, also as `parse_adapters` reads them; None: those that the pipeline was loaded with.
        made: seconds that the network makes, of which `duration` are kept; None: as many as are kept. It is set where
            not the user but a file or a list says how long a sound is, so that few lengths compile.
    """

    video: Path | None = None
    image: Path | None = None
    prompt: str = ""
    negative_prompt: str = ""
    start: float = 0.0
    duration: float = 8.0
    seed: int = 0
    steps: int = 25
    solver: str = "euler"
    shift: float = 1.0
    cfg_strength: float = 4.5
    video_strength: float | None = None
    use_clip: bool = True
    adapters: tuple[AdapterUse, ...] | None = None
    made: float | None = None

    def __post_init__(self):
        for name in ("video", "image"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, Path(value))
        if self.adapters is not None:
            object.__setattr__(self, "adapters", use_adapters(self.adapters))
        for name in ("prompt", "negative_prompt"):
            if not isinstance(getattr(self, name), str):
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be text")
        for name in ("start", "duration", "shift", "cfg_strength"):
            if not isinstance(getattr(self, name), numbers.Real):
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be a number")
        if self.image is not None and not self.use_clip:
            raise UserError(f"{self.image} is a still picture, which only CLIP sees: without it nothing is seen")
        if self.video is not None and self.image is not None:
            raise UserError(f"{self.video} and {self.image} are given; a sound is made for one of them")
        if self.video is None and self.image is None and not self.prompt.strip():
            raise UserError("there is nothing to make sound for: give a video, an image, or a prompt")
        if self.video is None and self.start:
            raise UserError(f"start is {self.start:g}, which is a time within a video, and there is none")
        if not 0 <= self.start < math.inf:
            raise UserError(f"start is {self.start:g}; it must be a number of seconds from 0 on")
        if not MIN_DURATION <= self.duration <= MAX_DURATION:
            raise UserError(f"duration is {self.duration:g}; it must lie in [{MIN_DURATION}, {MAX_DURATION:g}] seconds")
        if self.made is not None and not self.duration - ROUNDING <= self.made <= MAX_DURATION:
            raise UserError(f"made is {self.made:g}; it must lie in [duration, {MAX_DURATION:g}] seconds")
        self._check_whole("seed", 0, MAX_SEED - 1)
        if self.solver not in SOLVERS:
            raise UserError(f"solver is {self.solver!r}; it must be one of {', '.join(SOLVERS)}")
        self._check_whole("steps", SOLVERS[self.solver].evaluations, MAX_STEPS)
        if not 1 / MAX_SHIFT <= self.shift <= MAX_SHIFT:
            raise UserError(f"shift is {self.shift:g}; it must lie in [{1 / MAX_SHIFT:g}, {MAX_SHIFT:g}]")
        for name in ("cfg_strength", "video_strength"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= MAX_STRENGTH:
                raise UserError(f"{name} is {value:g}; it must lie in [0, {MAX_STRENGTH:g}]")
        for run, weight in self.adapters or ():
            if not 0 <= weight <= 1:
                raise UserError(f"the adapter {run} has the weight {weight:g}; it must lie in [0, 1]")

    def _check_whole(self, name: str, least: int, most: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= value <= most:
            raise UserError(f"{name} is {value}; it must be a whole number from {least} to {most}")
        object.__setattr__(self, name, int(value))

    @property
    def shown(self) -> tuple:
        """All that decides what is seen: requests of the same see the same."""
        return self.video, self.image, self.start, self.duration, self.made, self.use_clip

    @property
    def branches(self) -> int:
        """Under how many conditions the network is asked at each evaluation: how many rows of a batch it takes."""
        shown = self.video is not None or self.image is not None
        if self.video_strength not in (None, self.cfg_strength) and shown:
            return 3
        return 2 if self.cfg_strength > 1 else 1

    def lengths(self, mode: AudioMode) -> Lengths:
        """Of the streams of the network; requests of the same may share a batch."""
        return lengths(self.made or self.duration, mode)
