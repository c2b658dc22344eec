"""How a training sample is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmaudio_jax import flow_matching, objective, trees
from mmaudio_jax.errors import UserError
from mmaudio_jax.models.mmaudio import MMAudio, MMAudioConfig

B = 64


@pytest.fixture(scope="module")
def model():
    model = MMAudio(MMAudioConfig(4, 64, 2, 1, 1, clip_dim=3, sync_dim=3, text_dim=3, text_len=2), rngs=nnx.Rngs(0))
    for name in ("empty_clip_feat", "empty_sync_feat", "empty_string_feat"):
        getattr(model, name)[...] = jnp.full_like(getattr(model, name)[...], -1.0)
    return model


class FrameWise(nnx.Module):
    """Answers each latent frame from that frame, the time and all that it sees."""

    def __init__(self, channels=4, width=3, text_len=2):
        self.layer = nnx.Linear(channels, channels, rngs=nnx.Rngs(0))
        self.empty_clip_feat, self.empty_sync_feat = (nnx.Param(jnp.full((1, width), x)) for x in (-1.0, -2.0))
        self.empty_string_feat = nnx.Param(jnp.full((text_len, width), -3.0))

    def normalize(self, x):
        return x / 2

    def __call__(self, latent, t, *features):
        seen = sum(jnp.sin(feature).mean(axis=(1, 2)) for feature in features)
        return self.layer(latent) * (t + seen)[:, None, None]


def random_batch():
    rng = np.random.default_rng(0)
    shapes = {"clip_f": (2, 3), "sync_f": (8, 3), "text_f": (2, 3), "mean": (5, 4), "std": (5, 4)}
    batch = {name: np.abs(rng.standard_normal((B, *shape), np.float32)) for name, shape in shapes.items()}
    return batch | {"position": np.arange(B), "has_video": np.ones(B, bool), "has_text": np.ones(B, bool)}


def gradient(model, loss, batch):
    """((loss, measures), gradient)."""
    graphdef, params = trees.split(model)
    compute = jax.jit(
        jax.value_and_grad(lambda p, b: loss(trees.merge(graphdef, p), b, jax.random.key(0)), has_aux=True)
    )
    return compute(params, batch)


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
    config = objective.ObjectiveConfig("uniform", 0.0, 0.0, 0.0, 0.0)
    batch = random_batch() | {"weight": (np.arange(B) < 40).astype(np.float32)}

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


CONFIG = objective.ObjectiveConfig("logit_normal", 0.2, 0.1, 0.1, 0.2)
LATENTS = (np.arange(B) % 5 + 1).astype(np.int32)  # 1 to all


def test_what_lies_in_the_padding_changes_neither_loss_nor_measures_nor_gradient():
    loss, model = objective.make_loss(CONFIG, ("a", "b")), FrameWise()
    batch = random_batch() | {"latents": LATENTS, "set": np.arange(B, dtype=np.int32) % 2}
    padding = (np.arange(5) >= LATENTS[:, None])[:, :, None]
    other = batch | {name: np.where(padding, 7 * batch[name] + 1, batch[name]) for name in ("mean", "std")}
    one, two = (jax.tree.leaves(gradient(model, loss, each)) for each in (batch, other))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    last = np.eye(5, dtype=bool)[LATENTS - 1][:, :, None]
    other = batch | {"mean": np.where(last, batch["mean"] + 1, batch["mean"])}
    assert gradient(model, loss, other)[0][0] != one[0]


def test_measures_are_means_over_a_sample_s_own_frames_and_then_over_samples():
    batch, model = random_batch() | {"latents": LATENTS}, FrameWise()
    draws = objective.draw(model, batch, jax.random.key(0), CONFIG)
    pairs = list(zip(*map(np.asarray, objective.velocities(model, batch, draws)), strict=True))
    pairs = [(v[:k].astype(float), u[:k].astype(float)) for (v, u), k in zip(pairs, LATENTS, strict=True)]
    expected = {
        "loss": [np.mean((v - u) ** 2) for v, u in pairs],
        "velocity_norm": [np.sqrt(np.mean(v**2)) for v, _ in pairs],
        "target_norm": [np.sqrt(np.mean(u**2)) for _, u in pairs],
        "velocity_cosine": [np.sum(v * u) / np.linalg.norm(v) / np.linalg.norm(u) for v, u in pairs],
    }
    found = gradient(model, objective.make_loss(CONFIG), batch)[0][1]
    for name, values in expected.items():
        assert found[name][1] == B and found[name][0] / B == pytest.approx(np.mean(values), rel=1e-5), name
    bins = np.floor(objective.T_BINS * np.asarray(draws.t)).astype(int)
    by_t = np.bincount(bins, weights=expected["loss"], minlength=objective.T_BINS)
    np.testing.assert_allclose(found["loss_by_t"][0], by_t, rtol=1e-5)


def test_where_nothing_is_padded_the_loss_is_the_mean_over_all_frames_to_a_rounding():
    batch, model = random_batch(), FrameWise()

    def plain(model, batch, key):
        draws = objective.draw(model, batch, key, CONFIG)
        return flow_matching.squared_error(*objective.velocities(model, batch, draws)).mean(), None

    (expected, _), expected_grads = gradient(model, plain, batch)
    for known in ({}, {"latents": np.full(B, 5, np.int32)}):
        (value, _), grads = gradient(model, objective.make_loss(CONFIG), batch | known)
        assert value == pytest.approx(float(expected), rel=1e-6)
        for path, leaf in expected_grads.items():
            np.testing.assert_allclose(grads[path], leaf, rtol=1e-5, atol=1e-7)


def test_a_probability_out_of_range_is_refused():
    with pytest.raises(UserError, match=r"objective.drop_sync is 1.5; it must lie in \[0, 1\]"):
        objective.ObjectiveConfig("uniform", 0.0, 0.0, 1.5, 0.0)
