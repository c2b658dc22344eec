"""Stand-ins for the released networks, of the same architecture, small and random, and features for them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from mmaudio_jax import trees, weights
from mmaudio_jax.data.example import example_shapes
from mmaudio_jax.data.records import FeatureWriter
from mmaudio_jax.encoders import Encoders
from mmaudio_jax.models.bigvgan import BigVGANConfig
from mmaudio_jax.models.clip import CLIPConfig
from mmaudio_jax.models.mmaudio import MMAudioConfig
from mmaudio_jax.models.synchformer import SynchformerConfig
from mmaudio_jax.models.vae import VAEConfig

WIDTH = 64
FIRST_SHARD = "part-00000-of-00001/shard-00000.array_record"  # of a set that is written in one piece
CERTAINTY = 10.0  # how much the means of latents vary, their standard deviations being about 1: as after training

# leaves that are not drawn: norms and activations as they start in training, and the mel's mean as real sound has it
CONSTANTS = {
    "bias": 0.0,
    "scale": 1.0,
    "alpha": 0.0,
    "beta": 0.0,
    "data_mean": -3.0,
    "data_std": 1.0,
    "latent_mean": 0.0,
    "latent_std": CERTAINTY,
}

# folder under weights/: (network, config)
CONFIGS = {
    "clip": (
        "clip",
        CLIPConfig(
            image_size=384,
            patch_size=32,
            vision_width=WIDTH,
            vision_layers=2,
            vision_heads=2,
            text_width=WIDTH,
            text_layers=2,
            text_heads=2,
            embed_dim=WIDTH,
        ),
    ),
    "synchformer": (
        "synchformer",
        SynchformerConfig(image_size=224, patch_size=32, frames=16, tubelet=2, width=WIDTH, layers=2, heads=2),
    ),
    "vae_16k": ("vae", VAEConfig(mel_bins=80, latent_dim=20, width=32)),
    "bigvgan_16k": ("bigvgan", BigVGANConfig(mel_bins=80, upsample_rates=(4, 4, 2, 2, 2, 2), channels=128)),
    "small_16k": (
        "mmaudio",
        MMAudioConfig(
            latent_dim=20,
            hidden_dim=WIDTH,
            num_heads=2,
            joint_depth=2,
            fused_depth=1,
            clip_dim=WIDTH,
            sync_dim=WIDTH,
            text_dim=WIDTH,
        ),
    ),
}


def save_random_weights(folder: str | os.PathLike, seed: int) -> None:
    """Writes small random networks of every kind into `folder`, under the names of the released 16 kHz ones.

    The same seed gives the same weights. Their features tell clips apart; the sound they make is noise.
    """
    folder = Path(folder)
    provenance = {"source": f"random numbers, seed {seed}", "licence": "none"}
    for i, (name, (network, config)) in enumerate(CONFIGS.items()):
        params = _random(network, config, np.random.default_rng([seed, i]))
        if network == "mmaudio":
            params["empty_string_feat"] = Encoders(folder).encode_captions([""])[0]
        weights.save(folder / name, network, config, params, provenance)


def save_random_features(folder: str | os.PathLike, seed: int) -> None:
    """Writes a feature set of twelve 1-second examples from six videos, for these networks; the values are random."""
    rng = np.random.default_rng(seed)
    shapes = example_shapes("16k", 1.0, clip_dim=WIDTH, sync_dim=WIDTH, text_dim=WIDTH)
    with FeatureWriter(Path(folder), "16k", 1.0, shapes) as writer:
        for i in range(12):
            arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
            arrays["std"] = 0.1 + 0.1 * np.abs(arrays["std"])
            writer.append({"id": f"clip{i}", "caption": "a sound", "original_video": f"video{i // 2}"}, arrays)


def _random(network: str, config: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Every layer keeps the size of what goes through it; none begins at zero, as an adapter could not learn there."""
    cls = weights.network_class(network)
    params = {}
    for path, leaf in trees.abstract(lambda: cls(config, rngs=nnx.Rngs(0)))[1].items():
        name = path.rpartition(".")[2]
        if name in CONSTANTS:
            array = np.full(leaf.shape, CONSTANTS[name])
        else:
            fan_in = np.prod(leaf.shape[:-1]) if name in ("kernel", "proj") else 4
            array = rng.standard_normal(leaf.shape) / np.sqrt(fan_in)
        params[path] = array.astype(np.float32)
    if network == "vae":
        params["encoder.conv_out.kernel"][..., : config.latent_dim] *= CERTAINTY  # the means; then the log-variances
    return params
