"""Command interfaces: commands of the controller as the messages that robots' drivers take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import PoseStamped, TwistStamped
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from cosmos3_ros.control.chunk import NS_PER_S
from cosmos3_ros.nodes.joints import JointMap
from cosmos3_ros.nodes.parameters import ParameterError
from cosmos3_ros.policy.commands import CommandSpace
from cosmos3_ros.policy.embodiment import (
    BASE_VELOCITY,
    JOINT_POSITION,
    POSE_DELTA,
    Embodiment,
    EmbodimentError,
)

# Channels of a base: where each stands in a twist.
_TWIST = {
    "linear_x": ("linear", "x"),
    "linear_y": ("linear", "y"),
    "linear_z": ("linear", "z"),
    "angular_x": ("angular", "x"),
    "angular_y": ("angular", "y"),
    "angular_z": ("angular", "z"),
}


@dataclass(frozen=True)
class Target:
    """What the messages are made for. ``joints``: of an arm that is commanded by its joints, else
    None. ``gripper_apart``: the gripper is driven by other means, and is in no message."""

    embodiment: Embodiment
    space: CommandSpace
    joints: JointMap | None
    gripper_apart: bool = False


@dataclass(frozen=True)
class CommandInterface:
    """``topics`` names the topics of a target. ``build`` makes a message for each of them, from a
    command [width], the node's time and how far ahead of it the command is [s].

    ``whole``: a message holds all that is to come, and is sent when that changes: ``build`` then
    takes commands [n, width], each so far ahead of the one before.
    """

    message_type: type
    action_space: str
    topics: Callable[[Target], Sequence[str]]
    build: Callable[[Target, np.ndarray, Time, float], Sequence[Any]]
    whole: bool = False


def joint_state(
    target: Target, command: np.ndarray, stamp: Time, period_s: float
) -> Sequence[JointState]:
    """All joints by the robot's names and in its units [rad, m]: what Isaac Sim takes."""
    names, positions = _named(target, command)
    message = JointState(name=names, position=positions)
    message.header.stamp = stamp
    return (message,)


def joint_trajectory(
    target: Target, command: np.ndarray, stamp: Time, period_s: float
) -> Sequence[JointTrajectory]:
    """One point, to be reached one control period after it arrives, in the robot's units.

    The stamp stays zero, which says "from now on": a trajectory controller drops points that lie
    in its past, and with a period of milliseconds the clocks of two machines would decide.
    """
    return _trajectory(target, command[None], period_s)


def joint_trajectory_chunk(
    target: Target, commands: np.ndarray, stamp: Time, period_s: float
) -> Sequence[JointTrajectory]:
    """All that is to come of a plan, a point a control period, as ``joint_trajectory``."""
    return _trajectory(target, commands, period_s)


def position_array(
    target: Target, command: np.ndarray, stamp: Time, period_s: float
) -> Sequence[Float64MultiArray]:
    """Channel order and channel units: the gripper as closedness, 0 open to 1 closed."""
    assert target.joints is not None, "an interface of joints for another robot"
    apart = target.joints.is_gripper & target.gripper_apart
    return (Float64MultiArray(data=command[~apart].tolist()),)


def twist(
    target: Target, command: np.ndarray, stamp: Time, period_s: float
) -> Sequence[TwistStamped]:
    """Velocities of a base [m/s, rad/s], in its own frame."""
    message = TwistStamped()
    message.header.stamp = stamp
    message.header.frame_id = target.embodiment.base_frame
    for name, value in zip(target.space.names, command.tolist(), strict=True):
        part, axis = _TWIST[name]
        setattr(getattr(message.twist, part), axis, value)
    return (message,)


def poses(
    target: Target, command: np.ndarray, stamp: Time, period_s: float
) -> Sequence[PoseStamped]:
    """One pose an end effector [m], in the base frame."""
    messages = []
    for block in target.space.poses:
        message = PoseStamped()
        message.header.stamp = stamp
        message.header.frame_id = target.embodiment.base_frame
        x, y, z, qx, qy, qz, qw = command[block.command : block.command + 7].tolist()
        position, orientation = message.pose.position, message.pose.orientation
        position.x, position.y, position.z = x, y, z
        orientation.x, orientation.y, orientation.z, orientation.w = qx, qy, qz, qw
        messages.append(message)
    return messages


