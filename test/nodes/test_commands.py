"""Channels on a robot's joints: commands out, joint states in."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose, PoseStamped, Quaternion
from sensor_msgs.msg import JointState

from cosmos3_ros.nodes.commands import (
    Target,
    command_topics,
    interface_for,
    joint_state,
    joint_trajectory,
    joint_trajectory_chunk,
    poses,
    position_array,
    twist,
)
from cosmos3_ros.nodes.joints import JointMap, JointReader
from cosmos3_ros.nodes.measured import PoseReader
from cosmos3_ros.nodes.parameters import ParameterError
from cosmos3_ros.policy.commands import command_space
from cosmos3_ros.policy.embodiment import (
    Channel,
    Embodiment,
    EmbodimentError,
    Gripper,
    load_embodiment,
)

PANDA = load_embodiment("sim_panda")
BASE = replace(
    load_embodiment("pusht"),
    name="base",
    action_space="base_velocity",
    base_frame="base_link",
    channels=(Channel("linear_x", "m/s"), Channel("angular_z", "rad/s")),
)
ARM = [f"panda_joint{i}" for i in range(1, 8)]
FINGER = "panda_finger_joint1"
CHANNELS = np.array([0.1, 0.2, 0.3, -1.0, 0.5, 1.0, 0.7, 0.25])
JOINTS = [*CHANNELS[:7], 0.03]  # a quarter closed: 0.04 m open, 0.0 m closed
STAMP = Time(sec=5, nanosec=6)
NOW_NS = 9_000_000_000


def target_of(embodiment: Embodiment) -> Target:
    is_arm = embodiment.action_space == "joint_position"
    joints = JointMap(embodiment) if is_arm else None
    return Target(embodiment, command_space(embodiment), joints)


def test_joint_state_carries_all_joints_in_the_robots_names_and_units() -> None:
    (message,) = joint_state(target_of(PANDA), CHANNELS, STAMP, 0.02)
    assert list(message.name) == [*ARM, FINGER]
    assert message.position.tolist() == pytest.approx(JOINTS)
    assert message.header.stamp == STAMP


def test_joint_trajectory_is_one_point_a_control_period_ahead() -> None:
    (message,) = joint_trajectory(target_of(PANDA), CHANNELS, STAMP, 0.02)
    assert list(message.joint_names) == [*ARM, FINGER]
    (point,) = message.points
    assert point.positions.tolist() == pytest.approx(JOINTS)
    assert (point.time_from_start.sec, point.time_from_start.nanosec) == (0, 20_000_000)
    assert message.header.stamp == Time(), "a stamp would drop points where clocks differ"


def test_a_whole_trajectory_has_a_point_a_control_period() -> None:
    commands = np.stack([CHANNELS, CHANNELS + 0.1, CHANNELS + 0.2])
    (message,) = joint_trajectory_chunk(target_of(PANDA), commands, STAMP, 0.5)
    times = [p.time_from_start.sec + p.time_from_start.nanosec / 1e9 for p in message.points]
    assert times == pytest.approx([0.5, 1.0, 1.5])
    assert [p.positions[0] for p in message.points] == pytest.approx([0.1, 0.2, 0.3])
    assert [p.positions[7] for p in message.points] == pytest.approx([0.03, 0.026, 0.022])


def test_position_array_keeps_channel_order_and_units() -> None:
    (message,) = position_array(target_of(PANDA), CHANNELS, STAMP, 0.02)
    assert message.data.tolist() == CHANNELS.tolist()
    apart = replace(target_of(PANDA), gripper_apart=True)
    (message,) = position_array(apart, CHANNELS, STAMP, 0.02)
    assert message.data.tolist() == CHANNELS[:7].tolist(), "it is driven by its action"


def test_a_twist_has_every_velocity_in_its_place_in_the_bases_frame() -> None:
    (message,) = twist(target_of(BASE), np.array([0.3, -0.2]), STAMP, 0.02)
    assert (message.twist.linear.x, message.twist.angular.z) == (0.3, -0.2)
    assert message.twist.linear.y == message.twist.angular.x == 0.0
    assert message.header.frame_id == "base_link" and message.header.stamp == STAMP


def test_two_arms_get_a_pose_each_in_the_base_frame() -> None:
    target = target_of(load_embodiment("robomind_franka_dual"))
    command = np.arange(16) / 16
    left, right = poses(target, command, STAMP, 0.02)
    assert (left.pose.position.x, left.pose.orientation.w) == (0.0, 6 / 16)
    assert (right.pose.position.x, right.pose.orientation.w) == (0.5, 14 / 16)
    interface = interface_for("pose_command", target)
    assert list(interface.topics(target)) == ["left_pose_command", "right_pose_command"]


@pytest.mark.parametrize(
    ("interface", "robot", "topic"),
    [
        ("joint_trajectory_chunk", PANDA, "joint_trajectory"),
        ("twist_command", BASE, "twist_command"),
        ("pose_command", load_embodiment("umi"), "pose_command"),
        ("pose_command", load_embodiment("av"), "ego_pose_command"),
    ],
)
def test_commands_of_one_topic_go_where_they_are_wanted(
    interface: str, robot: Embodiment, topic: str
) -> None:
    target = target_of(robot)
    asked = interface_for(interface, target)
    assert list(command_topics(asked, target, "")) == [topic]
    assert list(command_topics(asked, target, "/driver/told")) == ["/driver/told"]


def test_one_topic_for_the_poses_of_two_arms_is_refused() -> None:
    target = target_of(load_embodiment("robomind_franka_dual"))
    interface = interface_for("pose_command", target)
    said = "'/told', .* on left_pose_command, right_pose_command; expected it empty: remap each"
    with pytest.raises(ParameterError, match=said):
        command_topics(interface, target, "/told")


@pytest.mark.parametrize(
    ("interface", "robot", "said"),
    [
        ("twist_command", "sim_panda", "for base_velocity; expected joint_command or"),
        ("joint_command", "umi", "expected pose_command for embodiment 'umi'"),
    ],
)
def test_an_interface_of_another_kind_of_robot_is_refused(
    interface: str, robot: str, said: str
) -> None:
    with pytest.raises(EmbodimentError, match=said):
        interface_for(interface, target_of(load_embodiment(robot)))


def test_a_base_whose_channels_are_no_twist_is_refused() -> None:
    odd = replace(BASE, channels=(Channel("wheel_left", "rad/s"), BASE.channels[1]))
    with pytest.raises(EmbodimentError, match="has channels wheel_left; expected of linear_x"):
        interface_for("twist_command", target_of(odd))


def test_poses_and_the_gripper_make_a_measurement_when_all_have_come() -> None:
    robot = replace(
        load_embodiment("droid_lerobot"), gripper=Gripper("gripper", "finger_joint", 0.0, 0.8)
    )
    reader = PoseReader(robot, command_space(robot))
    assert reader.missing == ["pose", "finger_joint"] and reader.channels is None
    message = PoseStamped()
    message.header.stamp = STAMP
    message.pose.position.z, message.pose.orientation.w = 0.4, 1.0
    reader.read_pose("pose", message, NOW_NS)
    reader.read(states(["finger_joint"], [0.2]), NOW_NS)
    assert reader.channels == pytest.approx([0, 0, 0.4, 0, 0, 0, 1, 0.25])
    assert reader.stamp_ns == 5_000_000_006


def test_what_is_no_pose_is_refused() -> None:
    robot = load_embodiment("droid_lerobot")
    reader = PoseReader(robot, command_space(robot))
    with pytest.raises(ValueError, match="is no pose; expected finite numbers and a quaternion"):
        reader.read_pose("pose", PoseStamped(pose=Pose(orientation=Quaternion(w=0.5))), NOW_NS)
    elsewhere = PoseStamped(pose=Pose(orientation=Quaternion(w=1.0)))
    elsewhere.header.frame_id = "map"
    with pytest.raises(ValueError, match="in frame 'map'; expected 'base_link', transform it"):
        reader.read_pose("pose", elsewhere, NOW_NS)
    assert reader.missing == ["pose"]


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


def test_once_ours_are_known_other_robots_joint_states_are_nothing_to_refuse() -> None:
    reader = JointReader(JointMap(PANDA))
    reader.read(states([*ARM, FINGER], JOINTS), NOW_NS)
    reader.read(states(["left_wheel"], [3.0]), NOW_NS + 1)
    reader.read(states(["left_wheel"], []), NOW_NS + 1)
    assert reader.channels == pytest.approx(CHANNELS) and reader.stamp_ns == NOW_NS
    with pytest.raises(ValueError, match="8 names and 0 positions"):
        reader.read(states([*ARM, FINGER], []), NOW_NS + 1)


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
