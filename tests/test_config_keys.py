"""Every key of the shipped config does what it says: changed here, or in the test that is named for it."""

import dataclasses
from pathlib import Path

import jax
import pytest
from flax import traverse_util
from test_trainer import CONFIG, train

from configs import lora_16k
from mmaudio_jax import checkpoint, config, experiment, trees, weights
from mmaudio_jax.data import dataset, mixture
from mmaudio_jax.data.example import StoredFeatures

SHIPPED = lora_16k.get_config().to_dict()
DECAYED = dataclasses.replace(CONFIG.optimizer, weight_decay=0.1)
# (key, another value, what else is set in both runs): what decides the numbers of a run, whatever it trains
LEARNT = [
    ("accumulation", 2, {}),
    ("num_steps", 10, {}),
    ("optimizer.learning_rate", 2e-2, {}),
    ("optimizer.schedule", "poly", {}),
    ("optimizer.warmup_steps", 3, {}),
    ("optimizer.b1", 0.5, {}),
    ("optimizer.b2", 0.9, {}),
    ("optimizer.eps", 1e-2, {}),
    ("optimizer.weight_decay", 0.1, {}),
    ("optimizer.clip_norm", 0.1, {}),
    ("optimizer.no_decay", (r".*\.lora_a",), {"optimizer": DECAYED}),
]
BUILT = [
    ("compute_dtype", "bfloat16", lambda network: network.joint_blocks[0].latent_block.attn.qkv.dtype),
    ("matmul_precision", "highest", lambda network: network.joint_blocks[0].latent_block.attn.qkv.precision),
    ("remat", "blocks", lambda network: network.remat),
]
HERE = ("seed", "batch_size", "validation_fraction", "workers")
ELSEWHERE = {
    "test_shown.py::test_each_interval_is_its_own_key": ("log_every", "eval_every"),
    "test_shown.py::test_weights_and_biases_gets_what_tensorboard_does": ("wandb",),
    "test_trainer.py::test_the_newest_the_best_and_every_nth_checkpoint_are_kept": ("keep_last", "keep_every"),
    "test_trainer.py::test_a_run_out_of_patience_ends_and_stays_ended": ("patience",),
    "test_trainer.py::test_too_many_spoilt_steps_in_a_row_stop_the_run_with_the_checkpoint_from_before": (
        "max_skipped",
    ),
    "test_sharding.py::test_eight_devices_equal_one": ("mesh.data", "mesh.fsdp"),
    "test_ema.py::test_a_run_tracks_averages_and_they_make_another": ("ema.sigma_rels", "ema.snapshot_every"),
    "test_experiment.py::test_features_of_another_model_are_refused": ("model", "data"),
    "test_experiment.py::test_weights_that_are_not_there_name_the_command": ("weights",),
    "test_lora.py::test_a_target_s_rank_and_scale": (
        *("lora.rank", "lora.alpha", "lora.rslora", "lora.ranks", "lora.alphas"),
    ),
    "test_lora.py::test_dropout_is_on_only_with_a_key_and_differs_between_layers": ("lora.dropout",),
    "test_lora.py::test_table_counts_the_parameters_of_small_16k": (
        *("lora.targets", "lora.patterns.qkv", "lora.patterns.ffn", "lora.patterns.attention_output"),
    ),
    "test_experiment.py::test_a_run_begins_where_its_start_was": ("lora.start",),
    "test_objective.py::test_video_drops_together_and_sync_also_alone": (
        *("objective.drop_video", "objective.drop_sync", "objective.drop_text"),
    ),
    "test_objective.py::test_clip_drops_alone_and_whatever_becomes_of_sync": ("objective.drop_clip",),
    "test_objective.py::test_the_loss_by_t_is_the_loss_of_the_examples_in_each_bin": ("objective.t_distribution",),
    "test_augment.py::test_noise_has_its_share_of_each_sample_s_size": ("augment.feature_noise",),
    "test_augment.py::test_a_mixed_sample_is_a_share_of_itself_and_the_rest_of_the_one_before": ("augment.mixup",),
    "test_augment.py::test_alpha_says_how_evenly_samples_are_mixed": ("augment.mixup_alpha",),
    "test_augment.py::test_a_span_is_empty_at_the_same_times_in_clip_and_sync": ("augment.time_mask",),
    "test_listening.py::test_each_key_of_the_sampler_changes_the_sound": ("samples.num_steps", "samples.cfg_strength"),
    "test_listening.py::test_count_is_how_many_and_no_more_than_there_are": ("samples.count",),
    "test_listening.py::test_a_run_makes_sound_before_on_the_way_and_at_the_end": ("samples.every",),
    "test_listening.py::test_root_brings_the_true_sound_and_the_videos": ("samples.root",),
}