def _named(target: Target, command: np.ndarray) -> tuple[list[str], list[float]]:
    """Joints by the robot's names and in its units."""
    assert target.joints is not None, "an interface of joints for another robot"
    positions = target.joints.to_joints(command).tolist()
    told = zip(target.joints.names, positions, target.joints.is_gripper, strict=True)
    kept = [(n, p) for n, p, is_gripper in told if not (is_gripper and target.gripper_apart)]
    return [name for name, _ in kept], [position for _, position in kept]


def _trajectory(target: Target, commands: np.ndarray, period_s: float) -> Sequence[JointTrajectory]:
    points: list[JointTrajectoryPoint] = []
    names: list[str] = []
    for index, command in enumerate(commands, 1):
        seconds, nanoseconds = divmod(round(index * period_s * NS_PER_S), NS_PER_S)
        names, positions = _named(target, command)
        after = Duration(sec=seconds, nanosec=nanoseconds)
        points.append(JointTrajectoryPoint(positions=positions, time_from_start=after))
    return (JointTrajectory(joint_names=names, points=points),)


def _one(topic: str) -> Callable[[Target], Sequence[str]]:
    return lambda target: (topic,)


def _one_a_pose(target: Target) -> Sequence[str]:
    return tuple(f"{block.prefix}pose_command" for block in target.space.poses)


# By the value of the parameter command_interface, which is the topic where there is one.
COMMAND_INTERFACES = {
    "joint_command": CommandInterface(
        JointState, JOINT_POSITION, _one("joint_command"), joint_state
    ),
    "joint_trajectory": CommandInterface(
        JointTrajectory, JOINT_POSITION, _one("joint_trajectory"), joint_trajectory
    ),
    "joint_trajectory_chunk": CommandInterface(
        JointTrajectory,
        JOINT_POSITION,
        _one("joint_trajectory"),
        joint_trajectory_chunk,
        whole=True,
    ),
    "position_commands": CommandInterface(
        Float64MultiArray, JOINT_POSITION, _one("position_commands"), position_array
    ),
    "twist_command": CommandInterface(TwistStamped, BASE_VELOCITY, _one("twist_command"), twist),
    "pose_command": CommandInterface(PoseStamped, POSE_DELTA, _one_a_pose, poses),
}


def interface_for(name: str, target: Target) -> CommandInterface:
    """The interface of a name. Raises EmbodimentError where the robot is not commanded that way."""
    interface, robot = COMMAND_INTERFACES[name], target.embodiment
    if interface.action_space != robot.action_space:
        fitting = [n for n, i in COMMAND_INTERFACES.items() if i.action_space == robot.action_space]
        raise EmbodimentError(
            f"parameter 'command_interface' is '{name}', for {interface.action_space}; expected "
            f"{' or '.join(fitting)} for embodiment '{robot.name}' ({robot.action_space})"
        )
    unknown = [n for n in target.space.names if n not in _TWIST]
    if robot.action_space == BASE_VELOCITY and unknown:
        raise EmbodimentError(
            f"embodiment '{robot.name}' has channels {', '.join(unknown)}; expected of "
            f"{', '.join(_TWIST)} for a twist"
        )
    return interface


def command_topics(interface: CommandInterface, target: Target, given: str) -> Sequence[str]:
    """Where the messages go: ``given``, or as the interface says where that is empty.

    Raises ParameterError for one topic where there are several.
    """
    topics = interface.topics(target)
    if given and len(topics) != 1:
        raise ParameterError(
            f"parameter 'command_topic' is '{given}', embodiment '{target.embodiment.name}' is "
            f"commanded on {', '.join(topics)}; expected it empty: remap each of them"
        )
    return (given,) if given else topics
