"""Post-hoc EMA against the published implementation's numbers."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error
from hypothesis import given
from hypothesis import strategies as st

from configs import lora_16k
from mmaudio_jax import adapters, checkpoint, config, ema, experiment
from mmaudio_jax.errors import UserError

EVERY = 500


@pytest.fixture(scope="module")
def expected(golden):
    return golden.expected("posthoc_ema")


@pytest.fixture(scope="module")
def tracked(expected):
    """Snapshots × σ_rel × 4, as `update` makes them."""

    @functools.partial(jax.jit, static_argnames="sigma_rel")
    def run(trajectory, sigma_rel):
        def step(average, item):
            average = ema.update(average, {"w": item[1]}, item[0], sigma_rel)
            return average, average["w"]

        steps = jnp.arange(1, len(trajectory) + 1)
        return jax.lax.scan(step, {"w": jnp.zeros(4)}, (steps, trajectory))[1][EVERY - 1 :: EVERY]

    return np.stack([run(expected["trajectory"], float(s)) for s in expected["sigma_rels"]], axis=1)


def test_tracking(expected, tracked):
    assert [ema.gamma(s) for s in expected["sigma_rels"]] == pytest.approx(expected["gammas"], rel=1e-12)
    assert relative_error(tracked, expected["tracked"]) < 1e-5


def test_synthesis(expected, tracked):
    count, widths = tracked.shape[:2]
    steps, sigmas = np.repeat(EVERY * np.arange(1, count + 1), widths), np.tile(expected["sigma_rels"], count)
    for sigma, synth in zip(expected["synth_sigma"], expected["synth"], strict=True):
        weights = ema.coefficients(steps, sigmas, EVERY * count, float(sigma))
        assert relative_error(weights @ tracked.reshape(-1, 4).astype(np.float64), synth) < 1e-5, sigma


@given(st.floats(0.01, 0.27), st.integers(2, 10**6))
def test_an_average_of_what_stands_still_is_that(sigma_rel, step):
    assert 0 < float(ema.one_minus_beta(step, sigma_rel)) <= 1
    assert ema.coefficients([step], [sigma_rel], step, sigma_rel) == pytest.approx([1.0])
    steps, sigmas = np.repeat(100 * np.arange(1, 31), 2), np.tile([0.05, 0.1], 30)
    assert ema.coefficients(steps, sigmas, 3000, 0.05 + 0.05 * sigma_rel).sum() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.29, 1.0])
def test_a_width_that_is_none(sigma_rel):
    with pytest.raises(UserError, match="is no width of an average"):
        ema.gamma(sigma_rel)


def test_a_run_tracks_averages_and_they_make_another(small_weights, small_features, tmp_path, monkeypatch, capsys):
    values = lora_16k.get_config().to_dict() | {"weights": str(small_weights), "data": str(small_features)}
    values["samples"] = None
    values |= {"batch_size": 2, "accumulation": 1, "num_steps": 6, "eval_every": 3, "workers": 0}
    values["lora"] |= {"rank": 2, "targets": ("qkv",)}
    values["ema"] = {"sigma_rels": (0.05, 0.1), "snapshot_every": 2}
    train_config = config.from_mapping(experiment.TrainConfig, values)
    trace = []
    save = checkpoint.Snapshots.save
    monkeypatch.setattr(
        checkpoint.Snapshots, "save", lambda self, step, averages: (trace.append(averages), save(self, step, averages))
    )
    run = tmp_path / "run"
    experiment.run(train_config, run, dry_run=False, devices=jax.devices()[:1])
    assert checkpoint.Snapshots(run).steps == [2, 4, 6] and len(trace) == 3

    monkeypatch.setattr(sys, "argv", ["ema", str(run), "--sigma_rel", "0.1", "--out", str(tmp_path / "mean")])
    with pytest.raises(SystemExit) as end:
        ema.main()
    assert not end.value.code and "over 6 steps is in" in capsys.readouterr().out
    mean, last = checkpoint.load_adapter(tmp_path / "mean"), checkpoint.load_adapter(run)
    for path, leaf in mean.params.items():  # a width that was tracked comes back, and is not the last step's
        assert relative_error(leaf, trace[-1]["0.1"][path]) < 1e-5
    assert any(relative_error(mean.params[path], last.params[path]) > 1e-6 for path in mean.params if "lora_b" in path)
    adapters.load_flow_network(small_weights / "small_16k", mean)
    with pytest.raises(UserError, match="holds trained weights and no run"):
        experiment.run(train_config, tmp_path / "mean", dry_run=False, devices=jax.devices()[:1])
    with pytest.raises(UserError, match="has no snapshot of step 5; there are 2, 4, 6"):
        ema.synthesise(run, 5, 0.1)
    with pytest.raises(
        UserError, match=r"1 snapshot\(s\) of σ_rel 0.05, 0.1 cannot make one of 0.25: their shares add"
    ):
        ema.synthesise(run, 2, 0.25)


def test_snapshots_after_the_checkpoint_are_another_past(tmp_path):
    with checkpoint.Snapshots(tmp_path, 0) as snapshots:
        for step in (1, 2, 3):
            snapshots.save(step, {"0.1": {"w": jnp.full(3, float(step))}})
    with checkpoint.Snapshots(tmp_path, 1) as snapshots:
        assert snapshots.steps == [1]
        snapshots.save(2, {"0.1": {"w": jnp.full(3, 7.0)}})
    with checkpoint.Snapshots(tmp_path) as snapshots:
        assert snapshots.steps == [1, 2] and snapshots.load(2)["0.1"]["w"].tolist() == [7, 7, 7]
