"""No step leaves the limits, and a target within them is followed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cosmos3_ros.control.limits import SHORTEST_STEP_S, Limits, Motion
from cosmos3_ros.control.space import Space

LIMITS = Limits(
    Space(4),
    np.array([-1.0, 0.0, -np.inf, -1.0]),
    np.array([1.0, 2.0, np.inf, 1.0]),
    np.array([0.5, np.inf, 2.0, 2.0]),
    np.array([3.0, np.inf, 5.0, np.inf]),
)
STILL = np.zeros(4)
wide = arrays(np.float64, 4, elements=st.floats(-1e6, 1e6))
fast = arrays(np.float64, 4, elements=st.floats(-1e3, 1e3))
steps = st.lists(st.tuples(wide | st.none(), fast, st.floats(0.0, 0.1)), max_size=50)


@given(wide, steps)
def test_no_sequence_of_steps_leaves_the_limits(
    somewhere: np.ndarray, wanted: list[tuple[np.ndarray | None, np.ndarray, float]]
) -> None:
    motion = LIMITS.at_rest(somewhere)
    for target, velocity, dt_s in wanted:
        after = (
            LIMITS.brake(motion, dt_s)
            if target is None
            else LIMITS.step(target, velocity, motion, dt_s)
        )
        assert np.all(np.isfinite(after.position)) and np.all(np.isfinite(after.velocity))
        # From outside, it comes back, and never goes farther.
        assert np.all(np.minimum(LIMITS.lower, motion.position) <= after.position)
        assert np.all(after.position <= np.maximum(LIMITS.upper, motion.position))
        reach = LIMITS.velocity * dt_s if dt_s >= SHORTEST_STEP_S else STILL
        size = 1e-9 * (1 + np.abs(motion.position))
        assert np.all(np.abs(after.position - motion.position) <= reach + size)
        change = np.abs(after.velocity - motion.velocity)
        assert np.all(
            change <= (LIMITS.acceleration * dt_s if dt_s >= SHORTEST_STEP_S else STILL) + 1e-9
        )
        motion = after


@given(wide, fast, st.lists(st.floats(0.001, 0.1), min_size=1, max_size=30))
def test_braking_ends_in_rest_after_the_shortest_time(
    target: np.ndarray, velocity: np.ndarray, times: list[float]
) -> None:
    motion = LIMITS.at_rest(np.array([0.0, 1.0, 0.0, 0.0]))
    for dt_s in times:
        motion = LIMITS.step(target, velocity, motion, dt_s)
    speed = np.abs(motion.velocity)
    for dt_s in times:
        speed = np.maximum(speed - LIMITS.acceleration * dt_s, 0.0)
        motion = LIMITS.brake(motion, dt_s)
        assert np.abs(motion.velocity) == pytest.approx(speed, abs=1e-9)


def test_a_target_that_moves_within_the_limits_is_followed_exactly() -> None:
    velocity = np.array([0.3, 0.3, 0.3, 0.3])
    motion = Motion(STILL, velocity)
    for tick in range(1, 50):
        target = velocity * 0.02 * tick
        motion = LIMITS.step(target, velocity, motion, 0.02)
        assert motion.position == pytest.approx(target, abs=1e-12)


@pytest.mark.parametrize("dt_s", [0.002, 0.01, 0.02, 0.1])
def test_a_target_that_was_left_behind_is_caught_and_not_overshot(dt_s: float) -> None:
    target, velocity = np.array([0.5, 1.5, 3.0, 0.7]), STILL
    motion = LIMITS.at_rest(STILL)
    for _ in range(round(4 / dt_s)):
        motion = LIMITS.step(target, velocity, motion, dt_s)
        assert np.all(motion.position <= target + 1e-12)
    assert motion.position == pytest.approx(target, abs=1e-3)
    assert motion.velocity == pytest.approx(STILL, abs=1e-2)


def test_a_position_limit_is_approached_as_if_to_stop_there() -> None:
    motion = LIMITS.at_rest(STILL)
    for _ in range(400):
        motion = LIMITS.step(np.full(4, 9.0), STILL, motion, 0.01)
    assert motion.position[[0, 1, 3]] == pytest.approx([1.0, 2.0, 1.0], abs=1e-3)


@pytest.mark.parametrize("target", [None, 0.0, 9.0])
def test_from_outside_the_limits_it_comes_back_and_rests_inside(target: float | None) -> None:
    motion = LIMITS.at_rest(np.array([1.05, 2.1, 0.0, -1.2]))
    for _ in range(300):
        motion = (
            LIMITS.brake(motion, 0.02)
            if target is None
            else LIMITS.step(np.full(4, target), STILL, motion, 0.02)
        )
    assert np.all(LIMITS.lower <= motion.position) and np.all(motion.position <= LIMITS.upper)
    if target is None:
        assert motion.position.tolist() == [1.0, 2.0, 0.0, -1.0] and not motion.velocity.any()


def test_in_no_time_nothing_moves() -> None:
    motion = Motion(STILL, np.array([0.1, 0.0, 0.0, 0.0]))
    assert LIMITS.step(np.ones(4), STILL, motion, 0.0) == motion
    assert LIMITS.brake(motion, 0.0) == motion


@pytest.mark.parametrize(
    ("lower", "upper", "velocity", "acceleration"),
    [(1, 1, 1, 1), (0, 1, 0, 1), (0, 1, np.nan, 1), (0, 1, 1, 0), (0, 1, 1, np.nan)],
)
def test_limits_that_leave_nothing_are_refused(
    lower: float, upper: float, velocity: float, acceleration: float
) -> None:
    given_limits = (np.array([float(v)]) for v in (lower, upper, velocity, acceleration))
    with pytest.raises(ValueError, match="expected lower < upper, velocity > 0 and acceleration"):
        Limits(Space(1), *given_limits)


def test_a_turn_is_limited_as_a_whole_and_keeps_the_quaternion_whole() -> None:
    """Half a turn about y at 1 rad/s, with 2 rad/s²: 0.5 s to speed up, and to slow down."""
    free = np.full(4, np.inf)
    limits = Limits(Space(4, (0,)), -free, free, np.full(3, 1.0), np.full(3, 2.0))
    target = np.array([0.0, np.sin(0.75), 0.0, np.cos(0.75)])
    motion = limits.at_rest(np.array([0.0, 0.0, 0.0, 1.0]))
    turned = []
    for _ in range(220):
        motion = limits.step(target, np.zeros(3), motion, 0.01)
        assert np.linalg.norm(motion.position) == pytest.approx(1.0)
        turned.append(2 * np.arctan2(motion.position[1], motion.position[3]))
    assert np.diff(turned).max() == pytest.approx(0.01, rel=1e-6)
    assert turned[99] == pytest.approx(0.75, abs=0.02), "half way at half the time"
    assert turned[-1] == pytest.approx(1.5, abs=1e-3)
