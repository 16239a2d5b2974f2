"""A clock that was set, or begins anew, is told from one that runs."""

from __future__ import annotations

import pytest

from cosmos3_ros.control.chunk import NS_PER_S
from cosmos3_ros.control.clock import Clock
from cosmos3_ros.control.watchdog import Moment

# The node's clock counts from 1970, where a float64 tells no nanoseconds apart.
BEGAN = Moment(1_763_000_000 * NS_PER_S + 7, 5 * NS_PER_S + 3)
JUMP_S = 1.0


def ns(seconds: float) -> int:
    return round(seconds * NS_PER_S)


def after(now_s: float, steady_s: float) -> Moment:
    return Moment(BEGAN.now_ns + ns(now_s), BEGAN.steady_ns + ns(steady_s))


def shown(clock: Clock, now_s: float, steady_s: float) -> int | None:
    clock.show(BEGAN)
    return clock.show(after(now_s, steady_s))


@pytest.mark.parametrize("simulated", [False, True])
@pytest.mark.parametrize(
    ("now_s", "steady_s", "leap_s"),
    [
        (0.02, 0.02, None),
        (60.0, 60.0, None),  # both stood still, or nobody asked
        (0.0, 5.0, None),  # a simulator that waits
        (1.02, 0.02, None),
        (1.03, 0.02, 1.03),
        (-0.001, 0.02, -0.001),
    ],
)
def test_a_jump_is_a_step_back_or_far_forward_of_the_steady_clock(
    now_s: float, steady_s: float, leap_s: float | None, simulated: bool
) -> None:
    clock = Clock(JUMP_S, simulated=simulated)
    assert shown(clock, now_s, steady_s) == (None if leap_s is None else ns(leap_s))
    assert clock.jumps == (leap_s is not None)


def test_the_first_that_is_shown_is_no_jump() -> None:
    clock = Clock(JUMP_S, simulated=False)
    assert clock.show(BEGAN) is None
    assert clock.jumps == 0


@pytest.mark.parametrize(
    ("simulated", "back_s", "most_s"),
    [
        (False, 0.5, JUMP_S),  # somebody has set it: stamps of other machines are as they were
        (True, 0.5, 0.25),
        (True, 0.01, 0.1),  # what a node may lag behind /clock
        (True, 60.0, JUMP_S),
    ],
)
def test_what_a_simulator_sent_before_it_began_anew_is_known_by_its_stamp(
    simulated: bool, back_s: float, most_s: float
) -> None:
    clock = Clock(JUMP_S, simulated=simulated)
    shown(clock, -back_s, 0.02)
    now_ns = after(-back_s, 0.02).now_ns
    assert clock.most_ahead_ns == ns(most_s)
    assert not clock.is_far_from(now_ns + ns(most_s), now_ns)
    assert clock.is_far_from(now_ns + ns(most_s) + 1, now_ns)
    assert not clock.is_far_from(now_ns - ns(JUMP_S), now_ns)
    assert clock.is_far_from(now_ns - ns(JUMP_S) - 1, now_ns)


def test_a_jump_forward_is_not_a_simulators_new_beginning() -> None:
    clock = Clock(JUMP_S, simulated=True)
    shown(clock, -0.5, 0.02)
    assert clock.set_back_ns == ns(0.5)
    clock.show(after(60.0, 0.04))
    assert clock.set_back_ns is None
    assert clock.jumps == 2


@pytest.mark.parametrize(
    ("simulated", "now_s", "steady_s", "passed_s"),
    [
        (False, 0.02, 0.03, 0.02),
        (False, 0.5, 0.02, 0.02),  # set while the robot moves
        (True, 0.5, 0.02, 0.5),  # a simulator at many times real time
        (True, 0.0, 5.0, 0.0),
        (False, -3.0, 0.02, 0.02),  # a jump says nothing
        (True, -3.0, 0.02, 0.02),
        (True, 60.0, 0.02, 0.02),
    ],
)
def test_a_robot_moves_by_the_steady_clock_and_a_simulated_one_by_its_own(
    simulated: bool, now_s: float, steady_s: float, passed_s: float
) -> None:
    clock = Clock(JUMP_S, simulated=simulated)
    assert clock.passed_s(BEGAN, after(now_s, steady_s)) == pytest.approx(passed_s)
