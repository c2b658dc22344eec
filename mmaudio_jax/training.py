"""The train state, the train and evaluation steps, and the loop. Nothing here knows what the network computes.

A network comes as `build()`, its loss as (model, batch, key) → (loss, measures), where every measure is a pair
(weighted sum, sum of weights). The state is nested dicts of arrays: `step`, the trained leaves `params`, and
`opt_state`; frozen leaves travel beside it and have neither gradient nor optimizer state.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mmaudio_jax import lora, trees

State = dict[str, Any]
Measures = dict[str, Any]  # name: (weighted sum, sum of weights)
Loss = Callable[[nnx.Module, Mapping[str, Any], jax.Array], tuple[jax.Array, Measures]]


def initial_state(params: trees.Params, optimizer: optax.GradientTransformation) -> State:
    """The state at step 0 for these trained leaves, placed: a step that returns placed arrays would compile again."""
    state = {"step": jnp.zeros((), jnp.int32), "params": params, "opt_state": jax.jit(optimizer.init)(params)}
    return jax.device_put(state, jax.local_devices()[0])


def make_train_step(
    graphdef: nnx.GraphDef, loss: Loss, optimizer: optax.GradientTransformation
) -> Callable[[State, trees.Params, Mapping[str, Any], jax.Array], tuple[State, Measures]]:
    """The jitted optimizer step: (state, frozen, batch, key) → (state, measures); the state is donated.

    Every leaf of the batch is (micro-batches, examples, …); gradients are the mean over the micro-batches. A step
    whose loss, gradient or update is not finite changes no parameter and no moment, and is measured as `skipped`.
    """

    def gradient(params, frozen, micro_batch, keys):
        def objective(params):
            model = trees.merge(graphdef, {**frozen, **params})
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
        if jax.default_backend() == "cpu":
            # XLA's compiler for CPUs makes a convolution's gradient some ten times slower in a loop than outside
            total = one(0, first)
            for i in range(1, micro_batches):
                total, _ = add(total, (i, jax.tree.map(lambda x, i=i: x[i], batch)))
        else:
            shapes = jax.eval_shape(one, 0, first)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            total, _ = jax.lax.scan(add, zeros, (jnp.arange(micro_batches), batch))
        grads, measures = total
        grads = jax.tree.map(lambda g: g / micro_batches, grads)

        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state["opt_state"], params)
        finite = jnp.isfinite(norm) & jnp.isfinite(measures["loss"][0]) & jnp.isfinite(optax.tree.norm(updates))
        new = {"params": optax.apply_updates(params, updates), "opt_state": opt_state}
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, {k: state[k] for k in new})
        measures = {**measures, "grad_norm": (norm, jnp.float32(1)), "skipped": (1.0 - finite, jnp.float32(1))}
        return {"step": state["step"] + 1, **kept}, measures

    return jax.jit(step, donate_argnums=0)


def make_eval_step(
    graphdef: nnx.GraphDef, loss: Loss
) -> Callable[[trees.Params, trees.Params, Mapping[str, Any], jax.Array], Measures]:
    """The jitted evaluation step: (params, frozen, batch, key) → measures, without dropout."""

    @jax.jit
    def step(params, frozen, batch, key):
        return loss(trees.merge(graphdef, {**frozen, **params}), batch, key)[1]

    return step


def means(measures: Iterable[Measures]) -> dict[str, float]:
    """Weighted means over several steps' measures; a measure that nothing contributed to is left out.

    Fetches from the device, and so waits for the steps.
    """
    fetched = jax.device_get(list(measures))
    totals = {name: np.sum([m[name] for m in fetched], axis=0, dtype=np.float64) for name in fetched[0]}
    return {name: float(total / weight) for name, (total, weight) in totals.items() if weight > 0}


def evaluate(
    eval_step: Callable, state: State, frozen: trees.Params, batches: Iterable, key: jax.Array
) -> dict[str, float]:
    """Mean measures over all batches; the same key gives the same draws at every pass."""
    return means([eval_step(state["params"], frozen, jax.device_put(batch), key) for batch in batches])


def micro_batched(batches: Iterator[Mapping[str, np.ndarray]], count: int) -> Iterator[Mapping[str, jax.Array]]:
    """Puts batches on the device as (micro-batches, examples, …), one ahead of the step that computes."""

    def put(batch):
        return jax.device_put({k: v.reshape(count, -1, *v.shape[1:]) for k, v in batch.items()})

    ahead = put(next(batches))
    for batch in batches:
        current, ahead = ahead, put(batch)
        yield current


def fit(
    *,
    train_step: Callable,
    eval_step: Callable,
    state: State,
    frozen: trees.Params,
    batches: Iterator[Mapping[str, jax.Array]],
    validation: Callable[[], Iterable[Mapping[str, np.ndarray]]],
    key: jax.Array,
    num_steps: int,
    log_every: int,
    eval_every: int,
    log: Callable[[int, dict[str, float]], None],
    save: Callable[[int, State], None],
    progress: Callable[[int], None],
) -> State:
    """Runs from the state's step to `num_steps`.

    Args:
        batches: the training stream, starting at the state's step.
        validation: makes one pass over the validation batches.
        key: all randomness of the run.
        log: gets (step, {measure: value}) every `log_every` steps, and validation measures every `eval_every`.
        save: gets (step, state) after each validation and at the end; it must have copied the state on return.
        progress: gets the step after every step.
    """
    train_key, eval_key = jax.random.split(key)
    start, pending = int(state["step"]), []

    def validate(step):
        values = evaluate(eval_step, state, frozen, validation(), eval_key)
        log(step, {f"validation/{name}": value for name, value in values.items()})

    if start == 0:
        validate(0)
    for step in range(start + 1, num_steps + 1):
        state, measures = train_step(state, frozen, next(batches), train_key)
        pending.append(measures)
        if step % log_every == 0 or step == num_steps:
            log(step, {f"train/{name}": value for name, value in means(pending).items()})
            pending = []
        if step % eval_every == 0 or step == num_steps:
            validate(step)
            save(step, state)
        progress(step)
    return state
