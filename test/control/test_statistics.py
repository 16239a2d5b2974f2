"""Jitter of a whole run in constant memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos3_ros.control.statistics import BIN_MS, BINS, IntervalStatistics

MS = 1_000_000


def fed(jitters_ms: list[float], period_ms: float = 20.0) -> IntervalStatistics:
    statistics = IntervalStatistics(period_ms / 1e3)
    now_ns = 7 * MS
    statistics.add(now_ns)
    for jitter_ms in jitters_ms:
        now_ns += round((period_ms + jitter_ms) * MS)
        statistics.add(now_ns)
    return statistics


@given(st.lists(st.floats(0, 150), min_size=1, max_size=200), st.sampled_from([50, 99, 100]))
def test_percentiles_agree_with_the_sorted_intervals_to_a_bin(
    jitters_ms: list[float], percent: int
) -> None:
    exact = np.percentile(jitters_ms, percent, method="inverted_cdf")
    assert fed(jitters_ms).percentile_ms(percent) == pytest.approx(exact, abs=BIN_MS + 1e-5)


def test_early_and_late_both_count_as_jitter() -> None:
    assert fed([-3.0, 3.0]).max_ms == pytest.approx(3.0)


def test_the_maximum_is_exact_beyond_the_histogram() -> None:
    statistics = fed([0.0, 5000.0])
    assert BINS * BIN_MS < 5000.0
    assert statistics.max_ms == pytest.approx(5000.0)
    assert statistics.percentile_ms(99) == pytest.approx(5000.0)
    assert statistics.percentile_ms(50) <= BIN_MS


def test_the_rate_is_of_the_whole_run() -> None:
    statistics = fed([0.0] * 99 + [20.0])
    assert statistics.events == 101
    assert statistics.rate_hz == pytest.approx(100 / 2.02)


def test_nothing_is_claimed_before_the_second_event() -> None:
    statistics = fed([])
    assert statistics.events == 1
    assert math.isnan(statistics.rate_hz)
    assert math.isnan(statistics.percentile_ms(50))
    assert math.isnan(statistics.max_ms)
