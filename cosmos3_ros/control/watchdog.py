"""What has to be alive and fresh for the arm to be moved: pure functions of ages and timeouts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cosmos3_ros.control.chunk import NS_PER_S


class Reason(StrEnum):
    """Why the arm is held, or nothing is commanded."""

    NO_JOINTS = "no_joints"
    OUTSIDE_LIMITS = "outside_limits"
    NO_CHUNK = "no_chunk"
    CLOCK_JUMPED = "clock_jumped"
    JOINTS_STALE = "joints_stale"
    PLANNER_SILENT = "planner_silent"
    CHUNK_STALE = "chunk_stale"
    OBSERVATION_STALE = "observation_stale"
    CHUNK_ENDED = "chunk_ended"
    NOT_FOLLOWING = "not_following"  # the robot is not where it was told to be
    OVERRUN = "overrun"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Cause:
    """A reason, and the sentence that says what was found."""

    reason: Reason
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Moment:
    """One instant on both clocks [ns]: the node's, which stamps are of, and a steady one."""

    now_ns: int
    steady_ns: int


@dataclass(frozen=True)
class Timeouts:
    """All in seconds: of the node's clock where an age is of stamps, else of a steady one.

    ``joint_s``: age of the joint states. ``planner_s``: since the planner last gave a sign of life,
    a status or a chunk. ``chunk_s``: since a chunk was accepted. ``observation_s``: age of what a
    chunk was planned from, when it comes, and while it is in force; then counted from its start,
    for where that is after the observation the arm stood still until it came, or it was planned
    for where the arm would be. ``grace_s``: past the chunk's last row. ``overrun_s``: between two
    ticks. ``clock_jump_s``: the node's clock leapt forward of the steady one by more.
    """

    joint_s: float = 0.25
    planner_s: float = 2.5
    chunk_s: float = 3.0
    observation_s: float = 3.0
    grace_s: float = 0.1
    overrun_s: float = 0.1
    clock_jump_s: float = 1.0


@dataclass(frozen=True)
class Signs:
    """When what was last seen [ns]. Of the node's clock: ``measured``, ``observed`` (what the
    chunk in force is of), ``end`` (its last row). Steady: ``planner``, ``accepted``, ``ticked``.

    None where there is none yet, of ``planner`` also where it has said that it ends.
    """

    measured_ns: int | None
    observed_ns: int
    end_ns: int
    planner_ns: int | None
    accepted_ns: int
    ticked_ns: int | None


def cause_to_hold(signs: Signs, timeouts: Timeouts, moment: Moment) -> Cause | None:
    """The first watchdog that says hold while a chunk is in force; None: track it."""
    if signs.measured_ns is None:
        return Cause(Reason.JOINTS_STALE, "no joint states since the clock jumped")
    steady, now = moment.steady_ns, moment.now_ns
    watched = (
        (Reason.OVERRUN, steady, signs.ticked_ns or steady, timeouts.overrun_s,
         "the control loop paused for more than"),
        (Reason.JOINTS_STALE, now, signs.measured_ns, timeouts.joint_s,
         "joint states are older than"),
        (Reason.PLANNER_SILENT, steady, signs.planner_ns, timeouts.planner_s,
         "the planner was not heard for more than"),
        (Reason.CHUNK_STALE, steady, signs.accepted_ns, timeouts.chunk_s,
         "no chunk was accepted for more than"),
        (Reason.OBSERVATION_STALE, now, signs.observed_ns, timeouts.observation_s,
         "the chunk was planned from what is older than"),
    )  # fmt: skip
    for reason, clock_ns, seen_ns, timeout_s, what in watched:
        if seen_ns is None:
            return Cause(reason, "no planner is alive")
        if clock_ns - seen_ns > timeout_s * NS_PER_S:
            return Cause(reason, f"{what} {timeout_s:g} s")
    if now - signs.end_ns > timeouts.grace_s * NS_PER_S:
        return Cause(Reason.CHUNK_ENDED, "the chunk has ended")
    return None
