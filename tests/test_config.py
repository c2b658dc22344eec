"""Config files against the dataclasses that read them."""

import ast
import dataclasses
import importlib
import math
import re
import types
import typing
from pathlib import Path

import pytest

from configs import lora_16k_stages
from mmaudio_jax import config, experiment, objective, optim, trees
from mmaudio_jax.data import mixture
from mmaudio_jax.errors import UserError
from mmaudio_jax.models.mmaudio import PRESETS, MMAudio

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


VARIANTS = {
    "demo_base": ("no_sync", "unaligned"),
    "lora_16k": ("small", "large"),
    "train_44k": ("medium",),
    "train_44k_large": ("v2",),
}


def shipped(name="lora_16k", *variant):
    return importlib.import_module(f"configs.{name}").get_config(*variant).to_dict()


def read(values):
    return config.from_mapping(experiment.TrainConfig, values)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_config_is_whole_and_says_how_to_run_it(name):
    assert isinstance(config.from_mapping(experiment.TrainConfig, shipped(name)), experiment.TrainConfig)
    text = (ROOT / "configs" / f"{name}.py").read_text()
    for word in ("Command", f"--config configs/{name}.py", "Hardware", "Time", "Expect"):
        assert word in ast.get_docstring(ast.parse(text)), word


@pytest.mark.parametrize(("name", "variant"), [(name, v) for name, variants in VARIANTS.items() for v in variants])
def test_every_variant_is_whole_named_and_another(name, variant):
    assert read(shipped(name, variant)) != read(shipped(name))
    assert re.search(rf":{variant}\b", ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text())))
    with pytest.raises(ValueError, match=f"configs/{name}.py:other does not exist; choose one of .*{variant}"):
        shipped(name, "other")


@pytest.mark.parametrize(
    ("name", "variant", "preset", "repeat"),
    [
        ("train_16k", (), "small_16k", 5),
        ("train_44k", (), "small_44k", 5),
        ("train_44k", ("medium",), "medium_44k", 3),
        ("train_44k_large", (), "large_44k", 3),
        ("train_44k_large", ("v2",), "large_44k_v2", 3),
    ],
)
def test_the_recipes_from_scratch_are_the_published_one(name, variant, preset, repeat):
    recipe = read(shipped(name, *variant))
    assert recipe.lora is None and recipe.step_size == 512 and recipe.num_steps == 300_000
    parts = mixture.parse(recipe.data)
    assert [part.repeat for part in parts] == [repeat, 1, 1, 1, 1, 1]
    assert all(part.path.startswith(f"data/{preset.split('_')[1]}/") for part in parts)
    assert recipe.ema.sigma_rels == (0.05, 0.1) and recipe.ema.snapshot_every == 5000
    published = optim.OptimizerConfig(1e-4, "step", 1000, 0.9, 0.95, 1e-6, 1e-6, 1.0)
    assert recipe.optimizer == published
    assert recipe.model == {"small_16k": "scratch_16k"}.get(preset, f"scratch_{preset}")
    both = "v2" in variant
    dropping = objective.ObjectiveConfig("logit_normal", 0.1, 0.1 if both else 0.0, 0.1 if both else 0.0, 0.1)
    assert recipe.objective == dropping


def test_fine_tuning_spares_all_but_matrices_from_decay():
    fine = read(shipped("finetune_16k"))
    shapes = trees.abstract(lambda: MMAudio(PRESETS["small_16k"], rngs=trees.UNDRAWN))
    spared = {path for path, decayed in optim.decayed(fine.optimizer, shapes[1]).items() if not decayed}
    kernels = {path for path in shapes[1] if path.endswith(".kernel")}
    fixed = {"latent_mean", "latent_std", "empty_string_feat"}
    assert spared == set(shapes[1]) - kernels - fixed and fine.lora is None


def test_each_stage_starts_from_the_one_before_at_twice_its_rank():
    stages = [lora_16k_stages.get_config(stage).lora for stage in lora_16k_stages.STAGES]
    assert [stage.rank for stage in stages] == [32, 64, 128] and {stage.alpha / stage.rank for stage in stages} == {1.0}
    assert [stage.start for stage in stages] == [None, "runs/stage_32@best", "runs/stage_64@best"]
    for stage in lora_16k_stages.STAGES:
        assert f"lora_16k_stages.py:{stage} --workdir runs/stage_{stage} " in lora_16k_stages.__doc__


