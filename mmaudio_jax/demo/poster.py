"""The demo's picture: spectrograms of what was meant and what was generated, with the true contacts drawn in."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mmaudio_jax.data import mel
from mmaudio_jax.files import atomic_file

CONFIG = mel.PRESETS["16k"]


class Panel(NamedTuple):
    """One sound at 16 kHz, what to call it, and the seconds at which something is struck in the video."""

    title: str
    wave: Float[np.ndarray, " l"]
    contacts: Sequence[float]


def save_poster(path: str | os.PathLike, columns: Sequence[Sequence[Panel]]) -> None:
    """Writes a PNG of the columns' panels, one under the other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = max(map(len, columns))
    figure = Figure(figsize=(7 * len(columns), 2.1 * rows), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, len(columns), squeeze=False, sharex=True)
    for j, panels in enumerate(columns):
        for i, panel in enumerate(panels):
            spectrogram = np.asarray(mel.log_mel(panel.wave[None], CONFIG)[0]).T
            seconds = len(panel.wave) / CONFIG.mode.sample_rate
            extent = (0, seconds, 0, CONFIG.mode.mel_bins)
            axes[i, j].imshow(
                spectrogram, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-4.5, vmax=0.5
            )
            top = CONFIG.mode.mel_bins
            axes[i, j].vlines(panel.contacts, top, 1.08 * top, color="#2a9d8f", linewidth=2, clip_on=False)
            axes[i, j].set_title(panel.title, fontsize=9, loc="left", pad=9)
            axes[i, j].set_ylabel("mel bin")
        axes[rows - 1, j].set_xlabel("seconds (green: something is struck in the picture)")
    with atomic_file(path) as temporary:
        canvas.print_png(temporary)
