"""What the benchmarks run: training steps and the making of 8-second sounds, at a released size, on seeded values."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from jax.sharding import Mesh  # noqa: E402

from mmaudio_jax import lora, objective, optim, sampling, sharding, solvers, train_step, trees, weights  # noqa: E402
from mmaudio_jax.models.mmaudio import MMAudio, MMAudioConfig  # noqa: E402
from mmaudio_jax.sequence import lengths, mode_of  # noqa: E402

LORA = lora.LoRAConfig(
    rank=64,
    alpha=64.0,
    rslora=False,
    dropout=0.1,
    targets=("qkv", "ffn"),
    patterns={"qkv": r".*\.attn\.qkv", "ffn": r".*_blocks\..*\.ffn\.w[123]"},
    ranks={},
    alphas={},
    start=None,
)
OPTIMIZER = optim.OptimizerConfig(1e-4, "cosine", 2, 0.9, 0.999, 1e-8, 0.01, 1.0)
OBJECTIVE = objective.ObjectiveConfig("logit_normal", drop_video=0.1, drop_clip=0.0, drop_sync=0.0, drop_text=0.1)
SECONDS, STEPS, GUIDANCE = 8.0, 25, 4.5
GIB = 2**30


def definition(config: MMAudioConfig, **numerics) -> nnx.GraphDef:
    """The flow network's definition."""
    return trees.abstract(lambda: MMAudio(config, rngs=trees.UNDRAWN, **numerics))[0]


def random_weights(network: str, config) -> weights.Weights:
    """Small random values in the place of every parameter."""
    cls = weights.network_class(network)
    shapes = trees.abstract(lambda: cls(config, rngs=trees.UNDRAWN))[1]
    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32)) for k, leaf in shapes.items()}
    return weights.Weights(Path(), network, config, params, {})


def one_device(platform: str | None = None) -> Mesh:
    """The mesh of the first device."""
    return sharding.make_mesh(sharding.MeshConfig(1, 1), jax.local_devices(backend=platform)[:1])


def training(
    config: MMAudioConfig,
    batch_size: int,
    dtype,
    mesh: Mesh,
    *,
    adapter: lora.LoRAConfig | None = LORA,
    accumulation: int = 1,
    averages: Sequence[float] = (),
    unroll: bool | None = None,
    remat: str = "none",
):
    """(the jitted training step, the shapes of its arguments on the mesh); `adapter` None trains all weights."""
    network = nnx.eval_shape(lambda: MMAudio(config, rngs=trees.UNDRAWN, dtype=dtype, remat=remat))
    if adapter:
        lora.insert(network, adapter, rngs=nnx.Rngs(1))
    graphdef, leaves = trees.split(network)
    trained, frozen = trees.partition(
        leaves, trees.mask([lora.ADAPTER], leaves) if adapter else trees.trainable(network)
    )
    optimizer = optim.make_optimizer(OPTIMIZER, 1000)
    step = train_step.make_train_step(graphdef, objective.make_loss(OBJECTIVE), optimizer, mesh, unroll)
    state = train_step.abstract_state(trained, optimizer, mesh, averages)
    length = lengths(SECONDS, mode_of(config.latent_dim))
    shapes = {
        "mean": ((length.latent, config.latent_dim), np.float32),
        "std": ((length.latent, config.latent_dim), np.float32),
        "clip_f": ((length.clip, config.clip_dim), np.float32),
        "sync_f": ((length.sync, config.sync_dim), np.float32),
        "text_f": ((config.text_len, config.text_dim), np.float32),
        "has_video": ((), bool),
        "has_text": ((), bool),
        "latents": ((), np.int32),
        "position": ((), np.int32),
    }
    split = sharding.batch_sharding(mesh, axis=1)
    batch = {
        name: jax.ShapeDtypeStruct((accumulation, batch_size, *shape), kind, sharding=split)
        for name, (shape, kind) in shapes.items()
    }
    frozen = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        frozen,
        sharding.param_shardings(frozen, mesh),
    )
    return step, (state, frozen, batch, jax.eval_shape(jax.random.key, 0))


def filled(shapes):
    """Arguments of these shapes for a training step: small random weights, moments of zero, random features."""
    state, frozen, batch, _ = shapes
    rng = np.random.default_rng(0)

    def random(leaf, scale=0.02):
        return jax.device_put(scale * rng.standard_normal(leaf.shape, np.float32), leaf.sharding)

    def zeros(leaf):
        return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)

    def feature(name, leaf):
        if name == "latents":  # nothing is padded
            return jax.device_put(np.full(leaf.shape, batch["mean"].shape[-2], leaf.dtype), leaf.sharding)
        if leaf.dtype != np.float32:
            values = np.ones(leaf.shape, bool) if leaf.dtype == bool else np.arange(leaf.size).reshape(leaf.shape)
            return jax.device_put(values.astype(leaf.dtype), leaf.sharding)
        return jnp.abs(random(leaf, 0.1)) if name == "std" else random(leaf, 1.0)

    return (
        {**jax.tree.map(zeros, state), "params": jax.tree.map(random, state["params"])},
        jax.tree.map(random, frozen),
        {name: feature(name, leaf) for name, leaf in batch.items()},
        jax.random.key(0),
    )


def lora_step(config: MMAudioConfig, base: trees.Params, batch_size: int, dtype):
    """(the jitted training step, its state, its other arguments), for an adapter of this base."""
    mesh = one_device()
    step, (state, _, *rest) = training(config, batch_size, dtype, mesh)
    state, _, batch, key = filled((state, {}, *rest))
    return step, state, (sharding.shard(base, mesh), batch, key)


def memory(compiled) -> float:
    """GiB of a compiled program: arguments, results that take no argument's place, and what is in between."""
    sizes = compiled.memory_analysis()
    return (
        sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes + sizes.temp_size_in_bytes
    ) / GIB


def sampler_arguments(
    config: MMAudioConfig, params: trees.Params, batch_size: int, dtype, *, guided: bool = True
) -> tuple:
    """Arguments of `sampling.sample` for `batch_size` sounds of `SECONDS`."""
    length = lengths(SECONDS, mode_of(config.latent_dim))
    text = (config.text_len, config.text_dim)
    shapes = ((length.clip, config.clip_dim), (length.sync, config.sync_dim), text, text)
    features = [jnp.ones((batch_size, *shape)) for shape in shapes]
    x0 = sampling.initial_noise(range(batch_size), length.latent, config.latent_dim)
    rows = sampling.guided(params, *features, GUIDANCE) if guided else sampling.plain(*features[:3])
    table = solvers.stack([solvers.table("euler", STEPS)] * batch_size)
    return definition(config, dtype=dtype), params, x0, rows, table, STEPS


def timed(function: Callable, repeats: int) -> tuple[float, float]:
    """(seconds of the first call, mean seconds of the later ones)."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    first = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(repeats):
        out = function()
    jax.block_until_ready(out)
    return first, (time.perf_counter() - start) / repeats
