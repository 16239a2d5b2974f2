"""Robots that are not commanded by their joints: poses in, poses or twists out, over topics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

import rclpy
from bundles import TINY, exported
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from cosmos3_ros.control.chunk import NS_PER_S, Chunk
from cosmos3_ros.msg import ActionChunk
from cosmos3_ros.nodes.chunks import message_from_chunk, nanoseconds, time_message
from cosmos3_ros.nodes.controller_node import ControllerNode
from cosmos3_ros.nodes.images import image_message
from cosmos3_ros.nodes.observer import pose_of
from cosmos3_ros.nodes.parameters import qos_profile
from cosmos3_ros.nodes.policy_node import PolicyNode
from cosmos3_ros.policy.commands import command_space
from cosmos3_ros.policy.embodiment import load_embodiment

# One arm that acts in pose deltas. Deltas of the random policy are some millimetres a row.
ARM = """
name: arm
domain: fractal
domain_id: 20
action_space: pose_delta
normalisation: quantile
rate_hz: 15.0
base_frame: arm_base
view_point: third_person_view
channels:
  - {block: pose, lower: [0.2, -0.5, 0.0], upper: [0.8, 0.5, 0.9], velocity: 0.5, acceleration: 5.0,
     jump: 0.1, turn_velocity: 1.5, turn_acceleration: 20.0, turn_jump: 0.6}
  - {block: grasp}
quantiles:
  position_x: [-0.002, 0.002]
  position_y: [-0.002, 0.002]
  position_z: [-0.002, 0.002]
  rotation_1: [0.99, 1.0]
  rotation_2: [-0.02, 0.02]
  rotation_3: [-0.02, 0.02]
  rotation_4: [-0.02, 0.02]
  rotation_5: [0.99, 1.0]
  rotation_6: [-0.02, 0.02]
  gripper: [0.0, 1.0]
gripper: {channel: gripper, joint: finger, open: 0.04, closed: 0.0}
cameras:
  - {name: exterior, x: 0, y: 0, width: 128, height: 96}
canvas: {width: 128, height: 96}
"""
BASE = """
name: base
domain: pusht
domain_id: 15
action_space: base_velocity
rate_hz: 10.0
base_frame: base_link
view_point: ego_view
channels:
  - {name: linear_x, unit: m/s, lower: -0.5, upper: 0.5, velocity: 1.0}
  - {name: angular_z, unit: rad/s, lower: -1.0, upper: 1.0, velocity: 2.0}
"""
HERE = np.array([0.5, 0.1, 0.4, 0.0, 1.0, 0.0, 0.0])  # the gripper looks down
LATCHED = qos_profile("reliable", 1, transient_local=True)


class Robot:
    """Nodes under test beside a robot that stands at HERE, or where ``here`` says, all on one
    executor."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.node = Node("robot", context=context)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.nodes: list[LifecycleNode] = []
        self.here: Callable[[], np.ndarray] = lambda: HERE
        self._poses = self.node.create_publisher(PoseStamped, "pose", 10)
        self._joints = self.node.create_publisher(JointState, "joint_states", 10)
        self._images = self.node.create_publisher(Image, "camera/exterior/image", 5)
        self.instruction = self.node.create_publisher(String, "instruction", LATCHED)
        self.chunks = self.node.create_publisher(ActionChunk, "action_chunk", 10)
        self.node.create_timer(0.02, self._measure)
        self.node.create_timer(1 / 15, self._see)

    def start(self, kind: type[LifecycleNode], **parameters: Any) -> None:
        given = [Parameter(name, value=value) for name, value in parameters.items()]
        node = kind(context=self._context, parameter_overrides=given)
        self.executor.add_node(node)
        self.nodes.append(node)
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS

    def hears(self, kind: type, topic: str) -> list[Any]:
        heard: list[Any] = []
        self.node.create_subscription(kind, topic, heard.append, 100)
        return heard

    def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> bool:
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.05)
        return condition()

    def _measure(self) -> None:
        stamp = self.node.get_clock().now().to_msg()
        pose = PoseStamped()
        pose.header.stamp, pose.header.frame_id = stamp, "arm_base"
        position, turn = pose.pose.position, pose.pose.orientation
        here = self.here()
        position.x, position.y, position.z = here[:3].tolist()
        turn.x, turn.y, turn.z, turn.w = here[3:].tolist()
        self._poses.publish(pose)
        joints = JointState(name=["finger"], position=[0.04])
        joints.header.stamp = stamp
        self._joints.publish(joints)

    def _see(self) -> None:
        picture = np.full((96, 128, 3), 90, np.uint8)
        stamp = self.node.get_clock().now().to_msg()
        self._images.publish(image_message(picture, stamp, "camera"))


