"""Steps between commands: plain channels add up, rotations turn the shorter way."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cosmos3_ros.control import rotation
from cosmos3_ros.control.space import Space

# A position, an orientation, a gripper.
POSE = Space(8, (3,))
vectors = arrays(np.float64, 3, elements=st.floats(-1.8, 1.8))
plain = arrays(np.float64, 4, elements=st.floats(-5, 5))


def quaternion(vector: np.ndarray) -> np.ndarray:
    """MuJoCo's quaternion of a rotation vector, in our order: its own is w, x, y, z."""
    angle, found = float(np.linalg.norm(vector)), np.zeros(4)
    axis = vector / angle if angle > 0 else np.array([1.0, 0.0, 0.0])
    mujoco.mju_axisAngle2Quat(found, axis, angle)
    return np.roll(found, -1)


def pose(numbers: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return np.concatenate([numbers[:3], quaternion(vector), numbers[3:]])


@given(vectors, vectors)
def test_products_and_vectors_are_those_of_mujoco(a: np.ndarray, b: np.ndarray) -> None:
    one, other = quaternion(a), quaternion(b)
    assert rotation.from_vector(a) == pytest.approx(one, abs=1e-12)
    product, turn = np.zeros(4), np.zeros(3)
    mujoco.mju_mulQuat(product, np.roll(one, 1), np.roll(other, 1))
    assert rotation.multiply(one, other) == pytest.approx(np.roll(product, -1), abs=1e-12)
    mujoco.mju_quat2Vel(turn, product, 1.0)
    found = rotation.to_vector(np.roll(product, -1))
    # Half a turn one way is half a turn the other way.
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(turn), abs=1e-7)
    if np.linalg.norm(turn) < 3.1:
        assert found == pytest.approx(turn, abs=1e-7)


@given(plain, vectors, plain, vectors)
def test_the_difference_leads_there(
    n1: np.ndarray, v1: np.ndarray, n2: np.ndarray, v2: np.ndarray
) -> None:
    begin, end = pose(n1, v1), pose(n2, v2)
    step = POSE.difference(end, begin)
    assert step.shape == (POSE.step_width,) == (7,)
    there = POSE.add(begin, step)
    assert there[[0, 1, 2, 7]] == pytest.approx(end[[0, 1, 2, 7]])
    # A quaternion and its negative are the same rotation.
    assert abs(there[3:7] @ end[3:7]) == pytest.approx(1.0)
    assert np.linalg.norm(step[3:6]) <= np.pi + 1e-9


@given(plain, vectors, vectors)
def test_half_of_a_step_is_half_of_the_way(
    numbers: np.ndarray, v1: np.ndarray, v2: np.ndarray
) -> None:
    begin, end = pose(numbers, v1), pose(numbers, v2)
    step = POSE.difference(end, begin)
    half = POSE.add(begin, step / 2)
    assert POSE.difference(half, begin) == pytest.approx(step / 2, abs=1e-9)
    assert np.linalg.norm(half[3:7]) == pytest.approx(1.0)


def test_no_turn_is_no_step_and_a_tiny_one_is_not_lost() -> None:
    begin = pose(np.zeros(4), np.array([0.3, 0.0, 0.0]))
    assert POSE.difference(begin, begin).tolist() == [0.0] * 7
    tiny = np.array([0, 0, 0, 1e-10, 0, 0, 0])
    assert POSE.difference(POSE.add(begin, tiny), begin) == pytest.approx(tiny, abs=1e-15)


def test_a_space_without_rotations_is_plain_arithmetic() -> None:
    space = Space(2)
    assert space.step_width == 2
    assert space.add(np.array([1.0, 2.0]), np.array([0.5, -1.0])).tolist() == [1.5, 1.0]
    assert space.difference(np.array([1.5, 1.0]), np.array([1.0, 2.0])).tolist() == [0.5, -1.0]


def test_two_arms_have_two_rotations() -> None:
    space = Space(16, (3, 11))
    begin = np.concatenate([pose(np.zeros(4), np.zeros(3))] * 2)
    step = np.arange(14) / 20
    there = space.add(begin, step)
    assert space.difference(there, begin) == pytest.approx(step)
    assert space.of_step(np.arange(16.0)).tolist() == [
        *range(6), 7, *range(8, 14), 15
    ]  # fmt: skip


def test_rows_are_taken_all_at_once() -> None:
    rows = np.stack([pose(np.full(4, i / 10), np.array([0, 0, i / 10])) for i in range(5)])
    steps = POSE.difference(rows[1:], rows[:-1])
    assert steps.shape == (4, 7)
    assert steps[:, [0, 5]] == pytest.approx(0.1)
