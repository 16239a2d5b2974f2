"""How plans follow each other in a recorded run, and how fast the arm was told to move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cosmos3_ros.control.chunk import NS_PER_S, Chunk
from cosmos3_ros.control.controller import MAX_STEP_S
from cosmos3_ros.control.schedule import Schedule, Target
from cosmos3_ros.control.space import Space
from cosmos3_ros.policy.embodiment import Embodiment, EmbodimentError, load_embodiment
from cosmos3_ros.replay.bags import Bag

ACTION_CHUNK = "cosmos3_ros/msg/ActionChunk"
JOINT_STATE = "sensor_msgs/msg/JointState"


@dataclass(frozen=True)
class Spread:
    p50: float | None
    p90: float | None
    max: float | None


@dataclass(frozen=True)
class Seams:
    """Where one plan took over from another, ``count`` times, before anything was blended.

    ``position_s``: how far apart the two were, as the time [s] in which the channel that is
    farthest apart could travel it at its velocity limit. ``velocity``: the change of velocity, as a
    share of the velocity limit, of the channel that changed most. ``command_velocity`` and
    ``command_acceleration``: the largest that was commanded, as shares of the limits; None where
    the commands carry no stamps, or the embodiment has no such limit.
    """

    count: int
    position_s: Spread
    velocity: Spread
    command_velocity: float | None
    command_acceleration: float | None


NOTHING = Spread(None, None, None)


def seams_of(bag: Bag, command_topics: Sequence[str]) -> Seams:
    """The seams of an open bag. Nothing where it holds no chunk of an embodiment that is known."""
    messages = list(bag.messages(bag.typed(ACTION_CHUNK)))
    robot = _robot_of(messages[0].decoded().embodiment) if messages else None
    if robot is None:
        return Seams(0, NOTHING, NOTHING, None, None)
    commands = [message for message in bag.messages(command_topics) if message.type == JOINT_STATE]
    logged = np.array([command.log_ns for command in commands])
    apart_s, faster = [], []
    before: Chunk | None = None
    for message in messages:
        chunk = _chunk_of(message.decoded())
        first = int(np.searchsorted(logged, message.log_ns))
        if before is not None and first < len(commands):
            now_ns = commands[first].stamp_ns
            if before.stamp_ns < chunk.stamp_ns <= now_ns:
                # Before its first row is due a plan says nothing of where the arm should be.
                seam_ns = max(now_ns, chunk.due_ns(0))
                old, new = (_target(c, robot, seam_ns) for c in (before, chunk))
                moving = np.isnan(robot.hysteresis)
                jump = np.abs(new.position - old.position) / robot.velocity
                change = np.abs(new.velocity - old.velocity) / robot.velocity
                apart_s.append(float(np.max(jump[moving])))
                faster.append(float(np.max(change[moving])))
        before = chunk
    velocity, acceleration = _commanded(commands, robot)
    return Seams(len(apart_s), _spread(apart_s), _spread(faster), velocity, acceleration)


def _commanded(commands: Sequence[Any], robot: Embodiment) -> tuple[float | None, float | None]:
    """Largest velocity and acceleration of an arm joint, as shares of its limits."""
    count = len(robot.joints)
    if len(commands) < 3:
        return None, None
    positions = np.array([command.decoded().position[:count] for command in commands])
    stamps_s = np.array([command.stamp_ns for command in commands], np.int64) / NS_PER_S
    passed_s = np.diff(stamps_s)
    # After a pause the arm sets off from rest, and of another run of the clock nothing is known.
    steady = (passed_s > 1e-4) & (passed_s <= MAX_STEP_S)
    velocity = np.diff(positions, axis=0) / np.where(steady, passed_s, 1.0)[:, None]
    change = np.diff(velocity, axis=0) / np.where(steady[1:], passed_s[1:], 1.0)[:, None]
    fastest = np.abs(velocity[steady]) / robot.velocity[:count]
    hardest = np.abs(change[steady[1:] & steady[:-1]]) / robot.acceleration[:count]
    return _largest(fastest), _largest(hardest)


def _largest(shares: np.ndarray) -> float | None:
    return round(float(shares.max()), 4) if shares.size and np.isfinite(shares).all() else None


def _target(chunk: Chunk, robot: Embodiment, now_ns: int) -> Target:
    held = ~np.isnan(robot.hysteresis)
    return Schedule(chunk, chunk.start_ns, chunk.rows[0], Space(robot.width), held).at(now_ns)


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
    )


def _spread(values: list[float]) -> Spread:
    if not values:
        return NOTHING
    p50, p90 = np.percentile(values, (50, 90))
    return Spread(round(float(p50), 4), round(float(p90), 4), round(max(values), 4))
