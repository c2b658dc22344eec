"""Draws a flow network to train from scratch: `python -m mmaudio_jax.initialize --model small_16k --data SET …`.

Training starts from a weights folder, whether a converted one or this one: the published initialisation, the latent
statistics of the feature set, and the text encoder's features of the empty caption.
"""

import argparse
from pathlib import Path

import numpy as np
import tqdm
from flax import nnx
from jaxtyping import Float

from mmaudio_jax import errors, trees, weights
from mmaudio_jax.data import records
from mmaudio_jax.data.example import FeatureSet
from mmaudio_jax.experiment import check_fits
from mmaudio_jax.features import Encoders
from mmaudio_jax.models.mmaudio import PRESETS, MMAudio


def latent_statistics(features: FeatureSet) -> tuple[Float[np.ndarray, " z"], Float[np.ndarray, " z"]]:
    """Mean and unbiased standard deviation of each channel of the posterior means, over all examples and frames."""
    count, mean, squares = 0, 0.0, 0.0
    for i in tqdm.trange(len(features), desc="latent statistics", unit=" examples", delay=2, disable=None):
        frames = features[i]["mean"].astype(np.float64)
        # Chan et al. (1983): exact merging of a part's mean and sum of squares into the whole's
        total, shift = count + len(frames), frames.mean(axis=0) - mean
        squares = squares + ((frames - frames.mean(axis=0)) ** 2).sum(axis=0) + shift**2 * count * len(frames) / total
        mean, count = mean + shift * len(frames) / total, total
    return mean, np.sqrt(squares / (count - 1))


def initialize(model: str, features: FeatureSet, encoders: Encoders, seed: int) -> trees.Params:
    """The flat parameters of a freshly drawn network; `model` is a key of `PRESETS`.

    Raises:
        UserError: the set does not fit the network, or its texts were encoded by another CLIP.
    """
    config = PRESETS[model]
    check_fits(features, config, model)
    theirs, ours = features.metadata.encoders.get("clip"), encoders.clip.weights
    if theirs and theirs != ours.metadata["fingerprint"]:
        raise errors.UserError(f"the feature set was made with another CLIP than {ours.directory}; name its --weights")
    params = trees.split(MMAudio(config, rngs=nnx.Rngs(seed)))[1]
    mean, std = latent_statistics(features)
    drawn = {"latent_mean": mean, "latent_std": std, "empty_string_feat": encoders.encode_captions([""])[0]}
    return params | {name: np.asarray(array, np.float32).reshape(params[name].shape) for name, array in drawn.items()}


@errors.main
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m mmaudio_jax.initialize", description=__doc__.split(":")[0])
    parser.add_argument("--model", required=True, choices=list(PRESETS), help="sizes of the network")
    parser.add_argument("--data", required=True, help="the feature set that it will be trained on")
    parser.add_argument("--weights", type=Path, required=True, help="the folder of converted weights, for CLIP")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--out", type=Path, required=True, help="the weights folder to make, e.g. weights/scratch_16k")
    args = parser.parse_args()
    if args.out.exists():
        raise errors.UserError(f"{args.out} exists already; remove it or choose another place")
    params = initialize(args.model, records.open_features(args.data), Encoders(args.weights), args.seed)
    weights.save(args.out, "mmaudio", PRESETS[args.model], params, {"source": f"drawn from seed {args.seed}"})
    print(f"{trees.count(params):,} parameters are in {args.out}")


if __name__ == "__main__":
    main()
