"""Generation: the jitted sampler, the decoder, and the pipeline from media to sound."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmaudio_jax import flow_matching, lora, trees, weights
from mmaudio_jax.errors import UserError
from mmaudio_jax.models.bigvgan import BigVGAN
from mmaudio_jax.models.mmaudio import Conditions, MMAudio
from mmaudio_jax.models.vae import VAE


def initial_noise(seeds: Sequence[int], latent_len: int, latent_dim: int) -> Float[Array, "b n z"]:
    """x0 of each sample from its own seed, whatever batch it sits in."""
    keys = [jax.random.key(seed) for seed in seeds]
    return jnp.stack([jax.random.normal(key, (latent_len, latent_dim)) for key in keys])


@functools.partial(jax.jit, static_argnames=("graphdef", "num_steps", "guided"))
def sample(
    graphdef: nnx.GraphDef,
    params: trees.Params,
    x0: Float[Array, "b n z"],
    clip_f: Float[Array, "b c f"],
    sync_f: Float[Array, "b s g"],
    text_f: Float[Array, "b t e"],
    negative_f: Float[Array, "b t e"],
    cfg_strength: Float[Array, ""],
    *,
    num_steps: int,
    guided: bool,
) -> Float[Array, "b n z"]:
    """Integrates the flow from noise to an un-normalised latent by Euler's method.

    Args:
        graphdef: of the flow network.
        params: of the flow network.
        x0: noise.
        clip_f: CLIP features.
        sync_f: Synchformer features.
        text_f: text features.
        negative_f: what takes the place of the empty text in the unconditional branch.
        cfg_strength: guidance w; w · v(cond) + (1 − w) · v(empty).
        num_steps: Euler steps.
        guided: false leaves the unconditional branch out (for w below 1).
    """
    model: MMAudio = trees.merge(graphdef, params)
    b, n, _ = x0.shape
    if not guided:
        conditions = model.conditions(clip_f, sync_f, text_f, n)
        x1 = flow_matching.euler(lambda x, t: model.velocity(x, t, conditions), x0, num_steps)
        return model.unnormalize(x1)

    def both(given, empty):
        return jnp.concatenate([given, jnp.broadcast_to(empty, given.shape)])

    # both branches of the guidance go through the network as one batch
    conditions: Conditions = model.conditions(
        both(clip_f, model.empty_clip_feat[...]),
        both(sync_f, model.empty_sync_feat[...]),
        both(text_f, negative_f),
        n,
    )

    def velocity(x, t):
        twice = model.velocity(jnp.concatenate([x, x]), jnp.concatenate([t, t]), conditions)
        return flow_matching.guide(*jnp.split(twice, 2), cfg_strength)

    return model.unnormalize(flow_matching.euler(velocity, x0, num_steps))


@functools.partial(jax.jit, static_argnames=("vae_def", "vocoder_def"))
def decode(
    vae_def: nnx.GraphDef,
    vae_params: trees.Params,
    vocoder_def: nnx.GraphDef,
    vocoder_params: trees.Params,
    latent: Float[Array, "b n z"],
) -> Float[Array, "b l"]:
    """Latent → mel → waveform in [−1, 1]."""
    vae: VAE = trees.merge(vae_def, vae_params)
    vocoder: BigVGAN = trees.merge(vocoder_def, vocoder_params)
    return vocoder(vae.decode(latent))


def load_flow_network(directory: Path, adapter: Path | None) -> weights.Weights:
    """The flow network, with a run's adapter merged into it if one is given.

    Raises:
        UserError: the adapter was trained on another base.
    """
    base = weights.load(directory, "mmaudio")
    if adapter is None:
        return base
    from mmaudio_jax.checkpoint import load_adapter

    trained = load_adapter(adapter)
    made_for = trained.run["base"]
    if made_for["fingerprint"] != base.metadata["fingerprint"]:
        raise UserError(
            f"the adapter of {adapter} was trained on {made_for['path']}, whose weights are not those of {directory}"
        )
    config = lora.LoRAConfig(**trained.run["config"]["lora"])
    params = lora.merge({**base.params, **trained.params}, config)
    return dataclasses.replace(base, params=params)
