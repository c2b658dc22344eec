"""Layers that several networks share."""

from flax import nnx


class Buffer(nnx.Variable):
    """A leaf that is stored with the parameters and never trained (dataset statistics, fixed features)."""
