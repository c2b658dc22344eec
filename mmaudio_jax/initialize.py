"""Draws a flow network to train from scratch: `python -m mmaudio_jax.initialize --model small_16k --data SET …`.

Training starts from a weights folder, whether a converted one or this one: the published initialisation, the latent
statistics of the data, and the text encoder's features of the empty caption. Of a mixture of feature sets every example
counts once, however often it comes in an epoch; the published statistics are those of VGGSound alone.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import tqdm
from flax import nnx
from jaxtyping import Float

from mmaudio_jax import errors, trees, weights
from mmaudio_jax.data import mixture
from mmaudio_jax.data.example import FeatureSet
from mmaudio_jax.data.statistics import ChannelStatistics
from mmaudio_jax.encoders import Encoders
from mmaudio_jax.experiment import check_fits
from mmaudio_jax.models.mmaudio import PRESETS, MMAudio, MMAudioConfig


def latent_statistics(features: FeatureSet) -> tuple[Float[np.ndarray, " z"], Float[np.ndarray, " z"]]:
    """Mean and unbiased standard deviation of each channel of the posterior means, over all frames but padding."""
    statistics = ChannelStatistics()
    for i in tqdm.trange(len(features), desc="latent statistics", unit=" examples", delay=2, disable=None):
        example = features[i]
        statistics.add(example["mean"][: example["latents"]])
    return statistics.mean, statistics.std


def network_config(model: str, joint_depth: int | None = None, fused_depth: int | None = None) -> MMAudioConfig:
    """The sizes of `PRESETS[model]`, with other numbers of blocks where these are given.

    Raises:
        UserError: there is no joint block, in which alone the network sees and reads, or fewer than no fused block.
    """
    depths = {"joint_depth": (joint_depth, 1), "fused_depth": (fused_depth, 0)}
    for name, (depth, least) in depths.items():
        if depth is not None and depth < least:
            raise errors.UserError(f"--{name} is {depth}; it must be at least {least}")
    given = {name: depth for name, (depth, _) in depths.items() if depth is not None}
    return dataclasses.replace(PRESETS[model], **given)


def initialize(config: MMAudioConfig, features: FeatureSet, encoders: Encoders, seed: int) -> trees.Params:
    """The flat parameters of a freshly drawn network.

    Raises:
        UserError: the texts of the set were encoded by another CLIP.
    """
    theirs, ours = features.metadata.encoders.get("clip"), encoders.clip.weights
    if theirs and theirs != ours.metadata["fingerprint"]:
        raise errors.UserError(f"the feature set was made with another CLIP than {ours.directory}; name its --weights")
    params = trees.split(MMAudio(config, rngs=nnx.Rngs(seed)))[1]
    features.check()
    mean, std = latent_statistics(features)
    drawn = {"latent_mean": mean, "latent_std": std, "empty_string_feat": encoders.encode_captions([""])[0]}
    return params | {name: np.asarray(array, np.float32).reshape(params[name].shape) for name, array in drawn.items()}


@errors.main
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m mmaudio_jax.initialize", description=__doc__.split(":")[0])
    parser.add_argument("--model", required=True, choices=list(PRESETS), help="sizes of the network")
    parser.add_argument("--joint_depth", type=int, help="joint blocks, instead of the model's")
    parser.add_argument("--fused_depth", type=int, help="fused blocks, instead of the model's")
    parser.add_argument("--data", required=True, help="what it will be trained on: a feature set, or SET*5, SET, …")
    parser.add_argument("--weights", type=Path, required=True, help="the folder of converted weights, for CLIP")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--out", type=Path, required=True, help="the weights folder to make, e.g. weights/scratch_16k")
    args = parser.parse_args()
    if args.out.exists():
        raise errors.UserError(f"{args.out} exists already; choose another place")
    config = network_config(args.model, args.joint_depth, args.fused_depth)
    features = mixture.open_mixture(args.data)
    check_fits(features, config, args.model)
    params = initialize(config, features, Encoders(args.weights), args.seed)
    weights.save(args.out, "mmaudio", config, params, {"source": f"drawn from seed {args.seed}"})
    print(f"{trees.count(params):,} parameters are in {args.out}")


if __name__ == "__main__":
    main()
