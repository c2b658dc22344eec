"""From a folder of videos and sounds to a table of clips: `python -m mmaudio_jax.data.prepare`."""
