"""Videos with a new sound."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import decoded, numbers, set_display_matrix, tone, write_media

from mmaudio_jax.data import media, muxing
from mmaudio_jax.errors import UserError


def written(path: Path) -> tuple[list[int], Fraction, np.ndarray, int]:
    """Frame numbers, video's end, sound and its rate."""
    _, end, images = decoded(path)
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        sound = np.concatenate([f.to_ndarray() for f in container.decode(stream)], axis=1)[0, : stream.duration]
        return numbers(images), end, sound, stream.sample_rate


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_video_with_a_new_sound_keeps_its_own_packets(tmp_path, suffix):
    source = write_media(tmp_path / f"a{suffix}", count=50, audio=tone(2.0, 44_100))
    x = tone(2.0, 16_000, frequency=1000)[0]
    muxing.write_video(tmp_path / "out.mp4", source, x, 16_000)
    shown, end, sound, rate = written(tmp_path / "out.mp4")
    assert shown == list(range(50))
    assert abs(end - 2) < 0.05
    assert rate == 16_000 and len(sound) == 32_000
    correlation = np.correlate(sound[8000:24000], x[8000:24000], mode="valid") / np.dot(x[8000:24000], x[8000:24000])
    assert 0.98 < correlation[0] < 1.02  # the same sound at the same place
    _, _, before = decoded(source)
    _, _, after = decoded(tmp_path / "out.mp4")
    np.testing.assert_array_equal(before, after)
    assert not [p for p in tmp_path.iterdir() if ".tmp" in p.name]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("start", [0.0, 0.72])
def test_a_longer_video_is_cut_where_the_sound_ends(tmp_path, start, suffix):
    source = write_media(tmp_path / f"a{suffix}", count=100, options={"g": "12"})
    muxing.write_video(tmp_path / "out.mp4", source, tone(1.2, 44_100)[0], 44_100, start=start)
    shown, end, sound, _ = written(tmp_path / "out.mp4")
    first = round(25 * start)
    assert shown[:30] == list(range(first, first + 30))
    assert len(shown) <= 33
    assert len(sound) == 1.2 * 44_100
    muxing.write_video(tmp_path / "out.mp4", source, tone(1.2, 44_100)[0], 44_100, start=start, duration=0.8)
    shown, _, sound, _ = written(tmp_path / "out.mp4")
    assert shown[:20] == list(range(first, first + 20)) and len(shown) <= 23
    assert len(sound) == 0.8 * 44_100


def test_a_codec_that_mp4_cannot_hold_is_encoded(tmp_path):
    source = write_media(tmp_path / "a.webm", count=40, codec="libvpx", size=(160, 121), options={"crf": "10"})
    muxing.write_video(tmp_path / "out.mp4", source, tone(1.0, 16_000)[0], 16_000, start=0.4)
    shown, end, sound, _ = written(tmp_path / "out.mp4")
    assert shown == list(range(10, 35))
    assert abs(end - 1) < 0.05 and len(sound) == 16_000


def test_a_rotated_video_stays_rotated(tmp_path):
    source = write_media(tmp_path / "a.mp4", count=25)
    set_display_matrix(source, [[0, 1], [-1, 0]])
    muxing.write_video(tmp_path / "out.mp4", source, tone(1.0, 16_000)[0], 16_000)
    np.testing.assert_array_equal(
        media.read_frames(tmp_path / "out.mp4", 0, 1.0)[0], media.read_frames(source, 0, 1.0)[0]
    )


def test_a_video_that_cannot_be_written_leaves_nothing(tmp_path, tmp_path_factory):
    with_sound = write_media(tmp_path_factory.mktemp("sound") / "a.mp4", count=50, audio=tone(2.0, 44_100, 2))
    x = tone(1.0, 16_000)[0]
    with pytest.raises(UserError, match=r"out\.avi: a video is written as \.mp4"):
        muxing.write_video(tmp_path / "out.avi", with_sound, x, 16_000)
    with pytest.raises(UserError, match=r"none\.mp4: no such file"):
        muxing.write_video(tmp_path / "out.mp4", tmp_path / "none.mp4", x, 16_000)
    (tmp_path / "half.mp4").write_bytes(with_sound.read_bytes()[:9000])
    with pytest.raises(UserError, match=r"half\.mp4: not a media file"):
        muxing.write_video(tmp_path / "out.mp4", tmp_path / "half.mp4", x, 16_000)
    assert [p.name for p in tmp_path.iterdir()] == ["half.mp4"]
