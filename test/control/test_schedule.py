"""A schedule is a line through the rows, at their times."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cosmos3_ros.control.chunk import NS_PER_S, Chunk
from cosmos3_ros.control.schedule import Schedule

# A present-day epoch: float64 seconds of it would be 200 ns apart.
STAMP_NS = 1_763_000_000_123_456_789

values = st.floats(-10, 10, allow_nan=False)
chunks = st.builds(
    lambda rows, rate_hz: Chunk(1, STAMP_NS, rate_hz, rows),
    arrays(np.float64, st.tuples(st.integers(1, 40), st.just(3)), elements=values),
    st.floats(1.0, 100.0),
)
starts = arrays(np.float64, 3, elements=values)
offsets_ns = st.integers(-2 * NS_PER_S, 45 * NS_PER_S)


@given(chunks, starts, offsets_ns)
def test_it_passes_through_every_row_at_its_due_time(
    chunk: Chunk, start: np.ndarray, start_offset_ns: int
) -> None:
    schedule = Schedule(chunk, STAMP_NS + start_offset_ns, start)
    for i, row in enumerate(chunk.rows):
        if chunk.due_ns(i) >= STAMP_NS + start_offset_ns:
            assert schedule.at(chunk.due_ns(i)) == pytest.approx(row, abs=1e-5)


@given(chunks, starts, offsets_ns, offsets_ns)
def test_it_never_leaves_the_span_of_its_rows_and_its_start(
    chunk: Chunk, start: np.ndarray, start_offset_ns: int, offset_ns: int
) -> None:
    at = Schedule(chunk, STAMP_NS + start_offset_ns, start).at(STAMP_NS + offset_ns)
    knots = np.vstack((start, chunk.rows))
    assert np.all(at >= knots.min(axis=0) - 1e-12)
    assert np.all(at <= knots.max(axis=0) + 1e-12)


@given(chunks, starts, offsets_ns)
def test_it_is_continuous_in_time(chunk: Chunk, start: np.ndarray, offset_ns: int) -> None:
    schedule = Schedule(chunk, STAMP_NS, start)
    now_ns = STAMP_NS + max(offset_ns, 0)
    steepest = 20.0 * chunk.rate_hz  # values lie within 20 of each other
    step = np.abs(schedule.at(now_ns + 1000) - schedule.at(now_ns))
    assert np.all(step <= steepest * 1.1e-6)


def test_half_way_between_two_rows_it_is_half_way() -> None:
    chunk = Chunk(1, STAMP_NS, 10.0, np.array([[0.0, 0.0], [1.0, -2.0]]))
    schedule = Schedule(chunk, STAMP_NS, np.zeros(2))
    assert schedule.at(STAMP_NS + 150_000_000) == pytest.approx([0.5, -1.0])


def test_before_the_first_row_it_comes_from_the_command_that_stood() -> None:
    chunk = Chunk(1, STAMP_NS, 10.0, np.array([[1.0], [1.0]]))
    schedule = Schedule(chunk, STAMP_NS + 50_000_000, np.array([3.0]))
    assert schedule.at(STAMP_NS + 50_000_000) == pytest.approx([3.0])
    assert schedule.at(STAMP_NS + 75_000_000) == pytest.approx([2.0])


def test_a_chunk_taken_over_late_skips_what_is_past() -> None:
    chunk = Chunk(1, STAMP_NS, 10.0, np.array([[1.0], [2.0], [3.0]]))
    schedule = Schedule(chunk, STAMP_NS + 250_000_000, np.array([9.0]))
    assert schedule.at(STAMP_NS + 250_000_000) == pytest.approx([2.5])


def test_after_the_last_row_it_stays_there() -> None:
    chunk = Chunk(1, STAMP_NS, 10.0, np.array([[1.0], [2.0]]))
    assert Schedule(chunk, STAMP_NS, np.zeros(1)).at(STAMP_NS + 9 * NS_PER_S) == [2.0]
