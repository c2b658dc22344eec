"""LoRA: low-rank updates beside frozen layers (arXiv 2106.09685), for linear and convolution layers.

`insert` turns the layers that the patterns name into layers with an update, in place; every other path of the
network stays as it is, so that base weights load unchanged and one path pattern (`.*\\.lora_[ab]`) is the adapter.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from mmaudio_jax import trees
from mmaudio_jax.errors import UserError

ADAPTER = r".*\.lora_[ab]"  # the adapter's leaves, as a path pattern


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """What is adapted, and how.

    Attributes:
        rank: r, the inner width of the update.
        alpha: the update is scaled by alpha / rank.
        dropout: probability of dropping an input of the update, in training.
        targets: names of the patterns in use.
        patterns: name → regular expression over layer paths.
    """

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    patterns: dict[str, str]

    def __post_init__(self):
        if self.rank < 1:
            raise UserError(f"lora.rank is {self.rank}; it must be at least 1")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"lora.alpha is {self.alpha}; it must be positive")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout is {self.dropout}; it must lie in [0, 1)")
        if not self.targets:
            raise UserError(f"lora.targets is empty; name some of {', '.join(self.patterns)}")
        for name in self.targets:
            if name not in self.patterns:
                raise UserError(
                    f"lora.targets names {name!r}, which is not in lora.patterns: {', '.join(self.patterns)}"
                )


class LowRank:
    """Mixin: adds (α/r) · B(A(dropout(x))) to a layer's output. A is Kaiming-uniform, B zero."""

    def _adopt(self, layer: nnx.Module, a_shape: tuple[int, ...], features: int, config: LoRAConfig, rngs: nnx.Rngs):
        for name, value in vars(layer).items():
            if not name.startswith("_"):
                setattr(self, name, value)
        bound = 1 / math.sqrt(math.prod(a_shape[:-1]))
        self.lora_a = nnx.LoRAParam(jax.random.uniform(rngs.params(), a_shape, minval=-bound, maxval=bound))
        self.lora_b = nnx.LoRAParam(jnp.zeros((config.rank, features)))
        self.lora_scale = config.alpha / config.rank
        self.lora_dropout = config.dropout
        self.dropout_key = nnx.data(None)

    def _dropped(self, x: Array) -> Array:
        if self.dropout_key is None or self.lora_dropout == 0:
            return x
        keep = jax.random.bernoulli(self.dropout_key, 1 - self.lora_dropout, x.shape)
        return jnp.where(keep, x / (1 - self.lora_dropout), 0)

    def _update(self, x: Array, a) -> Array:
        """B(A(x)) in the layer's compute dtype; `a` applies the layer's own kind of product with A."""
        low = a(self._dropped(x.astype(self.dtype)), self.lora_a[...].astype(self.dtype))
        out = jnp.matmul(low, self.lora_b[...].astype(self.dtype), precision=self.precision)
        return out * self.lora_scale


class LoRALinear(LowRank, nnx.Linear):
    """y = xW + b + (α/r)(dropout(x)A)B."""

    def __init__(self, layer: nnx.Linear, config: LoRAConfig, *, rngs: nnx.Rngs):
        self._adopt(layer, (layer.in_features, config.rank), layer.out_features, config, rngs)

    def __call__(self, x: Float[Array, "*b n_in"]) -> Float[Array, "*b n_out"]:
        def product(x, a):
            return jnp.matmul(x, a, precision=self.precision)

        return nnx.Linear.__call__(self, x) + self._update(x, product)


class LoRAConv(LowRank, nnx.Conv):
    """y = conv(x, W) + b + (α/r) conv(dropout(x), A)B, with A (k, in, r) and B (r, out)."""

    def __init__(self, layer: nnx.Conv, config: LoRAConfig, *, rngs: nnx.Rngs):
        if (layer.strides, layer.kernel_dilation, layer.padding) != (1, 1, "SAME"):
            raise ValueError("LoRA adapts convolutions that keep the length: stride and dilation 1, padding SAME")
        self._adopt(layer, (*layer.kernel_shape[:-1], config.rank), layer.out_features, config, rngs)

    def __call__(self, x: Float[Array, "b n n_in"]) -> Float[Array, "b n n_out"]:
        def product(x, a):
            return jax.lax.conv_general_dilated(
                x,
                a,
                window_strides=(1,),
                padding="SAME",
                dimension_numbers=("NHC", "HIO", "NHC"),
                precision=self.precision,
            )

        return nnx.Conv.__call__(self, x) + self._update(x, product)


def targeted(module: nnx.Module, config: LoRAConfig) -> dict[str, str]:
    """Layer path → the target that adapts it; a layer that several targets match belongs to the first.

    Raises:
        UserError: a pattern matches no linear or convolution layer (the message names the nearest ones).
    """
    paths = [trees.join(path) for path, layer in nnx.iter_modules(module) if isinstance(layer, (nnx.Linear, nnx.Conv))]
    return {path: name for name in reversed(config.targets) for path in trees.match(config.patterns[name], paths)}


def insert(module: nnx.Module, config: LoRAConfig, *, rngs: nnx.Rngs) -> nnx.Module:
    """Adapts, in place, every layer that a target's pattern matches; returns the module. Errors: see `targeted`."""
    chosen = targeted(module, config)
    for parent_path, parent in list(nnx.iter_modules(module)):
        for name, child in list(nnx.iter_children(parent)):
            if trees.join((*parent_path, name)) not in chosen:
                continue
            adapted = (LoRALinear if isinstance(child, nnx.Linear) else LoRAConv)(child, config, rngs=rngs)
            if isinstance(parent, nnx.List):
                parent[name] = adapted
            else:
                setattr(parent, name, adapted)
    return module


def set_dropout(module: nnx.Module, key: Key[Array, ""]) -> None:
    """Switches dropout on, each adapted layer drawing from its own key."""
    layers = [layer for _, layer in nnx.iter_modules(module) if isinstance(layer, LowRank)]
    for i, layer in enumerate(layers):
        layer.dropout_key = jax.random.fold_in(key, i)


def merge(params: Mapping[str, Array], config: LoRAConfig) -> trees.Params:
    """Base and adapter as one set of base weights: W + (α/r)·AB, without the adapter's leaves."""
    merged = {path: leaf for path, leaf in params.items() if not path.endswith((".lora_a", ".lora_b"))}
    for path, a in params.items():
        if path.endswith(".lora_a"):
            layer = path.removesuffix(".lora_a")
            update = jnp.matmul(a, params[f"{layer}.lora_b"], precision=jax.lax.Precision.HIGHEST)
            merged[f"{layer}.kernel"] = merged[f"{layer}.kernel"] + config.alpha / config.rank * update
    return merged


def table(module: nnx.Module, config: LoRAConfig) -> str:
    """What is adapted, as text: each target's pattern, layers and adapter parameters, and the total."""
    owner = targeted(module, config)
    _, shapes = trees.split(module)
    size = {path: shapes[f"{path}.lora_a"].size + shapes[f"{path}.lora_b"].size for path in owner}
    rows = [("target", "pattern", "layers", "parameters")]
    for name in config.targets:
        own = [path for path in owner if owner[path] == name]
        rows.append((name, config.patterns[name], str(len(own)), f"{sum(size[path] for path in own):,}"))
    rows.append(("total", "", str(len(owner)), f"{sum(size.values()):,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows)
