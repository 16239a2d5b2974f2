"""Command interfaces: one command of the controller as the message a robot's driver takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from cosmos3_ros.nodes.joints import JointMap


@dataclass(frozen=True)
class CommandInterface:
    """``build`` makes a message of ``message_type`` from channel positions [width].

    Its other arguments: the joints, the node's time, and the control period [s].
    """

    message_type: type
    build: Callable[[JointMap, np.ndarray, Time, float], Any]


def joint_state(
    joints: JointMap, positions: np.ndarray, stamp: Time, period_s: float
) -> JointState:
    """All joints by the robot's names and in its units [rad, m]: what Isaac Sim takes."""
    message = JointState(name=joints.names, position=joints.to_joints(positions).tolist())
    message.header.stamp = stamp
    return message


def joint_trajectory(
    joints: JointMap, positions: np.ndarray, stamp: Time, period_s: float
) -> JointTrajectory:
    """One point, to be reached one control period after it arrives, in the robot's units.

    The stamp stays zero, which says "from now on": a trajectory controller drops points that lie
    in its past, and with a period of milliseconds the clocks of two machines would decide.
    """
    point = JointTrajectoryPoint(
        positions=joints.to_joints(positions).tolist(),
        time_from_start=Duration(sec=int(period_s), nanosec=round(period_s % 1 * 1e9)),
    )
    return JointTrajectory(joint_names=joints.names, points=[point])


def position_array(
    joints: JointMap, positions: np.ndarray, stamp: Time, period_s: float
) -> Float64MultiArray:
    """Channel order and channel units: the gripper as closedness, 0 open to 1 closed."""
    return Float64MultiArray(data=positions.tolist())


# By topic: the value of the parameter command_interface.
COMMAND_INTERFACES = {
    "joint_command": CommandInterface(JointState, joint_state),
    "joint_trajectory": CommandInterface(JointTrajectory, joint_trajectory),
    "position_commands": CommandInterface(Float64MultiArray, position_array),
}
