import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmaudio_jax.data.prepare import cutting
from mmaudio_jax.data.prepare.cutting import Lengths
from mmaudio_jax.errors import UserError

SECONDS = st.integers(1, 20_000)
SPANS = st.builds(lambda start, length: (start, start + length), st.integers(0, 9_000), st.integers(0, 60_000))
TIMES = st.lists(st.integers(0, 70_000), unique=True).map(sorted)
LENGTHS = st.builds(
    lambda duration, stride, share: Lengths(duration, stride, max(int(duration * share), 1)),
    SECONDS,
    SECONDS,
    st.floats(0, 1),
)


def check(clips, span, lengths):
    """What holds of clips however they were cut."""
    assert clips == sorted(set(clips))
    for start, end in clips:
        assert span[0] <= start < end <= span[1] and lengths.least <= end - start <= lengths.duration


@given(SPANS, LENGTHS)
def test_regular_clips_are_a_stride_apart_and_leave_nothing_that_would_fit(span, lengths):
    clips = cutting.regularly(span, lengths)
    check(clips, span, lengths)
    assert [start for start, _ in clips] == [span[0] + k * lengths.stride for k in range(len(clips))]
    assert all(end - start == lengths.duration for start, end in clips[:-1])
    following = span[0] + len(clips) * lengths.stride
    covered = clips[-1][1] if clips else span[0]
    assert following + lengths.least > span[1] or covered == span[1]


def test_a_last_shorter_piece_is_kept_if_it_is_long_enough():
    assert cutting.regularly((0, 21_000), Lengths(8000, 8000, 8000)) == [(0, 8000), (8000, 16_000)]
    assert cutting.regularly((0, 21_000), Lengths(8000, 8000, 5000))[2:] == [(16_000, 21_000)]
    assert cutting.regularly((0, 21_000), Lengths(8000, 8000, 5001))[2:] == []
    assert cutting.regularly((500, 3000), Lengths(8000, 8000, 2000)) == [(500, 3000)]
    assert cutting.regularly((0, 16_000), Lengths(8000, 4000, 1000))[-1] == (8000, 16_000)  # no piece of it again


@given(SPANS, TIMES, LENGTHS)
def test_no_clip_crosses_a_cut(span, cuts, lengths):
    clips = cutting.within_scenes(span, cuts, lengths)
    check(clips, span, lengths)
    inside = [cut for cut in cuts if span[0] < cut < span[1]]
    assert not any(start < cut < end + cutting.MARGIN for start, end in clips for cut in inside)
    if not inside:
        assert clips == cutting.regularly(span, lengths)


@given(SPANS, TIMES, LENGTHS)
def test_every_clip_begins_just_before_an_onset(span, onsets, lengths):
    clips = cutting.at_onsets(span, onsets, lengths)
    check(clips, span, lengths)
    begins = {max(onset - cutting.LEAD, span[0]) for onset in onsets}
    assert all(start in begins for start, _ in clips)
    assert all(after[0] - before[0] >= lengths.stride for before, after in zip(clips, clips[1:], strict=False))
    first = next((at for at in sorted(begins) if at >= span[0] and span[1] - at >= lengths.least), None)
    if first is not None and any(onset >= span[0] and max(onset - cutting.LEAD, span[0]) == first for onset in onsets):
        assert clips[0][0] == first


@given(st.lists(SPANS, max_size=8), SPANS)
def test_joined_spans_are_the_same_time(spans, span):
    spans = [(start // 1000, end // 1000) for start, end in spans]
    joined = cutting.joined(spans)
    seconds = {second for start, end in spans for second in range(start, end)}
    assert {second for start, end in joined for second in range(start, end)} == seconds
    assert all(before[1] < after[0] for before, after in zip(joined, joined[1:], strict=False))
    window = (span[0] // 1000, span[1] // 1000)
    assert cutting.covered(window, joined) == len(seconds & set(range(*window)))


@given(st.lists(st.integers(), unique=True, max_size=30), st.integers(1, 12))
def test_what_is_kept_is_spread_evenly(items, most):
    kept = cutting.evenly(items, most)
    assert len(kept) == min(len(items), most) and kept[:1] == items[:1]
    places = [items.index(item) for item in kept]
    gaps = {after - before for before, after in zip(places, places[1:], strict=False)}
    assert not gaps or (min(gaps) > 0 and max(gaps) - min(gaps) <= 1)


def test_lengths_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="the stride of clips is 0 s; it must be above 0"):
        Lengths(8000, 0, 8000)
    with pytest.raises(UserError, match="the shortest clip, 9 s, is longer than a clip, 8 s"):
        Lengths(8000, 8000, 9000)
