"""The networks that turn media into features: CLIP, Synchformer and the encoder of the VAE."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from mmaudio_jax import sharding, trees, weights
from mmaudio_jax.data import mel
from mmaudio_jax.data.captions import tokenize
from mmaudio_jax.data.example import example_shapes
from mmaudio_jax.errors import UserError
from mmaudio_jax.models.clip import CLIP
from mmaudio_jax.models.synchformer import Synchformer
from mmaudio_jax.models.vae import VAE, VAEConfig
from mmaudio_jax.sequence import MODES, SYNC_SEGMENT, SYNC_STRIDE, sync_segments

# what goes through a network at once on each device, powers of two: enough to fill a GPU; a CPU is as fast with a
# quarter of it, and sooner comes to where it can be stopped
FRAMES, SEGMENTS, CAPTIONS, SOUNDS = 16, 8, 16, 8
CPU_SHARE = 4


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
    """A loaded network, ready for the jitted functions, on the first local device or on all of a mesh."""

    weights: weights.Weights
    graphdef: nnx.GraphDef
    mesh: Mesh | None

    def __call__(self, encode: Callable, items: np.ndarray, chunk: int) -> np.ndarray:
        """`encode` of every item, `chunk` a device at a time; a rest is filled up to a power of two a device, so few
        shapes occur.
        """
        if jax.default_backend() == "cpu":
            chunk //= CPU_SHARE
        devices = self.mesh.size if self.mesh else 1
        chunk *= devices
        done, ahead = [], None
        for start in range(0, len(items), chunk):
            part = items[start : start + chunk]
            share = -(-len(part) // devices)
            filled = np.resize(part, (devices << (share - 1).bit_length(), *part.shape[1:]))
            if self.mesh:
                filled = jax.device_put(filled, sharding.batch_sharding(self.mesh))
            encoded = encode(self.graphdef, self.weights.params, filled), len(part)
            if ahead:  # wait for one chunk while the next computes
                done.append(np.asarray(ahead[0])[: ahead[1]])
            ahead = encoded
        return np.concatenate([*done, np.asarray(ahead[0])[: ahead[1]]])


class Encoders:
    """The networks that turn media into features; each is loaded when it is first needed."""

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        dtype=jnp.float32,
        precision: jax.lax.PrecisionLike = None,
        devices: Sequence[jax.Device] = (),
    ):
        """Says where the networks are.

        Args:
            root: the folder of converted weights.
            dtype: compute dtype of CLIP and Synchformer; the VAE, whose output is trained on, stays in float32.
            precision: of matrix products.
            devices: that share the frames of a clip; by default there is one.
        """
        self._root, self._dtype, self._precision = Path(root), dtype, precision
        self._mesh = sharding.make_mesh(sharding.MeshConfig(0, 1), devices) if len(devices) > 1 else None
        self._vaes: dict[str, Network] = {}

    @property
    def numerics(self) -> str:
        """What features depend on besides weights: compute dtype, precision of products and the kind of device."""
        return f"{jnp.dtype(self._dtype)}, {self._precision or 'default'}, {jax.local_devices()[0].device_kind}"

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
            self._check_vae(weights.read_config(self._root / f"vae_{mode}", "vae")[1], mode)
            self._vaes[mode] = self._load(f"vae_{mode}", "vae", jnp.float32)
        return self._vaes[mode]

    def _load(self, name: str, network: str, dtype) -> Network:
        loaded = weights.load(self._root / name, network, dtype, self._mesh)
        return Network(loaded, loaded.graphdef(dtype=dtype, precision=self._precision), self._mesh)

    def _about(self, mode: str) -> dict[str, tuple[dict[str, Any], Any]]:
        """{folder: (metadata, config)} of the networks that the features of a mode need; loads none of them."""
        networks = {"clip": "clip", "synchformer": "synchformer", f"vae_{mode}": "vae"}
        found = {name: weights.read_config(self._root / name, network) for name, network in networks.items()}
        self._check_vae(found[f"vae_{mode}"][1], mode)
        return found

    def _check_vae(self, has: VAEConfig, mode: str) -> None:
        needs = MODES[mode]
        if (has.latent_dim, has.mel_bins) != (needs.latent_dim, needs.mel_bins):
            raise UserError(
                f"{self._root / f'vae_{mode}'} has {has.latent_dim} latent channels and {has.mel_bins} mel bins, "
                f"{mode} has {needs.latent_dim} and {needs.mel_bins}: it is another VAE"
            )

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
        """Shapes of a feature example of `duration` seconds; loads no network.

        Raises:
            UserError: a network is not there, or the VAE is another mode's.
        """
        about = self._about(mode)
        (_, clip), (_, sync) = about["clip"], about["synchformer"]
        dims = dict(clip_dim=clip.embed_dim, sync_dim=sync.width, text_dim=clip.text_width)
        return example_shapes(mode, duration, **dims)

    def fingerprints(self, mode: str) -> dict[str, str]:
        """{network: fingerprint of its weights}, for a set's metadata; loads none, errors as of `shapes`."""
        return {name: metadata["fingerprint"] for name, (metadata, _) in self._about(mode).items()}
