"""From a drawn network through training of all weights to a weights folder."""

import dataclasses
import sys

import jax
import numpy as np
import pytest

from configs import demo_base
from mmaudio_jax import checkpoint, config, experiment, initialize, merge, sampling, weights
from mmaudio_jax.data import records
from mmaudio_jax.data.example import example_shapes
from mmaudio_jax.data.records import FeatureWriter
from mmaudio_jax.demo.stand_ins import save_stand_ins
from mmaudio_jax.errors import UserError
from mmaudio_jax.features import Encoders


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
    with FeatureWriter(folder / "set", "16k", 1.0, shapes) as writer:
        for i in range(6):
            arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
            arrays |= {"mean": 3 * arrays["mean"] - 40, "std": np.full_like(arrays["std"], 0.1)}
            writer.append({"id": f"clip{i}", "caption": "a sound", "original_video": f"video{i}"}, arrays)
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


def test_all_weights_train_and_become_a_weights_folder(drawn, places, monkeypatch, capsys, tmp_path):
    values = demo_base.get_config().to_dict() | {"weights": str(places / "weights"), "data": str(places / "set")}
    values |= {"batch_size": 2, "num_steps": 2, "eval_every": 2, "validation_fraction": 0.3}
    train_config = config.from_mapping(experiment.TrainConfig, values)
    train(train_config, tmp_path / "run")
    trained = checkpoint.load_adapter(tmp_path / "run").params
    kept = {"latent_mean", "latent_std", "empty_string_feat"}
    assert set(drawn.params) - set(trained) == kept
    assert run(monkeypatch, capsys, merge.main, tmp_path / "run", "--out", tmp_path / "whole")[0] == 0
    merged = weights.load(tmp_path / "whole", "mmaudio")
    assert merged.config == drawn.config and merged.params.keys() == drawn.params.keys()
    for path, leaf in merged.params.items():
        np.testing.assert_array_equal(leaf, drawn.params[path] if path in kept else trained[path])
    assert np.abs(merged.params["final_layer.conv.kernel"]).max() > 0  # it began at zero
    again = dataclasses.replace(train_config, eval_every=1)
    with pytest.raises(UserError, match="its config.eval_every is 2, now it is 1"):
        train(again, tmp_path / "run")
    same = sampling.load_flow_network(drawn.directory, checkpoint.load_adapter(tmp_path / "run")).params
    assert weights.fingerprint(same) == merged.metadata["fingerprint"]


def test_what_exists_or_does_not_fit_is_refused(drawn, places, monkeypatch, capsys, tmp_path):
    where = ("--data", places / "set", "--weights", places / "weights", "--out")
    code, error = run(monkeypatch, capsys, initialize.main, "--model", "demo_16k", *where, drawn.directory)
    assert code == 1 and "exists already" in error
    code, error = run(monkeypatch, capsys, initialize.main, "--model", "small_16k", *where, tmp_path / "new")
    assert code == 1 and "has 64 CLIP channels, small_16k needs 1024" in error and not (tmp_path / "new").exists()
    code, error = run(monkeypatch, capsys, merge.main, tmp_path, "--out", tmp_path / "new")
    assert code == 1 and "is no training run" in error
