"""No step leaves the limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cosmos3_ros.control.limits import Limits

wide = arrays(np.float64, 3, elements=st.floats(-1e6, 1e6))
LIMITS = Limits(
    np.array([-1.0, 0.0, -np.inf]), np.array([1.0, 2.0, np.inf]), np.array([0.5, np.inf, 2.0])
)


@given(wide, wide, st.floats(0.0, 0.1))
def test_a_step_keeps_position_and_velocity_limits(
    target: np.ndarray, somewhere: np.ndarray, dt_s: float
) -> None:
    previous = LIMITS.clamp(somewhere)
    command, limited = LIMITS.step(target, previous, dt_s)
    assert np.all(np.isfinite(command))
    assert np.all(LIMITS.lower <= command)
    assert np.all(command <= LIMITS.upper)
    reach = np.array([0.5, 1e7, 2.0]) * dt_s + 1e-9
    assert np.all(np.abs(command - previous)[[0, 2]] <= reach[[0, 2]])
    assert limited == (not np.allclose(command, target, rtol=0, atol=1e-9))


def test_a_target_within_reach_is_given_as_it_is() -> None:
    command, limited = LIMITS.step(np.array([0.04, 1.0, 0.1]), np.zeros(3), 0.1)
    assert command.tolist() == [0.04, 1.0, 0.1]
    assert not limited


def test_in_no_time_a_limited_channel_stands_still() -> None:
    command, limited = LIMITS.step(np.array([0.5, 0.5, 0.5]), np.zeros(3), 0.0)
    assert command.tolist() == [0.0, 0.5, 0.0]
    assert limited


@pytest.mark.parametrize(
    ("lower", "upper", "velocity"), [(1.0, 1.0, 1.0), (0.0, 1.0, 0.0), (0.0, 1.0, np.nan)]
)
def test_limits_that_leave_nothing_are_refused(lower: float, upper: float, velocity: float) -> None:
    with pytest.raises(ValueError, match="expected lower < upper and velocity > 0"):
        Limits(np.array([lower]), np.array([upper]), np.array([velocity]))
