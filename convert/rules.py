"""Which tensors of a published file make which parameters: one table of rules per network.

A rule names, for the parameters whose path it matches, the tensors that a parameter is made of and the change of
layout. Read from the parameters' side, a table says everything: each parameter has one rule (the first that
matches), so it is filled exactly once; tensors that no parameter asks for must be listed as ignored, with a reason.
"""

import dataclasses
import functools
import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from convert.folding import fold_magnitude, fold_weight_norm
from mmaudio_jax import trees, weights

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How tensors become a parameter.

    Attributes:
        build: the tensors, as they lie in the file, to the parameter.
        shapes: the parameter's shape to the shapes that the tensors must have.
        undo: the parameter to the one tensor that it was made of; None where that is folded away.
    """

    build: Callable[..., np.ndarray]
    shapes: Callable[[Shape], tuple[Shape, ...]]
    undo: Callable[[np.ndarray], np.ndarray] | None = None


def _kernel(weight: np.ndarray) -> np.ndarray:
    """(out, in, *k) → (*k, in, out): linear layers and convolutions over any number of axes."""
    return weight.transpose(*range(2, weight.ndim), 1, 0)


def _from_kernel(kernel: np.ndarray) -> np.ndarray:
    """(*k, in, out) → (out, in, *k)."""
    return kernel.transpose(-1, -2, *range(kernel.ndim - 2))


def _kernel_shape(shape: Shape) -> Shape:
    return (shape[-1], shape[-2], *shape[:-2])


def _transposed_kernel(weight: np.ndarray) -> np.ndarray:
    """(in, out, k) → (k, in, out) for a transposed convolution, whose taps run backwards in time here."""
    return weight.transpose(2, 0, 1)[::-1]


AS_IT_IS = Layout(lambda x: x, lambda s: (s,), lambda x: x)
FLAT = Layout(lambda x: x.reshape(-1), lambda s: ((1, *s, 1),))
KERNEL = Layout(_kernel, lambda s: (_kernel_shape(s),), _from_kernel)
MAGNITUDE = Layout(lambda w: _kernel(fold_magnitude(w)), lambda s: (_kernel_shape(s),))
MAGNITUDE_GAIN = Layout(lambda w, gain: _kernel(fold_magnitude(w, 1 + gain.item())), lambda s: (_kernel_shape(s), ()))
WEIGHT_NORM = Layout(lambda g, v: _kernel(fold_weight_norm(g, v)), lambda s: ((s[-1], 1, 1), _kernel_shape(s)))
WEIGHT_NORM_TRANSPOSED = Layout(
    lambda g, v: _transposed_kernel(fold_weight_norm(g, v)), lambda s: ((s[1], 1, 1), (s[1], s[2], s[0]))
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """The tensors of the parameters whose path `path` matches; `tensors` may use the groups of the match."""

    path: str
    tensors: tuple[str, ...]
    layout: Layout


@dataclasses.dataclass(frozen=True)
class Ignored:
    """Tensors, by a pattern over their names, that make no parameter, and why.

    Where `value` is given, they must hold just that, or the file belongs to another network.
    """

    tensors: str
    reason: str
    value: Callable[[], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """How one network's files are read.

    Attributes:
        network: a key of `weights.NETWORKS`.
        signature: a preset's config to some tensors with their shapes that tell its files from all others.
        spellings: patterns over tensor names, replaced before all else: other ways of writing the same.
    """

    network: str
    signature: Callable[[Any], dict[str, Shape]]
    rules: tuple[Rule, ...]
    ignored: tuple[Ignored, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()

    def presets(self) -> Mapping[str, Any]:
        """The network's configs by name."""
        return importlib.import_module(weights.NETWORKS[self.network][0]).PRESETS

    def canonical(self, name: str) -> str:
        """A tensor's name in the spelling of the rules."""
        for pattern, replacement in self.spellings:
            name = re.sub(f"^{pattern}$", replacement, name)
        return name

    def recipe(self, path: str) -> tuple[tuple[str, ...], Layout]:
        """The names of the tensors that make a parameter, and their layout."""
        for rule in self.rules:
            match = re.fullmatch(rule.path, path)
            if match:
                return tuple(match.expand(tensor) for tensor in rule.tensors), rule.layout
        raise LookupError(f"no rule fills {path}")

    def published(self, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Parameters under their published names and in the published layout; ignored tensors are not had back.

        Raises:
            ValueError: the network's published weights are folded into its parameters.
        """
        tensors = {}
        for path, leaf in params.items():
            names, layout = self.recipe(path)
            if layout.undo is None:
                raise ValueError(f"{path} was made of {' and '.join(names)}, which cannot be had back")
            tensors[names[0]] = np.ascontiguousarray(layout.undo(np.asarray(leaf)))
        return tensors

    @functools.cache  # noqa: B019  tables are few and live as long as the process
    def parameters(self, preset: str) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape of every parameter of a preset, by path."""
        cls, config = weights.network_class(self.network), self.presets()[preset]
        return trees.abstract(lambda: cls(config, rngs=trees.UNDRAWN))[1]


LEAVES = (  # what most layers need, and what is left: biases, tokens, positions, statistics
    Rule(r"(.*)\.kernel", (r"\1.weight",), KERNEL),
    Rule(r"(.*)\.(?:scale|embedding)", (r"\1.weight",), AS_IT_IS),
    Rule(r"(.*)", (r"\1",), AS_IT_IS),
)
PACKED_PROJECTION = (  # queries, keys and values in one matrix, as torch's attention layer stores them
    Rule(r"(.*\.in_proj)\.kernel", (r"\1_weight",), KERNEL),
    Rule(r"(.*\.in_proj)\.bias", (r"\1_bias",), AS_IT_IS),
)


def _mmaudio_signature(config) -> dict[str, Shape]:
    dim = config.hidden_dim
    return {
        "latent_mean": (1, 1, config.latent_dim),
        "audio_input_proj.0.bias": (dim,),
        "t_embed.mlp.0.weight": (dim, dim if config.v2 else 256),
        f"joint_blocks.{config.joint_depth - 1}.clip_block.adaLN_modulation.1.bias": (2 * dim,),
        f"fused_blocks.{config.fused_depth - 1}.adaLN_modulation.1.bias": (6 * dim,),
    }


def _vae_signature(config) -> dict[str, Shape]:
    return {
        "data_mean": (1, config.mel_bins, 1),
        "encoder.conv_in.weight": (config.width, config.mel_bins, 3),
        "decoder.conv_in.weight": (config.width * config.multipliers[-1], config.latent_dim, 3),
    }


def _bigvgan_signature(config) -> dict[str, Shape]:
    return {
        "conv_pre.weight_v": (config.channels, config.mel_bins, 7),
        "ups.0.0.weight_v": (config.channels, config.channels // 2, 2 * config.upsample_rates[0]),
        "resblocks.0.activations.0.act.alpha": (config.channels // 2,),
    }


def _clip_signature(config) -> dict[str, Shape]:
    return {
        "visual.class_embedding": (config.vision_width,),
        "visual.conv1.weight": (config.vision_width, 3, config.patch_size, config.patch_size),
        "ln_final.weight": (config.text_width,),
    }


def _synchformer_signature(config) -> dict[str, Shape]:
    return {
        "vfeat_extractor.temp_embed": (1, config.frames // config.tubelet, config.width),
        "vfeat_extractor.patch_embed_3d.proj.bias": (config.width,),
        "vfeat_extractor.norm.weight": (config.width,),
    }


def _lowpass_filter() -> np.ndarray:
    from mmaudio_jax.models.bigvgan import lowpass_filter

    return lowpass_filter()


TABLES = (
    Table(
        network="mmaudio",
        signature=_mmaudio_signature,
        rules=LEAVES,
        ignored=(
            Ignored(r"t_embed\.freqs", "the frequencies of the time embedding are computed"),
            Ignored(r"latent_rot|clip_rot", "the rotary angles are computed for the length at hand"),
        ),
    ),
    Table(
        network="vae",
        signature=_vae_signature,
        rules=(
            Rule(r"((?:en|de)coder)\.conv_out\.kernel", (r"\1.conv_out.weight", r"\1.learnable_gain"), MAGNITUDE_GAIN),
            Rule(r"(.*)\.kernel", (r"\1.weight",), MAGNITUDE),
            Rule(r"(data_mean|data_std)", (r"\1",), FLAT),
        ),
    ),
    Table(
        network="bigvgan",
        signature=_bigvgan_signature,
        rules=(
            Rule(r"(ups\..*)\.kernel", (r"\1.weight_g", r"\1.weight_v"), WEIGHT_NORM_TRANSPOSED),
            Rule(r"(.*)\.kernel", (r"\1.weight_g", r"\1.weight_v"), WEIGHT_NORM),
            *LEAVES,
        ),
        ignored=(Ignored(r".*\.filter", "the anti-aliasing filter is a constant that is computed", _lowpass_filter),),
        spellings=(
            (r"generator\.(.*)", r"\1"),
            (r"(.*)\.parametrizations\.weight\.original0", r"\1.weight_g"),
            (r"(.*)\.parametrizations\.weight\.original1", r"\1.weight_v"),
        ),
    ),
    Table(
        network="clip",
        signature=_clip_signature,
        rules=(*PACKED_PROJECTION, *LEAVES),
        ignored=(
            Ignored("logit_scale", "the temperature of the contrastive loss, used in training alone"),
            Ignored("attn_mask", "the causal mask is a constant"),
        ),
    ),
    Table(
        network="synchformer",
        signature=_synchformer_signature,
        rules=(*PACKED_PROJECTION, *LEAVES),
        ignored=(
            Ignored(r"vfeat_extractor\.patch_embed\..*", "video goes through the 3-D patch embedding instead"),
            Ignored(
                r"(afeat_extractor|vproj|aproj|transformer)\..*",
                "the audio half and the synchronisation head score how well sound and video agree; "
                "generation needs the visual features alone",
            ),
        ),
    ),
)
