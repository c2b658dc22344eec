"""It learns: an adapter on four clips of a material that its base, the demo's, never heard."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmaudio_jax import lora, objective, optim, train_step, trees, weights
from mmaudio_jax.data.clips import read_clips
from mmaudio_jax.decoding import read_media
from mmaudio_jax.demo.__main__ import BASE
from mmaudio_jax.demo.render import render_clips
from mmaudio_jax.demo.stand_ins import save_stand_ins
from mmaudio_jax.demo.world import NEW_MATERIAL
from mmaudio_jax.encoders import Encoders
from mmaudio_jax.extraction import encode
from mmaudio_jax.models.mmaudio import MMAudio

CLIPS, STEPS, BATCH = 4, 80, 8
OBJECTIVE = objective.ObjectiveConfig("logit_normal", drop_video=0.1, drop_clip=0.0, drop_sync=0.0, drop_text=0.1)
ALWAYS = dataclasses.replace(OBJECTIVE, drop_video=0.0, drop_text=0.0)
OPTIMIZER = optim.OptimizerConfig(4e-3, "cosine", 20, 0.9, 0.999, 1e-8, 0.01, 1.0)
PATTERNS = {"qkv": r".*\.attn\.qkv", "ffn": r".*_blocks\..*\.ffn\.w[123]"}
LORA = lora.LoRAConfig(32, 32.0, False, 0.0, tuple(PATTERNS), PATTERNS, ranks={}, alphas={}, start=None)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Features of four rendered clips, stacked."""
    folder = tmp_path_factory.mktemp("learning")
    save_stand_ins(folder / "weights")
    table = render_clips(folder / "clips", CLIPS, seed=15, materials=[NEW_MATERIAL])
    clips = read_clips(table, table.parent)
    encoders = Encoders(folder / "weights")
    arrays = [encode(encoders, clip, read_media(clip, "16k", 8.0), "16k") for clip in clips]
    return {name: np.stack([a[name] for a in arrays]) for name in arrays[0]}


def batch(examples, repeats):
    """The clips, each several times with draws of its own."""
    count = CLIPS * repeats
    tiled = {name: np.tile(array, (repeats, *[1] * (array.ndim - 1))) for name, array in examples.items()}
    return tiled | {name: np.ones(count, bool) for name in ("has_video", "has_text")} | {"position": np.arange(count)}


def test_an_adapter_learns_clips_that_its_base_never_saw(examples, one_device):
    base = weights.load(BASE, "mmaudio")
    network = nnx.eval_shape(lambda: MMAudio(base.config, rngs=trees.UNDRAWN))
    graphdef, leaves = trees.split(lora.insert(network, LORA, rngs=nnx.Rngs(1)))
    adapter, _ = trees.partition({**leaves, **base.params}, trees.mask([lora.ADAPTER], leaves))
    optimizer = optim.make_optimizer(OPTIMIZER, STEPS)
    copy = jax.tree.map(jnp.copy, adapter)  # training gives its state away
    state = train_step.initial_state(copy, optimizer, one_device)
    step = train_step.make_train_step(graphdef, objective.make_loss(OBJECTIVE), optimizer, one_device)
    data = {name: array[None] for name, array in batch(examples, BATCH // CLIPS).items()}
    for k in range(STEPS):
        state, _ = step(state, base.params, data | {"position": data["position"] + k * BATCH}, jax.random.key(0))

    @jax.jit
    def losses(adapter, batch):
        model = trees.merge(graphdef, {**base.params, **adapter})
        draws = objective.draw(model, batch, jax.random.key(1), ALWAYS)
        predicted, target = objective.velocities(model, batch, draws)
        return jnp.mean(jnp.square(predicted - target)), jnp.mean(jnp.square(target - target.mean(axis=(0, 1))))

    judged = batch(examples, 8)
    others = judged | {name: np.roll(judged[name], 1, axis=0) for name in ("clip_f", "sync_f", "text_f")}
    before, constant = losses(adapter, judged)
    after, _ = losses(state["params"], judged)
    confused, _ = losses(state["params"], others)
    print(f"best constant {constant:.3f}, base {before:.3f}, adapter {after:.3f}, with another clip's {confused:.3f}")
    assert after < 0.5 * constant and after < 0.8 * before
    assert confused > 1.2 * after
