"""Raw media to feature examples: `python -m mmaudio_jax.features --clips clips.tsv --root DIR --weights DIR --out SET`.

For each clip: mean and standard deviation of the audio latent, CLIP features of its frames, Synchformer features
of its motion, CLIP features of its caption, written as a feature set that training reads.
"""

import argparse
import collections
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from mmaudio_jax import errors, numerics, trees, weights
from mmaudio_jax.data import mel
from mmaudio_jax.data.captions import CONTEXT_LENGTH, count_tokens, tokenize
from mmaudio_jax.data.clips import Clip, read_clips
from mmaudio_jax.data.example import example_shapes
from mmaudio_jax.errors import UserError
from mmaudio_jax.models.clip import CLIP
from mmaudio_jax.models.synchformer import Synchformer
from mmaudio_jax.models.vae import VAE
from mmaudio_jax.sequence import MODES, ROUNDING, SYNC_SEGMENT, SYNC_STRIDE, lengths, sync_segments

# what goes through a network at once, powers of two: enough to fill a GPU; a CPU is as fast with a quarter of it, and
# sooner comes to where it can be stopped
FRAMES, SEGMENTS, CAPTIONS, SOUNDS = 16, 8, 16, 8
CPU_SHARE = 4

LOG_INTERVAL = 60.0  # seconds from one word on the progress to the next where nobody watches
READERS = min(4, os.cpu_count() or 1)  # threads that decode ahead


@functools.partial(jax.jit, static_argnames="graphdef")
def encode_images(graphdef: nnx.GraphDef, params: trees.Params, frames: UInt8[Array, "b h w 3"]) -> Float[Array, "b e"]:
    """CLIP's vector of each frame."""
    clip: CLIP = trees.merge(graphdef, params)
    return clip.encode_image(frames.astype(jnp.float32) / 255)


@functools.partial(jax.jit, static_argnames="graphdef")
def encode_segments(
    graphdef: nnx.GraphDef, params: trees.Params, segments: UInt8[Array, "b frames h w 3"]
) -> Float[Array, "b f d"]:
    """Synchformer's features of each segment."""
    synchformer: Synchformer = trees.merge(graphdef, params)
    return synchformer((segments[None].astype(jnp.float32) / 255 - 0.5) / 0.5)[0]


