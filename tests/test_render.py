"""The small world: what it shows, what it lets hear, and that both go together."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmaudio_jax.data import media
from mmaudio_jax.data.clips import read_clips
from mmaudio_jax.demo import pictures, ruler
from mmaudio_jax.demo.render import render_clips
from mmaudio_jax.demo.world import BASE_MATERIALS, KINDS, LEAST_GAP, MATERIALS, make_scene
from mmaudio_jax.sequence import MODES, lengths

SECONDS = 3.0


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    table = render_clips(tmp_path_factory.mktemp("rendered"), 5, seed=1, duration=SECONDS)
    return read_clips(table, table.parent)


def test_the_table_names_every_clip(clips):
    assert [clip.id for clip in clips] == [f"scene_{i:05d}" for i in range(5)]
    for clip in clips:
        assert (clip.start_time, clip.end_time) == (0, SECONDS)
        assert clip.video.is_file()
        assert set(clip.columns) == {
            "id", "video_path", "start_time", "end_time", "caption",
            "original_video", "original_start_time", "original_end_time", "title_folder",
        }  # fmt: skip
    scenes = json.loads(clips[0].video.with_name("scenes.json").read_text())
    assert [scene["kind"] for scene in scenes.values()] == [*KINDS, "fall"]  # they take turns
    assert [scene["material"] for scene in scenes.values()] == ["wood"] * 4 + ["metal"]


def test_every_clip_can_be_learnt_from(clips):
    for clip in clips[:4]:
        clip_frames, sync_frames = media.read_frames(clip.video, 0, SECONDS)
        assert len(clip_frames) == 24 and len(sync_frames) == 75
        assert (np.abs(np.diff(sync_frames.astype(int), axis=0)) > 30).any()  # something moves
        for mode in MODES.values():
            samples = lengths(SECONDS, mode).samples
            assert len(media.read_audio(clip.video, 0, SECONDS, mode.sample_rate, samples)) == samples


def test_an_impact_is_heard_when_it_is_seen(clips):
    scenes = json.loads(clips[0].video.with_name("scenes.json").read_text())
    for clip in clips:
        wave = media.read_audio(clip.video, 0, SECONDS, 16_000, 48_000)
        assert ruler.onset_f1(wave, scenes[clip.id]["contacts"]) > 0.85, clip.id


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), index=st.integers(0, 10_000))
def test_a_contact_is_where_the_motion_turns(seed, index):
    scene = make_scene(seed, index, MATERIALS, 8.0)
    again = make_scene(seed, index, MATERIALS, 8.0)
    times = np.array([contact.time for contact in scene.contacts])
    assert [c.time for c in again.contacts] == list(times) and scene.caption == again.caption
    assert (np.diff(times) > LEAST_GAP).all() and (times >= 0).all() and (times < 8).all() and 2 <= len(times) <= 20
    assert all(0 < contact.strength <= 1 for contact in scene.contacts)

    def turn(t, margin):
        """How much the speed of what is seen changes within 4 ms."""
        seen = (
            [scene.mallet] if scene.mallet else [ball.at for ball in scene.balls if margin < ball.at(t)[0] < 1 - margin]
        )
        changes = [np.array(at(t + 2e-3)) - 2 * np.array(at(t)) + np.array(at(t - 2e-3)) for at in seen]
        return max([np.abs(change).max() / 2e-3 for change in changes], default=0.0)

    quiet = [t for t in np.arange(0.05, 7.95, 0.05) if np.abs(times - t).min() > 0.05]
    assert min(turn(t, -0.2) for t in times) > 0.3
    if scene.mallet is None:  # a mallet's speed jumps where its stroke begins, too
        assert max(turn(t, 0.02) for t in quiet) < 0.1


def test_the_material_cannot_be_seen():
    one, other = (make_scene(3, 6, [material], 8.0) for material in ("wood", "metal"))
    for t in (0.0, 2.5):
        palettes = (pictures.Palette(np.random.default_rng(0)) for _ in range(2))
        a, b = (pictures.draw(scene, palette, t) for scene, palette in zip((one, other), palettes, strict=True))
        np.testing.assert_array_equal(a, b)
    assert "wood" in one.caption and "metal" in other.caption and "glass" not in BASE_MATERIALS


def test_the_same_seed_renders_the_same_scenes(tmp_path, clips):
    again = render_clips(tmp_path / "again", 2, seed=1, duration=SECONDS)
    other = render_clips(tmp_path / "other", 2, seed=2, duration=SECONDS)
    for name in ("scene_00000.mp4", "scene_00001.mp4"):
        first, same, different = (
            media.read_frames(folder / name, 0, SECONDS)[1].astype(int)
            for folder in (clips[0].video.parent, again.parent, other.parent)
        )
        assert np.abs(first - same).mean() < 0.1 < np.abs(first - different).mean()  # x264 does not promise equal bits
