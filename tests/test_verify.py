"""`convert.verify` passes trained weights and finds out random, damaged and exchanged ones."""

import json
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from convert import sanity, verify
from mmaudio_jax import trees, weights
from mmaudio_jax.data.captions import tokenize


@pytest.fixture
def run(monkeypatch, capsys):
    """`python -m convert.verify folder`: (exit code, what it printed)."""

    def call(folder):
        monkeypatch.setattr(sys, "argv", ["verify", str(folder)])
        with pytest.raises(SystemExit) as end:
            verify.main()
        printed = capsys.readouterr()
        return end.value.code, printed.out + printed.err

    return call


@pytest.fixture(scope="module")
def trained_clip(small_weights, tmp_path_factory):
    """A weights folder whose CLIP was taught two pictures and their captions."""
    network = weights.load(small_weights / "clip", "clip")
    graphdef, optimizer = network.graphdef(), optax.adam(1e-3)
    images = jnp.asarray(np.stack(list(sanity.pictures().values())) / 255, jnp.float32)
    tokens = tokenize(list(sanity.pictures()))

    def contrast(params):
        clip = trees.merge(graphdef, params)
        logits = 10 * clip.encode_image(images) @ clip.embed_text(tokens).T
        labels = jnp.arange(2)
        return sum(optax.softmax_cross_entropy_with_integer_labels(x, labels).mean() for x in (logits, logits.T))

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(contrast)(params), state)
        return optax.apply_updates(params, updates), state

    params, state = network.params, optimizer.init(network.params)
    for _ in range(20):
        params, state = step(params, state)
    folder = tmp_path_factory.mktemp("trained")
    weights.save(folder / "clip", "clip", network.config, params)
    return folder


def passed(findings):
    return [finding.passed for finding in findings]


def test_signs_of_training(demo_weights, trained_clip):
    assert all(passed(sanity.codec(demo_weights, "16k")))
    assert all(passed(sanity.synchformer(demo_weights)))
    assert all(passed(sanity.flow(demo_weights, "demo_16k")))
    assert all(passed(sanity.clip(trained_clip)))


def test_random_weights_show_none(small_weights, demo_weights, trained_clip, monkeypatch, tmp_path):
    (tmp_path / "bigvgan_16k").symlink_to(demo_weights / "bigvgan_16k")
    codec = weights.load(demo_weights / "vae_16k", "vae")
    basis = np.random.default_rng(0).standard_normal(codec.params["basis"].shape, np.float32)
    weights.save(tmp_path / "vae_16k", "mel_dct", codec.config, {"basis": basis})
    alike = passed(sanity.codec(tmp_path, "16k"))[:6]
    assert all(alike[:3]) and not any(alike[3:])  # the vocoder on its own is sound
    assert not passed(sanity.flow(small_weights, "small_16k"))[-1]
    drawn, caption = sanity.pictures(), iter(["a blue circle", "a red square"])
    monkeypatch.setattr(sanity, "pictures", lambda: {next(caption): picture for picture in drawn.values()})
    assert not any(passed(sanity.clip(trained_clip)))


def test_one_line_a_check_and_the_exit_code(trained_clip, demo_weights, run, tmp_path):
    code, printed = run(trained_clip)
    assert code == 0 and "all checks passed" in printed and "a red square: cosine" in printed
    shutil.copytree(demo_weights / "demo_16k", tmp_path / "small_16k")
    metadata = tmp_path / "small_16k" / "metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "md5": "00"}))
    code, printed = run(tmp_path)
    assert code == 1 and "1 checks failed" in printed
    assert "FAILED  MD5 of its file" in printed and "af93cde404179f58e3919ac085b8033b" in printed


def test_damage_is_found_and_the_rest_goes_on(trained_clip, run, tmp_path):
    for name in ("clip", "exchanged", "unreadable"):
        shutil.copytree(trained_clip / "clip", tmp_path / name)
    loaded = weights.load(trained_clip / "clip", "clip")
    bad = {**loaded.params, "ln_final.bias": loaded.params["ln_final.bias"].at[0].set(jnp.nan)}
    weights.save(tmp_path / "not_finite", "clip", loaded.config, bad)
    shutil.rmtree(tmp_path / "exchanged" / "params")
    shutil.copytree(tmp_path / "not_finite" / "params", tmp_path / "exchanged" / "params")
    shutil.rmtree(tmp_path / "unreadable" / "params")
    code, printed = run(tmp_path)
    parts = re.split(r"(?m)^(\w+)$", printed)[1:]
    findings = dict(zip(parts[::2], parts[1::2], strict=True))
    assert code == 1
    assert "FAILED" not in findings["clip"]
    assert "FAILED  content hash" in findings["exchanged"]
    assert "FAILED  leaves with NaN or infinity" in findings["not_finite"] and "ln_final.bias" in findings["not_finite"]
    assert "FAILED  reading it" in findings["unreadable"] and "convert the weights again" in findings["unreadable"]


def test_a_damaged_codec_does_not_end_the_check(demo_weights, trained_clip, run, tmp_path):
    for name in ("bigvgan_16k", "vae_16k"):
        shutil.copytree(demo_weights / name, tmp_path / name)
        metadata = tmp_path / name / "metadata.json"
        network = {"bigvgan_16k": "bigvgan", "vae_16k": "vae"}[name]
        metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "network": network}))
    shutil.copytree(trained_clip / "clip", tmp_path / "clip")
    code, printed = run(tmp_path)
    assert code == 1 and printed.count("FAILED") == 2 and "a red square: cosine" in printed


def test_a_folder_without_weights(run, tmp_path):
    code, printed = run(tmp_path)
    assert code == 1 and "there are no weights in" in printed and "python -m convert" in printed
