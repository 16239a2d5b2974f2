"""The controller node, and a robot and a planner that a test plays, over real topics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64, String
from std_srvs.srv import Trigger

from cosmos3_ros.control.chunk import NS_PER_S, Chunk
from cosmos3_ros.msg import ActionChunk, ControllerStatus, PolicyStatus
from cosmos3_ros.nodes.chunks import message_from_chunk
from cosmos3_ros.nodes.commands import COMMAND_INTERFACES
from cosmos3_ros.nodes.controller_node import ControllerNode
from cosmos3_ros.nodes.parameters import qos_profile
from cosmos3_ros.policy.commands import command_space
from cosmos3_ros.policy.embodiment import load_embodiment

PANDA = command_space(load_embodiment("sim_panda"))
ARM = [f"panda_joint{i}" for i in range(1, 8)]
FINGER = "panda_finger_joint1"
HOME = np.array([0.0, 0.3, 0.0, -2.3, 0.0, 2.6, 0.8, 0.0])  # channels; the gripper open
SPEED = 0.5  # rad/s of the first joint in a ramp, well inside its limit
_PATIENT = {"overrun_timeout_s": 10.0, "joint_timeout_s": 1.0}
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


def time_message(ns: int) -> Time:
    return Time(sec=ns // NS_PER_S, nanosec=ns % NS_PER_S)


def stamp_ns(message: JointState) -> int:
    return int(message.header.stamp.sec) * NS_PER_S + int(message.header.stamp.nanosec)


class Graph:
    """The controller node and, on the same domain, a robot and a planner that the test plays."""

    def __init__(self, context: Context, **parameters: Any) -> None:
        # A stall of a busy machine is not what these tests look at.
        given = {"embodiment": "sim_panda", **_PATIENT, **parameters}
        self.node = ControllerNode(
            context=context,
            parameter_overrides=[Parameter(name, value=value) for name, value in given.items()],
        )
        self.robot = rclpy.create_node("robot", context=context)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.executor.add_node(self.robot)
        self.joint_states = self.robot.create_publisher(JointState, "joint_states", 10)
        self.gripper_state = self.robot.create_publisher(Float64, "gripper_state", 10)
        self.chunks = self.robot.create_publisher(ActionChunk, "action_chunk", 10)
        self.clock = self.robot.create_publisher(Clock, "/clock", 10)
        latched = qos_profile("reliable", 1, transient_local=True)
        self.instruction = self.robot.create_publisher(String, "instruction", latched)
        self.policy_status = self.robot.create_publisher(PolicyStatus, "status", latched)
        self.states: list[ControllerStatus] = []
        self.robot.create_subscription(
            ControllerStatus,
            "controller_status",
            self.states.append,
            qos_profile("reliable", 100, transient_local=True),
        )
        self.commands: list[Any] = []
        self.diagnostics: list[DiagnosticStatus] = []
        asked = given.get("command_interface", "joint_command")
        kind = COMMAND_INTERFACES[asked].message_type if asked in COMMAND_INTERFACES else JointState
        topic = asked.removesuffix("_chunk")
        self.robot.create_subscription(kind, topic, self._obey, 100)
        self.robot.create_subscription(
            DiagnosticArray, "/diagnostics", lambda a: self.diagnostics.extend(a.status), 100
        )
        self.position = HOME.copy()
        self.measuring = self.obeying = True
        self.now_ns: int | None = None  # None: the system's clock; else simulated, 5 ms a step
        self.steps = 0
        self.robot.create_timer(0.005, self._step)

    def _step(self) -> None:
        self.steps += 1
        if self.now_ns is not None:
            self.now_ns += 5_000_000
            self.clock.publish(Clock(clock=time_message(self.now_ns)))
        if self.measuring:
            joints = [*self.position[:7], 0.04 * (1 - self.position[7])]
            self.send_joints([*ARM, FINGER], joints)

    def _obey(self, command: Any) -> None:
        self.commands.append(command)
        if self.obeying and isinstance(command, JointState):
            self.position[:7] = command.position[:7]

    def send_joints(
        self, names: list[str], positions: list[float], stamp_ns: int | None = None
    ) -> None:
        message = JointState(name=names, position=positions)
        message.header.stamp = time_message(stamp_ns or self.time_ns())
        self.joint_states.publish(message)

    def time_ns(self) -> int:
        return time.time_ns() if self.now_ns is None else self.now_ns

    def spin(self, seconds: float) -> None:
        """For so long, and on a machine that stalls until the robot has done its part, too."""
        before, least = self.steps, seconds / 0.02
        self.until(lambda: False, seconds)
        assert self.until(lambda: self.steps - before >= least)

    def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> bool:
        end = time.monotonic() + seconds
        while not condition() and (left := end - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left)
        return condition()

    def activate(self) -> None:
        assert self.node.trigger_configure() == SUCCESS
        assert self.node.trigger_activate() == SUCCESS
        discovered = ("joint_states", "action_chunk")
        assert self.until(lambda: all(self.node.count_publishers(t) for t in discovered))
        assert self.until(lambda: len(self.commands) > 0)

    def ramp(self, plan_id: int = 1, seconds: float = 2.0, **other: Any) -> ActionChunk:
        """The first joint away from HOME at SPEED, from the time of the stamp."""
        rows = np.tile(HOME, (round(seconds * 15), 1))
        rows[:, 0] += SPEED * np.arange(1, len(rows) + 1) / 15
        now_ns = self.time_ns()
        chunk = Chunk(plan_id, now_ns, 15.0, rows, now_ns, **other)
        return message_from_chunk(chunk, PANDA)

    def track(self, chunk: ActionChunk) -> None:
        """Send a chunk, and wait until the arm moves by it."""
        began = len(self.commands)
        self.chunks.publish(chunk)
        start = self.commands[-1].position[0]
        assert self.until(lambda: self.commands[-1].position[0] > start + 0.05)
        del self.commands[:began]

    def call(self, service: str) -> Trigger.Response:
        """Call ~/stop or ~/resume as an operator does."""
        client = self.robot.create_client(Trigger, f"/cosmos3_controller/{service}")
        assert self.until(client.service_is_ready)
        future = client.call_async(Trigger.Request())
        assert self.until(future.done)
        return future.result()

    def enters(self, state: int, seconds: float = 5.0) -> bool:
        return self.until(lambda: bool(self.states) and self.states[-1].state == state, seconds)

    def values(self) -> dict[str, str]:
        """The controller's diagnostics, once a new one has come."""
        seen = len(self.diagnostics)
        assert self.until(lambda: len(self.diagnostics) > seen)
        return {entry.key: entry.value for entry in self.diagnostics[-1].values}

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        self.robot.destroy_node()


Maker = Callable[..., Graph]


@pytest.fixture
def graph(ros_domain_id: int) -> Iterator[Maker]:
    context = Context()
    rclpy.init(args=[], context=context, domain_id=ros_domain_id)
    made: list[Graph] = []

    def make(**parameters: Any) -> Graph:
        made.append(Graph(context, **parameters))
        return made[-1]

    yield make
    for each in made:
        each.close()
    rclpy.shutdown(context=context)


def due_rate_hz(values: dict[str, str]) -> float:
    """Of the control loop, those periods included that a loaded machine has missed."""
    runs, missed = int(values["periods"]) - 1, int(values["missed_periods"])
    return float(values["command_rate_hz"]) * (runs + missed) / runs


def first_joint(commands: list[JointState]) -> list[float]:
    return [c.position[0] for c in commands]
