"""Videos with a new sound."""

import itertools
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import decoded, frame_number, numbered_frame, numbers, set_display_matrix, tone, write_media

from mmaudio_jax.data import media, muxing, streams
from mmaudio_jax.errors import UserError

NTSC, FILM = Fraction(30_000, 1001), Fraction(24_000, 1001)
RATE = 16_000


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.2, samples).astype(np.float32)


def shown(path: Path) -> list[tuple[Fraction, int]]:
    """(time, number) of the frames that a player shows."""
    times, _, images = decoded(path)
    with streams.open_container(path) as container:
        zero = round(streams.zero(container) * 90_000) / Fraction(90_000)
    return [(time - zero, number) for time, number in zip(times, numbers(images), strict=True)]


def packets(path: Path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [(p.pts * Fraction(p.time_base), bytes(p)) for p in container.demux(stream) if p.size]


def length(path: Path, kind: str) -> Fraction:
    """Seconds that a track lasts, as its edit list says."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return (stream.start_time + stream.duration) * Fraction(stream.time_base)


def heard(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert stream.start_time == 0
        return np.concatenate([f.to_ndarray() for f in container.decode(stream)], axis=1)[0, : stream.duration]


def seen(source: Path, start: Fraction, duration: Fraction, rounding=Fraction(0)) -> list[tuple[Fraction, int]]:
    """(time, number) of what a player shows of an interval: a frame stays until the next one comes."""
    frames = [(max(time - start, Fraction(0)), time - start, number) for time, number in shown(source)]
    later = [time for _, time, _ in frames[1:]] + [frames[-1][1] + 1]
    return [
        (begin, number)
        for (begin, time, number), until in zip(frames, later, strict=True)
        if until > rounding and time < duration
    ]


@pytest.mark.parametrize("fps", [12, 15, FILM, 24, 25, NTSC, 30, 50, 60])
def test_a_copy_has_the_source_s_packets_and_times(tmp_path, fps):
    count = round(2 * fps)
    source = write_media(tmp_path / "a.mp4", fps=fps, count=count, options={"g": "10", "bf": "3"})
    samples = int(count / Fraction(fps) * RATE)
    x = noise(samples)
    assert muxing.write_video(tmp_path / "out.mp4", source, x, RATE) == ""
    assert packets(tmp_path / "out.mp4") == packets(source)
    assert shown(tmp_path / "out.mp4") == shown(source)
    assert length(tmp_path / "out.mp4", "audio") == length(tmp_path / "out.mp4", "video") == Fraction(samples, RATE)
    sound = heard(tmp_path / "out.mp4")
    assert len(sound) == samples and np.corrcoef(sound, x)[0, 1] > 0.7  # in its place: noise has no neighbours alike
    assert not [p for p in tmp_path.iterdir() if ".tmp" in p.name]


SOURCES = {
    "mp4": ("mp4", "libx264", {"g": "12", "bf": "3"}),
    "open GOPs": ("mp4", "libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1"}),
    "mkv": ("mkv", "libx264", {"g": "12", "bf": "3"}),
    "mov": ("mov", "libx265", {"x265-params": "log-level=error:keyint=12"}),
    "ts": ("ts", "libx264", {"g": "12", "bf": "3"}),
    "mpg": ("mpg", "mpeg2video", {"g": "12", "bf": "2"}),
    "avi": ("avi", "mpeg4", {"g": "12"}),
    "webm": ("webm", "libvpx-vp9", {"g": "12"}),
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("variable", [False, True])
def test_a_part_begins_and_ends_where_it_should(tmp_path, kind, variable):
    """Between key frames, between frames, to the end: the part shows what the source shows, at the same times."""
    suffix, codec, options = SOURCES[kind]
    if variable and suffix in ("mpg", "avi"):
        pytest.skip("frames of one duration only")
    gaps = np.random.default_rng(0).integers(900, 9000, 60) if variable else np.full(60, 90_000 // 24)
    times = [Fraction(int(time), 90_000) for time in np.cumsum([0, *gaps])]
    kwargs = dict(times=times) if variable else dict(fps=24, count=60)
    source = write_media(tmp_path / f"a.{suffix}", codec=codec, options=options, **kwargs)
    data = {bytes(data) for _, data in packets(source)}
    for start, duration in itertools.product([Fraction(0), Fraction(12, 24), Fraction("0.62")], ["0.3", "1.37"]):
        duration = Fraction(duration)
        samples = round(duration * RATE)
        out = tmp_path / "out.mp4"
        assert muxing.write_video(out, source, noise(samples), RATE, float(start), float(duration)) == ""
        expected, found = seen(source, start, duration, muxing.ROUNDING), shown(out)
        assert [number for _, number in found] == [number for _, number in expected]
        for (time, _), (was, _) in zip(found, expected, strict=True):
            assert abs(time - was) <= Fraction(1, 1000)  # the tick of Matroska
        assert length(out, "audio") == duration and len(heard(out)) == samples
        assert abs(length(out, "video") - duration) < Fraction(1, RATE)
        if suffix != "ts":  # whose packets are of H.264's other form
            assert {data for _, data in packets(out)} <= data


def test_a_part_of_a_part(tmp_path):
    source = write_media(tmp_path / "a.mp4", fps=24, count=72, options={"g": "12", "bf": "3"})
    muxing.write_video(tmp_path / "b.mp4", source, noise(2 * RATE), RATE, 0.7)
    muxing.write_video(tmp_path / "c.mp4", tmp_path / "b.mp4", noise(RATE), RATE, 0.3)
    assert [number for _, number in shown(tmp_path / "c.mp4")] == [number for _, number in seen(source, 1, 1)]


def test_times_between_samples_and_sound_of_another_length(tmp_path):
    source = write_media(tmp_path / "a.mp4", count=50)
    for samples, rate in ((353_280 // 8, 44_100), (16_001, 16_000)):
        muxing.write_video(tmp_path / "out.mp4", source, noise(samples), rate)
        assert length(tmp_path / "out.mp4", "audio") == Fraction(samples, rate)
        assert len(heard(tmp_path / "out.mp4")) == samples
    muxing.write_video(tmp_path / "out.mp4", source, noise(RATE), RATE, duration=1.5)  # silence follows
    assert length(tmp_path / "out.mp4", "audio") == Fraction(3, 2)
    assert np.abs(heard(tmp_path / "out.mp4")[-RATE // 3 :]).max() < 1e-3
    muxing.write_video(tmp_path / "out.mp4", source, noise(2 * RATE), RATE, duration=0.5)
    assert len(heard(tmp_path / "out.mp4")) == RATE // 2


@pytest.mark.parametrize("matrix", [[[0, 1], [-1, 0]], [[-1, 0], [0, -1]], [[-1, 0], [0, 1]]])
@pytest.mark.parametrize("encode", [False, True])
def test_a_turned_video_stays_turned(tmp_path, matrix, encode):
    source = write_media(tmp_path / "a.mp4", count=25, size=(160, 120))
    set_display_matrix(source, matrix)
    muxing.write_video(tmp_path / "out.mp4", source, noise(RATE), RATE, encode=encode)
    original, _ = media.read_frames(source, 0, 1.0)
    result, _ = media.read_frames(tmp_path / "out.mp4", 0, 1.0)
    if encode:
        assert np.abs(result.astype(int) - original).mean() < 2
    else:
        np.testing.assert_array_equal(result, original)


def test_apple_s_players_know_the_name_of_hevc(tmp_path):
    source = write_media(tmp_path / "a.mkv", codec="libx265", options={"x265-params": "log-level=error"})
    muxing.write_video(tmp_path / "out.mp4", source, noise(RATE), RATE)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.codec_tag == "hvc1"


def test_av1_is_copied_though_its_decoder_is_no_encoder(tmp_path):
    options = {"svtav1-params": "preset=12", "crf": "40"}
    with av.logging.Capture():
        source = write_media(tmp_path / "a.mkv", count=10, codec="libsvtav1", options=options)
    assert muxing.write_video(tmp_path / "out.mp4", source, noise(RATE * 2 // 5), RATE) == ""
    assert packets(tmp_path / "out.mp4") == packets(source)


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"), [(".webm", "libvpx", "yuv420p"), (".mov", "prores_ks", "yuv422p10le")]
)
def test_a_codec_that_mp4_cannot_hold_is_encoded_and_says_so(tmp_path, suffix, codec, pix_fmt):
    source = write_media(tmp_path / f"a{suffix}", count=40, codec=codec, options={"crf": "10"}, pix_fmt=pix_fmt)
    name = {"libvpx": "vp8", "prores_ks": "prores"}[codec]
    remark = muxing.write_video(tmp_path / "out.mp4", source, noise(RATE), RATE, start=0.42)
    assert remark == f"encoded as H.264: mp4 cannot hold {name}"
    assert shown(tmp_path / "out.mp4") == [
        (round(time * 90_000) / Fraction(90_000), number) for time, number in seen(source, Fraction("0.42"), 1)
    ]
    assert length(tmp_path / "out.mp4", "audio") == length(tmp_path / "out.mp4", "video") == 1


def test_a_variable_rate_survives_encoding(tmp_path):
    times = [Fraction(int(time), 90_000) for time in np.cumsum(np.random.default_rng(0).integers(900, 9000, 30))]
    source = write_media(tmp_path / "a.mp4", times=times, options={"bf": "3"})
    assert muxing.write_video(tmp_path / "out.mp4", source, noise(RATE), RATE, 0.5, encode=True).endswith("as asked")
    assert shown(tmp_path / "out.mp4") == seen(source, Fraction(1, 2), 1)
    assert length(tmp_path / "out.mp4", "video") == 1


def test_odd_sizes_lose_nothing(tmp_path):
    source = write_media(tmp_path / "a.mp4", size=(161, 121), pix_fmt="yuv444p")
    assert muxing.write_video(tmp_path / "out.mp4", source, noise(RATE), RATE) == ""
    assert decoded(tmp_path / "out.mp4")[2][7].shape == (121, 161, 3)
    muxing.write_video(tmp_path / "out.mp4", source, noise(RATE), RATE, encode=True)
    before, after = (decoded(path)[2][7].astype(int) for path in (source, tmp_path / "out.mp4"))
    assert after.shape == (122, 162, 3)
    assert np.abs(after[:121, :161] - before).mean() < 3
    assert np.abs(after[121, :161] - before[120]).mean() < 5


def test_pixels_and_colours_keep_their_meaning_when_encoded(tmp_path):
    source = tmp_path / "a.mov"
    with av.open(str(source), "w") as output:
        stream = output.add_stream("prores_ks", rate=25, width=160, height=120, pix_fmt="yuv422p10le")
        context = stream.codec_context
        context.sample_aspect_ratio = Fraction(4, 3)
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        for i in range(5):
            frame = av.VideoFrame.from_ndarray(numbered_frame(i, 160, 120), format="rgb24")
            frame = frame.reformat(format="yuv422p10le", dst_colorspace="ITU709")
            frame.pts, frame.color_primaries, frame.color_trc = i, 1, 1
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    muxing.write_video(tmp_path / "out.mp4", source, noise(RATE // 5), RATE)
    with av.open(str(tmp_path / "out.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert context.sample_aspect_ratio == Fraction(4, 3)
        assert context.colorspace == context.color_primaries == context.color_trc == 1


@pytest.mark.parametrize("size", [(200, 101), (4000, 1000)])
def test_a_still_picture_is_shown_all_the_time(tmp_path, size):
    image = numbered_frame(37, *size)
    with av.open(str(tmp_path / "a.png"), "w", format="image2", options={"update": "1"}) as output:
        stream = output.add_stream("png", rate=1, width=size[0], height=size[1], pix_fmt="rgb24")
        output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))
    remark = muxing.write_video(tmp_path / "out.mp4", tmp_path / "a.png", noise(RATE * 11 // 10), RATE)
    assert remark == "encoded as H.264: the source is a still picture"
    assert {number for _, number in shown(tmp_path / "out.mp4")} == {37}
    assert length(tmp_path / "out.mp4", "audio") == length(tmp_path / "out.mp4", "video") == Fraction(11, 10)
    picture = decoded(tmp_path / "out.mp4")[2][0]
    assert picture.shape == ((102, 200, 3) if size[0] == 200 else (480, 1920, 3))
    assert frame_number(picture) == 37


def test_title_and_comment_are_kept(tmp_path):
    source = write_media(tmp_path / "a.mp4")
    tags = {"title": "Regen – 雨", "comment": json.dumps({"prompt": "雨 🌧 " + "x" * 900}, ensure_ascii=False)}
    muxing.write_video(tmp_path / "out.mp4", source, noise(RATE), RATE, tags=tags)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert {name: container.metadata[name] for name in tags} == tags
    with pytest.raises(ValueError, match="files keep title and comment, not prompt"):
        muxing.write_video(tmp_path / "out.mp4", source, noise(RATE), RATE, tags={"prompt": "rain"})


def test_a_video_that_cannot_be_written_leaves_nothing(tmp_path, tmp_path_factory):
    with_sound = write_media(tmp_path_factory.mktemp("sound") / "a.mp4", count=50, audio=tone(2.0, 44_100, 2))
    x = tone(1.0, 16_000)[0]
    with pytest.raises(UserError, match=r"out\.avi: a video is written as \.mp4"):
        muxing.write_video(tmp_path / "out.avi", with_sound, x, 16_000)
    with pytest.raises(UserError, match=r"none\.mp4: no such file"):
        muxing.write_video(tmp_path / "out.mp4", tmp_path / "none.mp4", x, 16_000)
    for encode in (False, True):
        with pytest.raises(UserError, match=r"a\.mp4: the video has no frame from 2\.5 s on"):
            muxing.write_video(tmp_path / "out.mp4", with_sound, x, 16_000, 2.5, encode=encode)
    (tmp_path / "half.mp4").write_bytes(with_sound.read_bytes()[:9000])
    with pytest.raises(UserError, match=r"half\.mp4: not a media file"):
        muxing.write_video(tmp_path / "out.mp4", tmp_path / "half.mp4", x, 16_000)
    assert [p.name for p in tmp_path.iterdir()] == ["half.mp4"]


def test_nothing_is_seen_of_a_stream_that_is_cut_before_a_key_frame(tmp_path):
    source = write_media(tmp_path / "a.mp4", count=50, options={"g": "25", "bf": "0"})
    cut = tmp_path / "cut.mp4"
    with av.open(str(source)) as whole, av.open(str(cut), "w") as output:
        target = output.add_stream_from_template(whole.streams.video[0])
        for packet in itertools.islice(whole.demux(whole.streams.video[0]), 5, None):  # the next key frame is at 1 s
            if packet.size:
                packet.stream = target
                output.mux(packet)
    with pytest.raises(UserError, match="has no frame from 0 s on"):
        muxing.write_video(tmp_path / "out.mp4", cut, noise(RATE // 2), RATE)
    assert not (tmp_path / "out.mp4").exists()
