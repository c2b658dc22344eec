"""The train state, and the jitted train and evaluation steps. Nothing here knows what the network computes.

A network comes as its definition, its loss as (model, batch, key) → (loss, measures), where every measure is a pair
(weighted sum, sum of weights); a measure over t is a pair of arrays, with an entry for each of equal bins of [0, 1).
The state is nested dicts of arrays: `step`, the trained leaves `params`, `opt_state`, and `ema`, averages of `params`
by their σ_rel; frozen leaves travel beside it and have neither gradient nor optimizer state. Both lie on the mesh as
`sharding.param_shardings` says, and are gathered where the network computes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float

from mmaudio_jax import ema, lora, sharding, trees

State = dict[str, Any]
Measures = dict[str, Any]  # name: (weighted sum, sum of weights), numbers or arrays
Loss = Callable[[nnx.Module, Mapping[str, Any], jax.Array], tuple[jax.Array, Measures]]


def initial_state(
    params: trees.Params, optimizer: optax.GradientTransformation, mesh: Mesh, averages: Sequence[float] = ()
) -> State:
    """The state at step 0 for these trained leaves, on their devices: it takes them over, and the first step ends them.

    `averages` are the σ_rel of the post-hoc EMAs to track.
    """
    params = sharding.shard(params, mesh)
    shardings = sharding.param_shardings(jax.eval_shape(optimizer.init, params), mesh)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings)(params)
    step = jax.device_put(np.zeros((), np.int32), sharding.replicated(mesh))
    copies = {str(sigma_rel): jax.tree.map(jnp.copy, params) for sigma_rel in averages}
    return {"step": step, "params": params, "opt_state": opt_state, "ema": copies}


def abstract_state(
    params: trees.Params, optimizer: optax.GradientTransformation, mesh: Mesh, averages: Sequence[float] = ()
) -> State:
    """Shapes and shardings of `initial_state`, for restoring a checkpoint without making a state first."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    state = {
        "step": jax.ShapeDtypeStruct((), np.int32),
        "params": shapes,
        "opt_state": jax.eval_shape(optimizer.init, shapes),
        "ema": {str(sigma_rel): shapes for sigma_rel in averages},
    }
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        state,
        sharding.param_shardings(state, mesh),
    )


def make_train_step(
    graphdef: nnx.GraphDef,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    unroll: bool | None = None,
) -> Callable[[State, trees.Params, Mapping[str, Any], jax.Array], tuple[State, Measures]]:
    """The jitted optimizer step: (state, frozen, batch, key) → (state, measures); the state is donated.

    Every leaf of the batch is (micro-batches, examples, …); gradients are the mean over the micro-batches. A step
    whose loss, gradient or update is not finite changes no parameter and no moment, and is measured as `skipped`.
    `unroll` writes the micro-batches out instead of looping; None does so on a CPU, whose compiler makes a
    convolution's gradient some ten times slower in a loop than outside.
    """
    unroll = jax.default_backend() == "cpu" if unroll is None else unroll

    @jax.jit  # traced once, however many micro-batches are written out
    def gradient(params, frozen, micro_batch, keys):
        def objective(params):
            model = trees.merge(graphdef, sharding.gather({**frozen, **params}, mesh))
            lora.set_dropout(model, keys[1])
            return loss(model, micro_batch, keys[0])

        return jax.grad(objective, has_aux=True)(params)

    def step(state: State, frozen: trees.Params, batch: Mapping[str, Any], key: jax.Array) -> tuple[State, Measures]:
        draw_key, dropout_key = jax.random.split(key)
        dropout_key = jax.random.fold_in(dropout_key, state["step"])
        params = state["params"]
        micro_batches = jax.tree.leaves(batch)[0].shape[0]

        def one(i, micro_batch):
            return gradient(params, frozen, micro_batch, (draw_key, jax.random.fold_in(dropout_key, i)))

        def add(total, item):
            return jax.tree.map(jnp.add, total, one(*item)), None

        first = jax.tree.map(lambda x: x[0], batch)
        if unroll:
            total = one(0, first)
            for i in range(1, micro_batches):
                total, _ = add(total, (i, jax.tree.map(lambda x, i=i: x[i], batch)))
        else:
            shapes = jax.eval_shape(one, 0, first)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            total, _ = jax.lax.scan(add, zeros, (jnp.arange(micro_batches), batch))
        grads, measures = total
        grads = jax.lax.with_sharding_constraint(grads, sharding.param_shardings(grads, mesh))
        grads = jax.tree.map(lambda g: g / micro_batches, grads)

        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state["opt_state"], params)
        finite = jnp.isfinite(norm) & jnp.isfinite(measures["loss"][0]) & jnp.isfinite(optax.tree.norm(updates))
        new = {"params": optax.apply_updates(params, updates), "opt_state": opt_state}
        new["ema"] = {
            sigma_rel: ema.update(average, new["params"], state["step"] + 1, float(sigma_rel))
            for sigma_rel, average in state["ema"].items()
        }
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, {k: state[k] for k in new})
        measures = {**measures, "grad_norm": (norm, jnp.float32(1)), "skipped": (1.0 - finite, jnp.float32(1))}
        new_state = {"step": state["step"] + 1, **kept}
        return jax.lax.with_sharding_constraint(
            (new_state, measures), (sharding.param_shardings(new_state, mesh), sharding.replicated(mesh))
        )

    return jax.jit(step, donate_argnums=0)


def make_eval_step(
    graphdef: nnx.GraphDef, loss: Loss, mesh: Mesh
) -> Callable[[trees.Params, trees.Params, Mapping[str, Any], jax.Array], Measures]:
    """The jitted evaluation step: (params, frozen, batch, key) → measures, without dropout."""

    @jax.jit
    def step(params, frozen, batch, key):
        measures = loss(trees.merge(graphdef, sharding.gather({**frozen, **params}, mesh)), batch, key)[1]
        return jax.lax.with_sharding_constraint(measures, sharding.replicated(mesh))

    return step


def means(measures: Iterable[Measures]) -> dict[str, float | Float[np.ndarray, " k"]]:
    """Weighted means over several steps' measures; nan in bins, and no measure, that nothing contributed to.

    Fetches what is on the device, and so waits for the steps.
    """
    fetched = jax.device_get(list(measures))
    totals = {name: np.sum([m[name] for m in fetched], axis=0, dtype=np.float64) for name in fetched[0]}
    with np.errstate(invalid="ignore"):
        found = {name: total / weight for name, (total, weight) in totals.items() if np.any(weight > 0)}
    return {name: value if np.ndim(value) else float(value) for name, value in found.items()}


def on_devices(batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh) -> Iterator[Mapping[str, jax.Array]]:
    """Every process's part of each batch, (examples, …), as one array over the mesh."""
    where = sharding.batch_sharding(mesh)
    for batch in batches:
        yield jax.tree.map(lambda x: jax.make_array_from_process_local_data(where, x), dict(batch))


def micro_batched(
    batches: Iterator[Mapping[str, np.ndarray]], count: int, mesh: Mesh
) -> Iterator[Mapping[str, jax.Array]]:
    """As `on_devices`, `count` batches as one of (micro-batches, examples, …), one ahead of the step that computes."""
    where = sharding.batch_sharding(mesh, axis=1)

    def put(group):
        joined = jax.tree.map(lambda *xs: np.stack(xs), *map(dict, group))
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(where, x), joined)

    groups = zip(*[batches] * count, strict=False)
    ahead = put(next(groups))
    for group in groups:
        current, ahead = ahead, put(group)
        yield current
