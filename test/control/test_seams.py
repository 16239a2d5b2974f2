"""A seam is what lies between two plans where one takes over: worked out by hand here."""

from __future__ import annotations

import numpy as np
import pytest

from cosmos3_ros.control.chunk import NS_PER_S, Chunk
from cosmos3_ros.control.seams import Seam, seam
from cosmos3_ros.control.space import Space

STAMP_NS = 1_763_000_000_123_456_789
RATE_HZ = 10.0
PERIOD_NS = 20_000_000  # of commands
SPEED = np.array([2.0, 4.0])


def plan(first: int, rows: object, committed: int = 0) -> Chunk:
    """A chunk whose first row is due ``first`` + 1 periods after STAMP_NS."""
    begin_ns = STAMP_NS + round(first / RATE_HZ * NS_PER_S)
    values = np.array(rows, np.float64)
    return Chunk(first + 1, begin_ns, RATE_HZ, values, begin_ns, committed_rows=committed)


def between(old: Chunk, new: Chunk, periods: float, held: object = (False, False)) -> Seam:
    now_ns = STAMP_NS + round(periods / RATE_HZ * NS_PER_S)
    return seam(old, new, now_ns, PERIOD_NS, SPEED, Space(2), np.array(held))


def line(first: int, rows: int, slope: float, offset: float = 0.0) -> list[list[float]]:
    """Rows of a first channel that moves by ``slope`` a period and a second that rests."""
    return [[offset + slope * (first + row), 0.0] for row in range(rows)]


def test_a_plan_that_says_the_same_has_no_seam() -> None:
    found = between(plan(0, line(0, 8, 0.1)), plan(4, line(4, 8, 0.1)), periods=6.5)
    assert found.position_s == pytest.approx(0, abs=1e-9)
    assert found.velocity == pytest.approx(0, abs=1e-6)


def test_the_gap_counts_in_the_time_that_the_slowest_way_across_it_takes() -> None:
    old = plan(0, [[0.0, 0.0]] * 8)
    # 0.3 at 2 a second take longer than 0.4 at 4.
    found = between(old, plan(4, [[0.3, 0.4]] * 8), periods=6.5)
    assert found.position_s == pytest.approx(0.15)
    # Across within a period, and at rest before and after it.
    assert found.velocity == pytest.approx(0.15 / 0.02)


def test_the_change_of_velocity_is_a_share_of_its_limit() -> None:
    old = plan(0, line(0, 8, 0.1))  # 1 a second
    back = line(4, 8, -0.05)  # -0.5 a second, from where the old one is at 6.5 periods
    found = between(old, plan(4, [[x + 0.825, y] for x, y in back]), periods=6.5)
    assert found.position_s == pytest.approx(0, abs=1e-9)
    assert found.velocity == pytest.approx(1.5 / 2)


def test_a_plan_takes_over_when_its_first_row_is_due_and_not_before() -> None:
    old = plan(0, line(0, 12, 0.1))
    early, due = (between(old, plan(4, line(4, 8, 0.1, 0.2)), at) for at in (3.0, 5.0))
    assert early == due
    assert early.position_s == pytest.approx(0.2 / 2)


def test_behind_committed_rows_the_seam_is_where_they_end() -> None:
    old = plan(0, line(0, 12, 0.1))
    rows = line(4, 3, 0.1) + line(7, 5, 0.3, -1.4)
    # From the last committed row, 0.6, the first free one, 0.7, is as far as the rows before it.
    # From there on the plan is 2 a second faster.
    for count, change in ((0, 0.0), (2, 0.0), (3, 2.0 / 2)):
        found = between(old, plan(4, rows, committed=count), periods=5.5)
        assert found.position_s == pytest.approx(0, abs=1e-9)
        assert found.velocity == pytest.approx(change, abs=1e-6), count
    # Once they have passed it is where the plan takes over, as of any other.
    late = between(old, plan(4, rows, committed=3), periods=10.5)
    assert late.position_s == pytest.approx(0.5 / 2)
    # Across within a period, of which the plan's own 2 a second are a part.
    assert late.velocity == pytest.approx(0.5 / 0.02 / 2)


def test_what_keeps_a_rows_value_does_not_count() -> None:
    old = plan(0, [[0.0, 0.0]] * 8)
    new = plan(4, [[0.0, 1.0]] * 8)
    assert between(old, new, 6.5).position_s == pytest.approx(0.25)
    assert between(old, new, 6.5, held=(False, True)) == Seam(0.0, 0.0)
