"""The train step: the golden losses, and what a step may and may not change."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import relative_error
from flax import nnx

from mmaudio_jax import flow_matching, lora, objective, optim, train_step, trees
from mmaudio_jax.errors import UserError
from mmaudio_jax.models.mmaudio import PRESETS, MMAudio

RECIPE = optim.OptimizerConfig(1e-3, "constant", 5, 0.9, 0.95, 1e-8, 1e-6, 1.0)


def golden_batch(golden, step, count=4):
    """The batch of a step of train_tiny, with its draws, as one micro-batch; four examples are the recorded ones."""

    def draw(name, shape):
        return golden.input(f"{step}.{name}", shape)

    shape = (count, 250, 20)
    batch = {
        "latent": draw("a_mean", shape) + 0.1 * np.abs(draw("a_std", shape)) * draw("a_noise", shape),
        "x0": draw("x0", shape),
        "t": 1 / (1 + np.exp(-draw("t", (count,)))),
        "drop_video": np.resize([step % 2 == 0, False, False, step % 3 == 0], count),
        "drop_text": np.resize([False, step % 2 == 1, step % 3 == 0, False], count),
        "clip_f": draw("clip", (count, 64, 1024)),
        "sync_f": draw("sync", (count, 192, 768)),
        "text_f": draw("text", (count, 77, 1024)),
        "has_video": np.ones(count, bool),
        "has_text": np.ones(count, bool),
    }
    return {name: value[None] for name, value in batch.items()}


def golden_loss(model, batch, key):
    draws = objective.Draws(
        x0=batch["x0"],
        x1=model.normalize(batch["latent"]),
        t=batch["t"],
        drop_video=batch["drop_video"],
        drop_clip=jnp.zeros_like(batch["drop_video"]),
        drop_sync=jnp.zeros_like(batch["drop_video"]),
        drop_text=batch["drop_text"],
    )
    error = flow_matching.squared_error(*objective.velocities(model, batch, draws))
    return error.mean(), {
        "loss": (error.sum(), jnp.float32(error.size)),
        **{f"sample{i}": (e, 1.0) for i, e in enumerate(error)},
    }


def test_twelve_steps_of_the_published_recipe(golden, one_device):
    weights, expected = golden.weights("flow_tiny.pth"), golden.expected("train_tiny")
    params, frozen = trees.partition(weights.params, trees.trainable(MMAudio(PRESETS["tiny"], rngs=nnx.Rngs(0))))
    names = json.loads(bytes(expected["first_grad_names"]).rstrip(b"\0 ").decode())
    assert len(params) == len(names) == 105

    def norm_by_name(tree):
        published = {k.replace(".kernel", ".weight").replace(".scale", ".weight"): v for k, v in tree.items()}
        return np.array([np.linalg.norm(published[name]) for name in names])

    optimizer, rate = optim.make_optimizer(RECIPE, 12), optim.learning_rate(RECIPE, 12)
    state = train_step.initial_state(jax.tree.map(jnp.copy, params), optimizer, one_device)  # it takes them over
    step = train_step.make_train_step(weights.graphdef(), golden_loss, optimizer, one_device)
    for k in range(12):
        state, measures = step(state, frozen, golden_batch(golden, k), jax.random.key(0))
        values = train_step.means([measures])
        assert values["loss"] == pytest.approx(expected["loss"][k], rel=1e-5)
        assert [values[f"sample{i}"] for i in range(4)] == pytest.approx(expected["loss_per_sample"][k], rel=1e-5)
        assert values["grad_norm"] == pytest.approx(expected["grad_norm"][k], rel=2e-5)
        assert float(rate(k)) == pytest.approx(expected["lr"][k], rel=1e-6)
        if k == 0:  # the first moment after the first step is a tenth of the clipped gradient
            clipped = 0.1 * min(1, 1 / (values["grad_norm"] + 1e-6))
            first_moment = norm_by_name(optax.tree_utils.tree_get(state["opt_state"], "mu"))
            assert relative_error(first_moment / clipped, expected["first_grad_norms"]) <= 1e-5
    assert relative_error(norm_by_name(state["params"]), expected["final_param_norms"]) <= 1e-5
    assert step._cache_size() == 1


class Toy(nnx.Module):
    """One linear layer: enough for what the trainer itself must do."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.layer(x)


LORA = lora.LoRAConfig(2, 2.0, False, 0.5, ("layer",), {"layer": "layer"}, ranks={}, alphas={}, start=None)


def toy_loss(model, batch, key):
    error = jnp.mean(jnp.square(model(batch["x"]) - batch["y"]), axis=-1)
    return error.mean(), {"loss": (error.sum(), jnp.float32(error.size))}


@pytest.fixture
def toy(one_device):
    graphdef, params = trees.split(lora.insert(Toy(nnx.Rngs(0)), LORA, rngs=nnx.Rngs(1)))
    trained, frozen = trees.partition(params, trees.mask([lora.ADAPTER], params))
    optimizer = optim.make_optimizer(RECIPE, 100)
    return graphdef, train_step.initial_state(trained, optimizer, one_device), frozen, optimizer


def toy_batch(seed, shape=(1, 8)):
    x, y = np.random.default_rng(seed).standard_normal((2, *shape, 3)).astype(np.float32)
    return {"x": x, "y": y[..., :2]}


def test_optimizer_state_and_gradients_exist_for_trained_leaves_only(toy):
    _, state, frozen, _ = toy
    assert set(state["params"]) == {"layer.lora_a", "layer.lora_b"} and set(frozen) == {"layer.kernel", "layer.bias"}
    shapes = [leaf.shape for leaf in jax.tree.leaves(state["opt_state"])]
    assert sorted(s for s in shapes if s) == [(2, 2), (2, 2), (3, 2), (3, 2)]


