"""What is done to a training sample, and what is not."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from test_objective import FrameWise, gradient

from mmaudio_jax import augment, objective, sharding, train_step, trees

B = 64
SHAPES = {"clip_f": (16, 3), "sync_f": (48, 3), "text_f": (4, 3), "mean": (20, 4), "std": (20, 4)}
FEATURES = ("clip_f", "sync_f", "text_f")
DROPPING = objective.ObjectiveConfig("logit_normal", drop_video=0.2, drop_clip=0.2, drop_sync=0.2, drop_text=0.2)


def settings(**changes):
    return augment.AugmentConfig(**{"feature_noise": 0.0, "mixup": 0.0, "mixup_alpha": 1.0, "time_mask": 0.0} | changes)


OFF = settings()
ALL = settings(feature_noise=0.3, mixup=0.5, time_mask=0.4)


@pytest.fixture(scope="module")
def model():
    return FrameWise(text_len=SHAPES["text_f"][0])


@pytest.fixture(scope="module")
def batch():
    """Some samples lack video, some words, some are padded."""
    rng, i = np.random.default_rng(0), np.arange(B)
    arrays = {name: 1 + np.abs(rng.standard_normal((B, *shape), np.float32)) for name, shape in SHAPES.items()}
    for name, lacks in (("clip_f", i % 8 == 3), ("sync_f", i % 8 == 3), ("text_f", i % 8 == 5)):
        arrays[name][lacks] = 0
    arrays |= {"has_video": i % 8 != 3, "has_text": i % 8 != 5, "latents": (20 - i % 7).astype(np.int32)}
    return arrays | {"position": 100 + i}


def augmented(model, batch, config):
    """What becomes of the batch, and of its latents."""

    @jax.jit
    def compute(batch):
        return augment.augment(model, batch, batch["mean"], jax.random.key(0), config)

    changed, latent = compute(batch)
    return {name: np.asarray(array) for name, array in {**changed, "mean": latent}.items()}


def filled(model, batch):
    """The features with the empty ones where a sample lacks them."""
    empty = dict(zip(FEATURES, (model.empty_clip_feat, model.empty_sync_feat, model.empty_string_feat), strict=True))
    there = {"clip_f": batch["has_video"], "sync_f": batch["has_video"], "text_f": batch["has_text"]}
    return {name: np.where(there[name][:, None, None], batch[name], empty[name][...]) for name in FEATURES}


def test_with_everything_off_loss_measures_and_gradient_are_the_same_bits(model, batch):
    with_it, without = (gradient(model, objective.make_loss(DROPPING, (), also), batch) for also in (OFF, None))
    for a, b in zip(*map(jax.tree.leaves, (with_it, without)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_noise_has_its_share_of_each_sample_s_size(model, batch):
    found, before = augmented(model, batch, settings(feature_noise=0.3)), filled(model, batch)
    noise = {name: found[name] - before[name] for name in FEATURES}
    for name in ("clip_f", "sync_f"):
        given, size = noise[name][batch["has_video"]], before[name][batch["has_video"]]
        rms, of = (np.sqrt(np.mean(np.square(x), axis=(1, 2))) for x in (given, size))
        np.testing.assert_allclose(rms / of, 0.3, rtol=0.5)  # each; and of all:
        assert np.mean(rms / of) == pytest.approx(0.3, rel=0.02) and abs(np.mean(given)) < 0.02
        assert not noise[name][~batch["has_video"]].any()
    assert not np.allclose(noise["clip_f"][0], noise["clip_f"][1]) and not noise["text_f"].any()
    assert not np.allclose(noise["clip_f"][0], noise["sync_f"][0, :16])
    np.testing.assert_array_equal(found["mean"], batch["mean"])


def test_a_mixed_sample_is_a_share_of_itself_and_the_rest_of_the_one_before(model, batch):
    found = augmented(model, batch, settings(mixup=0.5))
    parts = filled(model, batch) | {"mean": batch["mean"]}
    own, other = found["mean"] - np.roll(batch["mean"], 1, 0), batch["mean"] - np.roll(batch["mean"], 1, 0)
    share = np.sum(own * other, axis=(1, 2)) / np.sum(other**2, axis=(1, 2))
    for name, part in parts.items():
        expected = share[:, None, None] * part + (1 - share[:, None, None]) * np.roll(part, 1, 0)
        np.testing.assert_allclose(found[name], expected, atol=1e-5)
    mixed = (found["mean"] != batch["mean"]).any(axis=(1, 2))
    assert 16 < mixed.sum() < 48 and len(np.unique(share[mixed].round(3))) > 10 and share.min() > 0
    for name, part in parts.items():
        np.testing.assert_array_equal(found[name][~mixed], part[~mixed])
    either = np.minimum(batch["latents"], np.roll(batch["latents"], 1))
    np.testing.assert_array_equal(found["latents"], np.where(mixed, either, batch["latents"]))
    assert found["has_video"].all() and found["has_text"].all()


def test_alpha_says_how_evenly_samples_are_mixed():
    for alpha in (0.4, 1.0, 5.0):
        keys = jax.random.split(jax.random.key(0), 4000)
        share = np.asarray(augment.shares(keys, settings(mixup=1.0, mixup_alpha=alpha)))
        assert share.mean() == pytest.approx(0.5, abs=0.02)
        assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


def test_a_span_is_empty_at_the_same_times_in_clip_and_sync(model, batch):
    found, before = augmented(model, batch, settings(time_mask=0.4)), filled(model, batch)
    empty = {"clip_f": np.asarray(model.empty_clip_feat[...]), "sync_f": np.asarray(model.empty_sync_feat[...])}
    hidden = {name: np.all(found[name] == empty[name], axis=-1)[batch["has_video"]] for name in empty}
    for name, where in hidden.items():
        np.testing.assert_array_equal(found[name][batch["has_video"]][~where], before[name][batch["has_video"]][~where])
        edges = np.abs(np.diff(np.pad(where, ((0, 0), (1, 1))).astype(int), axis=1)).sum(axis=1)
        assert set(edges) <= {0, 2}  # one span
        assert where.mean(axis=1).max() <= 0.4 + 1 / where.shape[1]
        assert where.mean() == pytest.approx(0.2, abs=0.04) and where.any(axis=0).mean() > 0.9
    clip = np.repeat(hidden["clip_f"], 3, axis=1)
    assert np.abs(clip.astype(int) - hidden["sync_f"]).sum(axis=1).max() <= 4  # a clip frame lasts three sync features
    for name in ("text_f", "mean", "latents"):
        np.testing.assert_array_equal(found[name], before.get(name, batch[name]))


def test_what_is_masked_or_dropped_is_empty_whatever_else_is_done(model, batch):
    found = augmented(model, batch, settings(feature_noise=0.3, mixup=1.0, time_mask=1.0))
    for name, empty in (("clip_f", model.empty_clip_feat), ("sync_f", model.empty_sync_feat)):
        assert 0.3 < (found[name] == empty[...]).all(axis=-1).mean() < 0.7

    @jax.jit
    def seen(batch):
        draws = objective.draw(model, batch, jax.random.key(0), DROPPING)
        changed, _ = augment.augment(model, batch, draws.x1, jax.random.key(0), ALL)
        return draws.drop_text, objective.features(model, changed, draws)[2]

    dropped, text = map(np.asarray, seen(batch))
    assert 0 < dropped.sum() < B and (text == model.empty_string_feat[...])[dropped].all()


def test_noise_spans_and_shares_are_a_sample_s_own_whatever_batch_it_sits_in(model, batch):
    order = np.array([40, 3, 17, 8])
    some = {name: array[order] for name, array in batch.items()}
    config = settings(feature_noise=0.3, time_mask=0.4)
    one, two = augmented(model, batch, config), augmented(model, some, config)
    for name in FEATURES:
        np.testing.assert_allclose(one[name][order], two[name], rtol=1e-5, atol=1e-6)
    pairs = np.array([39, 40])  # beside each other, a sample is mixed as it was
    some = {name: array[pairs] for name, array in batch.items()}
    one, two = augmented(model, batch, ALL), augmented(model, some, ALL)
    for name in (*FEATURES, "mean", "latents"):
        np.testing.assert_allclose(one[name][40], two[name][1], rtol=1e-5, atol=1e-6)


def test_eight_devices_augment_as_one_does_and_gather_nothing(model, batch, one_device):
    graphdef, params = trees.split(model)
    loss, optimizer, found = objective.make_loss(DROPPING, (), ALL), optax.sgd(1.0), []
    for mesh in (one_device, sharding.make_mesh(sharding.MeshConfig(4, 2))):
        micro_batches = {name: array[None] for name, array in batch.items()}
        arguments = (
            train_step.initial_state(jax.tree.map(jnp.copy, params), optimizer, mesh),
            {},
            jax.device_put(micro_batches, sharding.batch_sharding(mesh, 1)),
            jax.random.key(0),
        )
        step = train_step.make_train_step(graphdef, loss, optimizer, mesh).lower(*arguments).compile()
        assert "all-gather" not in step.as_text()  # a device sends its last sample to the next
        found.append(jax.device_get(step(*arguments)))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_features_in_bfloat16_count_as_the_same_ones_in_float32(model, batch):
    """Whatever is done to them: the devices widen them first."""
    stored = {name: batch[name].astype(ml_dtypes.bfloat16) for name in FEATURES}
    wide = {name: value.astype(np.float32) for name, value in stored.items()}
    for config in (OFF, ALL):
        loss = objective.make_loss(DROPPING, (), config)
        one, other = (gradient(model, loss, {**batch, **features}) for features in (stored, wide))
        jax.tree.map(np.testing.assert_array_equal, one, other)
