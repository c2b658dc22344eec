"""LoRA: low-rank updates beside frozen layers (arXiv 2106.09685), for linear and convolution layers.

`insert` turns the layers that the patterns name into layers with an update, in place; every other path of the
network stays as it is, so that base weights load unchanged and one path pattern (`.*\\.lora_[ab]`) is the adapter.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
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
        alpha: α; the update is scaled by α / r.
        rslora: scales by α / √r instead, which keeps the size of updates at large ranks (arXiv 2312.03732).
        dropout: probability of dropping an input of the update, in training.
        targets: names of the patterns in use.
        patterns: name → regular expression over layer paths.
        ranks: name → rank, of targets that have one of their own.
        alphas: name → alpha, likewise.
        start: workdir of the run whose adapter this one begins as (`RUN@best`, `RUN@STEP`); None: A drawn, B zero.
    """

    rank: int
    alpha: float
    rslora: bool
    dropout: float
    targets: tuple[str, ...]
    patterns: dict[str, str]
    ranks: dict[str, int]
    alphas: dict[str, float]
    start: str | None

    def __post_init__(self):
        ranks = {"rank": self.rank} | {f"ranks.{target}": rank for target, rank in self.ranks.items()}
        for name, rank in ranks.items():
            if rank < 1:
                raise UserError(f"lora.{name} is {rank}; it must be at least 1")
        alphas = {"alpha": self.alpha} | {f"alphas.{target}": alpha for target, alpha in self.alphas.items()}
        for name, alpha in alphas.items():
            if not 0 < alpha < math.inf:
                raise UserError(f"lora.{name} is {alpha}; it must be positive")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout is {self.dropout}; it must lie in [0, 1)")
        if self.start == "":
            raise UserError("lora.start is empty; name a run, or leave it out")
        if len(set(self.targets)) < len(self.targets):
            raise UserError(f"lora.targets is {self.targets}; name each target once")
        if not self.targets:
            raise UserError(f"lora.targets is empty; name some of {', '.join(self.patterns)}")
        for name in self.targets:
            if name not in self.patterns:
                raise UserError(
                    f"lora.targets names {name!r}, which is not in lora.patterns: {', '.join(self.patterns)}"
                )
        for key, own in (("ranks", self.ranks), ("alphas", self.alphas)):
            for name in own:
                if name not in self.targets:
                    targets = ", ".join(self.targets)
                    raise UserError(f"lora.{key} names {name!r}, which is not in lora.targets: {targets}")

    def rank_of(self, target: str) -> int:
        """r of a target's layers."""
        return self.ranks.get(target, self.rank)

    def scale_of(self, target: str) -> float:
        """What the update of a target's layers is scaled by: α / r, or α / √r."""
        alpha, rank = self.alphas.get(target, self.alpha), self.rank_of(target)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


class LowRank:
    """Mixin: adds s · B(A(dropout(x))), s being the scale, to a layer's output. A is Kaiming-uniform, B zero."""

    def _adopt(self, layer: nnx.Module, a_shape: tuple[int, ...], scale: float, dropout: float, rngs: nnx.Rngs):
        for name, value in vars(layer).items():
            if not name.startswith("_"):
                setattr(self, name, value)
        bound = 1 / math.sqrt(math.prod(a_shape[:-1]))
        self.lora_a = nnx.LoRAParam(jax.random.uniform(rngs.params(), a_shape, minval=-bound, maxval=bound))
        self.lora_b = nnx.LoRAParam(jnp.zeros((a_shape[-1], layer.out_features)))
        self.lora_scale = scale
        self.lora_dropout = dropout
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
    """y = xW + b + s(dropout(x)A)B, with A (in, r) and B (r, out)."""

    def __init__(self, layer: nnx.Linear, rank: int, scale: float, dropout: float, *, rngs: nnx.Rngs):
        self._adopt(layer, (layer.in_features, rank), scale, dropout, rngs)

    def __call__(self, x: Float[Array, "*b n_in"]) -> Float[Array, "*b n_out"]:
        def product(x, a):
            return jnp.matmul(x, a, precision=self.precision)

        return nnx.Linear.__call__(self, x) + self._update(x, product)


class LoRAConv(LowRank, nnx.Conv):
    """y = conv(x, W) + b + s conv(dropout(x), A)B, with A (k, in, r) and B (r, out)."""

    def __init__(self, layer: nnx.Conv, rank: int, scale: float, dropout: float, *, rngs: nnx.Rngs):
        if (layer.strides, layer.kernel_dilation, layer.padding) != (1, 1, "SAME"):
            raise ValueError("LoRA adapts convolutions that keep the length: stride and dilation 1, padding SAME")
        self._adopt(layer, (*layer.kernel_shape[:-1], rank), scale, dropout, rngs)

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


