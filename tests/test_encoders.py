"""The encoders as one: chunks, devices and precision change nothing that they should not."""

import jax
import numpy as np
import pytest

from mmaudio_jax import encoders as module
from mmaudio_jax.encoders import Encoders
from mmaudio_jax.errors import UserError


@pytest.fixture(scope="module")
def encoders(small_weights):
    return Encoders(small_weights)


def test_the_vae_of_another_mode_is_refused(small_weights, tmp_path):
    for name in ("clip", "synchformer"):
        (tmp_path / name).symlink_to(small_weights / name)
    (tmp_path / "vae_44k").symlink_to(small_weights / "vae_16k")
    for call in (Encoders(tmp_path).vae, Encoders(tmp_path).fingerprints):
        with pytest.raises(UserError, match="20 latent channels and 80 mel bins, 44k has 40 and 128"):
            call("44k")


def test_chunks_change_nothing_and_few_shapes_are_compiled(encoders, monkeypatch):
    captions = ["rain", "a dog barks twice", ""]
    whole = encoders.encode_captions(captions)
    compiled = module.encode_tokens._cache_size()
    assert np.array_equal(encoders.encode_captions([*captions, "wind"])[:3], whole)
    assert module.encode_tokens._cache_size() == compiled
    monkeypatch.setattr(module, "CAPTIONS", 2 * module.CPU_SHARE)
    np.testing.assert_allclose(encoders.encode_captions(captions), whole, atol=1e-5)


def test_devices_share_the_frames_and_see_the_same(encoders, small_weights):
    several = Encoders(small_weights, devices=jax.devices()[:3])
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (1, 7, 384, 384, 3), np.uint8)
    expected = encoders.encode_clip_frames(frames)
    np.testing.assert_allclose(several.encode_clip_frames(frames), expected, rtol=1e-4, atol=1e-5)
    assert len({d for leaf in several.clip.weights.params.values() for d in leaf.devices()}) == 3
    np.testing.assert_allclose(several.encode_captions(["rain"]), encoders.encode_captions(["rain"]), atol=1e-5)
    assert several.fingerprints("16k") == encoders.fingerprints("16k")
