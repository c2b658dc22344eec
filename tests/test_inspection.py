import numpy as np
import pytest
from media_files import tone, write_media

from mmaudio_jax.data.prepare.cutting import covered
from mmaudio_jax.data.prepare.inspection import Inspection, inspect
from mmaudio_jax.data.prepare.onsets import OnsetFinder
from mmaudio_jax.data.prepare.scan import scan

RATE = 16_000


def scene(*lengths):
    """A picture of seconds of 25 frames: moving bars, another colour in each of scenes of these lengths."""
    ends = np.cumsum(lengths)

    def picture(i, width, height):
        which = int(np.searchsorted(ends, i / 25, side="right"))
        image = np.full((height, width, 3), [(200, 40, 40), (30, 60, 220), (40, 200, 60)][which % 3], np.uint8)
        image[:, i * 2 % width :][:, :12] = 128
        return image

    return picture


def noise(seconds, level=0.1):
    return (level * np.random.default_rng(0).uniform(-1, 1, (1, int(seconds * RATE)))).astype(np.float32)


def knocking(rate):
    """A quarter of a second of noise that dies away."""
    time = np.arange(rate // 4) / rate
    return np.exp(-time / 0.03) * np.random.default_rng(1).uniform(-1, 1, len(time))


def near(found, expected, tolerance=50):
    assert len(found) == len(expected), (found, expected)
    assert np.allclose(found, expected, atol=tolerance), (found, expected)


def test_a_sound_video_has_nothing_to_say(tmp_path):
    path = write_media(tmp_path / "a.mp4", count=75, picture=scene(9), audio=noise(3.2), rate=RATE)
    found = inspect(path)
    assert found.fault == "" and found.video_end == 3000 and found.audio_end == pytest.approx(3200, abs=5)
    assert found.end == 3000
    assert not (found.cuts or found.black or found.still or found.silent or found.clipped or found.damaged)
    assert found.refusal((0, 3000)) is None and found.doubts((0, 3000)) == []


def test_scene_cuts_are_the_first_frames_of_scenes(tmp_path):
    path = write_media(tmp_path / "a.mp4", count=150, picture=scene(2, 1.4, 9), audio=noise(6), rate=RATE)
    near(inspect(path).cuts, [2000, 3400], 1)


def test_black_and_still_pictures_are_doubtful(tmp_path):
    moving = scene(99)

    def picture(i, width, height):
        if i < 100:
            return moving(min(i, 25), width, height)  # still from 1 s to 4 s
        return np.zeros((height, width, 3), np.uint8) if i < 125 else moving(i, width, height)  # black until 5 s

    found = inspect(write_media(tmp_path / "a.mp4", count=175, picture=picture, audio=noise(7), rate=RATE))
    near(found.black, [(4000, 5000)], 1)
    near(found.still, [(1000, 4000)], 41)
    assert found.doubts((1000, 3000)) == ["still"] and found.doubts((3700, 5000)) == ["black"]
    assert found.doubts((5000, 7000)) == [] == found.doubts((0, 1900))
    assert found.refusal((1000, 5000)) is None


def test_silence_is_found_where_it_is(tmp_path):
    audio = noise(6)
    audio[:, 2 * RATE : 5 * RATE] *= 1e-3
    found = inspect(write_media(tmp_path / "a.wav", codec=None, audio=audio, rate=RATE, audio_codec="pcm_s16le"))
    near(found.silent, [(2000, 5000)], 2)
    assert found.video_end is None and found.end == 6000
    assert found.refusal((2100, 4900)) == ("silent", "nothing in it is louder than −60 dB of full scale")
    assert found.refusal((1900, 4900)) is None
    silent = inspect(write_media(tmp_path / "b.mp4", count=50, picture=scene(9), audio=0 * noise(2), rate=RATE))
    assert silent.refusal((0, 2000))[0] == "silent"


@pytest.mark.parametrize("rate", [8_000, 192_000])
def test_a_constant_offset_is_silent_and_a_rumble_is_not(tmp_path, rate):
    seconds = np.arange(8 * rate) / rate
    offset, rumble = np.where(seconds < 2, 0.5, 0.2), 0.01 * np.sin(60 * np.pi * seconds)
    audio = (offset + np.where(seconds < 4, 0, rumble)).astype(np.float32)[None]
    found = inspect(write_media(tmp_path / "a.wav", codec=None, audio=audio, rate=rate, audio_codec="pcm_s16le"))
    near(found.silent, [(0, 2000), (2060, 4000)], 15)
    assert found.refusal((0, 2000))[0] == found.refusal((2100, 4000))[0] == "silent"
    assert found.refusal((4000, 8000)) is None
    assert not found.clipped


def test_clipped_sound_is_doubtful(tmp_path):
    audio = np.clip(noise(4, 0.5) * np.repeat([1.0, 1.0, 4.0, 1.0], RATE), -1, 1).astype(np.float32)
    found = inspect(write_media(tmp_path / "a.wav", codec=None, audio=audio, rate=RATE, audio_codec="pcm_s16le"))
    ((second, share),) = found.clipped
    assert second == 2 and share == pytest.approx(0.5, abs=0.02)
    assert found.doubts((1000, 3000)) == ["clipped"] and found.doubts((0, 2000)) == []


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_onsets_are_found_in_a_long_sound_as_in_a_short_one(rate):
    """Also across the ends of the blocks that are looked at together."""
    times = [1.0, 5.5, 29.9, 30.5, 31.2, 59.0, 61.0, 64.0]
    sound = 1e-4 * np.random.default_rng(0).standard_normal(66 * rate).astype(np.float32)
    knock = knocking(rate)
    for i, time in enumerate(times):
        at = int(time * rate)
        sound[at : at + len(knock)] += (0.02 if i == 1 else 0.5) * knock
    finder = OnsetFinder(rate)
    for at in range(0, len(sound), 1024):
        finder.offer(at, sound[at : at + 1024])
    finder.finish()
    near([time for time, _ in finder.found], [1000 * time for time in times], 30)
    assert Inspection(onsets=finder.found).loud_onsets == [time for i, (time, _) in enumerate(finder.found) if i != 1]


def test_an_onset_behind_a_gap_has_its_own_time():
    finder = OnsetFinder(RATE)
    sound = np.concatenate([np.zeros(RATE), knocking(RATE), np.zeros(RATE)]).astype(np.float32)
    finder.offer(0, sound)
    finder.offer(100 * RATE, sound)
    finder.finish()
    near([time for time, _ in finder.found], [1000, 101_000], 40)


def test_damage_is_passed_over_and_told(tmp_path):
    path = write_media(
        tmp_path / "a.mkv", count=250, picture=scene(99), audio=noise(10), rate=RATE, options={"g": "25"}, codec="mpeg4"
    )
    whole = inspect(path)
    assert whole.damaged == [] and whole.end == pytest.approx(10_000, abs=70)
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 3000] = bytes(3000)
    path.write_bytes(raw)
    found = inspect(path)
    assert found.fault == "" and found.end == whole.end and found.damaged
    assert 500 < covered((3000, 8000), found.damaged) <= covered((0, 10_000), found.damaged)
    assert found.refusal((0, 2000)) is None and found.refusal((3500, 6500))[0] == "undecodable"