def keys(cls, prefix=()):
    for name, kind in typing.get_type_hints(cls).items():
        kind = next(iter(typing.get_args(kind))) if isinstance(kind, types.UnionType) else kind
        yield from keys(kind, (*prefix, name)) if dataclasses.is_dataclass(kind) else [(*prefix, name)]


def test_no_lora_is_all_weights():
    values = shipped("demo_base")
    assert values["lora"] is None and config.from_mapping(experiment.TrainConfig, values).lora is None


def test_every_key_is_read_somewhere():
    sources = [ast.parse(path.read_text()) for path in (ROOT / "mmaudio_jax").glob("*.py")]
    read = {node.attr for tree in sources for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not [key for key in keys(experiment.TrainConfig) if key[-1] not in read]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"remat": "all"}, "config.remat is 'all'; it must be one of none, blocks, dots"),
        ({"batchsize": 8}, r"config.batchsize does not exist; did you mean config.batch_size\?"),
        ({"batch_size": "8"}, "config.batch_size is '8'; it must be of type int"),
        ({"batch_size": True}, "config.batch_size is True; it must be of type int"),
        ({"lora": 3}, "config.lora must be a group of keys"),
        ({"num_steps": 0}, "config.num_steps is 0; it must be at least 1"),
        ({"validation_fraction": 1.0}, r"config.validation_fraction is 1.0; it must lie in \(0, 1\)"),
        ({"workers": -1}, "config.workers is -1"),
        ({"compute_dtype": "float16"}, "config.compute_dtype is 'float16'; it must be one of auto, float32, bfloat16"),
    ],
)
def test_a_wrong_value_is_named(change, message):
    with pytest.raises(UserError, match=message):
        config.from_mapping(experiment.TrainConfig, shipped() | change)


@pytest.mark.parametrize(
    ("group", "key", "value", "message"),
    [
        ("optimizer", "schedule", "linear", "optimizer.schedule is 'linear'; it must be one of constant, cosine"),
        ("optimizer", "learning_rate", 0.0, "optimizer.learning_rate is 0.0; it must be positive"),
        ("objective", "t_distribution", "beta", "objective.t_distribution is 'beta'; it must be one of logit_normal"),
        ("objective", "drop_clip", -0.1, r"objective.drop_clip is -0.1; it must lie in \[0, 1\]"),
        ("optimizer", "no_decay", ".*", r"config.optimizer.no_decay is '\.\*'; it must be of type tuple"),
        ("objective", "drop_text", 2, "objective.drop_text is 2.0"),
        ("lora", "rnk", 3, r"config.lora.rnk does not exist; did you mean config.lora.rank\?"),
        ("lora", "ranks", {"ffn": "8"}, "config.lora.ranks.ffn is '8'; it must be of type int"),
        ("lora", "start", 3, "config.lora.start is 3; it must be of type str"),
        ("augment", "mixup", 1.5, r"augment.mixup is 1.5; it must lie in \[0, 1\]"),
        ("augment", "time_mask", -0.1, r"augment.time_mask is -0.1; it must lie in \[0, 1\]"),
        ("augment", "feature_noise", math.nan, "augment.feature_noise is nan; it must be a number of 0 or more"),
        ("augment", "mixup_alpha", 0, "augment.mixup_alpha is 0.0; it must be a positive number"),
        (
            "augment",
            "frequency_mask",
            0.1,
            "config.augment.frequency_mask is refused: a latent's channels are",
        ),
        ("objective", "frequency_mask", 0, "config.objective.frequency_mask is refused: a latent's channels"),
    ],
)
def test_a_wrong_value_in_a_group_is_named(group, key, value, message):
    values = shipped()
    values[group][key] = value
    with pytest.raises(UserError, match=message):
        config.from_mapping(experiment.TrainConfig, values)


def test_a_sample_alone_in_its_batch_cannot_be_mixed():
    values = shipped() | {"batch_size": 1}
    read(values)
    values["augment"]["mixup"] = 0.5
    with pytest.raises(UserError, match="augment.mixup mixes the samples of a batch, and config.batch_size is 1"):
        read(values)


def test_a_missing_key_is_named():
    values = shipped()
    del values["seed"]
    with pytest.raises(UserError, match="config.seed is missing"):
        config.from_mapping(experiment.TrainConfig, values)
