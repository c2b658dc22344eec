import sys

import jax
import numpy as np
import pytest
from media_files import tone, write_media
from random_networks import save_random_weights

from mmaudio_jax import features
from mmaudio_jax.data import mel
from mmaudio_jax.data.captions import tokenize
from mmaudio_jax.data.clips import Clip
from mmaudio_jax.data.media import read_audio, read_frames
from mmaudio_jax.data.records import open_features
from mmaudio_jax.data.table import read_table, write_table
from mmaudio_jax.errors import UserError
from mmaudio_jax.features import Encoders

DURATION = 1.0
SAMPLES = 16_384  # one second is 31.25 latent frames, rounded up to 32


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "weights"
    save_random_weights(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def encoders(weights):
    return Encoders(weights)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three videos that can be used and four that cannot."""
    root = tmp_path_factory.mktemp("videos")
    for i in range(3):
        write_media(root / f"{i}.mp4", count=32, audio=tone(1.2, 44_100, channels=2, frequency=200.0 * (i + 1)))
    write_media(root / "mute.mp4", count=32)
    write_media(root / "silent.mp4", count=32, audio=0 * tone(1.2, 44_100))
    write_media(root / "short.mp4", count=20, audio=tone(1.2, 44_100))
    (root / "text.mp4").write_text("no video")
    return root


def row(id, video, **changes):
    return {"id": id, "video_path": video, "start_time": "0", "end_time": "1.1", "caption": f"sound {id}"} | changes


@pytest.fixture
def extract(tmp_path, weights, videos, monkeypatch, capsys):
    """Runs the command on a table with these rows; returns (exit code, what it printed on stderr)."""

    def run(*rows, out="set", weights=weights, **options):
        write_table(tmp_path / "clips.tsv", rows)
        options = {"duration": DURATION, "batch_size": 4} | options
        places = {"clips": tmp_path / "clips.tsv", "root": videos, "weights": weights, "out": tmp_path / out}
        flags = [f"--{name}={value}" for name, value in (places | options).items()]
        monkeypatch.setattr(sys, "argv", ["features", *flags])
        with pytest.raises(SystemExit) as end:
            features.main()
        return end.value.code, capsys.readouterr().err

    return run


def test_clips_become_a_feature_set(extract, tmp_path, encoders, videos):
    rows = [row("b", "0.mp4", original_video="long.mp4"), row("a", "1.mp4"), row("c", "2.mp4", start_time="0.1")]
    code, _ = extract(*rows)
    assert code == 0 and not (tmp_path / "set/failed.tsv").exists()
    found = open_features(tmp_path / "set")
    assert found.ids == ["b", "a", "c"] and found.sources == ["long.mp4", "1.mp4", "2.mp4"]
    assert found.captions == ["sound b", "sound a", "sound c"]
    assert found.metadata.mode == "16k" and found.metadata.duration == 1.0
    assert found.metadata.encoders == encoders.fingerprints("16k")
    assert found.metadata.shapes == encoders.shapes("16k", 1.0)

    # each example is what the networks say of that clip alone, here called without the batches and chunks
    clip, synchformer = encoders.clip.weights.module(), encoders.synchformer.weights.module()
    vae = encoders.vae("16k").weights.module()
    clip_frames, sync_frames = read_frames(videos / "2.mp4", 0.1, 1.0)
    audio = read_audio(videos / "2.mp4", 0.1, 1.0, 16_000, SAMPLES)
    segments = np.stack([sync_frames[:16], sync_frames[8:24]])[None].astype(np.float32)
    mean, std = jax.jit(vae.encode)(mel.log_mel(audio[None], mel.PRESETS["16k"]))
    expected = {
        "mean": mean[0],
        "std": std[0],
        "clip_f": jax.jit(clip.encode_image)(clip_frames.astype(np.float32) / 255),
        "sync_f": jax.jit(synchformer)((segments / 255 - 0.5) / 0.5).reshape(16, -1),
        "text_f": jax.jit(clip.encode_text)(tokenize(["sound c"]))[0],
    }
    for name, array in expected.items():
        np.testing.assert_allclose(found[2][name], array, rtol=2e-4, atol=2e-5, err_msg=name)
    assert abs(found[0]["mean"] - found[1]["mean"]).mean() > 0.01  # other sounds, other latents


def test_what_cannot_be_used_is_listed_and_the_rest_is_written(extract, tmp_path):
    rows = [
        row("good", "0.mp4"),
        row("missing", "nowhere.mp4", title_folder="Storm"),
        row("mute", "mute.mp4"),
        row("silent", "silent.mp4"),
        row("short", "short.mp4"),
        row("text", "text.mp4"),
        row("brief", "1.mp4", end_time="0.5"),
        row("fine", "1.mp4"),
        row("last", "2.mp4"),
    ]
    code, printed = extract(*rows)
    assert code == 1
    assert "error: 6 of 9 clips could not be used; the reasons are in" in printed and "Traceback" not in printed
    assert open_features(tmp_path / "set").ids == ["good", "fine", "last"]
    failed = read_table(tmp_path / "set/failed.tsv")
    reasons = {entry["id"]: entry["reason"] for entry in failed.rows}
    assert list(reasons) == ["missing", "mute", "silent", "short", "text", "brief"]
    assert failed.rows[0]["title_folder"] == "Storm" and failed.rows[0]["video_path"] == "nowhere.mp4"
    for id, reason in {
        "missing": "no such file",
        "mute": "no audio track",
        "silent": "silent",
        "short": "too short",
        "text": "not a media file|a text file",
        "brief": "the clip lasts 0.5 s, 1 s are needed",
    }.items():
        assert any(part in reasons[id] for part in reason.split("|")), (id, reasons[id])


def test_a_clip_that_no_one_foresaw_costs_only_itself(extract, tmp_path, monkeypatch):
    read = features.read_media

    def chokes(clip, **args):
        if clip.id == "odd":
            raise RuntimeError("no such thing")
        return read(clip, **args)

    monkeypatch.setattr(features, "read_media", chokes)
    code, printed = extract(row("good", "0.mp4"), row("odd", "1.mp4"), row("fine", "2.mp4"), row("last", "0.mp4"))
    assert code == 1 and "error: 1 of 4 clips could not be used" in printed and "Traceback" not in printed
    assert open_features(tmp_path / "set").ids == ["good", "fine", "last"]
    (failed,) = read_table(tmp_path / "set/failed.tsv").rows
    assert failed["id"] == "odd" and failed["reason"].endswith("RuntimeError: no such thing")


def test_a_caption_that_is_cut_is_told_once(encoders, tmp_path, videos, capsys):
    captions = {"brief": "rain", "long": "rain on a tin roof " * 20, "fits": "rain " * 75}
    rows = [row(id, "0.mp4", caption=caption) for id, caption in captions.items()]
    clips = [Clip(r["id"], videos / "0.mp4", 0.0, 1.1, r["caption"], i, r) for i, r in enumerate(rows, 2)]
    features.extract(clips, encoders, tmp_path / "set", mode="16k", duration=DURATION, batch_size=4)
    told = [line for line in capsys.readouterr().out.splitlines() if "77 tokens" in line]
    assert len(told) == 1 and "long" in told[0]
    assert open_features(tmp_path / "set").ids == [*captions]


def test_at_a_lower_precision_the_latents_stay_as_they_are(extract, tmp_path):
    assert extract(row("a", "0.mp4"), out="auto")[0] == 0
    assert extract(row("a", "0.mp4"), out="half", dtype="bfloat16", matmul_precision="highest")[0] == 0
    full, half = (open_features(tmp_path / name)[0] for name in ("auto", "half"))
    for name in ("mean", "std"):
        np.testing.assert_allclose(half[name], full[name], rtol=1e-5, atol=1e-6)
    for name in ("clip_f", "sync_f", "text_f"):
        error = np.linalg.norm(half[name] - full[name]) / np.linalg.norm(full[name])
        assert 1e-5 < error < 0.05, (name, error)


def test_when_no_clip_can_be_used_only_the_reasons_remain(extract, tmp_path):
    code, printed = extract(row("mute", "mute.mp4"), row("silent", "silent.mp4"))
    assert code == 1 and "none of the 2 clips could be used; the reasons are in" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips.tsv", "set.failed.tsv"]
    assert read_table(tmp_path / "set.failed.tsv").rows[1]["id"] == "silent"


def test_a_bad_command_is_one_sentence_before_any_work(extract, tmp_path, weights):
    (tmp_path / "there").mkdir()
    good = row("a", "0.mp4")
    for message, call in {
        "there exists already": lambda: extract(good, out="there"),
        "there are no weights in": lambda: extract(good, weights=tmp_path / "none"),
        "rows 2 and 3 have the same id 'a'": lambda: extract(good, good),
        "a duration of 0.2 s is not possible": lambda: extract(good, duration=0.2),
        "--batch_size is 0": lambda: extract(good, batch_size=0),
        "vae_44k": lambda: extract(good, mode="44k"),
    }.items():
        code, printed = call()
        assert code == 1 and message in printed and printed.count("\n") == 1, printed
        assert sorted(path.name for path in tmp_path.iterdir()) == ["clips.tsv", "there"]


def test_the_vae_of_another_mode_is_refused(weights, tmp_path):
    (tmp_path / "vae_44k").symlink_to(weights / "vae_16k")
    with pytest.raises(UserError, match="20 latent channels and 80 mel bins, 44k has 40 and 128"):
        Encoders(tmp_path).vae("44k")


def test_chunks_change_nothing_and_few_shapes_are_compiled(encoders, monkeypatch):
    captions = ["rain", "a dog barks twice", ""]
    whole = encoders.encode_captions(captions)
    compiled = features.encode_tokens._cache_size()
    assert np.array_equal(encoders.encode_captions([*captions, "wind"])[:3], whole)
    assert features.encode_tokens._cache_size() == compiled
    monkeypatch.setattr(features, "CAPTIONS", 2 * features.CPU_SHARE)
    np.testing.assert_allclose(encoders.encode_captions(captions), whole, atol=1e-5)


def test_clips_are_read_ahead_in_order_and_not_further(tmp_path):
    clips = [Clip(str(i), tmp_path, 0.0, 1.0, "c", i, {}) for i in range(9)]
    started = []

    def read(clip):
        started.append(clip.id)
        if clip.id == "3":
            raise UserError("no")
        return clip.id

    seen = []
    for clip, future in features.read_ahead(clips, read, ahead=2):
        seen.append(clip.id)
        assert len(started) <= int(clip.id) + 3
        assert future.exception() if clip.id == "3" else future.result() == clip.id
    assert seen == [clip.id for clip in clips]
