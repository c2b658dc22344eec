"""From a drawn network through training of all weights to a weights folder."""

import dataclasses
import json
import re
import sys

import jax
import numpy as np
import pytest

from configs import train_16k
from mmaudio_jax import Pipeline, Request, adapters, checkpoint, config, experiment, initialize, merge, weights
from mmaudio_jax.data import records
from mmaudio_jax.data.example import example_shapes
from mmaudio_jax.data.records import FeatureWriter
from mmaudio_jax.demo.stand_ins import save_stand_ins
from mmaudio_jax.encoders import Encoders
from mmaudio_jax.errors import UserError
from mmaudio_jax.pipeline import Features


def train(config, workdir, dry_run=False):
    """A run on one device."""
    experiment.run(config, workdir, dry_run, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with stand-in weights and a random feature set of their shapes."""
    folder = tmp_path_factory.mktemp("scratch")
    save_stand_ins(folder / "weights")
    rng = np.random.default_rng(0)
    shapes = example_shapes("16k", 1.0, clip_dim=64, sync_dim=128, text_dim=64)
    for name, seen in (("set", shapes), ("sounds", ("mean", "std", "text_f"))):
        with FeatureWriter(folder / name, "16k", 1.0, shapes) as writer:
            for i in range(6):
                arrays = {key: rng.standard_normal(shapes[key]).astype(np.float32) for key in seen}
                arrays |= {"mean": 3 * arrays["mean"] - 40, "std": np.full_like(arrays["std"], 0.1)}
                writer.append({"id": f"clip{i}", "caption": "a sound", "original_video": f"{name}{i}"}, arrays)
    return folder


def run(monkeypatch, capsys, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code, capsys and capsys.readouterr().err


@pytest.fixture(scope="module")
def drawn(places):
    out = places / "weights" / "scratch"
    where = ("--model", "demo_16k", "--data", places / "set", "--weights", places / "weights", "--out", out)
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(monkeypatch, None, initialize.main, *where)[0] == 0
    return weights.load(out, "mmaudio")


def test_a_drawn_network_has_the_statistics_of_its_data(drawn, places):
    means = np.stack([records.open_features(places / "set")[i]["mean"] for i in range(6)]).astype(np.float64)
    np.testing.assert_allclose(drawn.params["latent_mean"][0, 0], means.mean(axis=(0, 1)), rtol=1e-6)
    np.testing.assert_allclose(drawn.params["latent_std"][0, 0], means.reshape(-1, 20).std(axis=0, ddof=1), rtol=1e-6)
    empty = Encoders(places / "weights").encode_captions([""])[0]
    np.testing.assert_array_equal(drawn.params["empty_string_feat"], empty)


def test_statistics_leave_padding_out():
    frames = np.random.default_rng(0).standard_normal((2, 9, 20)).astype(np.float32)
    examples = [{"mean": frames[0], "latents": np.int32(4)}, {"mean": frames[1], "latents": np.int32(9)}]
    mean, std = initialize.latent_statistics(examples)
    own = np.concatenate([frames[0, :4], frames[1]]).astype(np.float64)
    np.testing.assert_allclose(mean, own.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, own.std(axis=0, ddof=1), rtol=1e-6)


@pytest.fixture(scope="module")
def mixed_run(places):
    """(config, workdir) of the recipe from scratch, small: a mixture, a network of fewer blocks, blocks recomputed."""
    data, out = f"{places}/set*3, {places}/sounds", places / "weights" / "shallow"
    where = ("--model", "demo_16k", "--fused_depth", 1, "--data", data, "--weights", places / "weights", "--out", out)
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(monkeypatch, None, initialize.main, *where)[0] == 0
    values = train_16k.get_config().to_dict()
    values |= {"model": "shallow", "weights": str(places / "weights"), "data": data, "remat": "blocks", "workers": 0}
    values |= {"batch_size": 4, "num_steps": 4, "eval_every": 2, "log_every": 2, "validation_fraction": 0.5}
    values["ema"]["snapshot_every"] = 2
    train_config = config.from_mapping(experiment.TrainConfig, values)
    train(train_config, places / "mixed")
    return train_config, places / "mixed"


def test_depth_and_statistics_of_a_network_for_a_mixture(mixed_run, places):
    drawn = weights.load(places / "weights" / "shallow", "mmaudio")
    assert (drawn.config.joint_depth, drawn.config.fused_depth) == (2, 1)
    sets = [records.open_features(places / name) for name in ("set", "sounds")]
    means = [features[i]["mean"] for features in sets for i in range(6)]
    np.testing.assert_allclose(drawn.params["latent_mean"][0, 0], np.mean(means, axis=(0, 1), dtype=float), rtol=1e-6)
    with pytest.raises(UserError, match="--joint_depth is 0; it must be at least 1"):
        initialize.network_config("demo_16k", joint_depth=0)


def test_a_mixture_is_trained_and_the_loss_of_each_set_is_told(mixed_run, capsys):
    train_config, workdir = mixed_run
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    validations = [row for row in rows if "validation/loss" in row]
    assert [row["step"] for row in validations] == [0, 2, 4]
    train(train_config, workdir, dry_run=True)
    told = re.findall(r"/(\w+): (\d+) examples train( 3 times an epoch)?, (\d+) validate", capsys.readouterr().out)
    assert [(name, often != "") for name, _, often, _ in told] == [("set", True), ("sounds", False)]
    shares = np.array([int(count) for *_, count in told]) / 6
    assert all(shares) and sum(shares) == 1
    for row in validations:
        each = [row["validation/loss/set"], row["validation/loss/sounds"]]
        assert each[0] != each[1] and shares @ each == pytest.approx(row["validation/loss"], rel=1e-5)
    assert any("train/loss/set" in row for row in rows)


def test_a_mixture_of_other_repeats_is_another_run(mixed_run, places):
    train_config, workdir = mixed_run
    other = dataclasses.replace(train_config, data=f"{places}/set*2, {places}/sounds")
    with pytest.raises(UserError, match="names other clips than those that it began with, or repeats or splits them"):
        train(other, workdir)
    train(dataclasses.replace(train_config, remat="none"), workdir)  # the same numbers in more memory


def test_what_a_mixture_trained_makes_sound(mixed_run, places):
    _, workdir = mixed_run
    pipe = Pipeline.from_pretrained(places / "weights", "shallow", workdir)
    request = Request(prompt="noise", duration=1.0, steps=2)
    sound = pipe.generate([request], [Features(None, None, None, None)]).sounds()[0].audio
    assert sound.shape == (16000,) and np.isfinite(sound).all() and sound.any()


def test_a_set_made_with_another_clip_is_refused(places, monkeypatch, capsys, tmp_path):
    features = records.open_features(places / "set")
    with FeatureWriter(tmp_path / "set", "16k", 1.0, features.metadata.shapes, {"clip": "of another"}) as writer:
        writer.append({"id": "a", "caption": "a sound"}, features.read(0))
    where = (
        "--model",
        "demo_16k",
        "--data",
        tmp_path / "set",
        "--weights",
        places / "weights",
        "--out",
        tmp_path / "w",
    )
    code, error = run(monkeypatch, capsys, initialize.main, *where)
    assert code == 1 and "the feature set was made with another CLIP than" in error and not (tmp_path / "w").exists()


def test_all_weights_train_and_become_a_weights_folder(mixed_run, places, monkeypatch, capsys, tmp_path):
    train_config, workdir = mixed_run
    drawn = weights.load(places / "weights" / "shallow", "mmaudio")
    trained = checkpoint.load_adapter(workdir).params
    kept = {"latent_mean", "latent_std", "empty_string_feat"}
    assert set(drawn.params) - set(trained) == kept
    assert run(monkeypatch, capsys, merge.main, workdir, "--out", tmp_path / "whole")[0] == 0
    merged = weights.load(tmp_path / "whole", "mmaudio")
    assert merged.config == drawn.config and merged.params.keys() == drawn.params.keys()
    for path, leaf in merged.params.items():
        np.testing.assert_array_equal(leaf, drawn.params[path] if path in kept else trained[path])
    assert np.abs(merged.params["final_layer.conv.kernel"]).max() > 0  # it began at zero
    again = dataclasses.replace(train_config, eval_every=1)
    with pytest.raises(UserError, match="its config.eval_every is 2, now it is 1"):
        train(again, workdir)
    same = adapters.load_flow_network(drawn.directory, checkpoint.load_adapter(workdir)).params
    assert weights.fingerprint(same) == merged.metadata["fingerprint"]


def test_what_exists_or_does_not_fit_is_refused(drawn, places, monkeypatch, capsys, tmp_path):
    where = ("--data", places / "set", "--weights", places / "weights", "--out")
    code, error = run(monkeypatch, capsys, initialize.main, "--model", "demo_16k", *where, drawn.directory)
    assert code == 1 and "exists already" in error
    code, error = run(monkeypatch, capsys, initialize.main, "--model", "small_16k", *where, tmp_path / "new")
    assert code == 1 and "has 64 CLIP channels, small_16k needs 1024" in error and not (tmp_path / "new").exists()
    code, error = run(monkeypatch, capsys, merge.main, tmp_path, "--out", tmp_path / "new")
    assert code == 1 and "is no training run" in error
