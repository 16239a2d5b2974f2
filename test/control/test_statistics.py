"""Durations of a whole run in constant memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos3_ros.control.statistics import BIN_MS, BINS, Histogram, LoopStatistics

MS = 1_000_000
PERIOD_NS = 20 * MS


def histogram(durations_ms: list[float]) -> Histogram:
    made = Histogram()
    for duration_ms in durations_ms:
        made.add(round(duration_ms * MS))
    return made


def looped(wake_ups_ms: list[float], work_ms: float = 1.0, missed: int = 0) -> LoopStatistics:
    """A loop that woke so much after each of its deadlines."""
    statistics = LoopStatistics(PERIOD_NS)
    due_ns = 7 * MS
    for late_ms in wake_ups_ms:
        woken_ns = due_ns + round(late_ms * MS)
        statistics.add(due_ns, woken_ns, woken_ns + round(work_ms * MS), missed)
        due_ns += PERIOD_NS
    return statistics


@given(st.lists(st.floats(0, 150), min_size=1, max_size=200), st.sampled_from([1, 50, 99, 100]))
def test_percentiles_agree_with_the_sorted_durations_to_a_bin(
    durations_ms: list[float], percent: int
) -> None:
    exact = np.percentile(durations_ms, percent, method="inverted_cdf")
    found = histogram(durations_ms).percentile_ms(percent)
    assert found == pytest.approx(exact, abs=BIN_MS + 1e-5)


def test_the_maximum_is_exact_beyond_the_histogram() -> None:
    made = histogram([0.0, 5000.0])
    assert BINS * BIN_MS < 5000.0
    assert made.max_ms == pytest.approx(5000.0)
    assert made.percentile_ms(99) == pytest.approx(5000.0)
    assert made.percentile_ms(50) <= BIN_MS


def test_nothing_is_claimed_before_anything_happened() -> None:
    made = Histogram()
    assert math.isnan(made.percentile_ms(50)) and math.isnan(made.max_ms)
    assert math.isnan(looped([0.0]).rate_hz)
    assert looped([0.0]).jitter.count == 0


def test_early_and_late_intervals_both_count_as_jitter() -> None:
    statistics = looped([0.0, 3.0, 0.0])
    assert statistics.jitter.count == 2
    assert statistics.jitter.percentile_ms(1) == pytest.approx(3.0, abs=BIN_MS)
    assert statistics.jitter.max_ms == pytest.approx(3.0)


def test_waking_late_and_working_long_are_told_apart() -> None:
    statistics = looped([0.1, 2.0, 0.1], work_ms=4.0)
    assert statistics.wake_up.max_ms == pytest.approx(2.0)
    assert statistics.execution.percentile_ms(50) == pytest.approx(4.0, abs=BIN_MS)


def test_the_rate_is_of_the_whole_run_and_missed_periods_are_summed() -> None:
    statistics = looped([0.0] * 101, missed=2)
    assert statistics.rate_hz == pytest.approx(50.0)
    assert statistics.missed == 202
