"""What a robot is commanded, of what a checkpoint says of it: channels, limits, composed poses.

Joint positions and velocities of a base are commanded as they are. A pose delta is composed to the
pose it leads to, from the pose at the observation: a position [m] and a quaternion x, y, z, w in
the base frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cosmos3_ros.policy.embodiment import (
    BASE_VELOCITY,
    JOINT_POSITION,
    POSE_DELTA,
    Channel,
    Embodiment,
    EmbodimentError,
)
from cosmos3_ros.policy.poses import DELTA_WIDTH, POSE_WIDTH, compose, deltas_between

_POSITION, _QUATERNION = "position_x", ("x", "y", "z", "w")


@dataclass(frozen=True)
class PoseBlock:
    """Where a pose stands: its nine channels of the model, its seven of the command.

    ``prefix``: of its names, and of the topic that tells where the end effector is.
    """

    prefix: str
    model: int
    command: int


@dataclass(frozen=True)
class CommandSpace:
    """Channels of a chunk of an embodiment. Arrays are [width], and of limits of motion
    [width - poses]: a quaternion moves by a rotation vector.

    ``hysteresis``: of channels that keep a value until the next, NaN of others. ``rest``: what a
    channel is commanded at rest, NaN where it stays as it is.
    """

    embodiment: str
    base_frame: str
    names: tuple[str, ...]
    units: tuple[str, ...]
    lower: np.ndarray
    upper: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    jump: np.ndarray
    hysteresis: np.ndarray
    rest: np.ndarray
    poses: tuple[PoseBlock, ...]

    @property
    def width(self) -> int:
        return len(self.names)

    @property
    def quaternions(self) -> tuple[int, ...]:
        """Where each begins."""
        return tuple(pose.command + 3 for pose in self.poses)

    def commands(self, rows: np.ndarray, poses: np.ndarray) -> np.ndarray:
        """Rows of a plan [n, model width, physical] as commands [n, width].

        ``poses`` [number of poses, 7]: at the observation.
        """
        parts, at = [], 0
        for block, pose in zip(self.poses, poses, strict=True):
            end = block.model + DELTA_WIDTH
            parts += [rows[:, at : block.model], compose(pose, rows[:, block.model : end])]
            at = end
        return np.concatenate([*parts, rows[:, at:]], axis=1)

    def model_rows(self, commands: np.ndarray, poses: np.ndarray) -> np.ndarray:
        """The inverse of ``commands``: rows [n, model width, physical]."""
        parts, at = [], 0
        for block, pose in zip(self.poses, poses, strict=True):
            end = block.command + POSE_WIDTH
            path = np.vstack([pose, commands[:, block.command : end]])
            parts += [commands[:, at : block.command], deltas_between(path)]
            at = end
        return np.concatenate([*parts, commands[:, at:]], axis=1)


def command_space(embodiment: Embodiment) -> CommandSpace:
    """An embodiment's. Raises EmbodimentError for one whose actions are no commands of a robot."""
    if embodiment.action_space not in (JOINT_POSITION, POSE_DELTA, BASE_VELOCITY):
        raise EmbodimentError(
            f"embodiment '{embodiment.name}' has action space '{embodiment.action_space}'; "
            f"expected {JOINT_POSITION}, {POSE_DELTA} or {BASE_VELOCITY} to command a robot"
        )
    channels, poses = _channels(embodiment)
    moving = [c for c in channels if not c.name.endswith("orientation_w")]
    grip = embodiment.gripper
    held = {grip.channel: grip.hysteresis} if grip else {}
    stops = embodiment.action_space == BASE_VELOCITY
    return CommandSpace(
        embodiment=embodiment.name,
        base_frame=embodiment.base_frame,
        names=tuple(c.name for c in channels),
        units=tuple(c.unit for c in channels),
        lower=np.array([c.lower for c in channels]),
        upper=np.array([c.upper for c in channels]),
        velocity=np.array([c.velocity for c in moving]),
        acceleration=np.array([c.acceleration for c in moving]),
        jump=np.array([c.jump for c in moving]),
        hysteresis=np.array([held.get(c.name, np.nan) for c in channels]),
        rest=np.array([0.0 if stops and c.name not in held else np.nan for c in channels]),
        poses=poses,
    )


def _channels(embodiment: Embodiment) -> tuple[list[Channel], tuple[PoseBlock, ...]]:
    """The channels of a command, and the poses among them."""
    given = embodiment.channels
    if embodiment.action_space != POSE_DELTA:
        return list(given), ()
    _require_six(embodiment)
    channels: list[Channel] = []
    poses, at = [], 0
    while at < len(given):
        channel = given[at]
        if not channel.name.endswith(_POSITION):
            channels.append(channel)
            at += 1
            continue
        prefix = channel.name.removesuffix(_POSITION)
        poses.append(PoseBlock(prefix, at, len(channels)))
        turn = given[at + 3]
        channels += given[at : at + 3]
        channels += [
            Channel(
                f"{prefix}orientation_{part}",
                "1",
                velocity=turn.velocity,
                acceleration=turn.acceleration,
                jump=turn.jump,
            )
            for part in _QUATERNION
        ]
        at += DELTA_WIDTH
    return channels, tuple(poses)


def _require_six(embodiment: Embodiment) -> None:
    """Raise EmbodimentError where a pose's rotation is not told in six numbers."""
    names = embodiment.channel_names
    for name in names:
        if name.endswith(_POSITION):
            prefix = name.removesuffix(_POSITION)
            missing = [f"{prefix}rotation_{i}" for i in range(1, 7)]
            missing = [rotation for rotation in missing if rotation not in names]
            if missing:
                raise EmbodimentError(
                    f"embodiment '{embodiment.name}': a pose delta without "
                    f"{', '.join(missing)}; expected a rotation of six numbers to compose it"
                )
