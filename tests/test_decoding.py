"""What is read of a clip, padded or not, with a picture or without."""

import numpy as np
import pytest
from media_files import frame_number, tone, write_media

from mmaudio_jax.data.clips import Clip
from mmaudio_jax.data.media import read_audio, read_frames
from mmaudio_jax.decoding import read_media
from mmaudio_jax.errors import UserError

SAMPLES, LATENTS = 16_384, 32  # of one second


def clip(video, start=0.0, end=1.1, id="a"):
    return Clip(id, video, start, end, "a sound", 2, {})


@pytest.mark.parametrize("short", ["skip", "pad"])
def test_a_whole_clip_is_read_as_it_is(small_videos, short):
    video = small_videos / "0.mp4"
    found = read_media(clip(video, 0.1), "16k", 1.0, short)
    assert np.array_equal(found.audio, read_audio(video, 0.1, 1.0, 16_000, SAMPLES)) and found.latents == LATENTS
    for seen, expected in zip(found[1:3], read_frames(video, 0.1, 1.0), strict=True):
        assert np.array_equal(seen, expected)


@pytest.mark.parametrize(
    ("name", "end", "own"),
    [("0.mp4", 0.8, 0.8), ("short.mp4", 1.1, 0.8), ("brief.wav", 5.0, 0.7), ("0.mp4", 0.64, 0.64)],
)
def test_a_short_clip_gets_silence_and_its_last_frame(small_videos, name, end, own):
    with pytest.raises(UserError, match="s are needed"):
        read_media(clip(small_videos / name, end=end), "16k", 1.0)
    found = read_media(clip(small_videos / name, end=end), "16k", 1.0, "pad")
    assert found.latents == np.ceil(own * 16_000 / 512) and found.audio.shape == (SAMPLES,)
    heard = int(own * 16_000)
    assert not found.audio[heard:].any() and np.abs(found.audio[heard - 200 : heard - 20]).max() > 0.1
    assert np.abs(found.audio).max() == pytest.approx(0.95, abs=0.01)
    if name.endswith("wav"):
        assert found.clip_frames is None and found.sync_frames is None
    else:
        assert (len(found.clip_frames), len(found.sync_frames)) == (8, 25)
        numbers = [frame_number(image) for image in found.sync_frames]
        last = int(25 * own) - 1
        assert numbers == [min(i, last) for i in range(25)]


@pytest.mark.parametrize("codec", [None, "libx264"])
def test_what_is_loud_after_the_seconds_used_counts_for_the_peak(tmp_path, codec):
    """Of a video within the clip, of sound alone within the file."""
    x = tone(2.0, 44_100)
    x[:, : 3 * 44_100 // 2] /= 10  # loud from 1.5 s on
    video = write_media(tmp_path / "a.mkv", count=50, codec=codec, audio=x, audio_codec="pcm_f32le")
    levels = [np.abs(read_media(clip(video, end=end), "16k", 1.0).audio).max() for end in (1.1, 2.0)]
    assert levels == pytest.approx([0.95 if codec else 0.095, 0.095], rel=0.01)


def test_too_little_cannot_be_filled_up(small_videos):
    with pytest.raises(UserError, match="the clip lasts 0.6 s; from 0.64 s on it can be filled up"):
        read_media(clip(small_videos / "0.mp4", end=0.6), "16k", 1.0, "pad")
    with pytest.raises(UserError, match="the clip lasts 0 s"):
        read_media(clip(small_videos / "short.mp4", 3.0, 4.0), "16k", 1.0, "pad")


@pytest.mark.parametrize("short", ["skip", "pad"])
def test_sound_alone_is_a_clip_and_a_picture_alone_is_none(small_videos, short):
    found = read_media(clip(small_videos / "sound.wav"), "16k", 1.0, short)
    assert found.clip_frames is None and found.sync_frames is None and found.latents == LATENTS
    assert np.array_equal(found.audio, read_audio(small_videos / "sound.wav", 0, 1.0, 16_000, SAMPLES))
    with pytest.raises(UserError, match="no audio track in it"):
        read_media(clip(small_videos / "mute.mp4"), "16k", 1.0, short)
