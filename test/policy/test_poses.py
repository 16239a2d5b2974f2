"""Pose deltas are composed as they were trained: each in the frame of the pose before it."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cosmos3_ros.policy.poses import (
    compose,
    deltas_between,
    matrix_of,
    quaternion_of,
    rotations_of,
)

IDENTITY = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
HERE = np.array([0.5, 0.1, 0.6, 0.0, 0.0, 0.0, 1.0])
quaternions = arrays(np.float64, 4, elements=st.floats(-1, 1)).filter(
    lambda q: np.linalg.norm(q) > 0.1
)
six = arrays(np.float64, (5, 6), elements=st.floats(-2, 2)).filter(
    lambda m: np.linalg.norm(np.cross(m[:, :3], m[:, 3:]), axis=1).min() > 0.1
)


@given(quaternions)
def test_matrices_are_mujocos_and_lead_back(quaternion: np.ndarray) -> None:
    unit = quaternion / np.linalg.norm(quaternion)
    found = np.zeros(9)
    mujoco.mju_quat2Mat(found, np.roll(unit, 1))
    assert matrix_of(quaternion) == pytest.approx(found.reshape(3, 3), abs=1e-12)
    assert abs(quaternion_of(found.reshape(3, 3)) @ unit) == pytest.approx(1.0)


@given(six)
def test_what_a_network_says_becomes_the_nearest_rotation(rot6d: np.ndarray) -> None:
    rotations = rotations_of(rot6d)
    assert rotations @ rotations.transpose(0, 2, 1) == pytest.approx(
        np.tile(np.eye(3), (5, 1, 1)), abs=1e-9
    )
    assert np.linalg.det(rotations) == pytest.approx(1.0)
    # A rotation stays what it is.
    again = rotations_of(np.concatenate([rotations[:, :, 0], rotations[:, :, 1]], axis=1))
    assert again == pytest.approx(rotations, abs=1e-9)


def test_no_motion_stays_and_translations_add_up() -> None:
    still = compose(HERE, np.array([[0, 0, 0, *IDENTITY]] * 4))
    assert still == pytest.approx(np.tile(HERE, (4, 1)))
    moved = compose(HERE, np.array([[0.01, 0, 0, *IDENTITY]] * 3))
    assert moved[:, 0] == pytest.approx([0.51, 0.52, 0.53])


def test_a_delta_is_told_in_the_frame_of_the_pose_before_it() -> None:
    """A quarter turn about z, then forward: forward is the base's y by then."""
    quarter = [0.0, 1.0, 0.0, -1.0, 0.0, 0.0]
    poses = compose(HERE, np.array([[0, 0, 0, *quarter], [0.1, 0, 0, *IDENTITY]]))
    assert poses[1, :3] == pytest.approx([0.5, 0.2, 0.6])
    assert poses[1, 3:] == pytest.approx([0, 0, np.sqrt(0.5), np.sqrt(0.5)])


@given(quaternions, six, arrays(np.float64, (5, 3), elements=st.floats(-1, 1)))
def test_deltas_between_poses_lead_through_them(
    quaternion: np.ndarray, rot6d: np.ndarray, moved: np.ndarray
) -> None:
    begin = np.concatenate([[0.3, -0.2, 0.5], quaternion / np.linalg.norm(quaternion)])
    poses = compose(begin, np.concatenate([moved, rot6d], axis=1))
    assert np.linalg.norm(poses[:, 3:], axis=1) == pytest.approx(1.0)
    again = compose(poses[0], deltas_between(poses))
    assert again[:, :3] == pytest.approx(poses[1:, :3], abs=1e-9)
    assert np.abs(np.sum(again[:, 3:] * poses[1:, 3:], axis=1)) == pytest.approx(1.0)
