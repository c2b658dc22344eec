"""The training objective of MMAudio: posterior draw, normalisation, condition dropping, flow-matching loss."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from mmaudio_jax import flow_matching
from mmaudio_jax.augment import AugmentConfig, augment
from mmaudio_jax.errors import UserError
from mmaudio_jax.models.mmaudio import MMAudio

T_RANGES = {"t0.0-0.3": (0.0, 0.3), "t0.3-0.7": (0.3, 0.7), "t0.7-1.0": (0.7, 1.01)}
T_BINS = 25  # of equal width, for the loss as a function of t

Batch = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """How a training sample is drawn.

    Attributes:
        t_distribution: `logit_normal` (published) or `uniform`.
        drop_video: probability that a sample's clip and sync features, together, become the empty ones.
        drop_clip: probability that the clip features alone do, whatever becomes of the sync features.
        drop_sync: probability that the sync features alone do, whatever becomes of the clip features.
        drop_text: probability that a sample's text features become the empty ones.
    """

    t_distribution: str
    drop_video: float
    drop_clip: float
    drop_sync: float
    drop_text: float

    def __post_init__(self):
        if self.t_distribution not in flow_matching.T_DISTRIBUTIONS:
            known = ", ".join(flow_matching.T_DISTRIBUTIONS)
            raise UserError(f"objective.t_distribution is {self.t_distribution!r}; it must be one of {known}")
        for name in ("drop_video", "drop_clip", "drop_sync", "drop_text"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"objective.{name} is {getattr(self, name)}; it must lie in [0, 1]")


class Draws(NamedTuple):
    """The random part of a batch: noise, normalised latent, time, and which conditions are dropped."""

    x0: Float[Array, "b n z"]
    x1: Float[Array, "b n z"]
    t: Float[Array, " b"]
    drop_video: Bool[Array, " b"]
    drop_clip: Bool[Array, " b"]
    drop_sync: Bool[Array, " b"]
    drop_text: Bool[Array, " b"]


def draw(model: MMAudio, batch: Batch, key: Key[Array, ""], config: ObjectiveConfig) -> Draws:
    """Draws each sample from `key` and its position in the stream alone, whatever batch it sits in."""

    def one(position, mean, std):
        sample_key = jax.random.fold_in(key, position)
        k_posterior, k_noise, k_t, k_video, k_text = jax.random.split(sample_key, 5)
        k_sync, k_clip = jax.random.fold_in(sample_key, 5), jax.random.fold_in(sample_key, 6)
        return Draws(
            x0=jax.random.normal(k_noise, mean.shape),
            x1=mean + std * jax.random.normal(k_posterior, mean.shape),
            t=flow_matching.sample_t(k_t, config.t_distribution),
            drop_video=jax.random.bernoulli(k_video, config.drop_video),
            drop_clip=jax.random.bernoulli(k_clip, config.drop_clip),
            drop_sync=jax.random.bernoulli(k_sync, config.drop_sync),
            drop_text=jax.random.bernoulli(k_text, config.drop_text),
        )

    draws = jax.vmap(one)(batch["position"], batch["mean"], batch["std"])
    return draws._replace(x1=model.normalize(draws.x1))


def features(model: MMAudio, batch: Batch, draws: Draws) -> tuple[Array, Array, Array]:
    """Clip, sync and text features, with the empty ones where a sample drops or lacks them."""
    no_video = (draws.drop_video | ~batch["has_video"])[:, None, None]
    no_clip = no_video | draws.drop_clip[:, None, None]
    no_sync = no_video | draws.drop_sync[:, None, None]
    no_text = (draws.drop_text | ~batch["has_text"])[:, None, None]
    clip_f, sync_f, text_f = (batch[name].astype(jnp.float32) for name in ("clip_f", "sync_f", "text_f"))
    return (
        jnp.where(no_clip, model.empty_clip_feat[...], clip_f),
        jnp.where(no_sync, model.empty_sync_feat[...], sync_f),
        jnp.where(no_text, model.empty_string_feat[...], text_f),
    )


def velocities(model: MMAudio, batch: Batch, draws: Draws) -> tuple[Float[Array, "b n z"], Float[Array, "b n z"]]:
    """The network's velocity and the target at the drawn points."""
    xt = flow_matching.interpolate(draws.x0, draws.x1, draws.t)
    predicted = model(xt, draws.t, *features(model, batch, draws))
    return predicted, flow_matching.target_velocity(draws.x0, draws.x1)


def own_frames(batch: Batch, like: Float[Array, "b n z"]) -> Bool[Array, "b n 1"]:
    """Which latent frames are the clip's own: the first `latents` (b,) of each sample, all where it is not given."""
    count, length = like.shape[:2]
    latents = batch.get("latents", jnp.full(count, length))
    return (jnp.arange(length) < latents[:, None])[:, :, None]


def make_loss(config: ObjectiveConfig, sets: Sequence[str] = (), augmentation: AugmentConfig | None = None) -> Callable:
    """The loss that the trainer takes: (model, batch, key) → (loss, measures).

    A batch holds mean, std (b, n, z), clip_f (b, c, f), sync_f (b, s, g), text_f (b, t, e), has_video, has_text,
    position, each (b,), and optionally weight and latents (b,). The loss of each of `sets` is measured as loss/NAME;
    the batch then also holds set (b,), which tells each sample's. Every measure is a pair (weighted sum, sum of
    weights), of `loss_by_t` one each for `T_BINS` bins of t; the norms of a velocity are per element, the root of the
    mean square.

    A padded clip goes on with silence while its last frame stands: the network sees both, as it sees every frame at
    generation, and what it answers there is left out of the loss and of all measures. `latents` counts the frames
    before the padding; a sample's loss is the mean over them and the channels.

    `augmentation` is for training alone; without it the loss is the one that validates.
    """

    def loss(model: MMAudio, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], dict]:
        draws = draw(model, batch, key, config)
        if augmentation:
            batch, latent = augment(model, batch, draws.x1, key, augmentation)
            draws = draws._replace(x1=latent)
        predicted, target = velocities(model, batch, draws)
        own = own_frames(batch, target)
        error = flow_matching.squared_error(predicted, target, own)
        rms_predicted, rms_target = (
            jnp.sqrt(jnp.mean(jnp.square(v), axis=(1, 2), where=own)) for v in (predicted, target)
        )
        cosine = jnp.mean(predicted * target, axis=(1, 2), where=own) / jnp.maximum(rms_predicted * rms_target, 1e-12)
        weight = batch.get("weight", jnp.ones_like(error))

        def weighted(value, weight):
            return jnp.sum(jnp.where(weight > 0, value * weight, 0), axis=-1), jnp.sum(weight, axis=-1)

        measures = {
            "loss": weighted(error, weight),
            "velocity_norm": weighted(rms_predicted, weight),
            "target_norm": weighted(rms_target, weight),
            "velocity_cosine": weighted(cosine, weight),
        }
        for name, (low, high) in T_RANGES.items():
            measures[f"loss_{name}"] = weighted(error, weight * ((low <= draws.t) & (draws.t < high)))
        for i, name in enumerate(sets):
            measures[f"loss/{name}"] = weighted(error, weight * (batch["set"] == i))
        in_bin = jnp.floor(T_BINS * draws.t) == jnp.arange(T_BINS)[:, None]
        measures["loss_by_t"] = weighted(error, weight * in_bin)
        total, count = measures["loss"]
        return total / jnp.maximum(count, 1), measures

    return loss
