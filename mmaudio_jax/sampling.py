"""Generation: the jitted sampler, the decoder, and the pipeline from media to sound."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from mmaudio_jax import flow_matching, lora, trees, weights
from mmaudio_jax.errors import UserError
from mmaudio_jax.models.bigvgan import BigVGAN
from mmaudio_jax.models.mmaudio import Conditions, MMAudio
from mmaudio_jax.models.vae import VAE
from mmaudio_jax.sequence import AudioMode, lengths, mode_of

if TYPE_CHECKING:  # it loads Orbax
    from mmaudio_jax.checkpoint import Adapter


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


def load_flow_network(directory: Path, trained: "Adapter | None" = None, dtype=jnp.float32) -> weights.Weights:
    """The flow network, with what a run has trained, if one is given: its adapter merged in, or all weights.

    Args:
        directory: of the base.
        trained: what `checkpoint.load_adapter` read of a run.
        dtype: see `weights.load`; an adapter is merged in float32.

    Raises:
        UserError: the run started from another base.
    """
    if trained is None:
        return weights.load(directory, "mmaudio", dtype)
    base = weights.load(directory, "mmaudio")
    trained.check_base(base.metadata["fingerprint"], directory)
    params = {**base.params, **trained.params}
    merged = lora.merge(params, trained.lora) if trained.lora else params
    return dataclasses.replace(base, params=merged).cast(dtype)


class Features(NamedTuple):
    """The conditions of one sample, on the host; None is the model's own empty feature."""

    clip_f: Float[np.ndarray, "c f"] | None
    sync_f: Float[np.ndarray, "s g"] | None
    text_f: Float[np.ndarray, "t e"] | None
    negative_f: Float[np.ndarray, "t e"] | None


class Pipeline:
    """Everything that turns frames and words into sound; `load` makes one from a folder of weights.

    Attributes:
        mode: rate and latent shape of the model.
        encoders: CLIP and Synchformer.
    """

    def __init__(self, flow, decoder: Decoder, encoders, dtype, precision):
        self.mode, self.encoders, self._decoder = decoder.mode, encoders, decoder
        self._flow_def, self._flow = flow.graphdef(dtype=dtype, precision=precision), flow.params

    @classmethod
    def load(cls, root: Path, model: str, adapter: Path | None = None, dtype=jnp.float32, precision="default"):
        """Loads a model, an adapter's run if one is given, and the networks that the model needs.

        Args:
            root: the folder of converted weights.
            model: a flow network in it, e.g. `small_16k`.
            adapter: workdir of a training run.
            dtype: compute dtype of the flow network and the encoders, whose weights are stored in it where that makes
                no difference; sound is decoded in float32.
            precision: of matrix products.

        Raises:
            UserError: weights are missing or do not fit together.
        """
        from mmaudio_jax.checkpoint import load_adapter
        from mmaudio_jax.encoders import Encoders

        flow = load_flow_network(root / model, load_adapter(adapter) if adapter else None, dtype)
        decoder = Decoder.load(root, model, flow.config.latent_dim, precision)
        if (clip := root / "clip").exists():  # a sound of noise alone needs none
            has, needs = weights.read_config(clip, "clip")[1].embed_dim, flow.config.clip_dim
            if has != needs:
                raise UserError(f"{clip} has {has} channels, {model} needs {needs}: it is another model's")
        return cls(flow, decoder, Encoders(root, dtype=dtype, precision=precision), dtype, precision)

    def features(self, frames, prompt: str, negative_prompt: str = "") -> Features:
        """The conditions of one sample.

        Args:
            frames: (CLIP frames (c, 384, 384, 3), sync frames (f, 224, 224, 3)) uint8, or None without a video.
            prompt: what is to be heard; empty for none.
            negative_prompt: what is not to be heard; empty for none.
        """
        clip_f = sync_f = None
        if frames is not None:
            clip_frames, sync_frames = frames
            clip_f = self.encoders.encode_clip_frames(clip_frames[None])[0]
            sync_f = self.encoders.encode_sync_frames(sync_frames[None])[0]
        text_f, negative_f = (
            self.encoders.encode_captions([text])[0] if text.strip() else None for text in (prompt, negative_prompt)
        )
        return Features(clip_f, sync_f, text_f, negative_f)

    def generate(
        self,
        batch: Sequence[Features],
        seeds: Sequence[int],
        duration: float,
        *,
        num_steps: int = 25,
        cfg_strength: float = 4.5,
    ) -> Float[np.ndarray, "b l"]:
        """One waveform a sample, float32 in [−1, 1], `duration` seconds at the mode's rate.

        The model's own waveform is whole latents long (353,280 samples for 8 s at 44.1 kHz); it is cut to the duration.

        Args:
            batch: conditions, all of this duration.
            seeds: one a sample: the same seed gives the same sound in any batch.
            duration: seconds.
            num_steps: Euler steps.
            cfg_strength: guidance; below 1 the model runs without it.
        """
        length = lengths(duration, self.mode)
        stack = functools.partial(self._stack, batch)
        latent = sample(
            self._flow_def,
            self._flow,
            initial_noise(seeds, length.latent, self.mode.latent_dim),
            stack("clip_f", "empty_clip_feat", length.clip),
            stack("sync_f", "empty_sync_feat", length.sync),
            stack("text_f", "empty_string_feat", None),
            stack("negative_f", "empty_string_feat", None),
            jnp.float32(cfg_strength),
            num_steps=num_steps,
            guided=cfg_strength >= 1,
        )
        _, *networks = self._decoder
        audio = decode(*networks, latent)
        return np.asarray(audio)[:, : round(duration * self.mode.sample_rate)]

    def _stack(self, batch, name: str, empty: str, length: int | None):
        """One condition of all samples, the model's empty feature standing in for None."""
        absent = np.asarray(self._flow[empty])
        if length is not None:
            absent = np.repeat(absent, length, axis=0)
        found = (getattr(features, name) for features in batch)
        return jnp.asarray(np.stack([absent if feature is None else feature for feature in found]))
