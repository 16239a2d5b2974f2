"""Stands between the simulated robot and the two nodes, and spoils what passes.

The simulator's and the policy node's topics are remapped to ``raw/...``; what is not spoiled goes
on unchanged. Besides it keeps what the controller did: every command and every status.
"""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from cosmos3_ros.msg import ActionChunk, ControllerStatus
from cosmos3_ros.nodes.chunks import nanoseconds, time_message
from cosmos3_ros.sim.world import CAMERAS

RAW = "raw"
# How often messages that are held back are looked at [s].
_HELD_PERIOD_S = 0.005
_CLOCK_BEGINS_S = 1000.0


@dataclass
class Spoiled:
    """What is wrong with what passes; as it is made, nothing."""

    clock_offset_ns: int = 0
    frozen_cameras: set[str] = field(default_factory=set)
    joint_period_s: float = 0.0
    dropped_share: float = 0.0
    chunk_delay_s: float = 0.0
    nan_in_chunks: bool = False


@dataclass(frozen=True)
class Commanded:
    """A command as it arrived: when, on a steady clock [s], its stamp [s], and the positions [rad;
    m]."""

    at_s: float
    stamp_s: float
    positions: np.ndarray


@dataclass(frozen=True)
class Reported:
    """A status of the controller as it arrived, on a steady clock [s]: at every transition, and
    once a second. ``planner``, ``plan_id``: of the chunk in force."""

    at_s: float
    state: int
    planner: int
    plan_id: int


class Saboteur(Node):
    """``spoiled`` may be changed at any time; ``commands`` and ``reports`` grow. ``newest_plans``:
    the last plan id that each planner has sent, passed on or not."""

    def __init__(self, **node_arguments: Any) -> None:
        super().__init__("cosmos3_saboteur", **node_arguments)
        # A simulator's clock begins at 0: ten seconds back there would be before all time.
        self.spoiled = Spoiled(clock_offset_ns=round(_CLOCK_BEGINS_S * 1e9))
        self.commands: list[Commanded] = []
        self.reports: list[Reported] = []
        self.newest_plans: dict[int, int] = {}
        self._random = random.Random(0)
        self._held: deque[tuple[float, ActionChunk]] = deque()
        self._joints_sent_s = -math.inf
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._instruction = self.create_publisher(String, "instruction", latched)
        self._times = self._relay(Clock, "/clock", self._on_clock)
        self._joints = self._relay(JointState, "joint_states", self._on_joints)
        self._images = {
            camera: self._relay(Image, f"camera/{camera}/image", self._image_relay(camera))
            for camera in CAMERAS
        }
        self._chunks = self._relay(ActionChunk, "action_chunk", self._on_chunk)
        self.create_timer(_HELD_PERIOD_S, self._pass_on)
        self.create_subscription(JointState, "joint_command", self._on_command, 100)
        each = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(ControllerStatus, "controller_status", self._on_status, each)

    def instruct(self, instruction: str) -> None:
        self._instruction.publish(String(data=instruction))

    @property
    def state(self) -> int:
        """The controller's, as it said last."""
        return self.reports[-1].state if self.reports else ControllerStatus.STATE_INACTIVE

    def _relay(self, kind: type, topic: str, callback: Callable[[Any], None]) -> Any:
        self.create_subscription(kind, raw(topic), callback, 10)
        return self.create_publisher(kind, topic, 10)

    def _on_clock(self, message: Clock) -> None:
        message.clock = self._shifted(message.clock)
        self._times.publish(message)

    def _on_joints(self, message: JointState) -> None:
        now_s = time.monotonic()
        if self._drops() or now_s < self._joints_sent_s + self.spoiled.joint_period_s:
            return
        self._joints_sent_s = now_s
        message.header.stamp = self._shifted(message.header.stamp)
        self._joints.publish(message)

    def _image_relay(self, camera: str) -> Callable[[Image], None]:
        def pass_on(message: Image) -> None:
            if camera not in self.spoiled.frozen_cameras and not self._drops():
                message.header.stamp = self._shifted(message.header.stamp)
                self._images[camera].publish(message)

        return pass_on

    def _on_chunk(self, message: ActionChunk) -> None:
        self.newest_plans[message.planner] = message.plan_id
        if self._drops():
            return
        if self.spoiled.nan_in_chunks:
            message.data[len(message.data) // 2] = math.nan
        self._held.append((time.monotonic(), message))
        self._pass_on()

    def _pass_on(self) -> None:
        """When the delay is over, what is still held back goes out at once, in its order."""
        due_s = time.monotonic() - self.spoiled.chunk_delay_s
        while self._held and self._held[0][0] <= due_s:
            self._chunks.publish(self._held.popleft()[1])

    def _on_command(self, message: JointState) -> None:
        stamp_s = nanoseconds(message.header.stamp) / 1e9
        self.commands.append(Commanded(time.monotonic(), stamp_s, np.array(message.position)))

    def _on_status(self, message: ControllerStatus) -> None:
        self.reports.append(
            Reported(time.monotonic(), message.state, message.planner, message.plan_id)
        )

    def _drops(self) -> bool:
        return self._random.random() < self.spoiled.dropped_share

    def _shifted(self, stamp: Time) -> Time:
        return time_message(nanoseconds(stamp) + self.spoiled.clock_offset_ns)


def raw(topic: str) -> str:
    """Where a topic comes from before it is spoiled."""
    return f"/{RAW}{topic}" if topic.startswith("/") else f"{RAW}/{topic}"


def remapped(*topics: str) -> tuple[str, ...]:
    """ROS arguments that have a node send these topics to the saboteur."""
    return tuple(word for topic in topics for word in ("-r", f"{topic}:={raw(topic)}"))
