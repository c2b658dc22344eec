"""It learns: a base trained on some clips' features, then an adapter on clips that the base never saw."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmaudio_jax import lora, objective, optim, training, trees
from mmaudio_jax.data.clips import read_clips
from mmaudio_jax.demo.networks import CONFIGS
from mmaudio_jax.demo.render import render_clips
from mmaudio_jax.errors import UserError
from mmaudio_jax.features import Encoders, encode, read_media
from mmaudio_jax.models.mmaudio import MMAudio

DURATION = 1.0
OBJECTIVE = objective.ObjectiveConfig("logit_normal", drop_video=0.1, drop_text=0.1)
ALWAYS = dataclasses.replace(OBJECTIVE, drop_video=0.0, drop_text=0.0)
BASE = optim.OptimizerConfig(3e-3, "cosine", 20, 0.9, 0.95, 1e-8, 1e-6, 1.0)
ADAPTER = dataclasses.replace(BASE, weight_decay=0.0)
PATTERNS = {  # a network this small needs its ends adapted too
    "blocks": r".*_blocks\..*\.(qkv|linear1|w[123]|adaLN_modulation\.1)",
    "ends": r".*_input_proj\.\d\.w[123]|.*_input_proj\.0|.*_cond_proj|final_layer\..*",
}
LORA = lora.LoRAConfig(32, 32.0, 0.0, tuple(PATTERNS), PATTERNS)


@pytest.fixture(scope="module")
def examples(small_weights, tmp_path_factory):
    """Features of the first twelve rendered clips that have a sound, stacked."""
    table = render_clips(tmp_path_factory.mktemp("clips"), 18, seed=5, duration=DURATION)
    found = []
    for clip in read_clips(table, table.parent):
        with contextlib.suppress(UserError):  # nothing happens in it yet
            found.append((clip, read_media(clip, "16k", DURATION)))
    clips, media = zip(*found[:12], strict=True)
    arrays = encode(Encoders(small_weights), clips, media, "16k")
    return {name: np.stack([a[name] for a in arrays]) for name in arrays[0]}


def batch(examples, rows, repeats):
    """The chosen clips, each several times with draws of its own, as one micro-batch."""
    chosen = {name: np.tile(array[rows], (repeats, *[1] * (array.ndim - 1)))[None] for name, array in examples.items()}
    count = len(rows) * repeats
    return chosen | {name: np.ones((1, count), bool) for name in ("has_video", "has_text")}


def train(graphdef, trained, frozen, examples, rows, recipe, steps):
    optimizer = optim.make_optimizer(recipe, steps)
    state = training.initial_state(trained, optimizer)
    step = training.make_train_step(graphdef, objective.make_loss(OBJECTIVE), optimizer)
    count = 8
    data = jax.device_put(batch(examples, rows, count // len(rows)))
    for k in range(steps):
        positions = np.arange(k * count, (k + 1) * count)[None]
        state, _ = step(state, frozen, data | {"position": positions}, jax.random.key(0))
    return state["params"]


def test_an_adapter_learns_clips_that_its_base_never_saw(examples):
    config = CONFIGS["small_16k"][1]
    graphdef, params = trees.split(MMAudio(config, rngs=nnx.Rngs(0)))
    params["latent_mean"] = jnp.asarray(examples["mean"].mean(axis=(0, 1), keepdims=True))
    params["latent_std"] = jnp.asarray(examples["mean"].std(axis=(0, 1), ddof=1, keepdims=True))
    may_train = set(trees.trainable(lambda: MMAudio(config, rngs=trees.UNDRAWN)))
    trained, buffers = trees.partition(params, {path: path in may_train for path in params})
    seen, held_out = np.arange(8), np.arange(8, 12)
    base = {**buffers, **train(graphdef, trained, buffers, examples, seen, BASE, 150)}

    network = nnx.eval_shape(lambda: MMAudio(config, rngs=trees.UNDRAWN))
    adapted_def, leaves = trees.split(lora.insert(network, LORA, rngs=nnx.Rngs(1)))
    adapter, _ = trees.partition({**leaves, **base}, trees.mask([lora.ADAPTER], leaves))
    start = jax.tree.map(jnp.copy, adapter)  # training gives its state away
    adapter = train(adapted_def, adapter, base, examples, held_out, ADAPTER, 300)

    @jax.jit
    def losses(adapter, batch):
        model = trees.merge(adapted_def, {**base, **adapter})
        draws = objective.draw(model, batch, jax.random.key(1), ALWAYS)
        predicted, target = objective.velocities(model, batch, draws)
        return jnp.mean(jnp.square(predicted - target)), jnp.mean(jnp.square(target - target.mean(axis=(0, 1))))

    data = {name: array[0] for name, array in batch(examples, held_out, 16).items()}
    data["position"] = np.arange(64)
    others = data | {name: np.roll(data[name], 1, axis=0) for name in ("clip_f", "sync_f", "text_f")}
    before, constant = losses(start, data)
    after, _ = losses(adapter, data)
    confused, _ = losses(adapter, others)
    print(f"best constant {constant:.3f}, base {before:.3f}, adapter {after:.3f}, with another clip's {confused:.3f}")
    assert after < 0.5 * constant and after < 0.8 * before
    assert confused > 1.3 * after
