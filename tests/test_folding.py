"""Folding of magnitude-preserving and weight-normalised kernels."""

import numpy as np

from convert.folding import fold_magnitude, fold_weight_norm


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_magnitude_is_its_formula():
    w = draw(5, 4, 3)
    for out, row in zip(fold_magnitude(w, gain=1.25), w.astype(np.float64), strict=True):
        expected = 1.25 * row / (1e-4 + np.linalg.norm(row) / np.sqrt(12)) / np.sqrt(12)
        np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_magnitude_ignores_the_stored_scale_and_keeps_zero():
    w = draw(5, 4, 3)
    np.testing.assert_allclose(fold_magnitude(100 * w), fold_magnitude(w), rtol=1e-3)
    assert not fold_magnitude(0 * w).any()


def test_weight_norm_gives_each_index_of_axis_0_its_magnitude():
    g, v = draw(6, 1, 1), draw(6, 4, 8)
    w = fold_weight_norm(g, v)
    np.testing.assert_allclose(np.linalg.norm(w.reshape(6, -1), axis=1), np.abs(g).ravel(), rtol=1e-6)
    np.testing.assert_allclose(w[2] / w[2, 0, 0], v[2] / v[2, 0, 0], rtol=1e-5)


def test_types_are_kept():
    assert fold_magnitude(draw(2, 3, 1), gain=np.float32(1.5)).dtype == np.float32
    assert fold_weight_norm(draw(2, 1, 1), draw(2, 3, 1)).dtype == np.float32
