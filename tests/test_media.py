import math
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from media_files import decoded, numbered_frame, numbers, set_display_matrix, tone, write_media

from mmaudio_jax.data import audio, frames, media, muxing, streams
from mmaudio_jax.errors import UserError

NTSC = Fraction(30_000, 1001)
FILM = Fraction(24_000, 1001)


def expected_numbers(times: list[Fraction], end: Fraction, start: Fraction, fps: int, count: int) -> list[int]:
    """Which frame each tick takes, tick by tick over all frames."""
    numbers = []
    for k in range(count):
        tick = start + Fraction(k, fps)
        later = [i for i, time in enumerate(times) if time >= tick]
        assert later or tick < end
        numbers.append(later[0] if later else len(times) - 1)
    return numbers


def check_ticks(path: Path, start: Fraction, duration: float) -> None:
    clip, sync = media.read_frames(path, float(start), duration)
    assert clip.shape == (int(8 * duration), 384, 384, 3) and clip.dtype == np.uint8
    assert sync.shape == (int(25 * duration), 224, 224, 3) and sync.dtype == np.uint8
    times, end, images = decoded(path)
    chosen = expected_numbers(times, end, start, 8, len(clip))
    for image, number in zip(clip, chosen, strict=True):
        np.testing.assert_array_equal(image, frames.clip_frame(images[number]))
    chosen = expected_numbers(times, end, start, 25, len(sync))
    for image, number in zip(sync, chosen, strict=True):
        np.testing.assert_array_equal(image, frames.sync_frame(images[number]))


@pytest.mark.parametrize("fps", [12, 15, FILM, 24, 25, NTSC, 30, 50, 60])
@pytest.mark.parametrize("start", [Fraction(0), Fraction(12, 25)])
def test_ticks_at_constant_rates(tmp_path, fps, start):
    count = math.ceil(Fraction(3, 2) * fps)
    path = write_media(tmp_path / "a.mp4", fps=fps, count=count, options={"g": "10", "bf": "3"})
    with av.open(str(path)) as container:
        assert any(packet.pts != packet.dts for packet in container.demux(video=0))  # B-frames are there
    check_ticks(path, start, 1.0)
    clip, sync = media.read_frames(path, float(start), 1.0)
    times, end = [i / Fraction(fps) for i in range(count)], count / Fraction(fps)
    assert numbers(clip) == expected_numbers(times, end, start, 8, 8)
    assert numbers(sync) == expected_numbers(times, end, start, 25, 25)


@pytest.mark.parametrize("suffix", [".mkv", ".mov"])
@pytest.mark.parametrize("start", [Fraction(0), Fraction("0.6")])
def test_ticks_in_other_containers(tmp_path, suffix, start):
    path = write_media(tmp_path / f"a{suffix}", fps=24, count=48, options={"g": "12"})
    check_ticks(path, start, 0.96)


def test_ticks_at_a_variable_rate(tmp_path):
    rng = np.random.default_rng(0)
    steps = rng.choice([1500, 3000, 3003, 3600, 9000, 27000], size=60)
    times = [Fraction(int(t), 90_000) for t in np.concatenate([[0], np.cumsum(steps)])]
    path = write_media(tmp_path / "variable.mp4", times=times, options={"g": "8"})
    assert times[-1] > 4
    for start in (Fraction(0), Fraction(1, 2), Fraction("1.377")):
        check_ticks(path, start, 2.0)


@pytest.mark.parametrize(("suffix", "begin"), [(".mp4", "0.3"), (".mov", "0.3"), (".mkv", "0.3"), (".ts", "0")])
def test_ticks_of_a_video_that_begins_late(tmp_path, suffix, begin):
    """Its first frame serves the ticks before it too; the clock of an MPEG stream begins with it."""
    late = [Fraction("0.3") + Fraction(i, 25) for i in range(50)]
    path = write_media(tmp_path / f"a{suffix}", times=late, options={"g": "10", "bf": "3"})
    times = [Fraction(begin) + Fraction(i, 25) for i in range(50)]
    for start in (Fraction(0), Fraction("0.92")):
        clip, sync = media.read_frames(path, float(start), 0.96)
        assert numbers(clip) == expected_numbers(times, times[-1], start, 8, 7)
        assert numbers(sync) == expected_numbers(times, times[-1], start, 25, 24)


