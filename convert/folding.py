"""Reparametrisations of published weights, folded into plain kernels; the layout stays the published one."""

import numpy as np

MAGNITUDE_EPSILON = 1e-4


def fold_magnitude(weight: np.ndarray, gain: float = 1.0) -> np.ndarray:
    """The kernel that a magnitude-preserving convolution uses (arXiv 2312.02696, equation 47).

    w / (ε + ‖w‖/√fan_in) / √fan_in per output channel, times `gain`.

    Args:
        weight: (out, in, k), as published.
        gain: factor on the whole kernel; 1 + `learnable_gain` for the two `conv_out`.
    """
    fan_in = np.prod(weight.shape[1:])
    norm = _norm(weight)
    return weight * (np.float32(gain) / (MAGNITUDE_EPSILON * np.sqrt(fan_in) + norm)).astype(weight.dtype)


def fold_weight_norm(g: np.ndarray, v: np.ndarray) -> np.ndarray:
    """w = g·v/‖v‖, the norm over axes 1 and 2 for each index of axis 0.

    Args:
        g: `weight_g`, in newer files `parametrizations.weight.original0`, (n, 1, 1).
        v: `weight_v`, in newer files `parametrizations.weight.original1`, (n, i, k).
    """
    return v * (g / _norm(v)).astype(v.dtype)


def _norm(weight: np.ndarray) -> np.ndarray:
    """‖w‖ for each index of axis 0, kept broadcastable."""
    return np.sqrt(np.sum(np.square(weight), axis=(1, 2), keepdims=True))
