"""Pictures: of a sound, of two sounds beside each other, of a sound beside its video, and of a measure over t."""

import os
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt8

from mmaudio_jax.data import mel
from mmaudio_jax.files import atomic_file

WINDOW = 0.046  # seconds
COLUMNS = 1000  # of the spectrogram, at most
RANGE_DB = 80.0
SHEET = 4  # frames a side of a contact sheet
LINEAR_BELOW = 1000.0  # Hz: the axis is linear up to here and logarithmic above, as the mel scale is


def save_spectrogram(
    path: str | os.PathLike,
    audio: Float[np.ndarray, " l"],
    sample_rate: int,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Writes a PNG of the waveform and the spectrogram, in dB below the loudest, over seconds and Hz.

    Args:
        path: of the PNG.
        audio: at least one window long.
        sample_rate: Hz.
        tags: texts that the file keeps, by name.
    """
    figure, save = _figure(10, 5, 120)
    wave, image = figure.subplots(2, 1, sharex=True, height_ratios=[1, 3])
    _draw_wave(wave, audio, sample_rate)
    mesh = _draw_spectrogram(image, audio, sample_rate)
    image.set_xlabel("seconds")
    figure.colorbar(mesh, ax=image, label="dB below the loudest", pad=0.01)
    save(path, tags)


def save_comparison(
    path: str | os.PathLike, sounds: Mapping[str, Float[np.ndarray, " l"]], config: mel.MelConfig
) -> None:
    """Writes a PNG of sounds of one length beside each other.

    Under the waveform are the spectrogram, in dB below the sound's loudest, and the log mel spectrogram that the VAE
    takes, in dB below the loudest of all.

    Args:
        path: of the PNG.
        sounds: what each is called, and its waveform, at least one window long.
        config: a value of `mel.PRESETS`, which tells the rate.
    """
    figure, save = _figure(7 * len(sounds), 7, 100)
    axes = figure.subplots(3, len(sounds), sharex=True, sharey="row", squeeze=False, height_ratios=[1, 3, 3])
    levels = [_mel_decibels(audio, config) for audio in sounds.values()]
    loudest = max(level.max() for level in levels)
    for (title, audio), level, column in zip(sounds.items(), levels, axes.T, strict=True):
        seconds = len(audio) / config.mode.sample_rate
        column[0].set_title(title, loc="left")
        _draw_wave(column[0], audio, config.mode.sample_rate)
        mesh = _draw_spectrogram(column[1], audio, config.mode.sample_rate)
        extent = (0, seconds, 0, config.mode.mel_bins)
        scale = dict(cmap="magma", vmin=-RANGE_DB, vmax=0)
        column[2].imshow(level.T - loudest, origin="lower", aspect="auto", extent=extent, **scale)
        column[2].set(xlim=(0, seconds), xlabel="seconds")
    axes[2, 0].set_ylabel("mel bin")
    figure.colorbar(mesh, ax=axes[1:], label="dB below the loudest", pad=0.01)
    save(path)


def save_contact_sheet(
    path: str | os.PathLike,
    frames: UInt8[np.ndarray, "f h w 3"],
    times: Float[np.ndarray, " f"],
    audio: Float[np.ndarray, " l"],
    sample_rate: int,
) -> None:
    """Writes a PNG of up to sixteen frames of a video, evenly spread, beside the spectrogram of its sound.

    A white line in the spectrogram marks the time of each frame.
    """
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(SHEET**2, len(frames))).round().astype(int))
    figure, save = _figure(14, 6, 100)
    left, right = figure.subfigures(1, 2)
    for axis in (grid := left.subplots(SHEET, SHEET)).flat:
        axis.set_axis_off()
    for axis, i in zip(grid.flat, chosen, strict=False):
        axis.imshow(frames[i])
        axis.set_title(f"{times[i]:.2f} s", fontsize=8, pad=2)
    image = right.subplots()
    mesh = _draw_spectrogram(image, audio, sample_rate)
    for i in chosen:
        image.axvline(times[i], color="white", linewidth=0.5, alpha=0.5)
    image.set_xlabel("seconds")
    right.colorbar(mesh, ax=image, label="dB below the loudest", pad=0.01)
    save(path)


def save_bins(path: str | os.PathLike, bins: Float[np.ndarray, " k"], title: str) -> None:
    """Writes a PNG of means over equal bins of t in [0, 1); a bin that is nan stays empty."""
    figure, save = _figure(6, 3.5, 100)
    axis = figure.subplots()
    axis.bar((np.arange(len(bins)) + 0.5) / len(bins), bins, width=0.9 / len(bins), color="#3b528b")
    axis.set(xlim=(0, 1), xlabel="t (0 noise, 1 sound)", title=title)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    save(path)


def read_picture(path: str | os.PathLike) -> UInt8[np.ndarray, "h w 3"]:
    """A PNG's pixels."""
    from matplotlib.image import imread

    return (255 * imread(path)[..., :3]).round().astype(np.uint8)


def _figure(width: float, height: float, dpi: int):
    """A figure that no global state knows, and what writes it to a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    canvas = FigureCanvasAgg(figure)

    def save(path, tags=None):
        with atomic_file(path) as temporary:
            canvas.print_png(temporary, metadata=tags)

    return figure, save


def _draw_wave(axis, audio: Float[np.ndarray, " l"], sample_rate: int) -> None:
    axis.plot(np.arange(len(audio)) / sample_rate, audio, linewidth=0.4, color="#3b528b")
    axis.set(ylim=(-1.05, 1.05), ylabel="amplitude")
    axis.grid(alpha=0.3)


def _draw_spectrogram(axis, audio: Float[np.ndarray, " l"], sample_rate: int):
    from matplotlib.ticker import FuncFormatter, NullLocator

    level, times, frequencies = _decibels(np.asarray(audio, np.float32), sample_rate)
    mesh = axis.pcolormesh(times, frequencies, level, cmap="magma", vmin=-RANGE_DB, vmax=0, shading="nearest")
    axis.set_yscale("symlog", linthresh=LINEAR_BELOW, linscale=0.4)
    ticks = [0, 500, 1000, 2000, 4000, 8000, 16000]
    axis.set_yticks([tick for tick in ticks if tick <= sample_rate / 2])
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda hertz, _: f"{hertz:g}"))
    axis.set(xlim=(0, len(audio) / sample_rate), ylim=(0, sample_rate / 2), ylabel="Hz (log above 1 kHz)")
    return mesh


def _mel_decibels(audio: Float[np.ndarray, " l"], config: mel.MelConfig) -> Float[np.ndarray, "f m"]:
    whole = len(audio) // config.mode.hop * config.mode.hop
    return np.asarray(mel.decibels(np.asarray(audio[None, :whole], np.float32), config))[0]


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
