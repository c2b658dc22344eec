"""What a sound becomes: its files, what they tell of it, and what is remarkable in it."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmaudio_jax import plots
from mmaudio_jax.data import audio, muxing
from mmaudio_jax.errors import UserError
from mmaudio_jax.generation import loudness, quality
from mmaudio_jax.request import Request

if TYPE_CHECKING:  # it loads the networks' code
    from mmaudio_jax.pipeline import Sound

FORMATS = ("wav", "flac")
VIDEOS = ("copy", "encode", "none")


class Written(NamedTuple):
    """The files of a sound, by kind; what the manifest tells of it; and what the user should know."""

    files: dict[str, Path]
    about: dict[str, Any]
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Which files are made.

    Attributes:
        format: of the sound, of `FORMATS`.
        video: what becomes of the picture of a video, of `VIDEOS`.
        picture: whether there is a spectrogram.
        latents: whether the latent is kept.
        loudness: of `loudness.HOWS`.
    """

    format: str = "wav"
    video: str = "copy"
    picture: bool = True
    latents: bool = False
    loudness: str = "none"

    def files(self, folder: Path, name: str, request: Request) -> dict[str, Path]:
        """Where the files of a request are, by kind."""
        suffixes = {"sound": self.format}
        if self.video != "none" and (request.video or request.image):
            suffixes["video"] = "mp4"
        if self.picture:
            suffixes["spectrogram"] = "png"
        if self.latents:
            suffixes["latent"] = "safetensors"
        return {kind: folder / f"{name}.{suffix}" for kind, suffix in suffixes.items()}

    def write(self, sound: "Sound", folder: Path) -> Written:
        """Writes the files of a sound into a folder.

        Raises:
            UserError: the sound is not finite, or its video cannot be written.
        """
        import safetensors.numpy

        request, rate = sound.request, sound.rate
        if not np.isfinite(sound.audio).all():
            raise UserError("the sound is not finite; another seed, or less guidance, may give one that is")
        wave, gain, remark = loudness.normalise(sound.audio, rate, self.loudness)
        checks = quality.inspect(wave, rate, round(request.duration * rate))
        warnings, record = [*checks["warnings"], *([remark] if remark else [])], sound.record
        tags = sound.tags
        files = self.files(folder, "sound", request)
        audio.write_audio(files["sound"], wave, rate, tags)
        if "video" in files:
            source, encode = request.video or request.image, self.video == "encode"
            arguments = (source, wave, rate, request.start, request.duration)
            remark = muxing.write_video(files["video"], *arguments, encode=encode, tags=tags)
            if remark and not encode and request.video:
                warnings.append(f"its video is {remark}")
        if "spectrogram" in files:
            plots.save_spectrogram(files["spectrogram"], wave, rate, tags)
        if "latent" in files:
            files["latent"].write_bytes(safetensors.numpy.save({"latent": sound.latent}, tags))
        about = {"loudness": self.loudness, "gain_db": round(gain, 2), "checks": checks}
        return Written(files, record | about, warnings)
