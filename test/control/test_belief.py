"""What leaps is not the robot that was measured before."""

from __future__ import annotations

import numpy as np
from controlled_arm import LIMITS

from cosmos3_ros.control.belief import Belief, leaps

FOLLOWS = np.array([True, False])


def belief(*measured: tuple[float, float], near: bool = False) -> Belief:
    """After measurements 20 ms apart."""
    made = Belief(LIMITS, FOLLOWS)
    for position in measured:
        made.measure(np.array(position), 0.02, near=near)
    return made


def test_a_step_is_a_leap_where_the_velocity_does_not_allow_it() -> None:
    """4 and 8 units a second, for 50 ms at least."""
    before = np.array([0.0, 0.0])
    assert not leaps(LIMITS, before, np.array([0.2, 0.4]), 0.001).any()
    assert leaps(LIMITS, before, np.array([0.21, 0.4]), 0.001).tolist() == [True, False]
    assert not leaps(LIMITS, before, np.array([0.39, 0.79]), 0.1).any()
    assert not leaps(LIMITS, None, np.array([2.0, 1.0]), 0.0).any(), "from nowhere"


def test_a_leap_is_not_believed_until_the_robot_is_back() -> None:
    there = [(0.0, 0.0), (-1.5, 0.0)]
    assert not belief(*there).holds
    assert not belief(*there, (-1.5, 0.0), (-1.45, 0.0)).holds, "however long it stays there"
    assert belief(*there, (0.05, 0.0)).holds
    assert belief(*there, (-1.5, 0.0), near=True).holds, "it was told to be there"


def test_a_robot_that_tells_its_joints_by_halves_does_not_leap() -> None:
    made = Belief(LIMITS, np.array([True, True]))
    made.measure(np.array([0.0, 0.0]), 0.02, near=False)
    made.measure(np.array([1.5, 0.0]), 0.5, near=False)
    made.measure(np.array([1.5, 0.9]), 0.001, near=False)
    assert made.holds
    made.measure(np.array([0.0, 0.9]), 0.001, near=False)
    assert not made.holds


def test_a_gripper_may_leap() -> None:
    assert belief((0.0, 0.0), (0.0, 1.0), (0.0, 0.0)).holds
