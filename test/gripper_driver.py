"""A robot whose gripper is driven by an action, and the controller node beside it.

Run by test_gripper in an environment that has control_msgs. It closes the gripper by a chunk, ends
the driver and starts another, and prints as JSON what the drivers were told, and the joints that
were commanded besides.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import rclpy
from control_msgs.action import GripperCommand
from rclpy.action import ActionServer, GoalResponse
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from cosmos3_ros.control.chunk import Chunk
from cosmos3_ros.msg import ActionChunk
from cosmos3_ros.nodes.chunks import message_from_chunk, time_message
from cosmos3_ros.nodes.controller_node import ControllerNode
from cosmos3_ros.policy.commands import command_space
from cosmos3_ros.policy.embodiment import load_embodiment

ACTION, EFFORT = "gripper_cmd", 20.0
HOME = [0.0, 0.3, 0.0, -2.3, 0.0, 2.6, 0.8, 0.0]


class Robot:
    """Joint states at HOME, and a gripper's driver that says no to the first goal."""

    def __init__(self) -> None:
        self.node = rclpy.create_node("robot")
        self.goals: list[tuple[float, float]] = []
        self.commands: list[JointState] = []
        self.joints = self.node.create_publisher(JointState, "joint_states", 10)
        self.chunks = self.node.create_publisher(ActionChunk, "action_chunk", 10)
        self.node.create_subscription(JointState, "joint_command", self.commands.append, 10)
        self.driver = self.start_driver()
        self.node.create_timer(0.01, self._measure)

    def start_driver(self) -> ActionServer:
        return ActionServer(
            self.node, GripperCommand, ACTION, self._execute, goal_callback=self._take
        )

    def _take(self, goal: Any) -> GoalResponse:
        self.goals.append((goal.command.position, goal.command.max_effort))
        return GoalResponse.REJECT if len(self.goals) == 1 else GoalResponse.ACCEPT

    def _execute(self, handle: Any) -> Any:
        handle.succeed()
        return GripperCommand.Result(reached_goal=True)

    def _measure(self) -> None:
        names = [*(f"panda_joint{i}" for i in range(1, 8)), "panda_finger_joint1"]
        state = JointState(name=names, position=[*HOME[:7], 0.04])
        state.header.stamp = self.node.get_clock().now().to_msg()
        self.joints.publish(state)


def main() -> None:
    """Print {at_first, goals, names}."""
    rclpy.init()
    given = {"embodiment": "sim_panda", "gripper_action": ACTION, "gripper_max_effort": EFFORT}
    controller = ControllerNode(
        parameter_overrides=[Parameter(name, value=value) for name, value in given.items()]
    )
    robot = Robot()
    executor = SingleThreadedExecutor()
    executor.add_node(controller)
    executor.add_node(robot.node)

    def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
        end_s = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end_s:
                sys.exit(f"waited in vain; goals {robot.goals}, {len(robot.commands)} commands")
            executor.spin_once(timeout_sec=0.05)

    def idle(seconds: float) -> None:
        end_s = time.monotonic() + seconds
        until(lambda: time.monotonic() > end_s)

    space = command_space(load_embodiment("sim_panda"))

    def publish(plan_id: int, closedness: float) -> None:
        rows = np.tile(HOME, (15, 1))
        rows[:, 7] = closedness
        now_ns = controller.now_ns()
        message = message_from_chunk(Chunk(plan_id, now_ns, 15.0, rows, now_ns), space)
        assert message.header.stamp == time_message(now_ns)
        robot.chunks.publish(message)

    controller.trigger_configure()
    controller.trigger_activate()
    until(lambda: robot.commands)
    until(controller._gripper._client.server_is_ready)
    idle(0.3)
    at_first = len(robot.goals)
    publish(1, closedness=0.0)
    until(lambda: len(robot.goals) == 2)
    publish(2, closedness=1.0)
    until(lambda: robot.goals[-1][0] == 0.0)
    # On its way: what it was told stays in force.
    stopped = controller._on_stop(Trigger.Request(), Trigger.Response())
    assert stopped.success
    idle(0.5)
    names = list(robot.commands[-1].name)
    robot.driver.destroy()
    idle(1.0)
    robot.driver = robot.start_driver()
    until(lambda: len(robot.goals) == 4)
    controller.trigger_deactivate()
    controller.trigger_cleanup()
    print(json.dumps({"at_first": at_first, "goals": robot.goals, "names": names}))
    rclpy.shutdown()


if __name__ == "__main__":
    main()
