"""Generation on arrays: the jitted sampler of latents, and the decoder that makes sound of them."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from mmaudio_jax import solvers, trees, weights
from mmaudio_jax.errors import UserError
from mmaudio_jax.models.bigvgan import BigVGAN
from mmaudio_jax.models.mmaudio import MMAudio
from mmaudio_jax.models.vae import VAE
from mmaudio_jax.sequence import AudioMode, mode_of


def initial_noise(seeds: Sequence[int], latent_len: int, latent_dim: int) -> Float[Array, "b n z"]:
    """x0 of each sample from its own seed, whatever batch it sits in."""
    keys = [jax.random.key(seed) for seed in seeds]
    return jnp.stack([jax.random.normal(key, (latent_len, latent_dim)) for key in keys])


class Rows(NamedTuple):
    """What the network is asked at once: each row is a sample under some conditions, guidance combines several.

    Attributes:
        clip_f, sync_f, text_f: features of each row.
        sample: which sample a row is of.
        branches: the rows whose velocities make a sample's, up to three.
        strengths: what each of these velocities counts; those of a sample sum to one.
    """

    clip_f: Float[Array, "r c f"]
    sync_f: Float[Array, "r s g"]
    text_f: Float[Array, "r t e"]
    sample: Int[Array, " r"]
    branches: Int[Array, "b 3"]
    strengths: Float[Array, "b 3"]


def plain(clip_f: Float[Array, "b c f"], sync_f: Float[Array, "b s g"], text_f: Float[Array, "b t e"]) -> Rows:
    """Without guidance: a row a sample."""
    own = np.arange(len(clip_f))
    return Rows(clip_f, sync_f, text_f, own, np.stack([own] * 3, axis=1), np.tile(np.float32([1, 0, 0]), (len(own), 1)))


def guided(
    params: trees.Params,
    clip_f: Float[Array, "b c f"],
    sync_f: Float[Array, "b s g"],
    text_f: Float[Array, "b t e"],
    negative_f: Float[Array, "#b t e"],
    strength: float,
) -> Rows:
    """Classifier-free guidance w · v(cond) + (1 − w) · v(empty) (arXiv 2207.12598): two rows a sample.

    Args:
        params: of the flow network, for its empty video features.
        clip_f, sync_f, text_f: the conditions.
        negative_f: what takes the place of the empty text.
        strength: w.
    """

    def both(given, empty):
        return jnp.concatenate([given, jnp.broadcast_to(empty, given.shape)])

    own = np.arange(len(clip_f))
    return Rows(
        both(clip_f, params["empty_clip_feat"]),
        both(sync_f, params["empty_sync_feat"]),
        both(text_f, negative_f),
        np.concatenate([own, own]),
        np.stack([own, own + len(own), own], axis=1),
        np.tile(np.float32([strength, 1 - strength, 0]), (len(own), 1)),
    )


def integrate(
    velocity: Callable[[Float[Array, "b n z"], Float[Array, " b"]], Float[Array, "b n z"]],
    x0: Float[Array, "b n z"],
    table: solvers.Table,
    count: Int[Array, ""] | int,
) -> Float[Array, "b n z"]:
    """x at t = 1, by the first `count` evaluations of a batch's table: one loop, so the network compiles once."""

    def evaluate(k, state):
        y, x, before = state
        t, a, b, completes = (jnp.asarray(column)[k] for column in table)
        v = velocity(y, t)
        y = x + a[:, None, None] * v + b[:, None, None] * before
        return y, jnp.where(completes[:, None, None], y, x), v

    return jax.lax.fori_loop(0, count, evaluate, (x0, x0, jnp.zeros_like(x0)))[0]


@functools.partial(jax.jit, static_argnames="graphdef")
def sample(
    graphdef: nnx.GraphDef,
    params: trees.Params,
    x0: Float[Array, "b n z"],
    rows: Rows,
    table: solvers.Table,
    count: Int[Array, ""] | int,
) -> Float[Array, "b n z"]:
    """Integrates the flow from noise to an un-normalised latent.

    Args:
        graphdef: of the flow network.
        params: of the flow network.
        x0: noise.
        rows: conditions and guidance.
        table: evaluations of every sample, as of `solvers.stack`.
        count: of the evaluations, how many some sample has.
    """
    model: MMAudio = trees.merge(graphdef, params)
    conditions = model.conditions(rows.clip_f, rows.sync_f, rows.text_f, x0.shape[1])  # once, for all evaluations
    sample, branches, strengths = (jnp.asarray(value) for value in (rows.sample, rows.branches, rows.strengths))

    def velocity(x, t):
        found = model.velocity(x[sample], t[sample], conditions)[branches]
        return jnp.sum(strengths[:, :, None, None] * found, axis=1)

    return model.unnormalize(integrate(velocity, x0, table, count))


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


class Decoder(NamedTuple):
    """The VAE and the vocoder of a model, which `decode` turns latents into sound with."""

    mode: AudioMode
    vae_def: nnx.GraphDef
    vae: trees.Params
    vocoder_def: nnx.GraphDef
    vocoder: trees.Params

    @classmethod
    def load(cls, root: Path, model: str, latent_dim: int, precision="default", mesh: Mesh | None = None) -> "Decoder":
        """Loads what a flow network of so many latent channels needs.

        Args:
            root: the folder of converted weights.
            model: what the flow network is called in it.
            latent_dim: its latent channels.
            precision: of matrix products.
            mesh: where the leaves are to lie; None: on the first local device.

        Raises:
            UserError: weights are missing or do not fit together.
        """
        mode = mode_of(latent_dim)
        if mode is None:
            raise UserError(f"{root / model} has {latent_dim} latent channels, which no audio mode has")
        weights.check_stand_ins(root, ("clip", "synchformer", f"vae_{mode.name}", f"bigvgan_{mode.name}"))
        vae = weights.load(root / f"vae_{mode.name}", "vae", mesh=mesh)
        vocoder = weights.load(root / f"bigvgan_{mode.name}", "bigvgan", mesh=mesh)
        for part, has, needs, what in (
            (vae, vae.config.latent_dim, mode.latent_dim, "latent channels"),
            (vocoder, vocoder.config.mel_bins, mode.mel_bins, "mel bins"),
        ):
            if has != needs:
                raise UserError(f"{part.directory} has {has} {what}, {model} needs {needs}: it is another model's")
        # a bfloat16 waveform hisses at some −50 dB, and decoding is the small part of the time
        vae_def, vocoder_def = vae.graphdef(precision=precision), vocoder.graphdef(precision=precision)
        return cls(mode, vae_def, vae.params, vocoder_def, vocoder.params)
