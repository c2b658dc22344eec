"""The encoders at full size against the golden vectors."""

import jax
import numpy as np
import pytest
from conftest import relative_error

from mmaudio_jax import trees

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4


def test_clip(golden):
    expected = golden.expected("clip")
    weights = golden.weights("open_clip_pytorch_model.bin")
    graphdef, params = weights.graphdef(), weights.params
    images = 1 / (1 + np.exp(-golden.input("image", (2, 3, 384, 384)))).transpose(0, 2, 3, 1)
    encode_image = jax.jit(lambda params, images: trees.merge(graphdef, params).encode_image(images))
    assert relative_error(encode_image(params, images), expected["image_features"]) < TOLERANCE
    encode_text = jax.jit(lambda params, tokens: trees.merge(graphdef, params).encode_text(tokens))
    tokens = expected["tokens"].astype(np.int32)
    assert relative_error(encode_text(params, tokens), expected["text_features"]) < TOLERANCE


def test_synchformer(golden):
    weights = golden.weights("synchformer_state_dict.pth")
    graphdef, params = weights.graphdef(), weights.params
    video = np.clip(golden.input("video", (1, 2, 16, 3, 224, 224)), -1, 1).transpose(0, 1, 2, 4, 5, 3)
    features = jax.jit(lambda params, video: trees.merge(graphdef, params)(video))(params, video)
    assert relative_error(features, golden.expected("synchformer")["video_features"]) < TOLERANCE
