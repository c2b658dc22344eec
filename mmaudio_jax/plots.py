"""The picture of a sound: its waveform above its spectrogram."""

import os

import numpy as np
from jaxtyping import Float

from mmaudio_jax.files import atomic_file

WINDOW = 0.046  # seconds
COLUMNS = 1000  # of the spectrogram, at most
RANGE_DB = 80.0
LINEAR_BELOW = 1000.0  # Hz: the axis is linear up to here and logarithmic above, as the mel scale is


def save_spectrogram(path: str | os.PathLike, audio: Float[np.ndarray, " l"], sample_rate: int) -> None:
    """Writes a PNG of the waveform and the spectrogram, in dB below the loudest, over seconds and Hz."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    audio = np.asarray(audio, np.float32)
    seconds = len(audio) / sample_rate
    level, times, frequencies = _decibels(audio, sample_rate)

    figure = Figure(figsize=(10, 5), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    wave, image = figure.subplots(2, 1, sharex=True, height_ratios=[1, 3])
    wave.plot(np.arange(len(audio)) / sample_rate, audio, linewidth=0.4, color="#3b528b")
    wave.set(ylim=(-1.05, 1.05), ylabel="amplitude")
    wave.grid(alpha=0.3)

    mesh = image.pcolormesh(times, frequencies, level, cmap="magma", vmin=-RANGE_DB, vmax=0, shading="nearest")
    image.set_yscale("symlog", linthresh=LINEAR_BELOW, linscale=0.4)
    ticks = [0, 500, 1000, 2000, 4000, 8000, 16000]
    image.set_yticks([tick for tick in ticks if tick <= sample_rate / 2])
    image.yaxis.set_minor_locator(NullLocator())
    image.yaxis.set_major_formatter(FuncFormatter(lambda hertz, _: f"{hertz:g}"))
    image.set(xlim=(0, seconds), ylim=(0, sample_rate / 2), xlabel="seconds", ylabel="Hz (log above 1 kHz)")
    figure.colorbar(mesh, ax=image, label="dB below the loudest", pad=0.01)
    with atomic_file(path) as temporary:
        canvas.print_png(temporary)


def _decibels(
    audio: Float[np.ndarray, " l"], sample_rate: int
) -> tuple[Float[np.ndarray, "f t"], Float[np.ndarray, " t"], Float[np.ndarray, " f"]]:
    """Level in dB of centred Hann windows (0 is the loudest), their times in seconds, their frequencies in Hz."""
    size = 2 ** round(np.log2(WINDOW * sample_rate))
    hop = max(size // 4, -(-len(audio) // COLUMNS))
    padded = np.pad(audio, size // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    magnitude = np.abs(np.fft.rfft(windows * np.hanning(size))).T
    level = 20 * np.log10(np.maximum(magnitude, 1e-10) / max(magnitude.max(), 1e-5))
    return level, hop * np.arange(len(windows)) / sample_rate, np.fft.rfftfreq(size, 1 / sample_rate)