@functools.partial(jax.jit, static_argnames="graphdef")
def encode_tokens(graphdef: nnx.GraphDef, params: trees.Params, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
    """CLIP's last hidden states of each text."""
    clip: CLIP = trees.merge(graphdef, params)
    return clip.encode_text(tokens)


@functools.partial(jax.jit, static_argnames=("graphdef", "config"))
def encode_sounds(
    graphdef: nnx.GraphDef, params: trees.Params, audio: Float[Array, "b l"], *, config: mel.MelConfig
) -> Float[Array, "b 2 n z"]:
    """Mean and standard deviation of each sound's latent."""
    vae: VAE = trees.merge(graphdef, params)
    return jnp.stack(vae.encode(mel.log_mel(audio, config)), axis=1)


class Network(NamedTuple):
    """A loaded network, ready for the jitted functions."""

    weights: weights.Weights
    graphdef: nnx.GraphDef

    def __call__(self, encode: Callable, items: np.ndarray, chunk: int) -> np.ndarray:
        """`encode` of every item, `chunk` at a time; a rest is filled up to a power of two, so few shapes occur."""
        if jax.default_backend() == "cpu":
            chunk //= CPU_SHARE
        done, ahead = [], None
        for start in range(0, len(items), chunk):
            part = items[start : start + chunk]
            filled = np.resize(part, (1 << (len(part) - 1).bit_length(), *part.shape[1:]))
            encoded = encode(self.graphdef, self.weights.params, filled), len(part)
            if ahead:  # wait for one chunk while the next computes
                done.append(np.asarray(ahead[0])[: ahead[1]])
            ahead = encoded
        return np.concatenate([*done, np.asarray(ahead[0])[: ahead[1]]])


class Encoders:
    """The networks that turn media into features; each is loaded when it is first needed."""

    def __init__(self, root: str | os.PathLike, *, dtype=jnp.float32, precision: jax.lax.PrecisionLike = None):
        """Says where the networks are.

        Args:
            root: the folder of converted weights.
            dtype: compute dtype of CLIP and Synchformer; the VAE, whose output is trained on, stays in float32.
            precision: of matrix products.
        """
        self._root, self._dtype, self._precision = Path(root), dtype, precision
        self._vaes: dict[str, Network] = {}

    @functools.cached_property
    def clip(self) -> Network:
        """The image and text encoder."""
        return self._load("clip", "clip", self._dtype)

    @functools.cached_property
    def synchformer(self) -> Network:
        """The motion encoder."""
        return self._load("synchformer", "synchformer", self._dtype)

    def vae(self, mode: str) -> Network:
        """The audio encoder of a mode; a UserError if the folder holds another mode's."""
        if mode not in self._vaes:
            network = self._load(f"vae_{mode}", "vae", jnp.float32)
            has, needs = network.weights.config, MODES[mode]
            if (has.latent_dim, has.mel_bins) != (needs.latent_dim, needs.mel_bins):
                raise UserError(
                    f"{network.weights.directory} has {has.latent_dim} latent channels and {has.mel_bins} mel bins, "
                    f"{mode} has {needs.latent_dim} and {needs.mel_bins}: it is another VAE"
                )
            self._vaes[mode] = network
        return self._vaes[mode]

    def check(self, mode: str) -> None:
        """Raises a UserError if a network that the features of a mode need is not there; loads none."""
        for name in ("clip", "synchformer", f"vae_{mode}"):
            weights.read_metadata(self._root / name)

    def _load(self, name: str, network: str, dtype) -> Network:
        loaded = weights.load(self._root / name, network, dtype)
        return Network(loaded, loaded.graphdef(dtype=dtype, precision=self._precision))

    def encode_audio(
        self, audio: Float[np.ndarray, "b l"], mode: str
    ) -> tuple[Float[np.ndarray, "b n z"], Float[np.ndarray, "b n z"]]:
        """Mean and standard deviation of the latent; l as `sequence.lengths` says."""
        encode = functools.partial(encode_sounds, config=mel.PRESETS[mode])
        encoded = self.vae(mode)(encode, audio, SOUNDS)
        return encoded[:, 0], encoded[:, 1]

    def encode_clip_frames(self, frames: UInt8[np.ndarray, "b c 384 384 3"]) -> Float[np.ndarray, "b c e"]:
        """CLIP features, one a frame of unit length."""
        encoded = self.clip(encode_images, frames.reshape(-1, *frames.shape[2:]), FRAMES)
        return encoded.reshape(*frames.shape[:2], -1)

    def encode_sync_frames(self, frames: UInt8[np.ndarray, "b f 224 224 3"]) -> Float[np.ndarray, "b s d"]:
        """Synchformer features of overlapping segments, eight a segment."""
        starts = SYNC_STRIDE * np.arange(sync_segments(frames.shape[1]))
        segments = frames[:, starts[:, None] + np.arange(SYNC_SEGMENT)]
        encoded = self.synchformer(encode_segments, segments.reshape(-1, *segments.shape[2:]), SEGMENTS)
        return encoded.reshape(len(frames), -1, encoded.shape[-1])

    def encode_captions(self, captions: Sequence[str]) -> Float[np.ndarray, "b 77 d"]:
        """CLIP's last hidden states, each token's of unit length."""
        return self.clip(encode_tokens, tokenize(captions), CAPTIONS)

    def shapes(self, mode: str, duration: float) -> dict[str, tuple[int, int]]:
        """Shapes of a feature example of `duration` seconds."""
        clip, sync = self.clip.weights.config, self.synchformer.weights.config
        dims = dict(clip_dim=clip.embed_dim, sync_dim=sync.width, text_dim=clip.text_width)
        return example_shapes(mode, duration, **dims)

    def fingerprints(self, mode: str) -> dict[str, str]:
        """{network: fingerprint of its weights}, for a set's metadata."""
        networks = {"clip": self.clip, "synchformer": self.synchformer, f"vae_{mode}": self.vae(mode)}
        return {name: network.weights.metadata["fingerprint"] for name, network in networks.items()}


class Media(NamedTuple):
    """What is read of one clip."""

    audio: Float[np.ndarray, " l"]
    clip_frames: UInt8[np.ndarray, "c 384 384 3"]
    sync_frames: UInt8[np.ndarray, "f 224 224 3"]


def read_media(clip: Clip, mode: str, duration: float) -> Media:
    """Sound and frames of the first `duration` seconds of a clip.

    Raises:
        UserError: the clip cannot be used.
    """
    from mmaudio_jax.data import media

    there = clip.end_time - clip.start_time
    if there < duration - ROUNDING:
        raise UserError(f"the clip lasts {there:g} s, {duration:g} s are needed; --duration makes all clips shorter")
    rate, samples = MODES[mode].sample_rate, lengths(duration, MODES[mode]).samples
    audio = media.read_audio(clip.video, clip.start_time, duration, rate, samples)
    return Media(audio, *media.read_frames(clip.video, clip.start_time, duration))


def encode(encoders: Encoders, clips: Sequence[Clip], found: Sequence[Media], mode: str) -> list[dict[str, np.ndarray]]:
    """The arrays of each clip's feature example."""
    mean, std = encoders.encode_audio(np.stack([media.audio for media in found]), mode)
    arrays = {
        "mean": mean,
        "std": std,
        "clip_f": encoders.encode_clip_frames(np.stack([media.clip_frames for media in found])),
        "sync_f": encoders.encode_sync_frames(np.stack([media.sync_frames for media in found])),
        "text_f": encoders.encode_captions([clip.caption for clip in clips]),
    }
    return [{name: array[i] for name, array in arrays.items()} for i in range(len(clips))]


def extract(
    clips: Sequence[Clip],
    encoders: Encoders,
    out: str | os.PathLike,
    *,
    mode: str,
    duration: float,
    batch_size: int,
) -> None:
    """Writes the feature set of all clips that can be used.

    Args:
        clips: rows of clips.tsv.
        encoders: the networks.
        out: the folder to make; the clips that cannot be used are listed in its failed.tsv.
        mode: '16k' or '44k'.
        duration: seconds of each clip, from its start.
        batch_size: clips encoded at once; as many, and at least one a reading thread, are decoded ahead.

    Raises:
        UserError: some clips could not be used (the others are written), or none could (nothing is written but
            the table of reasons beside `out`).
    """
    import tqdm

    from mmaudio_jax.data.records import FeatureWriter
    from mmaudio_jax.data.table import write_table

    failed: list[dict[str, str]] = []
    out = Path(out)
    encoders.check(mode)
    encoders.vae(mode)  # the one that may be another mode's, before the large ones
    shapes, fingerprints = encoders.shapes(mode, duration), encoders.fingerprints(mode)
    interval = 0.1 if sys.stderr.isatty() else LOG_INTERVAL
    bar_format = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
    with (
        FeatureWriter(out, mode, duration, shapes, fingerprints) as writer,
        tqdm.tqdm(total=len(clips), unit=" clips", bar_format=bar_format, mininterval=interval) as bar,
    ):

        def fail(clip: Clip, error: Exception) -> None:
            failed.append({**clip.columns, "reason": str(error)})
            bar.write(f"{clip.id}: {error}")
            bar.update()

        def flush(batch: list[tuple[Clip, Media]]) -> None:
            done, found = zip(*batch, strict=True)
            for clip, arrays in zip(done, encode(encoders, done, found, mode), strict=True):
                try:
                    writer.append(clip.columns, arrays)
                except ValueError as error:
                    fail(clip, error)
                else:
                    bar.update()

        for clip in clips:
            if count_tokens(clip.caption) > CONTEXT_LENGTH:
                bar.write(
                    f"warning: {clip.id}: CLIP reads the first {CONTEXT_LENGTH} tokens of the caption, it has more"
                )
        batch: list[tuple[Clip, Media]] = []
        ahead = max(batch_size, READERS)
        for clip, future in read_ahead(clips, functools.partial(read_media, mode=mode, duration=duration), ahead):
            try:
                batch.append((clip, future.result()))
            except UserError as error:
                fail(clip, error)
            except Exception as error:  # one file that a decoder chokes on must not cost the others
                fail(clip, UserError(f"{clip.video}: {type(error).__name__}: {error}"))
            if len(batch) == batch_size:
                flush(batch)
                batch = []
        if batch:
            flush(batch)
        if failed:
            listed = writer.directory / "failed.tsv" if len(writer) else out.with_name(f"{out.name}.failed.tsv")
            write_table(listed, failed)
        if not len(writer):
            raise UserError(f"none of the {len(clips)} clips could be used; the reasons are in {listed}")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(clips)} clips could not be used; the reasons are in {out / 'failed.tsv'}, "
            f"and the other {len(clips) - len(failed)} are in {out}"
        )
    print(f"{len(clips)} clip(s) are in {out}")