def test_no_key_is_without_a_test():
    keys = {".".join(path) for path in traverse_util.flatten_dict(SHIPPED)} | {"lora.ranks", "lora.alphas"}
    here = {key for key, *_ in (*LEARNT, *BUILT)} | set(HERE)
    assert here | {key for covered in ELSEWHERE.values() for key in covered} == keys
    for name in ELSEWHERE:
        file, test = name.split("::")
        assert f"def {test}(" in (Path(__file__).parent / file).read_text(), name


def learnt(workdir, **changes):
    train(workdir, ema=None, **changes)
    return checkpoint.load_adapter(workdir).params


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What is learnt with the settings that are common to both runs of a comparison."""
    known = {}

    def run(common):
        if repr(common) not in known:
            known[repr(common)] = learnt(tmp_path_factory.mktemp("plain") / "run", **common)
        return known[repr(common)]

    return run


@pytest.mark.parametrize(("key", "value", "common"), LEARNT, ids=[key for key, *_ in LEARNT])
def test_what_is_learnt_depends_on(key, value, common, plain, tmp_path):
    group, _, name = key.rpartition(".")
    if group:
        value = dataclasses.replace(common.get(group, getattr(CONFIG, group)), **{name: value})
    other = learnt(tmp_path / "run", **common | {group or name: value})
    assert any((other[path] != leaf).any() for path, leaf in plain(common).items())


@pytest.fixture(scope="module")
def settings(small_weights, small_features):
    values = SHIPPED | {"weights": str(small_weights), "data": str(small_features), "workers": 0, "samples": None}
    return config.from_mapping(experiment.TrainConfig, values)


@pytest.mark.parametrize(("key", "value", "trait"), BUILT, ids=[key for key, *_ in BUILT])
def test_the_network_is_built_with(key, value, trait, settings):
    def built(settings):
        base = weights.load(Path(settings.weights) / settings.model, "mmaudio")
        network = experiment.build(settings, base, jax.random.key(0), None)
        return trait(trees.merge(network.graphdef, {**network.frozen, **network.trained}))

    assert built(dataclasses.replace(settings, **{key: value})) != built(settings)


def test_the_examples_are_shared_out_and_ordered_as_the_config_says(settings, monkeypatch):
    def examples(**changes):
        return experiment.Examples(mixture.open_mixture(settings.data), dataclasses.replace(settings, **changes))

    one = examples()
    assert len(examples(validation_fraction=0.5).validation_rows) > len(one.validation_rows)
    assert examples(seed=1).names(1) != one.names(1)
    assert len(examples(batch_size=2).names(1)) == 2 * settings.accumulation != len(one.names(1))
    told = {}
    monkeypatch.setattr(dataset, "training_batches", lambda *_, **options: told.update(options))
    examples(workers=3).training(0)
    assert told["workers"] == 3


def test_the_column_split_of_the_data_decides_and_is_told(settings, monkeypatch):
    features = mixture.open_mixture(settings.data)
    base = weights.load(Path(settings.weights) / settings.model, "mmaudio")

    def told():
        examples = experiment.Examples(features, settings)
        return experiment.identify(settings, base, examples, "", None)["data"]["examples"]["ids"]

    drawn = told()
    with monkeypatch.context() as patch:
        patch.setattr(StoredFeatures, "sources", [f"video{(i + 1) // 3}" for i in range(12)])
        assert told() != drawn  # the same ids, and others of them validate
    monkeypatch.setattr(StoredFeatures, "sides", ["val"] * 4 + ["test"] * 2 + ["train"] * 6)
    examples = experiment.Examples(features, dataclasses.replace(settings, batch_size=3, accumulation=2))
    assert (len(examples.train_rows), examples.validation_rows.tolist()) == (6, [0, 1, 2, 3])
    assert examples.table() == (
        f"{settings.data}: 6 examples train, 4 validate, 2 do neither\n"
        "the column split of the data says which; config.validation_fraction is not used"
    )
    more = experiment.Examples(features, dataclasses.replace(settings, batch_size=7, accumulation=1))
    assert more.table().endswith("\na step of 7 examples is more than an epoch, of 6: some come several times in it")
    assert told() != drawn