def test_a_step_trains_the_adapter_leaves_the_base_and_donates_the_state(toy, one_device):
    graphdef, state, frozen, optimizer = toy
    before = jax.tree.map(np.array, frozen)
    step = train_step.make_train_step(graphdef, toy_loss, optimizer, one_device)
    old, losses = state, []
    for _ in range(30):
        state, measures = step(state, frozen, toy_batch(0), jax.random.key(0))
        losses.append(train_step.means([measures])["loss"])
    assert min(losses[-5:]) < losses[0] and int(state["step"]) == 30
    assert all((frozen[k] == before[k]).all() for k in before)
    assert old["params"]["layer.lora_a"].is_deleted() and step._cache_size() == 1


@pytest.mark.parametrize("unroll", [True, False])
def test_accumulation_is_the_mean_over_micro_batches(one_device, unroll):
    graphdef, params = trees.split(Toy(nnx.Rngs(0)))
    optimizer, batch = optax.sgd(1.0), toy_batch(1, (4, 2))
    joined = {k: v.reshape(1, 8, -1) for k, v in batch.items()}
    step = train_step.make_train_step(graphdef, toy_loss, optimizer, one_device, unroll)
    one, two = (
        step(train_step.initial_state(jax.tree.map(jnp.copy, params), optimizer, one_device), {}, b, jax.random.key(0))[
            0
        ]["params"]
        for b in (batch, joined)
    )
    for path in one:
        assert np.allclose(one[path], two[path], atol=1e-6) and not np.allclose(one[path], params[path], atol=1e-3)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(toy, one_device):
    graphdef, state, frozen, optimizer = toy
    step = train_step.make_train_step(graphdef, toy_loss, optimizer, one_device)
    before = jax.tree.map(np.array, state)
    batch = toy_batch(0)
    batch["x"][0, 0, 0] = np.inf
    state, measures = step(state, frozen, batch, jax.random.key(0))
    assert train_step.means([measures])["skipped"] == 1 and int(state["step"]) == 1
    for name in ("params", "opt_state"):
        assert all(
            np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (state[name], before[name])), strict=True)
        )
    state, measures = step(state, frozen, toy_batch(0), jax.random.key(0))
    assert train_step.means([measures])["skipped"] == 0
    assert not np.array_equal(state["params"]["layer.lora_b"], before["params"]["layer.lora_b"])


def test_weight_decay_spares_the_leaves_that_are_named(one_device):
    graphdef, params = trees.split(Toy(nnx.Rngs(0)))
    params = jax.tree.map(lambda leaf: leaf + 1, params)
    after = {}
    for no_decay in ((), (r".*\.bias",)):
        config = dataclasses.replace(RECIPE, warmup_steps=0, weight_decay=0.1, no_decay=no_decay)
        optimizer = optim.make_optimizer(config, 100)
        state = train_step.initial_state(jax.tree.map(jnp.copy, params), optimizer, one_device)
        step = train_step.make_train_step(graphdef, toy_loss, optimizer, one_device)
        after[no_decay] = step(state, {}, toy_batch(0), jax.random.key(0))[0]["params"]
    plain, spared = after.values()
    np.testing.assert_array_equal(plain["layer.kernel"], spared["layer.kernel"])
    np.testing.assert_allclose(spared["layer.bias"] - plain["layer.bias"], 1e-3 * 0.1 * params["layer.bias"], rtol=1e-2)


def test_a_pattern_of_no_leaf_is_refused():
    config = dataclasses.replace(RECIPE, no_decay=("layers.bias",))
    with pytest.raises(UserError, match="'layers.bias' matches nothing; the nearest paths are layer.bias"):
        optim.make_optimizer(config, 100).init({"layer.bias": jnp.ones(2), "layer.kernel": jnp.ones((3, 2))})


def test_means_over_bins_leave_an_empty_bin_open():
    def measures(by_t, counts):
        return {"loss": (1.0, 2.0), "loss_by_t": (np.array(by_t), np.array(counts))}

    found = train_step.means([measures([3.0, 0.0], [1, 0]), measures([5.0, 0.0], [3, 0])])
    assert found["loss"] == 0.5 and found["loss_by_t"][0] == 2 and np.isnan(found["loss_by_t"][1])
    assert "loss_by_t" not in train_step.means([measures([0.0, 0.0], [0, 0])])


def test_the_published_schedules():
    def rates(schedule, *steps):
        rate = optim.learning_rate(optim.OptimizerConfig(1e-4, schedule, 1000, 0.9, 0.95, 1e-8, 1e-6, 1.0), 300_000)
        return [float(rate(step)) for step in steps]

    assert rates("step", 1000, 240_999, 241_000, 270_999, 271_000) == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-6])
    assert rates("poly", 1000, 151_000) == pytest.approx([1e-4, 1e-4 * 0.5**0.9], rel=1e-5)
    assert rates("constant", 499, 1000, 299_999) == pytest.approx([1e-4 * 500 / 1001, 1e-4, 1e-4])


def test_the_learning_rate_rises_then_follows_a_cosine_to_zero():
    config = optim.OptimizerConfig(1e-4, "cosine", 200, 0.9, 0.999, 1e-8, 0.01, 1.0)
    rate = optim.learning_rate(config, 3000)
    assert float(rate(0)) == pytest.approx(1e-4 / 201, rel=1e-4) and float(rate(199)) == pytest.approx(1e-4 * 200 / 201)
    assert float(rate(200)) == pytest.approx(1e-4) and float(rate(1600)) == pytest.approx(0.5e-4)
    assert float(rate(3000)) == pytest.approx(0, abs=1e-12)
