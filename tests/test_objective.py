"""How a training sample is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmaudio_jax import flow_matching, objective
from mmaudio_jax.errors import UserError
from mmaudio_jax.models.mmaudio import MMAudio, MMAudioConfig

B = 64


@pytest.fixture(scope="module")
def model():
    model = MMAudio(MMAudioConfig(4, 64, 2, 1, 1, clip_dim=3, sync_dim=3, text_dim=3, text_len=2), rngs=nnx.Rngs(0))
    for name in ("empty_clip_feat", "empty_sync_feat", "empty_string_feat"):
        getattr(model, name)[...] = jnp.full_like(getattr(model, name)[...], -1.0)
    return model


def dropped(model, **probabilities):
    """Which samples of a batch have an empty (clip, sync, text) feature."""
    config = objective.ObjectiveConfig(
        "uniform", **{"drop_video": 0.0, "drop_clip": 0.0, "drop_sync": 0.0, "drop_text": 0.0} | probabilities
    )
    given = {name: jnp.ones((B, n, 3)) for name, n in (("clip_f", 2), ("sync_f", 8), ("text_f", 2))}
    given |= {"mean": jnp.zeros((B, 5, 4)), "std": jnp.ones((B, 5, 4)), "position": jnp.arange(B)}
    given |= {name: jnp.ones(B, bool) for name in ("has_video", "has_text")}
    draws = objective.draw(model, given, jax.random.key(0), config)
    return [np.asarray((feature == -1).all(axis=(1, 2))) for feature in objective.features(model, given, draws)]


def test_video_drops_together_and_sync_also_alone(model):
    assert not np.any(dropped(model))
    clip, sync, text = dropped(model, drop_video=0.5)
    assert 16 < clip.sum() < 48 and (clip == sync).all() and not text.any()
    clip, sync, text = dropped(model, drop_sync=0.5)
    assert 16 < sync.sum() < 48 and not clip.any() and not text.any()
    clip, sync, text = dropped(model, drop_video=0.5, drop_sync=1.0, drop_text=0.5)
    assert sync.all() and 16 < clip.sum() < 48 and (clip != text).any()


def test_clip_drops_alone_and_whatever_becomes_of_sync(model):
    clip, sync, text = dropped(model, drop_clip=0.5)
    assert 16 < clip.sum() < 48 and not sync.any() and not text.any()
    both, sync, _ = dropped(model, drop_clip=0.5, drop_sync=0.5)
    assert (both == clip).all()
    assert {(bool(c), bool(s)) for c, s in zip(both, sync, strict=True)} == {(c, s) for c in (0, 1) for s in (0, 1)}


def test_the_draws_of_one_condition_do_not_depend_on_another_s(model):
    given = {"mean": jnp.zeros((B, 5, 4)), "std": jnp.ones((B, 5, 4)), "position": jnp.arange(B)}
    without, with_clip = (
        objective.draw(model, given, jax.random.key(0), objective.ObjectiveConfig("logit_normal", 0.1, p, 0.3, 0.1))
        for p in (0.0, 0.9)
    )
    assert with_clip.drop_clip.sum() > 32 > without.drop_clip.sum()
    for name in set(without._fields) - {"drop_clip"}:
        np.testing.assert_array_equal(getattr(without, name), getattr(with_clip, name))


def test_the_loss_by_t_is_the_loss_of_the_examples_in_each_bin(model):
    rng, config = np.random.default_rng(0), objective.ObjectiveConfig("uniform", 0.0, 0.0, 0.0, 0.0)
    shapes = {"clip_f": (2, 3), "sync_f": (8, 3), "text_f": (2, 3), "mean": (5, 4), "std": (5, 4)}
    batch = {name: np.abs(rng.standard_normal((B, *shape), np.float32)) for name, shape in shapes.items()}
    batch |= {"position": np.arange(B), "has_video": np.ones(B, bool), "has_text": np.ones(B, bool)}
    batch["weight"] = (np.arange(B) < 40).astype(np.float32)

    @jax.jit
    def compute(batch):
        draws = objective.draw(model, batch, jax.random.key(0), config)
        error = flow_matching.squared_error(*objective.velocities(model, batch, draws))
        return objective.make_loss(config)(model, batch, jax.random.key(0))[1]["loss_by_t"], draws.t, error

    (sums, counts), t, error = compute(batch)
    for i in range(objective.T_BINS):
        inside = [float(error[k]) for k in range(40) if int(25 * t[k]) == i]
        assert counts[i] == len(inside) and sums[i] == pytest.approx(sum(inside), rel=1e-5)
    assert counts.sum() == 40 and 0 < (counts == 0).sum() < objective.T_BINS


def test_a_probability_out_of_range_is_refused():
    with pytest.raises(UserError, match=r"objective.drop_sync is 1.5; it must lie in \[0, 1\]"):
        objective.ObjectiveConfig("uniform", 0.0, 0.0, 1.5, 0.0)