def read_ahead(
    clips: Sequence[Clip], read: Callable[[Clip], Media], ahead: int
) -> Iterator[tuple[Clip, "Future[Media]"]]:
    """Each clip with what becomes of reading it, in order, `ahead` of them read in threads meanwhile."""
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="decode")
    waiting: collections.deque[tuple[Clip, Future[Media]]] = collections.deque()
    try:
        for clip in clips:
            waiting.append((clip, pool.submit(read, clip)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        yield from waiting
    finally:
        pool.shutdown(cancel_futures=True)


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
    parser.add_argument("--out", required=True, help="the feature set to make")
    parser.add_argument("--mode", choices=list(MODES), default="16k", help="audio representation of the model")
    parser.add_argument("--duration", type=float, default=8.0, help="seconds of each clip, from its start_time")
    batch_help = "clips encoded at once, 60 MB each at 8 s (by default 4 on an accelerator, 1 on a CPU)"
    parser.add_argument("--batch_size", type=int, default=argparse.SUPPRESS, help=batch_help)
    dtype_help = "compute dtype of CLIP and Synchformer; auto: by the device (the VAE stays in float32)"
    parser.add_argument("--dtype", choices=numerics.DTYPES, default="auto", help=dtype_help)
    parser.add_argument("--matmul_precision", choices=numerics.PRECISIONS, default="default", help="of matrix products")
    args = parser.parse_args()
    batch_size = getattr(args, "batch_size", 1 if jax.default_backend() == "cpu" else 4)
    if batch_size < 1:
        raise UserError(f"--batch_size is {batch_size}; it must be at least 1")
    if Path(args.out).exists():
        raise UserError(f"{args.out} exists already; remove it or choose another place")
    extract(
        read_clips(args.clips, args.root),
        Encoders(args.weights, dtype=numerics.compute_dtype(args.dtype), precision=args.matmul_precision),
        args.out,
        mode=args.mode,
        duration=args.duration,
        batch_size=batch_size,
    )


if __name__ == "__main__":
    main()