def test_whatever_is_no_media_is_a_fault(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    for name in ("text.mp4", "empty.mp4"):
        assert inspect(tmp_path / name).fault.startswith("not a media file")
    with pytest.raises(FileNotFoundError):
        inspect(tmp_path / "gone")


def test_a_library_that_chokes_is_a_fault(tmp_path, monkeypatch):
    path = write_media(tmp_path / "a.mp4", count=10, audio=tone(0.5, RATE), rate=RATE)
    monkeypatch.setattr(OnsetFinder, "finish", lambda self: 1 / 0)
    assert inspect(path) == Inspection(fault="ZeroDivisionError: division by zero")


def test_a_mute_video_has_no_end_of_sound(tmp_path):
    found = inspect(write_media(tmp_path / "a.mp4", count=25, picture=scene(9)))
    assert (found.video_end, found.audio_end) == (1000, None)


def test_a_scan_gives_every_frame_once(tmp_path):
    path = write_media(tmp_path / "a.mp4", count=30, audio=tone(1.2, 44_100))
    seen, heard = [], []
    scan(path, lambda time, end, frame: seen.append(time), lambda time, frame: heard.append(frame.samples))
    assert seen == sorted(set(seen)) and len(seen) == 30 and sum(heard) >= 1.2 * 44_100