def test_the_last_frame_serves_to_its_end_and_no_further(tmp_path):
    path = write_media(tmp_path / "a.mp4", fps=10, count=10)  # the last frame is shown from 0.9 s to 1.0 s
    clip, sync = media.read_frames(path, 0, 1.0)
    assert numbers(clip) == [0, 2, 3, 4, 5, 7, 8, 9]
    assert numbers(sync)[-3:] == [9, 9, 9]
    with pytest.raises(UserError, match=r"a\.mp4: too short: from 0 s on, the video has 1\.000 s, and 1\.2"):
        media.read_frames(path, 0, 1.2)
    with pytest.raises(UserError, match=r"from 0\.5 s on, the video has 0\.500 s, and 1\.000 s are needed"):
        media.read_frames(path, 0.5, 1.0)
    with pytest.raises(UserError, match=r"from 7 s on, the video has 0\.000 s"):
        media.read_frames(path, 7, 1.0)


def test_a_late_interval_of_a_long_video_decodes_only_what_it_needs(tmp_path):
    path = write_media(tmp_path / "long.mp4", count=1000, size=(64, 64), options={"g": "50"})
    _, sync = media.read_frames(path, 36.04, 0.64)
    assert numbers(sync) == list(range(901, 917))
    with av.open(str(path)) as container:
        first = next(media.video_frames(container, container.streams.video[0], path, Fraction(36)))
    assert 34 <= first.time <= 36  # a key frame shortly before


def test_a_poor_index_costs_time_not_frames(tmp_path):
    path = write_media(tmp_path / "a.ts", count=60, options={"g": "25"})  # seeks in MPEG-TS may land too late
    for start in (0.0, 0.52, 1.04, 1.4):
        _, sync = media.read_frames(path, start, 0.64)
        assert numbers(sync) == list(range(round(25 * start), round(25 * start) + 16))


@pytest.mark.parametrize(
    ("size", "pix_fmt", "codec", "options"),
    [
        ((90, 160), "yuv420p", "libx264", {}),  # vertical
        ((161, 121), "yuv444p", "libx264", {}),  # odd
        ((160, 120), "yuv420p10le", "libx264", {}),  # 10 bit
        ((160, 120), "yuv420p10le", "libx265", {"x265-params": "log-level=error"}),
        ((160, 120), "yuvj420p", "mjpeg", {"qmin": "2", "qmax": "4"}),
        ((400, 40), "yuv420p", "libx264", {}),  # wide
    ],
)
def test_shapes_and_pixel_formats(tmp_path, size, pix_fmt, codec, options):
    path = write_media(tmp_path / "a.mp4", count=25, size=size, pix_fmt=pix_fmt, codec=codec, options=options)
    clip, sync = media.read_frames(path, 0, 1.0)
    assert numbers(clip) == [0, 4, 7, 10, 13, 16, 19, 22]
    if size[0] <= size[1]:  # the whole width is in the centre crop
        assert numbers(sync) == list(range(25))
    assert np.ptp(clip[-1]) > 180  # full contrast
    original = frames.clip_frame(numbered_frame(22, *size))
    assert np.abs(clip[-1].astype(int) - original).mean() < 8


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ([[0, 1], [-1, 0]], lambda image: np.rot90(image, -1)),  # a phone held upright
        ([[-1, 0], [0, -1]], lambda image: np.rot90(image, 2)),
        ([[0, -1], [1, 0]], lambda image: np.rot90(image, 1)),
        ([[-1, 0], [0, 1]], lambda image: image[:, ::-1]),  # mirrored
        ([[1, 0], [0, -1]], lambda image: image[::-1]),
    ],
)
def test_rotation_is_applied(tmp_path, matrix, turned):
    path = write_media(tmp_path / "a.mp4", count=20)
    upright, _ = media.read_frames(path, 0, 0.64)
    _, _, images = decoded(path)
    set_display_matrix(path, matrix)
    clip, sync = media.read_frames(path, 0, 0.64)
    np.testing.assert_array_equal(clip[2], frames.clip_frame(turned(images[7])))
    np.testing.assert_array_equal(sync[7], frames.sync_frame(turned(images[7])))
    assert not np.array_equal(clip, upright)


@pytest.fixture(scope="module")
def with_sound(tmp_path_factory) -> Path:
    """2 s, 25 fps, stereo at 44.1 kHz, the sound as stream 0."""
    path = tmp_path_factory.mktemp("sound") / "a.mp4"
    return write_media(path, count=50, audio=tone(2.0, 44_100, 2), audio_first=True)