@pytest.fixture
def robot(ros_domain_id: int) -> Iterator[Robot]:
    context = Context()
    rclpy.init(args=[], context=context, domain_id=ros_domain_id)
    made = Robot(context)
    yield made
    for node in made.nodes:
        node.trigger_shutdown()
    made.executor.shutdown()
    for node in (*made.nodes, made.node):
        node.destroy_node()
    rclpy.shutdown(context=context)


def test_pose_deltas_become_poses_from_where_the_arm_is(robot: Robot, tmp_path: Path) -> None:
    file = tmp_path / "arm.yaml"
    file.write_text(ARM)
    bundle = exported(TINY, file).bundle.path
    commands, chunks = (
        robot.hears(PoseStamped, "pose_command"),
        robot.hears(ActionChunk, "action_chunk"),
    )
    robot.here = lambda: pose_of(commands[-1]) if commands else HERE
    robot.instruction.publish(String(data="pick up the cube"))
    arm = {"embodiment": str(file)}
    robot.start(ControllerNode, command_interface="pose_command", **arm)
    robot.start(PolicyNode, bundle=str(bundle), **arm)
    assert robot.until(lambda: len(chunks) > 3 and len(commands) > 50)
    rows = np.array(chunks[0].data).reshape(chunks[0].rows, chunks[0].width)
    assert list(chunks[0].channel_names[:7]) == [
        *(f"position_{axis}" for axis in "xyz"), *(f"orientation_{part}" for part in "xyzw")
    ]  # fmt: skip
    assert np.abs(rows[0, :3] - HERE[:3]).max() < 0.03, "composed from the pose, not from nowhere"
    assert np.linalg.norm(rows[:, 3:7], axis=1) == pytest.approx(1.0)
    assert {command.header.frame_id for command in commands} == {"arm_base"}
    poses = np.array([pose_of(command) for command in commands])
    assert poses[0] == pytest.approx(HERE), "before any plan it is held where it is"
    assert np.abs(poses[-1] - HERE).max() > 1e-3, "and then moves"
    passed_s = np.diff([nanoseconds(command.header.stamp) for command in commands]) / NS_PER_S
    speed = np.abs(np.diff(poses[:, :3], axis=0)) / passed_s[:, None]
    assert speed.max() <= 0.5 * 1.001
    assert np.linalg.norm(poses[:, 3:], axis=1) == pytest.approx(1.0)


def test_a_base_follows_velocities_and_stands_when_they_end(robot: Robot, tmp_path: Path) -> None:
    file = tmp_path / "base.yaml"
    file.write_text(BASE)
    base = load_embodiment(file)
    commands = robot.hears(TwistStamped, "twist_command")
    robot.start(ControllerNode, embodiment=str(file), command_interface="twist_command")
    assert robot.until(lambda: len(commands) > 5)
    now_ns = time.time_ns()
    chunk = Chunk(1, now_ns, 10.0, np.tile([0.3, -0.2], (10, 1)), now_ns)
    message = message_from_chunk(chunk, command_space(base))
    assert message.start == time_message(now_ns)
    robot.chunks.publish(message)

    def moves(command: TwistStamped, linear: float, angular: float) -> bool:
        twist = command.twist
        return (twist.linear.x, twist.angular.z) == pytest.approx((linear, angular))

    assert moves(commands[-1], 0.0, 0.0), "at rest before"
    assert robot.until(lambda: moves(commands[-1], 0.3, -0.2), 5.0)
    assert robot.until(lambda: moves(commands[-1], 0.0, 0.0), 5.0), "and when the chunk has ended"
    assert {command.header.frame_id for command in commands} == {"base_link"}
    steps = np.diff([command.twist.linear.x for command in commands])
    assert np.abs(steps).max() <= 1.0 * 0.1 + 1e-9, "no faster than its acceleration allows"


def test_a_base_that_is_slow_to_stop_has_stopped_before_its_node_falls_silent(
    robot: Robot, tmp_path: Path
) -> None:
    file = tmp_path / "base.yaml"
    file.write_text(BASE.replace("velocity: 1.0", "velocity: 0.2"))
    commands = robot.hears(TwistStamped, "/wheels/told")
    given = {"command_interface": "twist_command", "command_topic": "/wheels/told"}
    robot.start(ControllerNode, embodiment=str(file), **given)
    assert robot.until(lambda: len(commands) > 5)
    now_ns = time.time_ns()
    chunk = Chunk(1, now_ns, 10.0, np.tile([0.4, 0.0], (30, 1)), now_ns)
    space = command_space(load_embodiment(file))
    robot.chunks.publish(message_from_chunk(chunk, space))
    assert robot.until(lambda: commands[-1].twist.linear.x > 0.35, 5.0)
    began = len(commands)
    # 0.2 m/s a second from 0.35 m/s and more.
    began_s = time.monotonic()
    robot.nodes[0].trigger_deactivate()
    assert time.monotonic() - began_s > 1.5
    assert robot.until(lambda: len(commands) > began and commands[-1].twist.linear.x == 0.0, 2.0)
