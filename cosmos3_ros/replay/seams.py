"""How plans follow each other in a recorded run, and how fast the arm was told to move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cosmos3_ros.control.chunk import NS_PER_S, Chunk
from cosmos3_ros.control.controller import MAX_STEP_S
from cosmos3_ros.control.seams import seam
from cosmos3_ros.control.space import Space
from cosmos3_ros.policy.commands import CommandSpace, command_space
from cosmos3_ros.policy.embodiment import Embodiment, EmbodimentError, load_embodiment
from cosmos3_ros.replay.bags import Bag, Message

ACTION_CHUNK = "cosmos3_ros/msg/ActionChunk"
CONTROLLER_STATUS = "cosmos3_ros/msg/ControllerStatus"
JOINT_STATE = "sensor_msgs/msg/JointState"
POSE, TWIST = "geometry_msgs/msg/PoseStamped", "geometry_msgs/msg/TwistStamped"
_TRACKING = 2  # ControllerStatus.STATE_TRACKING


@dataclass(frozen=True)
class Spread:
    p50: float | None
    p90: float | None
    max: float | None


@dataclass(frozen=True)
class Seams:
    """Where one plan took over from another, ``count`` times, as it would be without blending.

    ``position_s`` and ``velocity``: as ``cosmos3_ros.control.seams.Seam``, at the recorded rate.
    ``command_position``: the farthest that was commanded, 1 at a limit; ``command_velocity`` and
    ``command_acceleration``: the largest, as shares of the limits. None where the commands carry no
    stamps, or the embodiment has no such limit.
    """

    count: int
    position_s: Spread
    velocity: Spread
    command_position: float | None
    command_velocity: float | None
    command_acceleration: float | None


@dataclass(frozen=True)
class Commanded:
    """Commands of one topic: ``positions`` [n, width] at ``stamps_ns`` [n], in a space of their
    own with its limits; ``reach`` [n, channels]: where each is between its limits, -1 to 1."""

    stamps_ns: np.ndarray
    positions: np.ndarray
    space: Space
    velocity: np.ndarray
    acceleration: np.ndarray
    reach: np.ndarray

    @property
    def passed_s(self) -> np.ndarray:
        """Between commands [n - 1]: of whole nanoseconds, for seconds since 1970 are coarse."""
        return np.diff(self.stamps_ns) / NS_PER_S


NOTHING = Spread(None, None, None)


def seams_of(bag: Bag, command_topics: Sequence[str], robot: Embodiment | None = None) -> Seams:
    """The seams of an open bag. Nothing where it holds no chunk of an embodiment that is known.

    ``robot``: None: the one that ships under the name in the chunks.
    """
    chunks = list(bag.messages(bag.typed(ACTION_CHUNK)))
    if robot is None and chunks:
        robot = _robot_of(chunks[0].decoded().embodiment)
    if robot is None or not chunks:
        return Seams(0, NOTHING, NOTHING, None, None, None)
    target = command_space(robot)
    space = Space(target.width, target.quaternions)
    held = ~np.isnan(target.hysteresis)
    stamped = [m for m in bag.messages(command_topics) if m.type in (JOINT_STATE, POSE, TWIST)]
    logged = np.array([command.log_ns for command in stamped])
    stamps_ns = [command.stamp_ns for command in stamped]
    # Commands of two arms carry the same stamps, and a clock that restarts goes back.
    passed_ns = np.diff(np.array(stamps_ns, np.int64))
    passed_ns = passed_ns[passed_ns > 0]
    period_ns = int(np.median(passed_ns)) if len(passed_ns) else 0
    refused, seams = _not_followed(bag), []
    before: Chunk | None = None
    for message in chunks:
        chunk = _chunk_of(message.decoded())
        if chunk.plan_id in refused:
            continue
        first = int(np.searchsorted(logged, message.log_ns))
        if before is not None and first < len(stamped) and period_ns:
            now_ns = stamps_ns[first]
            if before.stamp_ns < chunk.stamp_ns <= now_ns:
                seams.append(seam(before, chunk, now_ns, period_ns, target.velocity, space, held))
        before = chunk
    commands = list(_commands(stamped, robot, target))
    return Seams(
        len(seams),
        _spread([found.position_s for found in seams]),
        _spread([found.velocity for found in seams]),
        _largest(np.concatenate([np.abs(c.reach).ravel() for c in commands] or [np.zeros(0)])),
        _largest(np.concatenate([_velocity(c) for c in commands] or [np.zeros(0)])),
        _largest(np.concatenate([_acceleration(c) for c in commands] or [np.zeros(0)])),
    )


def _not_followed(bag: Bag) -> set[int]:
    """Chunks that have come to the controller while it went on with another one."""
    statuses = (message.decoded() for message in bag.messages(bag.typed(CONTROLLER_STATUS)))
    return {
        int(status.newest_plan_id)
        for status in statuses
        if status.state == _TRACKING and status.newest_plan_id > status.plan_id
    }


def _commands(
    stamped: Sequence[Message], robot: Embodiment, target: CommandSpace
) -> Iterator[Commanded]:
    """What was commanded, topic by topic; a gripper is left out, which is told open or closed."""
    for topic in sorted({message.topic for message in stamped}):
        messages = [message for message in stamped if message.topic == topic]
        if len(messages) < 3:
            continue
        kind, said = messages[0].type, [message.decoded() for message in messages]
        if kind == JOINT_STATE:
            channels = list(range(len(robot.joints)))
            positions = np.array([message.position[: len(channels)] for message in said])
        elif kind == TWIST:
            channels = list(range(target.width))
            positions = np.array([_twist(message, target.names) for message in said])
        else:
            prefix = topic.rpartition("/")[2].removesuffix("pose_command")
            blocks = [block for block in target.poses if block.prefix == prefix]
            if not blocks:
                continue
            channels = list(range(blocks[0].command, blocks[0].command + 7))
            positions = np.array([_pose(message) for message in said])
        quaternions = tuple(
            channels.index(first) for first in target.quaternions if first in channels
        )
        space, whole = Space(len(channels), quaternions), Space(target.width, target.quaternions)
        parts = whole.of_step(np.arange(target.width))
        kept = np.isin(parts, channels)
        lower, upper = target.lower[channels], target.upper[channels]
        limited = np.isfinite(lower) & np.isfinite(upper)
        lower, upper = lower[limited], upper[limited]
        middle, half = (lower + upper) / 2, (upper - lower) / 2
        yield Commanded(
            np.array([message.stamp_ns for message in messages], np.int64),
            positions,
            space,
            target.velocity[kept],
            target.acceleration[kept],
            (positions[:, limited] - middle) / half,
        )


def _twist(message: Any, names: Sequence[str]) -> list[float]:
    return [getattr(getattr(message.twist, n[:-2]), n[-1]) for n in names]


def _pose(message: Any) -> list[float]:
    at, turn = message.pose.position, message.pose.orientation
    return [at.x, at.y, at.z, turn.x, turn.y, turn.z, turn.w]


def _velocity(told: Commanded) -> np.ndarray:
    """Shares of the velocity limits, of every pair of commands."""
    velocity, steady = _moved(told)
    return np.abs(velocity[steady] / told.velocity).ravel()


def _acceleration(told: Commanded) -> np.ndarray:
    """Shares of the acceleration limits, of every three commands."""
    velocity, steady = _moved(told)
    passed_s = np.where(steady, told.passed_s, 1.0)
    change = np.diff(velocity, axis=0) / passed_s[1:, None]
    return np.abs(change[steady[1:] & steady[:-1]] / told.acceleration).ravel()


def _moved(told: Commanded) -> tuple[np.ndarray, np.ndarray]:
    """Velocities between commands, and of which they can be told: after a pause the robot sets off
    from rest, and of another run of the clock nothing is known."""
    passed_s = told.passed_s
    steady = (passed_s > 1e-4) & (passed_s <= MAX_STEP_S)
    step = told.space.difference(told.positions[1:], told.positions[:-1])
    return step / np.where(steady, passed_s, 1.0)[:, None], steady


def _largest(shares: np.ndarray) -> float | None:
    return round(float(shares.max()), 4) if shares.size and np.isfinite(shares).all() else None


def _robot_of(name: str) -> Embodiment | None:
    try:
        return load_embodiment(name)
    except EmbodimentError:
        return None


def _chunk_of(message: Any) -> Chunk:
    stamp, start = message.header.stamp, message.start
    return Chunk(
        plan_id=int(message.plan_id),
        stamp_ns=stamp.sec * NS_PER_S + stamp.nanosec,
        rate_hz=message.rate_hz,
        rows=np.array(message.data, np.float64).reshape(message.rows, message.width),
        start_ns=start.sec * NS_PER_S + start.nanosec,
        committed_rows=int(message.committed_rows),
    )


def _spread(values: list[float]) -> Spread:
    if not values:
        return NOTHING
    p50, p90 = np.percentile(values, (50, 90))
    return Spread(round(float(p50), 4), round(float(p90), 4), round(max(values), 4))
