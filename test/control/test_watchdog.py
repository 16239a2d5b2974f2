"""Each watchdog barks when its time is over, and not before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cosmos3_ros.control.chunk import NS_PER_S
from cosmos3_ros.control.watchdog import Moment, Reason, Signs, Timeouts, cause_to_hold

# The node's clock counts from 1970, where a float64 tells no nanoseconds apart.
NOW_NS, STEADY_NS = 1_763_000_000 * NS_PER_S + 7, 5 * NS_PER_S + 3
TIMEOUTS = Timeouts(0.25, 2.5, 3.0, 3.5, 0.1, 0.15)
FRESH = Signs(NOW_NS, NOW_NS, NOW_NS, STEADY_NS, STEADY_NS, STEADY_NS)


def cause(**seen: int) -> Reason | None:
    found = cause_to_hold(replace(FRESH, **seen), TIMEOUTS, Moment(NOW_NS, STEADY_NS))
    return found.reason if found else None


@pytest.mark.parametrize(
    ("name", "clock_ns", "timeout_s", "reason"),
    [
        ("measured_ns", NOW_NS, 0.25, Reason.JOINTS_STALE),
        ("planner_ns", STEADY_NS, 2.5, Reason.PLANNER_SILENT),
        ("accepted_ns", STEADY_NS, 3.0, Reason.CHUNK_STALE),
        ("observed_ns", NOW_NS, 3.5, Reason.OBSERVATION_STALE),
        ("end_ns", NOW_NS, 0.1, Reason.CHUNK_ENDED),
        ("ticked_ns", STEADY_NS, 0.15, Reason.OVERRUN),
    ],
)
def test_a_time_out_is_over_to_the_nanosecond(
    name: str, clock_ns: int, timeout_s: float, reason: Reason
) -> None:
    over_ns = clock_ns - round(timeout_s * NS_PER_S)
    assert cause(**{name: over_ns}) is None
    assert cause(**{name: over_ns - 1}) is reason


def test_what_was_never_seen_is_not_waited_for() -> None:
    for name, reason in (
        ("measured_ns", Reason.JOINTS_STALE),
        ("planner_ns", Reason.PLANNER_SILENT),
    ):
        found = cause_to_hold(replace(FRESH, **{name: None}), TIMEOUTS, Moment(NOW_NS, STEADY_NS))
        assert found is not None and found.reason is reason
