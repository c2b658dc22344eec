"""Post-hoc EMA (arXiv 2312.02696, section 3): power-function averages that are tracked, and others made of them later.

An average with profile γ over t steps weights step τ by (γ + 1) τ^γ / t^(γ + 1); its width relative to t is σ_rel.
A run tracks some widths; of their snapshots

    python -m mmaudio_jax.ema RUN --sigma_rel 0.05 --out RUN_EMA

makes averages of other widths, which sample.py, merge and convert.adapter take as they take a run.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mmaudio_jax import errors, trees
from mmaudio_jax.errors import UserError

MOST_AMISS = 0.05  # that the shares of snapshots may add up to more or less than 1: the weights would shrink or grow
MAX_SIGMA = 0.28  # of σ_rel: γ is positive below 12^(−1/2)


@dataclasses.dataclass(frozen=True)
class EMAConfig:
    """What is averaged.

    Attributes:
        sigma_rels: widths of the averages that are tracked; of two, and enough snapshots, those between are made.
        snapshot_every: steps from one snapshot of all averages to the next.
    """

    sigma_rels: tuple[float, ...]
    snapshot_every: int

    def __post_init__(self):
        if not self.sigma_rels or len(set(self.sigma_rels)) < len(self.sigma_rels):
            raise UserError(f"ema.sigma_rels is {self.sigma_rels}; give one width or more, each once")
        for sigma_rel in self.sigma_rels:
            gamma(sigma_rel)
        if self.snapshot_every < 1:
            raise UserError(f"ema.snapshot_every is {self.snapshot_every}; it must be at least 1")


def gamma(sigma_rel: float) -> float:
    """The exponent γ of a relative width: the largest root of γ³ + 7γ² + (16 − σ⁻²)γ + 12 − σ⁻² (equation 126).

    Raises:
        UserError: the width is not in (0, 0.28).
    """
    if not 0 < sigma_rel < MAX_SIGMA:
        raise UserError(f"a σ_rel of {sigma_rel:g} is no width of an average; it must lie in (0, {MAX_SIGMA:g})")
    return float(np.roots([1, 7, 16 - sigma_rel**-2, 12 - sigma_rel**-2]).real.max())


def one_minus_beta(step: Int[Array, ""], sigma_rel: float) -> Float[Array, ""]:
    """What the weights of 1-based step `step` contribute to the average: 1 − β(step), the published decay.

    β = sqrt((1 − 1/(s + 1))^(1 + γ) · (1 − 1/(s + 2))^(1 + γ)), in logarithms, as float32 loses 1 − β of late steps.
    """
    step = jnp.asarray(step, jnp.float32)
    exponent = (1 + gamma(sigma_rel)) / 2 * (jnp.log1p(-1 / (step + 1)) + jnp.log1p(-1 / (step + 2)))
    return jnp.where(step <= 1, 1.0, -jnp.expm1(exponent))


def update(average: trees.Params, params: trees.Params, step: Int[Array, ""], sigma_rel: float) -> trees.Params:
    """The average after the 1-based step `step`, which made `params`; the first step's is `params` themselves."""
    new = one_minus_beta(step, sigma_rel)
    return {path: leaf + new * (params[path] - leaf) for path, leaf in average.items()}


def coefficients(steps: Float[np.ndarray, " k"], sigmas: Float[np.ndarray, " k"], step: float, sigma_rel: float):
    """Weights of k snapshots whose sum comes nearest to the average of width `sigma_rel` at `step` (algorithm 3).

    Args:
        steps: step of each snapshot.
        sigmas: σ_rel of each snapshot.
        step: of the average that is asked for.
        sigma_rel: its width.
    """
    t, g = np.asarray(steps, np.float64), np.array([gamma(s) for s in sigmas])
    among = _inner(t[:, None], g[:, None], t, g)
    return np.linalg.lstsq(among, _inner(t, g, float(step), gamma(sigma_rel)), rcond=None)[0]


def _inner(t, g, u, h):
    """∫ of the product of the profiles (t, γ = g) and (u, γ = h)."""
    both = np.minimum(t, u)
    return (g + 1) * (h + 1) / (g + h + 1) * (both / t) ** (g + 1) * (both / u) ** (h + 1) / both


def synthesise(run: Path, step: int | None, sigma_rel: float) -> tuple[int, trees.Params]:
    """(step, average of width `sigma_rel`) from all snapshots of a run up to `step`; None: up to the last.

    Raises:
        UserError: there is no snapshot, or none of that step, or they cannot make this width.
    """
    from mmaudio_jax.checkpoint import SNAPSHOTS, Snapshots

    gamma(sigma_rel)
    if not (run / SNAPSHOTS).is_dir():
        raise UserError(f"{run} has no snapshots of averages: a run with config.ema takes them")
    with Snapshots(run) as snapshots:
        if not snapshots.steps:
            raise UserError(f"{run} has no snapshot of its averages yet")
        last = snapshots.steps[-1] if step is None else step
        if last not in snapshots.steps:
            raise UserError(f"{run} has no snapshot of step {last}; there are {', '.join(map(str, snapshots.steps))}")
        used, widths = [s for s in snapshots.steps if s <= last], snapshots.widths(last)
        if not min(map(float, widths)) <= sigma_rel <= max(map(float, widths)):
            print(f"warning: σ_rel {sigma_rel:g} is not between those of {run}, {', '.join(widths)}: it is less exact")
        steps, sigmas = np.repeat(used, len(widths)), np.tile(np.array(widths, float), len(used))
        shares = coefficients(steps, sigmas, last, sigma_rel)
        if abs(shares.sum() - 1) > MOST_AMISS:
            raise UserError(
                f"{len(used)} snapshot(s) of σ_rel {', '.join(widths)} cannot make one of {sigma_rel:g}: their shares "
                f"add up to {shares.sum():.2f}; choose a width nearer to those, or take more snapshots"
            )
        total: dict[str, np.ndarray] = {}
        for s, of_step in zip(used, shares.reshape(len(used), len(widths)), strict=True):  # one at a time, in float64
            averages = snapshots.load(s)
            for width, part in zip(widths, of_step, strict=True):
                for path, leaf in averages[width].items():
                    total[path] = total.get(path, 0.0) + part * np.asarray(leaf, np.float64)
    return last, {path: jnp.asarray(leaf, jnp.float32) for path, leaf in total.items()}


@errors.main
def main() -> None:
    """The command line."""
    from mmaudio_jax.checkpoint import Adapter, read_run, save_adapter

    parser = argparse.ArgumentParser(prog="python -m mmaudio_jax.ema", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="workdir of a training run with config.ema")
    parser.add_argument("--sigma_rel", type=float, default=0.05, help="width of the average, relative to the run")
    parser.add_argument("--step", type=int, help="the snapshot that it ends with (default: the last)")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    args = parser.parse_args()
    if args.out.exists():
        raise UserError(f"{args.out} exists already; choose another place")
    jax.config.update("jax_platforms", "cpu")  # sums in float64 are the host's
    run = read_run(args.run)
    step, params = synthesise(args.run, args.step, args.sigma_rel)
    save_adapter(
        args.out, Adapter(params, step, run | {"average": {"run": str(args.run), "sigma_rel": args.sigma_rel}})
    )
    print(f"the average of σ_rel {args.sigma_rel:g} over {step} steps is in {args.out}")


if __name__ == "__main__":
    main()
