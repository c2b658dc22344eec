"""What a run that goes on notices of its data, and how it says so."""

from pathlib import Path

import pytest

from configs import lora_16k
from mmaudio_jax import config, experiment, weights
from mmaudio_jax.data import mixture, records
from mmaudio_jax.data.example import KEY
from mmaudio_jax.data.records import FeatureWriter
from mmaudio_jax.errors import UserError
from mmaudio_jax.resumption import check_same

SIDES = ["train"] * 8 + ["val"] * 2 + ["test"] * 2


@pytest.fixture(scope="module")
def what_is_run(small_weights, small_features, tmp_path_factory):
    """What a run on the small examples is, written anew with some rows changed."""
    values = lora_16k.get_config("small").to_dict() | {"weights": str(small_weights), "workers": 0, "samples": None}
    base = weights.load(Path(small_weights) / "small_16k", "mmaudio")
    features = records.open_features(small_features)

    def identify(rows=None, encoders=None, dtype="float32", count=12):
        folder = tmp_path_factory.mktemp("made") / "set"
        with FeatureWriter(folder, "16k", 1.0, features.metadata.shapes, encoders or {"clip": "a"}, dtype) as writer:
            for i, row in enumerate(features.table.rows[:count]):
                row = row | {KEY: f"digest{i}-{i}f-1e", "split": SIDES[i]} | (rows or {}).get(i, {})
                writer.append(row, features.read(i))
        settings = config.from_mapping(experiment.TrainConfig, values | {"data": str(folder)})
        examples = experiment.Examples(mixture.open_mixture(settings.data), settings)
        return experiment.identify(settings, base, examples, "", None)

    return identify


def test_features_made_anew_are_told_by_what_is_another(what_is_run):
    run = what_is_run()
    for change, message in (
        ({"rows": {8: {"caption": "another"}}}, "captions in --config.data are not those that it began with"),
        (
            {"rows": {0: {KEY: "digest0-ff-1e"}}},
            "the features of --config.data were made of other videos or times",
        ),
        (
            {"rows": {9: {KEY: "other-9f-1e"}}},
            "the features of --config.data were made of .*; bring the old ones back, or",
        ),
        (
            {"rows": {3: {KEY: "digest3-3f-1e-padded"}}},
            "the features of --config.data were made of other videos or times",
        ),
        ({"rows": {0: {"id": "another"}}}, "--config.data names other clips than those that it began with"),
        ({"dtype": "bfloat16"}, "the features of --config.data have another dtype than those"),
        ({"encoders": {"clip": "b"}}, "the features of --config.data were made with other encoders"),
    ):
        with pytest.raises(UserError, match=f"^w holds another run: {message}"):
            check_same(run, what_is_run(**change), Path("w"))


def test_a_video_that_was_only_touched_and_clips_that_are_not_trained_on_are_the_same_run(what_is_run):
    run = what_is_run()
    check_same(run, what_is_run({0: {KEY: "digest0-0f-2e"}, 11: {"caption": "another", KEY: "b-b-b"}}), Path("w"))
    check_same(run, what_is_run(count=10), Path("w"))


def test_a_run_that_kept_less_of_its_data_is_one_sentence(what_is_run):
    run = what_is_run()
    of_before = run | {"data": {name: value for name, value in run["data"].items() if name != "examples"}}
    with pytest.raises(UserError, match="^w holds another run: it was begun by another release, .*another --workdir$"):
        check_same(of_before, run, Path("w"))
