import numpy as np
import pytest

from mmaudio_jax.data import media
from mmaudio_jax.data.clips import read_clips
from mmaudio_jax.demo.render import render_clips
from mmaudio_jax.sequence import MODES, lengths

SECONDS = 3.0


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    table = render_clips(tmp_path_factory.mktemp("rendered"), 5, seed=1, duration=SECONDS)
    return read_clips(table, table.parent)


def test_the_table_names_every_clip(clips):
    assert [clip.id for clip in clips] == [f"clip_{i:03d}" for i in range(5)]
    for clip in clips:
        assert (clip.start_time, clip.end_time) == (0, SECONDS)
        assert clip.video.is_file()
        assert set(clip.columns) == {
            "id", "video_path", "start_time", "end_time", "caption",
            "original_video", "original_start_time", "original_end_time", "title_folder",
        }  # fmt: skip
    assert len({clip.caption.split(" ", 2)[2] for clip in clips}) == 4  # the scenes take turns


def test_every_clip_can_be_learnt_from(clips):
    for clip in clips[:4]:
        clip_frames, sync_frames = media.read_frames(clip.video, 0, SECONDS)
        assert len(clip_frames) == 24 and len(sync_frames) == 75
        assert (np.abs(np.diff(sync_frames.astype(int), axis=0)) > 30).any()  # something moves
        for mode in MODES.values():
            samples = lengths(SECONDS, mode).samples
            assert len(media.read_audio(clip.video, 0, SECONDS, mode.sample_rate, samples)) == samples


def onsets(audio: np.ndarray, rate: int) -> list[float]:
    """Times when it becomes loud after some quiet."""
    level = np.abs(audio[: len(audio) // 160 * 160]).reshape(-1, 160).max(axis=1)
    loud = level > 0.3
    quiet_before = np.array([not loud[max(i - 8, 0) : i].any() for i in range(len(loud))])
    times = np.flatnonzero(loud & quiet_before) * 160 / rate
    return [time for time in times if time < SECONDS - 0.1]


def test_an_impact_is_heard_when_it_is_seen(clips):
    def sound_and_frames(index):
        audio = media.read_audio(clips[index].video, 0, SECONDS, 16_000, 48_000)
        return onsets(audio, 16_000), media.read_frames(clips[index].video, 0, SECONDS)[1].astype(int)

    heard, sync = sound_and_frames(0)  # the ball: lowest at an impact
    moving = np.ptp(sync, axis=-1) > 60  # its colour; stage and floor are grey
    lowest = np.array([np.flatnonzero(frame.any(axis=1)).max() for frame in moving])
    seen = [k / 25 for k in range(1, 73) if lowest[k] > lowest[k - 1] and lowest[k] >= lowest[k + 1]]
    assert 2 <= len(heard) == len(seen)
    np.testing.assert_allclose(heard, seen, atol=0.045)

    heard, sync = sound_and_frames(2)  # the lamp: bright from an impact on
    bright = sync[:, 112, 112].max(axis=-1) > 120
    seen = [k / 25 for k in range(1, 73) if bright[k] and not bright[k - 1]]
    assert 2 <= len(heard) == len(seen)
    np.testing.assert_allclose(heard, seen, atol=0.045)


def test_the_same_seed_renders_the_same_scenes(tmp_path, clips):
    again = render_clips(tmp_path / "again", 2, seed=1, duration=SECONDS)
    other = render_clips(tmp_path / "other", 2, seed=2, duration=SECONDS)
    for name in ("clip_000.mp4", "clip_001.mp4"):
        first, same, different = (
            media.read_frames(folder / name, 0, SECONDS)[1].astype(int)
            for folder in (clips[0].video.parent, again.parent, other.parent)
        )
        assert np.abs(first - same).mean() < 0.1 < np.abs(first - different).mean()  # x264 does not promise equal bits
