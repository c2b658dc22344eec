"""What is decoded for the networks, of clips and of what sound is made for."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from mmaudio_jax.data.clips import Clip
from mmaudio_jax.errors import UserError
from mmaudio_jax.request import Request
from mmaudio_jax.sequence import (
    CLIP_FPS,
    MIN_DURATION,
    MODES,
    ROUNDING,
    SYNC_FPS,
    VAE_FACTOR,
    lengths,
    next_length,
)

SHORT = ("skip", "pad")  # what may become of clips that are too short


class Media(NamedTuple):
    """What is read of one clip; frames are None where there is no video.

    Attributes:
        latents: how many latent frames are the clip's own, the others being padding.
    """

    audio: Float[np.ndarray, " l"]
    clip_frames: UInt8[np.ndarray, "c 384 384 3"] | None
    sync_frames: UInt8[np.ndarray, "f 224 224 3"] | None
    latents: int


def read_media(clip: Clip, mode: str, duration: float, short: str = "skip") -> Media:
    """Sound and frames of the first `duration` seconds of a clip.

    Args:
        clip: a row of clips.tsv; its file may hold sound alone.
        mode: '16k' or '44k'.
        duration: seconds.
        short: 'pad' fills up a clip of `MIN_DURATION` or more, with silence and its last frame; 'skip' refuses it.

    Raises:
        UserError: the clip cannot be used.
    """
    from mmaudio_jax.data import media

    there = _seconds(clip, from_file=short == "pad")
    whole = there >= duration - ROUNDING
    if not whole and short == "skip":
        raise UserError(
            f"the clip lasts {there:g} s, {duration:g} s are needed; --duration makes all clips shorter, --short pad "
            "fills up the short ones"
        )
    if not whole and there < MIN_DURATION:
        raise UserError(f"the clip lasts {there:g} s; from {MIN_DURATION} s on it can be filled up")
    rate, length = MODES[mode].sample_rate, lengths(duration, MODES[mode])
    if whole:
        own, seconds, samples = length.latent, duration, length.samples
    else:
        own = -int(-there * rate // (MODES[mode].hop * VAE_FACTOR))
        seconds, samples = there - ROUNDING, int((there - ROUNDING) * rate)
    audio = media.read_audio(clip.video, clip.start_time, seconds, rate, samples, clip.end_time)
    audio = np.pad(audio, (0, length.samples - samples))
    if not media.has_video(clip.video):
        return Media(audio, None, None, own)
    found = media.read_frames(clip.video, clip.start_time, duration if whole else there)
    counts = (length.clip, length.sync_frames)
    return Media(audio, *map(_held, found, counts), own)


def _seconds(clip: Clip, *, from_file: bool) -> float:
    """How long a clip is by its row and, if asked, by its file; 0 if the file ends before it."""
    from mmaudio_jax.data import media

    ends = [clip.end_time]
    if from_file:
        info = media.probe(clip.video)
        ends += [info.video_duration] * info.has_video + [info.audio_duration] * info.has_audio
    return max(min(ends) - clip.start_time, 0.0)


class Pictures(NamedTuple):
    """What is seen of a request; a still picture is one CLIP frame and no others."""

    clip_frames: UInt8[np.ndarray, "c 384 384 3"]
    sync_frames: UInt8[np.ndarray, "f 224 224 3"] | None


def fitted(request: Request) -> Request:
    """The request as its file allows: as short as a video that ends before, for an image if it is one still picture.

    The sound of a shorter video is as long as the video; the network makes it at the next of the lengths 0.64, 0.96, …,
    8.00 s, the last frame held, so that videos of a thousand durations compile few programs.

    Raises:
        UserError: no such file, no picture in it, too short from `start` on.
    """
    from mmaudio_jax.data import media

    source = request.video or request.image
    if source is None:
        return request
    info = media.probe(source)
    if not info.has_video:
        raise UserError(f"{source}: no video stream in it")
    if request.image is not None or info.is_image:
        if not info.is_image:
            raise UserError(f"{source}: a video, not one still picture; give it as video")
        return dataclasses.replace(request, video=None, image=source, start=0.0)
    there = info.video_duration - request.start
    if there >= request.duration - ROUNDING:
        return request
    if there < MIN_DURATION:
        raise UserError(
            f"{source}: too short: from {request.start:g} s on, the video has {max(there, 0):.3f} s; {MIN_DURATION} s "
            "are needed"
        )
    return dataclasses.replace(request, duration=there, made=min(next_length(there), request.duration))


def remark_of_length(asked: Request, request: Request) -> str:
    """What `fitted` changed of the length; empty if nothing."""
    if request.duration >= asked.duration - ROUNDING:
        return ""
    return f"{asked.video} has {request.duration:.2f} s, not {asked.duration:g} s; its sound is as short"


def read_pictures(request: Request) -> Pictures | None:
    """The frames of a request that is `fitted`; None for words alone.

    Raises:
        UserError: the file cannot be read.
    """
    from mmaudio_jax.data import media

    if request.image is not None:
        return Pictures(media.read_image(request.image)[None], None)
    if request.video is None:
        return None
    made = request.made or request.duration
    counts = (int(round(fps * made, 6)) for fps in (CLIP_FPS, SYNC_FPS))
    found = media.read_frames(request.video, request.start, request.duration)
    return Pictures(*(_held(frames, count) for frames, count in zip(found, counts, strict=True)))


def _held(frames: UInt8[np.ndarray, "f h w 3"], count: int) -> UInt8[np.ndarray, "{count} h w 3"]:
    """So many frames, the last one standing where there are no more."""
    return np.pad(frames, [(0, count - len(frames)), *[(0, 0)] * 3], mode="edge")
