"""Looks at a whole feature set before it is trained on: `python -m mmaudio_jax.data.check SET`."""