def targeted(layers: Iterable[str], config: LoRAConfig) -> dict[str, str]:
    """Layer path → the target that adapts it; a layer that several targets match belongs to the first.

    Raises:
        UserError: a pattern matches none of these layers (the message names the nearest ones).
    """
    layers = list(layers)
    return {path: name for name in reversed(config.targets) for path in trees.match(config.patterns[name], layers)}


def insert(module: nnx.Module, config: LoRAConfig, *, rngs: nnx.Rngs) -> nnx.Module:
    """Adapts, in place, every linear and convolution layer that a target's pattern matches; returns the module.

    Raises:
        UserError: see `targeted`.
    """
    paths = [trees.join(path) for path, layer in nnx.iter_modules(module) if isinstance(layer, (nnx.Linear, nnx.Conv))]
    owner = targeted(paths, config)
    for parent_path, parent in list(nnx.iter_modules(module)):
        for name, child in list(nnx.iter_children(parent)):
            target = owner.get(trees.join((*parent_path, name)))
            if target is None:
                continue
            kind = LoRALinear if isinstance(child, nnx.Linear) else LoRAConv
            adapted = kind(child, config.rank_of(target), config.scale_of(target), config.dropout, rngs=rngs)
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


def adapted_layers(params: Iterable[str]) -> list[str]:
    """The layers that have an adapter among these parameters."""
    return [path.removesuffix(".lora_a") for path in params if path.endswith(".lora_a")]


def merge(params: Mapping[str, Array], config: LoRAConfig) -> trees.Params:
    """Base and adapter as one set of base weights: W + s·AB, without the adapter's leaves."""
    merged = {path: leaf for path, leaf in params.items() if not path.endswith((".lora_a", ".lora_b"))}
    for layer, target in targeted(adapted_layers(params), config).items():
        a, b = params[f"{layer}.lora_a"], params[f"{layer}.lora_b"]
        update = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        merged[f"{layer}.kernel"] = merged[f"{layer}.kernel"] + config.scale_of(target) * update
    return merged


def grow(
    drawn: Mapping[str, Array], config: LoRAConfig, start: Mapping[str, Array], start_config: LoRAConfig
) -> trees.Params:
    """A fresh adapter that begins as another one: it computes the same, and has the ranks and scales of its own config.

    Where its rank is larger, the columns of A beyond the other's are as drawn and the rows of B zero, as in every fresh
    adapter; B is rescaled from the other's scale to its own. Layers that the other does not adapt stay as drawn.

    Args:
        drawn: the fresh adapter's leaves.
        config: its config.
        start: the other's leaves.
        start_config: the other's config.

    Raises:
        UserError: a layer of the other is not adapted now, or is of a smaller rank (names it).
    """
    grown = dict(drawn)
    owner = targeted(adapted_layers(drawn), config)
    lost = [layer for layer in adapted_layers(start) if layer not in owner]
    if lost:
        raise UserError(
            f"lora.start adapts {', '.join(lost[:3])}{f' and {len(lost) - 3} layers more' if lost[3:] else ''}, which "
            "lora.targets leaves out; add the target that they belong to"
        )
    for layer, start_target in targeted(adapted_layers(start), start_config).items():
        a, b = np.asarray(start[f"{layer}.lora_a"]), np.asarray(start[f"{layer}.lora_b"])
        target, rank = owner[layer], a.shape[-1]
        if rank > config.rank_of(target):
            raise UserError(
                f"lora.start adapts {layer} at rank {rank}, {target} has rank {config.rank_of(target)}; an adapter can "
                "grow, not shrink: give a rank as large"
            )
        whole_a, whole_b = np.array(drawn[f"{layer}.lora_a"]), np.array(drawn[f"{layer}.lora_b"])
        whole_a[..., :rank] = a
        whole_b[:rank] = b * (start_config.scale_of(start_target) / config.scale_of(target))
        grown |= {f"{layer}.lora_a": jnp.array(whole_a), f"{layer}.lora_b": jnp.array(whole_b)}
    return grown


def table(module: nnx.Module, config: LoRAConfig) -> str:
    """What is adapted, as text: each target's pattern, rank, scale, layers and adapter parameters, and the total."""
    _, shapes = trees.split(module)
    owner = targeted(adapted_layers(shapes), config)
    size = {path: shapes[f"{path}.lora_a"].size + shapes[f"{path}.lora_b"].size for path in owner}
    rows = [("target", "pattern", "rank", "scale", "layers", "parameters")]
    for name in config.targets:
        own = [path for path in owner if owner[path] == name]
        numbers = (f"{config.rank_of(name)}", f"{config.scale_of(name):.4g}", f"{len(own)}")
        rows.append((name, config.patterns[name], *numbers, f"{sum(size[path] for path in own):,}"))
    rows.append(("total", "", "", "", str(len(owner)), f"{sum(size.values()):,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{'<' if i < 2 else '>'}{widths[i]}}" for i, cell in enumerate(row)) for row in rows
    )
