"""MMAudio in JAX and Flax: video and text to synchronised sound."""

__version__ = "0.1.0"
