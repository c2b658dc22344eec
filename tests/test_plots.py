import sys

import numpy as np
import pytest
from matplotlib.image import imread

from mmaudio_jax import plots
from mmaudio_jax.data import mel


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_the_picture_shows_a_tone_where_it_sounds(tmp_path, rate):
    t = np.arange(2 * rate) / rate
    audio = np.where(t < 1, np.sin(2 * np.pi * 2000 * t), 0).astype(np.float32)
    path = tmp_path / "a.png"
    plots.save_spectrogram(path, audio, rate)
    image = imread(path)[..., :3].mean(axis=-1)
    assert image.shape == (600, 1200)
    lower = image[200:500]
    first, second = lower[:, 150:500], lower[:, 620:1000]
    assert first.max(axis=0).min() > 0.5  # a bright line from beginning to end of the first second
    assert np.median(second) < 0.2  # and dark after it
    bright_row = first.mean(axis=1).argmax()
    assert first.mean(axis=1)[bright_row] > 5 * np.median(first)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_level_frequency_and_time_of_a_click_and_a_tone():
    rate = 16_000
    audio = np.zeros(rate, np.float32)
    audio[rate // 2 :] = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate // 2) / rate)
    level, times, frequencies = plots._decibels(audio, rate)
    assert level.shape == (len(frequencies), len(times))
    assert level.max() == pytest.approx(0)
    frequency, time = np.unravel_index(level.argmax(), level.shape)
    assert frequencies[frequency] == pytest.approx(1000, abs=16)
    assert 0.5 < times[time] <= 1
    assert level[:, times < 0.45].max() < -80
    assert times[-1] == pytest.approx(1, abs=0.02)


def test_two_sounds_stand_beside_each_other_by_spectrogram_and_mel(tmp_path):
    t = np.arange(16_384) / 16_000
    pair = {"a tone": np.sin(2 * np.pi * 1000 * t).astype(np.float32), "nothing": np.zeros(16_384, np.float32)}
    plots.save_comparison(tmp_path / "a.png", pair, mel.PRESETS["16k"])
    image = plots.read_picture(tmp_path / "a.png")
    assert image.shape == (700, 1400, 3) and image.dtype == np.uint8
    for rows in (slice(130, 380), slice(403, 652)):  # the spectrograms, the mels
        left, right = (image[rows, columns].mean(axis=(1, 2)).max() for columns in (slice(72, 652), slice(705, 1285)))
        assert left > 200 and right < 5


def test_an_empty_bin_has_no_bar(tmp_path):
    plots.save_bins(tmp_path / "a.png", np.array([1.0, np.nan, 1.0]), "loss")
    dark = plots.read_picture(tmp_path / "a.png")[150].sum(axis=-1) < 400
    assert dark[60:200].all() and not dark[230:390].any() and dark[420:570].all()


@pytest.mark.parametrize("audio", [np.zeros(16_000), np.full(10, 0.1), np.full(16_000, 3.0)])
def test_silent_short_and_loud_sounds_are_drawn(tmp_path, audio):
    plots.save_spectrogram(tmp_path / "a.png", audio, 16_000)
    assert np.isfinite(imread(tmp_path / "a.png")).all()


def test_a_long_sound_has_no_more_columns_than_a_picture():
    level, times, _ = plots._decibels(np.zeros(16_000 * 60, np.float32), 16_000)
    assert level.shape[1] == len(times) <= plots.COLUMNS + 1


def test_no_global_figure_is_made(tmp_path):
    plots.save_spectrogram(tmp_path / "a.png", np.zeros(1600), 16_000)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
