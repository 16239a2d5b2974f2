"""A gripper that is driven by an action of its own, beside the arm's commands."""

from __future__ import annotations

import math
import time
from typing import Any

from rclpy.action import ActionClient
from rclpy.node import Node

from cosmos3_ros.nodes.parameters import ParameterError
from cosmos3_ros.policy.embodiment import Gripper

# A goal that differs by less of the way from open to closed is the same.
_SAME = 1e-3
# A driver that has not answered a goal for so long has not heard it.
_ANSWER_TIMEOUT_S = 1.0


class GripperClient:
    """Sends control_msgs/action/GripperCommand goals, the newest wins. Not for the control loop:
    ``follow`` is called by the executor's thread.

    Raises ParameterError where control_msgs is not installed.
    """

    def __init__(self, node: Node, action: str, gripper: Gripper, max_effort: float) -> None:
        """``max_effort``: of every goal [N]; 0: the driver's own."""
        try:
            from control_msgs.action import GripperCommand
        except ImportError:
            raise ParameterError(
                f"parameter 'gripper_action' is '{action}', which takes control_msgs; expected it "
                "to be installed: sudo apt install ros-$ROS_DISTRO-control-msgs"
            ) from None
        self._goal_type = GripperCommand.Goal
        self._client = ActionClient(node, GripperCommand, action)
        self._gripper, self._max_effort = gripper, max_effort
        self._sent = math.nan
        self._asked: Any = None  # the answer to the goal under way
        self._asked_s = 0.0  # steady
        self.goals = self.refused = 0

    def follow(self, closedness: float) -> None:
        """Where the gripper should be (0 open, 1 closed); sends a goal where that is news."""
        if not self._client.server_is_ready():
            self.forget()  # who comes in its place knows no goal
            return
        if self._asked is not None and time.monotonic() - self._asked_s > _ANSWER_TIMEOUT_S:
            self.forget()
        if self._asked is not None or abs(closedness - self._sent) < _SAME:
            return
        goal = self._goal_type()
        goal.command.position = self._gripper.joint_position(closedness)
        goal.command.max_effort = self._max_effort
        self._sent, self._asked_s = closedness, time.monotonic()
        self.goals += 1
        self._asked = self._client.send_goal_async(goal)
        self._asked.add_done_callback(self._answered)

    def forget(self) -> None:
        """Send the next goal whatever it is, and wait for no answer."""
        self._sent, self._asked = math.nan, None

    def close(self) -> None:
        self._client.destroy()

    def _answered(self, future: Any) -> None:
        """Accepted, or not: then the next command is sent, whatever it is."""
        if future is not self._asked:
            return
        self._asked = None
        if not future.result().accepted:
            self.refused += 1
            self._sent = math.nan