def test_probe(tmp_path, with_sound):
    info = media.probe(with_sound)
    assert info.has_video and info.has_audio and not info.is_image
    assert (info.width, info.height, info.sample_rate) == (128, 128, 44_100)
    assert info.duration == info.video_duration == 2.0
    assert info.audio_duration == 2.0
    silent_film = media.probe(write_media(tmp_path / "v.mkv", fps=10, count=7))
    assert silent_film.has_video and not silent_film.has_audio
    assert silent_film.duration == pytest.approx(0.7)  # Matroska does not say: counted from the packets
    assert silent_film.audio_duration == 0
    track = media.probe(
        write_media(tmp_path / "s.wav", codec=None, audio=tone(1.5, 16_000), rate=16_000, audio_codec="pcm_s16le")
    )
    assert not track.has_video and track.has_audio
    assert track.duration == 1.5


def test_audio_as_stream_0_is_found_by_kind(with_sound):
    _, sync = media.read_frames(with_sound, 0, 2.0)
    assert numbers(sync) == list(range(50))
    assert media.read_audio(with_sound, 0, 2.0, 16_000, 32_000).shape == (32_000,)


def test_training_audio_is_mono_peak_resampled_cut(with_sound):
    with av.open(str(with_sound)) as container:
        whole = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)[:, : 2 * 44_100]
    mono = whole.mean(axis=0)
    expected = audio.resample(mono * (0.95 / np.abs(mono).max()), 44_100, 16_000)[:24_000]
    result = media.read_audio(with_sound, 0, 2.0, 16_000, 24_000)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("suffix", "codec", "rate"),
    [(".mp4", "aac", 44_100), (".mkv", "aac", 48_000), (".mkv", "libmp3lame", 44_100), (".mov", "pcm_s16le", 44_100),
     (".webm", "libopus", 48_000), (".flac", "flac", 44_100), (".mp3", "libmp3lame", 44_100)],
)  # fmt: skip
def test_an_interval_begins_at_its_sample(tmp_path, suffix, codec, rate):
    """A click at 2.5 s is found at 0.5 s of [2, 3), and the sound around it equals that of the whole file."""
    x = np.zeros((1, 4 * rate), np.float32)
    x[0, 5 * rate // 2] = 1.0
    video = None if suffix in (".flac", ".mp3") else ("libvpx-vp9" if suffix == ".webm" else "libx264")
    path = write_media(
        tmp_path / f"click{suffix}", count=100, codec=video, size=(64, 48), audio=x, rate=rate, audio_codec=codec
    )
    whole, _ = media._mono(path, Fraction(0), Fraction(3))
    part, _ = media._mono(path, Fraction(2), Fraction(1))
    assert part.shape == (rate,)
    assert abs(int(np.abs(part).argmax()) - rate // 2) <= 2
    np.testing.assert_allclose(part, whole[2 * rate :], atol=1e-4)


def test_sound_that_begins_late_stays_in_place(tmp_path):
    path = write_media(tmp_path / "a.mp4", count=50, audio=tone(1.5, 44_100), audio_start=Fraction(1, 2))
    x, rate = media._mono(path, Fraction(0), Fraction(2))
    assert rate == 44_100 and abs(len(x) - 2 * rate) <= rate / 1000  # an .mp4 states the delay in milliseconds
    assert np.abs(x[: int(0.45 * rate)]).max() < 1e-3
    assert np.abs(x[int(0.55 * rate) :]).max() > 0.4


def test_surround_sound_is_the_mean_of_its_channels(tmp_path):
    x = np.zeros((6, 16_000), np.float32)
    x[0], x[5] = 0.6, -0.3
    path = write_media(tmp_path / "a.mkv", count=25, audio=x, rate=16_000, audio_codec="flac")
    mono, _ = media._mono(path, Fraction(0), Fraction(1))
    np.testing.assert_allclose(mono, 0.05, atol=1e-3)


def test_a_file_of_just_the_duration_ends_in_silence_up_to_whole_latents(with_sound):
    audio = media.read_audio(with_sound, 0, 2.0, 16_000, 32_256)
    np.testing.assert_array_equal(audio[:32_000], media.read_audio(with_sound, 0, 2.0, 16_000, 32_000))
    assert audio.shape == (32_256,) and not audio[32_000:].any()


def test_sound_that_is_too_short_says_how_much_there_is(with_sound):
    with pytest.raises(UserError, match=r"a\.mp4: too short: from 0 s on, the sound has 2\.000 s, and 2\.500 s are"):
        media.read_audio(with_sound, 0, 2.5, 16_000, 40_000)
    with pytest.raises(UserError, match=r"from 1\.5 s on, the sound has 0\.500 s, and 1\.000 s are needed"):
        media.read_audio(with_sound, 1.5, 1.0, 44_100, 44_100)
    with pytest.raises(UserError, match=r"from 9 s on, the sound has 0\.000 s"):
        media.read_audio(with_sound, 9, 1.0, 44_100, 44_100)
    assert len(media.read_audio(with_sound, 1.0, 1.0, 44_100, 44_100)) == 44_100  # all there is


def test_bad_files_get_one_sentence(tmp_path, with_sound):
    def refuses(path, match, audio_only=False):
        with pytest.raises(UserError, match=match):
            media.read_audio(path, 0, 1.0, 16_000, 16_000)
        if not audio_only:
            with pytest.raises(UserError, match=match):
                media.read_frames(path, 0, 1.0)
            with pytest.raises(UserError, match=match):
                media.probe(path)

    refuses(tmp_path / "none.mp4", r"none\.mp4: no such file")
    text = tmp_path / "a.txt"
    text.write_text("hello\n" * 500)
    refuses(text, r"a\.txt: a text file, not a media file")
    for name, data in (
        ("empty.mp4", b""),
        ("text.mp4", b"no film at all"),
        ("half.mp4", with_sound.read_bytes()[:9000]),
    ):
        (tmp_path / name).write_bytes(data)
        refuses(tmp_path / name, rf"{name}: not a media file, or only a part of one")
    refuses(tmp_path, "not a media file")

    refuses(write_media(tmp_path / "mute.mp4", count=30), r"mute\.mp4: no audio track", audio_only=True)
    silence = np.zeros((1, 44_100 * 2), np.float32)
    refuses(write_media(tmp_path / "silent.mp4", count=50, audio=silence), r"silent\.mp4: .*silent", audio_only=True)
    blind = write_media(tmp_path / "blind.m4a", codec=None, audio=tone(2.0, 44_100))
    with pytest.raises(UserError, match=r"blind\.m4a: no video stream"):
        media.read_frames(blind, 0, 1.0)


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_a_file_corrupt_in_the_middle_is_refused(tmp_path, kind):
    path = write_media(tmp_path / "a.mp4", count=100, audio=tone(4.0, 44_100))
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(getattr(container.streams, kind)[0]) if p.size]
        broken = [(p.pos, p.size) for p in packets if 2.0 < p.pts * p.time_base < 2.5]
    for position, size in broken:
        data[position : position + size] = np.random.default_rng(0).bytes(size)
    path.write_bytes(data)
    read = {
        "video": lambda start: media.read_frames(path, start, 1.0),
        "audio": lambda start: media.read_audio(path, start, 1.0, 16_000, 16_000),
    }[kind]
    read(0)  # what is before the damage can be used
    with pytest.raises(UserError, match=r"a\.mp4: .*corrupt (at|after) [12]\.\d+ s"):
        read(1.8)


def joined(folder: Path, *parts: tuple[int, int]) -> Path:
    """One MPEG stream whose sound is second by second of these (channels, sample rate)."""
    data = b""
    for second, (channels, rate) in enumerate(parts):
        part = folder / f"{second}.ts"
        sound = dict(audio=tone(1.0, rate, channels), rate=rate, audio_codec="mp2", audio_start=Fraction(second))
        data += write_media(part, codec=None, **sound).read_bytes()
    path = folder / "a.ts"
    path.write_bytes(data)
    return path


def test_the_number_of_channels_may_change_on_the_way(tmp_path):
    path = joined(tmp_path, (2, 44_100), (1, 44_100))
    x, rate = media._mono(path, Fraction(0), Fraction(19, 10))
    assert len(x) == 1.9 * rate
    assert 0.36 < np.abs(x[: int(0.9 * rate)]).max() < 0.39  # the mean of 0.5 and 0.25
    assert 0.48 < np.abs(x[int(1.2 * rate) :]).max() < 0.52


def test_a_sample_rate_that_changes_on_the_way_is_refused(tmp_path):
    path = joined(tmp_path, (1, 44_100), (1, 48_000))
    assert len(media._mono(path, Fraction(0), Fraction(9, 10))[0]) == 0.9 * 44_100
    with pytest.raises(UserError, match=r"a\.ts: the sound changes from 44100 Hz to 48000 Hz at 1\.\d\d s; convert"):
        media.read_audio(path, 0, 1.9, 16_000, 30_400)


def test_whatever_the_decoder_cannot_do_is_one_sentence(tmp_path, with_sound, monkeypatch):
    def fail(*_, **__):
        raise av.error.InvalidDataError(1, "Invalid data", "a.mp4")

    class Resampler(SimpleNamespace):
        resample = fail

    monkeypatch.setattr(media.av, "AudioResampler", Resampler)
    with pytest.raises(UserError, match=r"a\.mp4: the sound cannot be used at 0\.\d\d s \(Invalid data\)"):
        media.read_audio(with_sound, 0, 1.0, 16_000, 16_000)
    Resampler.resample = lambda *_: []  # a decoder that gives nothing
    with pytest.raises(UserError, match=r"a\.mp4: the sound is silent|a\.mp4: too short"):
        media.read_audio(with_sound, 0, 1.0, 16_000, 16_000)

    frame = SimpleNamespace(format=SimpleNamespace(name="bayer"), to_ndarray=fail)
    with pytest.raises(UserError, match=r"a\.mp4: pictures of the kind bayer cannot be used \(Invalid data\)"):
        media._rgb(frame, "a.mp4")

    with av.open(str(with_sound)) as container:
        video = container.streams.video[0]
        broken = SimpleNamespace(seek=fail, demux=fail, format=container.format, streams=container.streams)
        late = iter([(Fraction(2), None)])
        monkeypatch.setattr(media, "_decode", lambda *_: late)
        with pytest.raises(UserError, match=r"a\.mp4: the video cannot be read from its beginning again"):
            next(media.video_frames(broken, video, "a.mp4", Fraction(1)))
        unstated = SimpleNamespace(duration=None, time_base=Fraction(1, 90_000), type="video")
        with pytest.raises(UserError, match=r"a\.mp4: the video is corrupt \(Invalid data\)"):
            streams.end_of(broken, unstated, "a.mp4")


def test_a_file_cut_off_in_the_middle_is_refused(tmp_path):
    path = write_media(
        tmp_path / "a.mp4", count=100, audio=tone(4.0, 44_100), container_options={"movflags": "faststart"}
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])  # the index, in front, is whole
    assert media.probe(path).duration == 4.0
    media.read_frames(path, 0, 1.0)
    with pytest.raises(UserError, match=r"a\.mp4: .*(corrupt|too short)"):
        media.read_frames(path, 0, 4.0)
    with pytest.raises(UserError, match=r"a\.mp4: .*(corrupt|too short)"):
        media.read_audio(path, 0, 4.0, 16_000, 64_000)


