import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmaudio_jax.data.statistics import ChannelStatistics


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(0, 2**32 - 1))
def test_parts_have_the_statistics_of_the_whole(lengths, seed):
    rng = np.random.default_rng(seed)
    parts = [(5 + 3 * rng.standard_normal((length, 4))).astype(np.float32) for length in lengths]
    statistics = ChannelStatistics()
    for part in parts:
        statistics.add(part)
    whole = np.concatenate(parts).astype(np.float64)
    assert statistics.count == len(whole)
    np.testing.assert_allclose(statistics.mean, whole.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(statistics.std, whole.std(axis=0, ddof=1), rtol=1e-9)
