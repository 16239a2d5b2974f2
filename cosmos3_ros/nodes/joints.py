"""The channels of an embodiment on the joints of a robot, and what the joints measure."""

from __future__ import annotations

import math

import numpy as np
from sensor_msgs.msg import JointState

from cosmos3_ros.policy.embodiment import JOINT_POSITION, Embodiment, EmbodimentError


class JointMap:
    """One robot joint a channel, in channel order: arm joints as they are, the gripper mapped.

    The gripper's channel is closedness (0 open, 1 closed); its joint has the robot's own values.
    """

    def __init__(self, embodiment: Embodiment, joint_names: tuple[str, ...] = ()) -> None:
        """``joint_names`` replaces the arm joints' names, in channel order.

        Raises EmbodimentError where channels are not joints, or the names do not fit them.
        """
        if embodiment.action_space != JOINT_POSITION:
            raise EmbodimentError(
                f"embodiment '{embodiment.name}' has action space '{embodiment.action_space}'; "
                f"expected '{JOINT_POSITION}' to command joints"
            )
        arm = joint_names or embodiment.joints
        if len(arm) != len(embodiment.joints):
            raise EmbodimentError(
                f"parameter 'joint_names' is {list(joint_names)}; expected "
                f"{len(embodiment.joints)} names, one an arm channel of '{embodiment.name}'"
            )
        self.embodiment = embodiment
        self.names = tuple(self._names(arm))
        if len(set(self.names)) != len(self.names):
            raise EmbodimentError(
                f"joints of '{embodiment.name}' are {list(self.names)}; expected different names"
            )
        gripper = embodiment.gripper
        self.is_gripper = np.array(
            [gripper is not None and name == gripper.channel for name in embodiment.channel_names]
        )
        opened, closed = (gripper.open, gripper.closed) if gripper else (0.0, 1.0)
        self._zero = np.where(self.is_gripper, opened, 0.0)
        self._span = np.where(self.is_gripper, closed - opened, 1.0)

    def to_joints(self, channels: np.ndarray) -> np.ndarray:
        """Channel positions [width] to joint positions [width, rad or m]."""
        return self._zero + channels * self._span

    def to_channels(self, joints: np.ndarray) -> np.ndarray:
        """Joint positions [width, rad or m] to channel positions [width]."""
        return (joints - self._zero) / self._span

    def _names(self, arm: tuple[str, ...]) -> list[str]:
        gripper, remaining = self.embodiment.gripper, iter(arm)
        return [
            gripper.joint if gripper and name == gripper.channel else next(remaining)
            for name in self.embodiment.channel_names
        ]


def require_pairs(message: JointState) -> None:
    """Raises ValueError where names and positions do not pair up."""
    if len(message.name) != len(message.position):
        raise ValueError(
            f"{len(message.name)} names and {len(message.position)} positions; expected one "
            "position a name"
        )


class JointReader:
    """The newest position of every joint, gathered by name from however many messages it takes."""

    def __init__(self, joints: JointMap, *, gripper_topic: bool = False) -> None:
        """``gripper_topic``: closedness comes from ``read_gripper`` alone, not from its joint."""
        self._joints = joints
        self._from_topic = joints.is_gripper & gripper_topic
        self._index = {name: i for i, name in enumerate(joints.names)}
        self._positions = np.full(len(joints.names), np.nan)
        self._stamps_ns = np.zeros(len(joints.names), np.int64)

    @property
    def missing(self) -> list[str]:
        """Joints that no message has named yet."""
        return [n for n, p in zip(self._joints.names, self._positions, strict=True) if p != p]

    @property
    def channels(self) -> np.ndarray | None:
        """Measured channel positions [width]; None while a joint is missing."""
        return None if self.missing else self._joints.to_channels(self._positions)

    @property
    def stamp_ns(self) -> int:
        """Time of the oldest arm joint.

        The gripper's does not count: many report only when they move, and nothing but the first
        hold depends on it.
        """
        return int(self._stamps_ns[~self._joints.is_gripper].min())

    def read(self, message: JointState, now_ns: int) -> None:
        """Take the joints we know from a message; others and their order do not matter.

        A message without a stamp counts as measured now. Raises ValueError, and takes nothing,
        where names and positions do not pair up, or none or a NaN of ours is among them. Once ours
        are known, a message of none is another robot's, and nothing of it matters.
        """
        if self._stamps_ns.any() and not self._index.keys() & set(message.name):
            return
        require_pairs(message)
        found = {
            self._index[name]: position
            for name, position in zip(message.name, message.position, strict=True)
            if name in self._index
        }
        told = {i: position for i, position in found.items() if not self._from_topic[i]}
        wrong = [self._joints.names[i] for i, p in told.items() if not math.isfinite(p)]
        if wrong or not found:
            raise ValueError(
                f"position of {', '.join(wrong)} is not finite"
                if wrong
                else f"joints are {', '.join(message.name) or 'none'}; expected some of "
                f"{', '.join(self._joints.names)}; set joint_names to the robot's names"
            )
        stamp = message.header.stamp
        stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec or now_ns
        for i, position in told.items():
            self._positions[i] = position
            self._stamps_ns[i] = stamp_ns

    def read_gripper(self, closedness: float) -> None:
        """Take the gripper's closedness where it comes from a topic of its own."""
        if math.isfinite(closedness):
            as_channels = np.where(self._joints.is_gripper, closedness, 0.0)
            measured = self._joints.to_joints(as_channels)
            self._positions = np.where(self._joints.is_gripper, measured, self._positions)