def test_odd_names_and_tags_do_no_harm(tmp_path):
    path = write_media(tmp_path / "a 1:2 – é.mp4", count=5, title="TITLE")
    path.write_bytes(path.read_bytes().replace(b"TITLE", b"\xff\xfe\x80\xe9!"))  # not UTF-8
    assert media.probe(path).duration == 0.2
    muxing.write_video(tmp_path / "b 1:2.mp4", path, tone(0.2, 16_000)[0], 16_000)
    assert media.probe(tmp_path / "b 1:2.mp4").has_audio


def save_image(path: Path, image: np.ndarray, codec: str, pix_fmt: str) -> Path:
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as output:
        stream = output.add_stream(codec, rate=1)
        stream.height, stream.width, stream.pix_fmt = *image.shape[:2], pix_fmt
        output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))
    return path


def test_a_picture_is_one_clip_frame(tmp_path):
    image = numbered_frame(5, 200, 100)
    png = save_image(tmp_path / "a.png", image, "png", "rgb24")
    np.testing.assert_array_equal(media.read_image(png), frames.clip_frame(image))
    jpg = save_image(tmp_path / "a.jpg", image, "mjpeg", "yuvj420p")
    assert np.abs(media.read_image(jpg).astype(int) - frames.clip_frame(image)).mean() < 8
    assert media.probe(png).is_image and media.probe(jpg).is_image
    with pytest.raises(UserError, match="no such file"):
        media.read_image(tmp_path / "b.png")


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_both_streams_are_measured_whether_or_not_the_header_tells(tmp_path, suffix):
    info = media.probe(write_media(tmp_path / f"a{suffix}", count=30, audio=tone(1.2, 44_100)))
    assert info.video_duration == pytest.approx(1.2, abs=0.05) and info.audio_duration == pytest.approx(1.2, abs=0.1)
