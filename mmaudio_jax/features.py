"""Raw media to feature examples: `python -m mmaudio_jax.features --clips clips.tsv --root DIR --weights DIR --out SET`.

For each clip: mean and standard deviation of the audio latent, CLIP features of its frames, Synchformer features
of its motion, CLIP features of its caption, written as a feature set that training reads. Stopped or killed, the same
command goes on; of a set that is there, it makes what is new or has changed.
"""

import argparse

import jax

from mmaudio_jax import distributed, errors, numerics
from mmaudio_jax.data.clips import read_clips
from mmaudio_jax.data.example import DTYPES
from mmaudio_jax.data.workers import WORKERS
from mmaudio_jax.decoding import SHORT
from mmaudio_jax.encoders import Encoders
from mmaudio_jax.errors import UserError
from mmaudio_jax.extraction import extract
from mmaudio_jax.sequence import MIN_DURATION, MODES


@errors.main
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mmaudio_jax.features",
        description=__doc__.split(":")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--clips", required=True, help="table with id, video_path, start_time, end_time, caption")
    parser.add_argument("--root", required=True, help="the folder that video_path starts from")
    parser.add_argument("--weights", required=True, help="the folder of converted weights")
    parser.add_argument("--out", required=True, help="the feature set to make, or to bring up to date")
    parser.add_argument("--mode", choices=list(MODES), default="16k", help="audio representation of the model")
    parser.add_argument("--duration", type=float, default=8.0, help="seconds of each clip, from its start_time")
    short_help = f"clips that last less: pad those of {MIN_DURATION} s and more with silence and their last frame"
    parser.add_argument("--short", choices=SHORT, default="skip", help=short_help)
    parser.add_argument(
        "--dtype", choices=[*DTYPES], default="float32", help="of the CLIP and sync features in the set"
    )
    shard_help = "make part I of N, from 0 (by default as SLURM says, or all)"
    parser.add_argument("--shard", metavar="I/N", default=argparse.SUPPRESS, help=shard_help)
    workers_help = "processes that decode, 500 MB each; 0: threads, and a decoder's crash ends the extraction"
    parser.add_argument("--workers", type=int, default=WORKERS, help=workers_help)
    compute_help = "compute dtype of CLIP and Synchformer; auto: by the device (the VAE stays in float32)"
    parser.add_argument("--compute_dtype", choices=numerics.DTYPES, default="auto", help=compute_help)
    parser.add_argument("--matmul_precision", choices=numerics.PRECISIONS, default="default", help="of matrix products")
    args = parser.parse_args()
    if args.workers < 0:
        raise UserError(f"--workers is {args.workers}; it must be at least 0")
    name = distributed.part_name(getattr(args, "shard", None))
    encoders = Encoders(
        args.weights,
        dtype=numerics.compute_dtype(args.compute_dtype),
        precision=args.matmul_precision,
        devices=jax.local_devices(),
    )
    extract(
        read_clips(args.clips, args.root),
        encoders,
        args.out,
        mode=args.mode,
        duration=args.duration,
        name=name,
        dtype=args.dtype,
        short=args.short,
        workers=args.workers,
    )


if __name__ == "__main__":
    main()
