from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmaudio_jax.data import frames


def test_golden_frames_are_equal_in_every_bit(golden):
    expected = golden.expected("frames")
    for image, clip, sync in zip(expected["frames"], expected["clip"], expected["sync"], strict=True):
        np.testing.assert_array_equal(frames.clip_frame(image), clip)
        np.testing.assert_array_equal(frames.sync_frame(image), sync)


def reference_resize(image: np.ndarray, size: int, axis: int) -> np.ndarray:
    """One pass in exact integers, output by output, as the rule reads."""
    image = np.moveaxis(image, axis, 0).astype(np.int64)
    old = len(image)
    scale = old / size
    stretch = max(scale, 1.0)
    rows = []
    for k in range(size):
        centre = scale * (k + 0.5)
        low, high = max(int(centre - 2 * stretch + 0.5), 0), min(int(centre + 2 * stretch + 0.5), old)
        x = np.abs((np.arange(low, high) - centre + 0.5) / stretch)
        w = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
        rows.append((low, high, w / w.sum()))
    largest = max(w.max() for _, _, w in rows)
    bits = max(p for p in range(23) if int(largest * 2**p + 0.5) < 2**15)
    out = []
    for low, high, w in rows:
        fixed = np.array([int(v * 2**bits + (0.5 if v >= 0 else -0.5)) for v in w])
        total = np.tensordot(fixed, image[low:high], 1)
        out.append(np.clip((total + 2 ** (bits - 1)) >> bits, 0, 255))
    return np.moveaxis(np.array(out, np.uint8), 0, axis)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((90, 160), (24, 24)),
        ((24, 31), (24, 31)),
        ((17, 33), (40, 50)),
        ((61, 48), (61, 12)),
        ((300, 20), (20, 20)),
        ((2, 3), (8, 9)),
    ],
)
def test_resize_is_the_two_pass_integer_rule(old, new):
    image = np.random.default_rng(0).integers(0, 256, (*old, 3), np.uint8)
    expected = reference_resize(reference_resize(image, new[1], axis=1), new[0], axis=0)
    result = frames.resize(image, *new)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected)


def test_resize_keeps_constant_images_and_extremes():
    for value in (0, 1, 127, 254, 255):
        assert np.all(frames.resize(np.full((77, 101, 3), value, np.uint8), 31, 64) == value)
    checker = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, -1)
    assert frames.resize(checker, 96, 96).min() == 0  # overshoot is clipped, not wrapped
    assert frames.resize(checker, 96, 96).max() == 255


@pytest.mark.parametrize("shape", [(120, 160), (160, 120), (465, 641), (224, 224), (97, 301), (40, 30)])
def test_clip_stretches_and_sync_crops_the_centre(shape):
    height, width = shape
    ramp = np.broadcast_to(np.linspace(0, 255, width)[None, :, None], (height, width, 3)).astype(np.uint8)
    clip, sync = frames.clip_frame(ramp), frames.sync_frame(ramp)
    assert clip.shape == (384, 384, 3)
    assert sync.shape == (224, 224, 3)
    assert clip[:, 0].mean() < 2 and clip[:, -1].mean() > 253  # the whole width is there
    middle = sync[112, 112, 0] / 255
    assert abs(middle - 0.5) < 0.02
    seen = (int(sync[112, -1, 0]) - int(sync[112, 0, 0])) / 255
    assert abs(seen - min(height / width, 1)) < 0.03  # of the width, as much as the short side


def served(ticks: frames.Ticks) -> list[int]:
    return ticks.frames[:, 0, 0, 0].tolist()


def make_ticks(count: int, start: Fraction = Fraction(0), fps: int = 8) -> frames.Ticks:
    return frames.Ticks(start, fps, count, 4, lambda image: image[:4, :4])


def frame(value: int, time: Fraction | int, end: Fraction | int = 0) -> frames.Frame:
    return frames.Frame(Fraction(time), Fraction(end), lambda: np.full((8, 8, 3), value, np.uint8))


def test_a_tick_takes_the_first_frame_at_or_after_it():
    ticks = make_ticks(4)  # at 0, 1/8, 2/8, 3/8
    for value, time in enumerate([0, Fraction(1, 10), Fraction(1, 8), Fraction(2, 10), Fraction(3, 10)]):
        ticks.offer(frame(value, time))
    assert not ticks.complete
    ticks.offer(frame(5, Fraction(9, 20)))
    assert ticks.complete
    assert served(ticks) == [0, 2, 4, 5]


def test_a_frame_may_serve_several_ticks_or_none_and_is_converted_only_when_needed():
    ticks = make_ticks(5)

    def never():
        raise AssertionError("converted a frame that no tick takes")

    ticks.offer(frame(7, 0))
    ticks.offer(frames.Frame(Fraction(1, 100), Fraction(2, 100), never))
    ticks.offer(frame(9, Fraction(1, 2)))
    assert served(ticks) == [7, 9, 9, 9, 9]


def test_the_last_frame_serves_ticks_to_its_own_end():
    ticks = make_ticks(5)
    ticks.offer(frame(1, 0))
    ticks.offer_last(frame(1, 0, Fraction(3, 8)))  # 0, 1/8, 2/8 are before the end, 3/8 is not
    assert not ticks.complete
    ticks.offer_last(frame(2, 0, Fraction(3, 8) + Fraction(1, 1000)))
    ticks.offer_last(frame(3, 0, Fraction(1, 2) + Fraction(1, 1000)))
    assert served(ticks) == [1, 1, 1, 2, 3]


seconds = st.fractions(0, 2, max_denominator=1000) | st.integers(0, 50).map(lambda k: Fraction(k, 25))


@settings(max_examples=100)
@given(
    times=st.lists(seconds, min_size=1, max_size=30, unique=True).map(sorted),
    last=st.fractions(Fraction(1, 1000), 1, max_denominator=1000),
    start=seconds,
    fps=st.sampled_from([8, 25]),
)
def test_ticks_are_those_of_a_search_through_all_frames(times, last, start, fps):
    ticks = make_ticks(20, start, fps)
    for value, time in enumerate(times):
        ticks.offer(frame(value, time))
    end = times[-1] + last
    ticks.offer_last(frame(len(times) - 1, times[-1], end))
    expected = []
    for tick in (start + Fraction(k, fps) for k in range(20)):
        later = [value for value, time in enumerate(times) if time >= tick]
        if not later and tick >= end:
            break
        expected.append(later[0] if later else len(times) - 1)
    assert served(ticks)[: len(expected)] == expected
    assert ticks.complete == (len(expected) == 20)


def test_counts_are_whole_ticks_of_the_duration():
    assert frames.clip_ticks(Fraction(0), 8.0).frames.shape == (64, 384, 384, 3)
    assert frames.sync_ticks(Fraction(0), 8.0).frames.shape == (200, 224, 224, 3)
    assert len(frames.clip_ticks(Fraction(0), 1.2).frames) == 9
    assert len(frames.sync_ticks(Fraction(0), 1.2).frames) == 30
