"""What the benchmarks run: a LoRA step and the making of 8-second sounds, at a released size, on seeded values."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402

from mmaudio_jax import lora, objective, optim, sampling, sharding, train_step, trees, weights  # noqa: E402
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
OBJECTIVE = objective.ObjectiveConfig("logit_normal", 0.1, 0.0, 0.1)
SECONDS, STEPS, GUIDANCE = 8.0, 25, 4.5


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


def lora_step(config: MMAudioConfig, base: trees.Params, batch_size: int, dtype):
    """(the jitted training step, its state, its other arguments), for an adapter on qkv and the FFNs."""
    network = nnx.eval_shape(lambda: MMAudio(config, rngs=trees.UNDRAWN, dtype=dtype))
    graphdef, leaves = trees.split(lora.insert(network, LORA, rngs=nnx.Rngs(1)))
    trained, frozen = trees.partition({**leaves, **base}, trees.mask([lora.ADAPTER], leaves))
    optimizer = optim.make_optimizer(OPTIMIZER, 1000)
    mesh = sharding.make_mesh(sharding.MeshConfig(1, 1), jax.local_devices()[:1])
    step = train_step.make_train_step(graphdef, objective.make_loss(OBJECTIVE), optimizer, mesh)
    rng, length = np.random.default_rng(0), lengths(SECONDS, mode_of(config.latent_dim))

    def values(*shape):
        return rng.standard_normal((1, batch_size, *shape), np.float32)

    batch = {
        "mean": values(length.latent, config.latent_dim),
        "std": 0.1 * np.abs(values(length.latent, config.latent_dim)),
        "clip_f": values(length.clip, config.clip_dim),
        "sync_f": values(length.sync, config.sync_dim),
        "text_f": values(config.text_len, config.text_dim),
        "has_video": np.ones((1, batch_size), bool),
        "has_text": np.ones((1, batch_size), bool),
        "position": np.arange(batch_size)[None],
    }
    batch = jax.device_put(batch, sharding.batch_sharding(mesh, axis=1))
    state = train_step.initial_state(trained, optimizer, mesh)
    return step, state, (sharding.shard(frozen, mesh), batch, jax.random.key(0))


def sampler_arguments(config: MMAudioConfig, params: trees.Params, batch_size: int, dtype) -> tuple[tuple, dict]:
    """Arguments of `sampling.sample` for `batch_size` sounds of `SECONDS`."""
    length = lengths(SECONDS, mode_of(config.latent_dim))
    text = (config.text_len, config.text_dim)
    shapes = ((length.clip, config.clip_dim), (length.sync, config.sync_dim), text, text)
    features = [jnp.ones((batch_size, *shape)) for shape in shapes]
    x0 = sampling.initial_noise(range(batch_size), length.latent, config.latent_dim)
    graphdef = definition(config, dtype=dtype)
    return (graphdef, params, x0, *features, jnp.float32(GUIDANCE)), dict(num_steps=STEPS, guided=True)


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
