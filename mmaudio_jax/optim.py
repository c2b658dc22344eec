"""Schedules and the gradient transformation of a run."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mmaudio_jax import trees
from mmaudio_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up (arXiv 1711.05101); steps are optimizer steps.

    Attributes:
        learning_rate: the peak.
        schedule: after the warm-up, `constant`, `cosine` (to zero at the end of the run), `poly` (1 − x / num_steps to
            the power 0.9) or `step` (a tenth from 80%, a hundredth from 90% of num_steps, counted after the warm-up).
        warmup_steps: step k < warmup_steps has the factor (k + 1) / (warmup_steps + 1).
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, times the learning rate.
        clip_norm: the global norm that gradients are clipped to.
        no_decay: patterns of the leaves that weight decay leaves alone; none, as published, leaves none alone.
    """

    learning_rate: float
    schedule: str
    warmup_steps: int
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float
    no_decay: tuple[str, ...] = ()

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise UserError(f"optimizer.schedule is {self.schedule!r}; it must be one of {', '.join(SCHEDULES)}")
        for name in ("learning_rate", "eps", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}; it must be positive")
        for name in ("warmup_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}; it must lie in [0, 1)")


# (peak, steps of the run, steps of the warm-up) → rate as a function of the steps after the warm-up; poly and step
# count the whole run from there, as published
SCHEDULES: dict[str, Callable[[float, int, int], optax.Schedule]] = {
    "constant": lambda rate, steps, warmup: optax.constant_schedule(rate),
    "cosine": lambda rate, steps, warmup: optax.cosine_decay_schedule(rate, max(steps - warmup, 1)),
    "poly": lambda rate, steps, warmup: optax.polynomial_schedule(rate, 0.0, 0.9, steps),
    "step": lambda rate, steps, warmup: optax.piecewise_constant_schedule(
        rate, {steps * 8 // 10: 0.1, steps * 9 // 10: 0.1}
    ),
}


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The learning rate as a function of the 0-based optimizer step, over a run of `num_steps`."""
    peak, warmup = config.learning_rate, config.warmup_steps
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([rise, SCHEDULES[config.schedule](peak, num_steps, warmup)], [warmup])


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales gradients by min(1, max_norm / (norm + 1e-6)), the published recipe's form of clipping."""

    def update(updates, state, params=None):
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda u: u * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def decayed(config: OptimizerConfig, params: trees.Params) -> trees.Mask:
    """True for the leaves that weight decay pulls towards zero.

    Raises:
        UserError: a pattern of `no_decay` matches none of these leaves.
    """
    return {path: not spared for path, spared in trees.mask(config.no_decay, params).items()}


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Clipping, AdamW and schedule, for the trained leaves of a tree; errors when it meets them: see `decayed`."""
    return optax.chain(
        clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, num_steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=functools.partial(decayed, config),
        ),
    )
