"""Where a robot is, as the channels of its commands: joints, poses of end effectors, a base."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import JointState

from cosmos3_ros.nodes.joints import JointMap, JointReader, require_pairs
from cosmos3_ros.nodes.observer import pose_objection, pose_of, stamp_ns
from cosmos3_ros.policy.commands import CommandSpace
from cosmos3_ros.policy.embodiment import Embodiment
from cosmos3_ros.policy.poses import POSE_WIDTH


class Measured(Protocol):
    """``missing``: what no message has told yet. ``channels``: the newest command-shaped
    measurement [width], None while something is missing. ``stamp_ns``: its time."""

    @property
    def missing(self) -> list[str]: ...

    @property
    def channels(self) -> np.ndarray | None: ...

    @property
    def stamp_ns(self) -> int: ...

    def read(self, message: JointState, now_ns: int) -> None:
        """Take joint states. Raises ValueError for what says nothing."""

    def read_gripper(self, closedness: float) -> None:
        """Take the gripper's closedness."""


class PoseReader:
    """The newest pose of every end effector, and the gripper's closedness."""

    def __init__(
        self, embodiment: Embodiment, space: CommandSpace, *, gripper_topic: bool = False
    ) -> None:
        """``gripper_topic``: closedness comes from ``read_gripper`` alone, not from its joint."""
        self._space, self._gripper = space, embodiment.gripper
        self._gripper_topic = gripper_topic
        self._base_frame = embodiment.base_frame
        self._poses: dict[str, np.ndarray] = {}
        self._stamps_ns: dict[str, int] = {}
        self._closedness = math.nan

    @property
    def topics(self) -> list[str]:
        """Where the poses come from."""
        return [pose_topic(block.prefix) for block in self._space.poses]

    @property
    def missing(self) -> list[str]:
        waiting = [topic for topic in self.topics if topic not in self._poses]
        if self._gripper is not None and math.isnan(self._closedness):
            waiting.append(self._gripper.joint)
        return waiting

    @property
    def channels(self) -> np.ndarray | None:
        if self.missing:
            return None
        channels = np.zeros(self._space.width)
        for block in self._space.poses:
            pose = self._poses[pose_topic(block.prefix)]
            channels[block.command : block.command + POSE_WIDTH] = pose
        if self._gripper is not None:
            channels[self._space.names.index(self._gripper.channel)] = self._closedness
        return channels

    @property
    def stamp_ns(self) -> int:
        """Time of the oldest pose."""
        return min(self._stamps_ns.values())

    def read_pose(self, topic: str, message: PoseStamped, now_ns: int) -> None:
        """Take a pose; one without a stamp counts as measured now. Raises ValueError for none."""
        if objection := pose_objection(message, self._base_frame):
            raise ValueError(f"{topic}: {objection}")
        self._poses[topic] = pose_of(message)
        self._stamps_ns[topic] = stamp_ns(message) or now_ns

    def read(self, message: JointState, now_ns: int) -> None:
        """Take the gripper's joint, where there is one and it tells the closedness."""
        gripper = None if self._gripper_topic else self._gripper
        if gripper is not None and gripper.joint in message.name:
            require_pairs(message)
            position = message.position[list(message.name).index(gripper.joint)]
            self.read_gripper(gripper.closedness(position))

    def read_gripper(self, closedness: float) -> None:
        if math.isfinite(closedness):
            self._closedness = closedness


class BaseReader:
    """A base is commanded velocities from rest: nothing is measured of it."""

    def __init__(self, space: CommandSpace) -> None:
        self._rest = np.nan_to_num(space.rest)
        self.missing: list[str] = []
        self.stamp_ns = 0

    @property
    def channels(self) -> np.ndarray:
        return self._rest

    def read(self, message: JointState, now_ns: int) -> None:
        """A base has no joints."""

    def read_gripper(self, closedness: float) -> None:
        """A base has no gripper."""


def pose_topic(prefix: str) -> str:
    """The topic that tells where an end effector is."""
    return f"{prefix}pose"


def reader_for(
    embodiment: Embodiment, space: CommandSpace, joints: JointMap | None, *, gripper_topic: bool
) -> Measured:
    """What measures a robot of an embodiment. ``gripper_topic``: see the readers."""
    if joints is not None:
        return JointReader(joints, gripper_topic=gripper_topic)
    if space.poses:
        return PoseReader(embodiment, space, gripper_topic=gripper_topic)
    return BaseReader(space)
