"""Augmentation of training samples, for few clips: noise on what is seen, two samples mixed, spans that are not seen.

Each part is drawn from the run's key and the sample's position in the stream, as the objective's draws are, and does
nothing at zero. What validates is never augmented. Conditions are dropped after it: what a sample goes without is the
empty feature as it is at generation, neither noisy nor mixed.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mmaudio_jax.errors import UserError
from mmaudio_jax.models.mmaudio import MMAudio

VIDEO = ("clip_f", "sync_f")
STREAM = 7  # of a sample's key; the objective takes 5 and 6


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What is done to a training sample; each is off at 0.

    Attributes:
        feature_noise: Gaussian noise on the clip and the sync features, as a multiple of their root mean square. Words
            have none: a caption is the same vectors at generation, while no two takes look the same.
        mixup: probability that a sample is mixed with the one before it in its micro-batch (arXiv 1710.09412).
        mixup_alpha: the share that a mixed sample keeps of itself is drawn from Beta(α, α): 1 is uniform, less leaves
            most pairs nearly unmixed.
        time_mask: longest span, as a share of the clip, in which the clip and the sync features become the empty ones.
    """

    feature_noise: float
    mixup: float
    mixup_alpha: float
    time_mask: float

    def __post_init__(self):
        for name in ("mixup", "time_mask"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name} is {getattr(self, name)}; it must lie in [0, 1]")
        if not 0 <= self.feature_noise < math.inf:
            raise UserError(f"augment.feature_noise is {self.feature_noise}; it must be a number of 0 or more")
        if not 0 < self.mixup_alpha < math.inf:
            raise UserError(f"augment.mixup_alpha is {self.mixup_alpha}; it must be a positive number")


def augment(
    model: MMAudio,
    batch: Mapping[str, Array],
    latent: Float[Array, "b n z"],
    key: Key[Array, ""],
    config: AugmentConfig,
) -> tuple[Mapping[str, Array], Float[Array, "b n z"]]:
    """The batch and its normalised latents with noise, then mixed, then masked; as they are if all is off.

    The features that a sample lacks become the empty ones before samples are mixed, so that has_video and has_text are
    true of all. Of a mixed sample the frames that are own in both count: the others are partly padding.
    """
    if not (config.feature_noise or config.mixup or config.time_mask):
        return batch, latent
    clip_keys, sync_keys, mixup_keys, mask_keys = jax.vmap(
        lambda position: jax.random.split(jax.random.fold_in(jax.random.fold_in(key, position), STREAM), 4), out_axes=1
    )(batch["position"])
    there = {"clip_f": batch["has_video"], "sync_f": batch["has_video"], "text_f": batch["has_text"]}
    empty = {
        "clip_f": model.empty_clip_feat[...],
        "sync_f": model.empty_sync_feat[...],
        "text_f": model.empty_string_feat[...],
    }
    features = {name: batch[name].astype(jnp.float32) for name in there}
    if config.feature_noise:
        keys = {"clip_f": clip_keys, "sync_f": sync_keys}
        features |= {name: noisy(keys[name], features[name], config) for name in VIDEO}
    features = {name: jnp.where(there[name][:, None, None], feature, empty[name]) for name, feature in features.items()}
    if config.mixup:
        share = shares(mixup_keys, config)
        features = {name: mixed(feature, share) for name, feature in features.items()}
        latent = mixed(latent, share)
        own = batch.get("latents", jnp.full(latent.shape[0], latent.shape[1]))
        batch = {**batch, "latents": jnp.where(share < 1, jnp.minimum(own, before(own)), own)}
    if config.time_mask:
        begin, end = spans(mask_keys, config)
        features |= {name: masked(features[name], begin, end, empty[name]) for name in VIDEO}
    return {**batch, **features, **{name: jnp.ones_like(batch[name]) for name in ("has_video", "has_text")}}, latent


def noisy(keys: Key[Array, " b"], feature: Float[Array, "b n f"], config: AugmentConfig) -> Float[Array, "b n f"]:
    """Adds `feature_noise` × the sample's root mean square × N(0, 1)."""
    rms = jnp.sqrt(jnp.mean(jnp.square(feature), axis=(1, 2), keepdims=True))
    noise = jax.vmap(lambda key: jax.random.normal(key, feature.shape[1:]))(keys)
    return feature + config.feature_noise * rms * noise


def shares(keys: Key[Array, " b"], config: AugmentConfig) -> Float[Array, " b"]:
    """What each sample keeps of itself: 1 where it is not mixed."""

    def one(key):
        k_whether, k_share = jax.random.split(key)
        share = jax.random.beta(k_share, config.mixup_alpha, config.mixup_alpha)
        return jnp.where(jax.random.bernoulli(k_whether, config.mixup), share, 1.0)

    return jax.vmap(one)(keys)


def before(x: Array) -> Array:
    """For each sample the one before it in the batch over all devices; the last for the first."""
    return jnp.roll(x, 1, axis=0)


def mixed(x: Float[Array, "b n f"], share: Float[Array, " b"]) -> Float[Array, "b n f"]:
    """λ of each sample and 1 − λ of the one before it."""
    share = share[:, None, None]
    return share * x + (1 - share) * before(x)


def spans(keys: Key[Array, " b"], config: AugmentConfig) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Begin and end of a span in each clip, as shares of it: of a uniform length, at a uniform place."""

    def one(key):
        k_length, k_begin = jax.random.split(key)
        length = config.time_mask * jax.random.uniform(k_length)
        begin = (1 - length) * jax.random.uniform(k_begin)
        return begin, begin + length

    return jax.vmap(one)(keys)


def masked(
    feature: Float[Array, "b n f"], begin: Float[Array, " b"], end: Float[Array, " b"], empty: Float[Array, "#n f"]
) -> Float[Array, "b n f"]:
    """The feature, empty where its time lies in the span; like the network, it takes features to be evenly spaced."""
    length = feature.shape[1]
    middle = (jnp.arange(length) + 0.5) / length
    inside = (begin[:, None] <= middle) & (middle < end[:, None])
    return jnp.where(inside[:, :, None], empty, feature)
