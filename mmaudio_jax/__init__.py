"""MMAudio in JAX and Flax: video and text to synchronised sound."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmaudio_jax.pipeline import Pipeline
    from mmaudio_jax.request import Request

__version__ = "0.1.0"
__all__ = ["Pipeline", "Request"]


def __getattr__(name: str):
    """Loads what is asked for, when it is asked for: commands that make no sound do without JAX's seconds."""
    if name == "Pipeline":
        from mmaudio_jax.pipeline import Pipeline

        return Pipeline
    if name == "Request":
        from mmaudio_jax.request import Request

        return Request
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
