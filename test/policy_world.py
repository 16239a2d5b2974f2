"""A policy node, and a robot that a test plays, over real topics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from bundles import Exported
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64, String

from cosmos3_ros.msg import ActionChunk, PolicyStatus
from cosmos3_ros.nodes.images import image_message
from cosmos3_ros.nodes.parameters import qos_profile
from cosmos3_ros.nodes.policy_node import PolicyNode

JOINTS = [*(f"panda_joint{i}" for i in range(1, 8)), "panda_finger_joint1"]
HOME = [0.0, 0.3, 0.0, -2.3, 0.0, 2.6, 0.8, 0.04]
LATCHED = qos_profile("reliable", 1, transient_local=True)


def picture(brightness: int = 90, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    image = np.full((*size, 3), brightness, np.uint8)
    image[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = (200, 20, 20)
    return image


@dataclass
class World:
    """A policy node, and a peer that plays the robot and hears what the node says."""

    context: Context
    executor: SingleThreadedExecutor
    policy: PolicyNode
    peer: Node
    chunks: list[ActionChunk] = field(default_factory=list)
    frames: list[Image] = field(default_factory=list)
    statuses: list[PolicyStatus] = field(default_factory=list)

    def __post_init__(self) -> None:
        peer = self.peer
        self.images = peer.create_publisher(Image, "camera/exterior/image", 5)
        self.compressed = peer.create_publisher(
            CompressedImage, "camera/exterior/image/compressed", 5
        )
        self.joints = peer.create_publisher(JointState, "joint_states", 10)
        self.gripper = peer.create_publisher(Float64, "gripper_state", 10)
        self.instructions = peer.create_publisher(String, "instruction", LATCHED)
        self.clock = peer.create_publisher(Clock, "/clock", 10)
        peer.create_subscription(ActionChunk, "action_chunk", self.chunks.append, 10)
        peer.create_subscription(Image, "predicted_frame", self.frames.append, 10)
        peer.create_subscription(PolicyStatus, "status", self.statuses.append, LATCHED)

    def transition(self, name: str) -> TransitionCallbackReturn:
        """Drive a transition on the executor's thread, as the lifecycle services do."""
        future = self.executor.create_task(getattr(self.policy, f"trigger_{name}"))
        self.until(future.done, f"{name} has ended", 240.0)
        return future.result()

    def activate(self) -> None:
        assert self.transition("configure") == TransitionCallbackReturn.SUCCESS
        assert self.transition("activate") == TransitionCallbackReturn.SUCCESS
        self.until(lambda: self.images.get_subscription_count() > 0, "the node listens")

    def instruct(self, text: str) -> None:
        self.instructions.publish(String(data=text))

    def send(
        self,
        image: Image | None = None,
        positions: list[float] | None = None,
        names: list[str] | None = None,
        age_s: float = 0.0,
    ) -> Time:
        """One observation, stamped ``age_s`` ago; returns its stamp."""
        ns = self.peer.get_clock().now().nanoseconds - int(age_s * 1e9)
        stamp = Time(sec=ns // 10**9, nanosec=ns % 10**9)
        state = JointState(name=names or JOINTS, position=positions or HOME)
        state.header.stamp = stamp
        self.joints.publish(state)
        image = image or image_message(picture(), stamp, "camera")
        image.header.stamp = stamp
        self.images.publish(image)
        return stamp

    def until(self, done: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        end = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < end, f"waited {timeout_s} s until {what}"
            time.sleep(0.01)

    def send_until(
        self, done: Callable[[], bool], what: str, send: Callable[[], Any] | None = None
    ) -> None:
        """Send observations at about 15 Hz until something has happened."""
        end = time.monotonic() + 60.0
        while not done():
            assert time.monotonic() < end, f"sent 60 s of observations until {what}"
            (send or self.send)()
            time.sleep(0.06)

    def says(self, state: int) -> bool:
        """Whether the newest status, if there is one, has a state."""
        return bool(self.statuses) and self.statuses[-1].state == state

    def rejected(self, reason: str) -> int:
        for status in reversed(self.statuses):
            counts = zip(
                status.rejected_observation_reasons,
                status.rejected_observation_counts,
                strict=True,
            )
            return dict(counts).get(reason, 0)
        return 0


@pytest.fixture
def make_world(ros_domain_id: int, tiny: Exported) -> Iterator[Callable[..., World]]:
    context = Context()
    context.init(domain_id=ros_domain_id)
    executor = SingleThreadedExecutor(context=context)
    nodes: list[Node] = []
    thread = threading.Thread(target=executor.spin, daemon=True)

    def make(**parameters: Any) -> World:
        values = {"bundle": str(tiny.bundle.path), "seed": 1} | parameters
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        policy = PolicyNode(context=context, parameter_overrides=overrides)
        peer = Node("peer", context=context)
        nodes.extend([policy, peer])
        for node in (policy, peer):
            executor.add_node(node)
        thread.start()
        return World(context, executor, policy, peer)

    yield make
    if nodes:
        ended = executor.create_task(nodes[0].trigger_shutdown)
        while not ended.done():
            time.sleep(0.01)
    executor.shutdown()
    thread.join(5)
    for node in nodes:
        node.destroy_node()
    context.try_shutdown()


class SimulatedTime:
    """A robot under simulated time, its clock in the hands of the test."""

    def __init__(self, world: World) -> None:
        self.world = world

    def at(self, second: float, *, picture_too: bool = True, joints_too: bool = True) -> None:
        """Show a time, and send what the robot sees and feels at it."""
        ns = round(second * 1e9)
        stamp = Time(sec=ns // 10**9, nanosec=ns % 10**9)
        self.world.clock.publish(Clock(clock=stamp))
        time.sleep(0.03)
        if joints_too:
            state = JointState(name=JOINTS, position=HOME)
            state.header.stamp = stamp
            self.world.joints.publish(state)
            time.sleep(0.03)
        if picture_too:
            self.world.images.publish(image_message(picture(), stamp, "camera"))

    def run(self, start: float, done: Callable[[], bool], what: str, **parts: bool) -> None:
        """Let time pass from ``start`` in steps of 0.07 s until something has happened."""
        seconds = iter(np.arange(start, start + 100.0, 0.07))
        self.world.send_until(done, what, lambda: self.at(next(seconds), **parts))
