"""Channels on a robot's joints: commands out, joint states in."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

from builtin_interfaces.msg import Time
from sensor_msgs.msg import JointState

from cosmos3_ros.nodes.commands import joint_state, joint_trajectory, position_array
from cosmos3_ros.nodes.joints import JointMap, JointReader
from cosmos3_ros.policy.embodiment import EmbodimentError, load_embodiment

PANDA = load_embodiment("sim_panda")
ARM = [f"panda_joint{i}" for i in range(1, 8)]
FINGER = "panda_finger_joint1"
CHANNELS = np.array([0.1, 0.2, 0.3, -1.0, 0.5, 1.0, 0.7, 0.25])
JOINTS = [*CHANNELS[:7], 0.03]  # a quarter closed: 0.04 m open, 0.0 m closed
STAMP = Time(sec=5, nanosec=6)
NOW_NS = 9_000_000_000


def test_joint_state_carries_all_joints_in_the_robots_names_and_units() -> None:
    message = joint_state(JointMap(PANDA), CHANNELS, STAMP, 0.02)
    assert list(message.name) == [*ARM, FINGER]
    assert message.position.tolist() == pytest.approx(JOINTS)
    assert message.header.stamp == STAMP


def test_joint_trajectory_is_one_point_a_control_period_ahead() -> None:
    message = joint_trajectory(JointMap(PANDA), CHANNELS, STAMP, 0.02)
    assert list(message.joint_names) == [*ARM, FINGER]
    (point,) = message.points
    assert point.positions.tolist() == pytest.approx(JOINTS)
    assert (point.time_from_start.sec, point.time_from_start.nanosec) == (0, 20_000_000)
    assert message.header.stamp == Time(), "a stamp would drop points where clocks differ"


def test_position_array_keeps_channel_order_and_units() -> None:
    message = position_array(JointMap(PANDA), CHANNELS, STAMP, 0.02)
    assert message.data.tolist() == CHANNELS.tolist()


def test_joint_names_replace_the_arms_names_in_channel_order() -> None:
    names = tuple(f"left_{i}" for i in range(7))
    assert JointMap(PANDA, names).names == (*names, FINGER)


def test_a_gripper_in_the_middle_keeps_its_place() -> None:
    channels = (*PANDA.channels[:3], PANDA.channels[7], *PANDA.channels[3:7])
    joints = JointMap(replace(PANDA, channels=channels))
    assert joints.names == (*ARM[:3], FINGER, *ARM[3:])
    assert joints.to_joints(np.full(8, 0.5))[3] == pytest.approx(0.02)


def test_an_arm_without_a_gripper_is_all_joints() -> None:
    bare = replace(PANDA, channels=PANDA.channels[:7], gripper=None)
    joints = JointMap(bare)
    assert joints.names == tuple(ARM)
    assert joints.to_joints(CHANNELS[:7]).tolist() == CHANNELS[:7].tolist()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a", "b"), "expected 7 names"),
        (("a",) * 7, "expected different names"),
        ((*ARM[:6], FINGER), "expected different names"),
    ],
)
def test_names_that_do_not_fit_are_refused(names: tuple[str, ...], expected: str) -> None:
    with pytest.raises(EmbodimentError, match=expected):
        JointMap(PANDA, names)


def test_an_embodiment_whose_channels_are_not_joints_is_refused() -> None:
    with pytest.raises(EmbodimentError, match="expected 'joint_position' to command joints"):
        JointMap(load_embodiment("bridge_orig_lerobot"))


def states(names: list[str], positions: list[float], sec: int = 0) -> JointState:
    message = JointState(name=names, position=positions)
    message.header.stamp = Time(sec=sec)
    return message


def test_joints_are_found_by_name_among_others_in_any_order() -> None:
    reader = JointReader(JointMap(PANDA))
    names = ["wheel", *reversed([*ARM, FINGER])]
    reader.read(states(names, [9.0, *reversed(JOINTS)], sec=4), NOW_NS)
    assert reader.channels == pytest.approx(CHANNELS)
    assert reader.stamp_ns == 4_000_000_000


def test_a_gripper_in_a_message_of_its_own_completes_the_arm() -> None:
    reader = JointReader(JointMap(PANDA))
    reader.read(states(ARM, JOINTS[:7], sec=4), NOW_NS)
    assert reader.channels is None
    assert reader.missing == [FINGER]
    reader.read(states([FINGER], JOINTS[7:], sec=2), NOW_NS)
    assert reader.channels == pytest.approx(CHANNELS)
    assert reader.stamp_ns == 4_000_000_000, "a gripper may report only when it moves"


def test_the_oldest_arm_joint_gives_the_time() -> None:
    reader = JointReader(JointMap(PANDA))
    reader.read(states([*ARM, FINGER], JOINTS, sec=4), NOW_NS)
    reader.read(states(ARM[:6], JOINTS[:6], sec=5), NOW_NS)
    assert reader.stamp_ns == 4_000_000_000


def test_closedness_from_a_topic_stands_for_the_grippers_joint() -> None:
    reader = JointReader(JointMap(PANDA))
    reader.read(states(ARM, JOINTS[:7]), NOW_NS)
    reader.read_gripper(math.nan)
    assert reader.channels is None
    reader.read_gripper(0.25)
    assert reader.channels == pytest.approx(CHANNELS)


def test_a_message_without_a_stamp_counts_as_measured_now() -> None:
    reader = JointReader(JointMap(PANDA))
    reader.read(states([*ARM, FINGER], JOINTS), NOW_NS)
    assert reader.stamp_ns == NOW_NS


@pytest.mark.parametrize(
    ("names", "positions", "expected"),
    [
        (ARM, JOINTS[:3], "7 names and 3 positions"),
        (ARM, [], "7 names and 0 positions"),
        (["wheel"], [0.0], "joints are wheel; expected some of panda_joint1"),
        ([], [], "joints are none"),
        ([*ARM, FINGER], [*JOINTS[:7], math.nan], f"position of {FINGER} is not finite"),
    ],
)
def test_joint_states_that_say_nothing_are_refused_and_change_nothing(
    names: list[str], positions: list[float], expected: str
) -> None:
    reader = JointReader(JointMap(PANDA))
    with pytest.raises(ValueError, match=expected):
        reader.read(states(names, positions), NOW_NS)
    assert len(reader.missing) == 8
