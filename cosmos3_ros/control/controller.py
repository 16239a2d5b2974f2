"""From plans and measurements to one command at a time: track, or hold.

No ROS and no clock of its own: every call says what the node's clock shows. For any sequence of
calls every command is finite and inside the limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from cosmos3_ros.control.chunk import NS_PER_S, Chunk, ChunkRefused, Refusal
from cosmos3_ros.control.limits import Limits
from cosmos3_ros.control.schedule import Schedule

# The longest time one step of a velocity limit may stand for: after a stall of the process the
# arm resumes at its limited speed, it does not catch up in one leap.
MAX_STEP_S = 0.1


class State(StrEnum):
    WAITING = "waiting"  # nothing can be commanded: no measurement yet
    TRACKING = "tracking"
    HOLDING = "holding"


@dataclass(frozen=True)
class Timeouts:
    """All in seconds of the node's clock."""

    joint_timeout_s: float  # joint states older than this: hold
    hold_grace_s: float  # past the last row, before it counts as a hold
    clock_jump_s: float  # the clock leapt forward by more than this: flush and hold


@dataclass(frozen=True)
class Command:
    """``positions`` [width] in channel units, to be published now."""

    positions: np.ndarray
    state: State


class Controller:
    """What the arm is told at each tick of a control timer.

    ``state`` and ``reason`` (empty while tracking) say what it does; ``holds`` counts the times
    tracking ended in a hold, ``saturated`` the commands that a limit changed.
    """

    def __init__(self, limits: Limits, timeouts: Timeouts) -> None:
        self._limits = limits
        self._timeouts = timeouts
        self.state = State.WAITING
        self.reason = "no joint states have arrived"
        self.holds = 0
        self.saturated = 0
        self._clock_ns: int | None = None  # the latest time shown by any call
        self._tick_ns: int | None = None  # when the last command was given
        self._command: np.ndarray | None = None  # the last command, or what is held instead
        self._measured: np.ndarray | None = None
        self._measured_ns: int | None = None  # None: older than a jump of the clock
        self._pending: Chunk | None = None  # accepted, taken over at the next tick
        self._schedule: Schedule | None = None
        self._newest_plan_id = 0
        self._newest_stamp_ns = 0
        self._flush_reason = ""

    def measure(self, positions: np.ndarray, stamp_ns: int, now_ns: int) -> None:
        """Take measured channel positions [width] of ``stamp_ns``.

        Ignored: what is not finite, and what was measured before a jump of the clock.
        """
        if not np.all(np.isfinite(positions)):
            return
        self._watch_clock(now_ns)
        moved_unseen = self._measured_ns is None
        ahead_ns = stamp_ns - now_ns
        if moved_unseen and self._flush_reason and self._is_jump(ahead_ns):
            # Sent before the clock jumped back, arrived after it: the arm may be elsewhere now.
            return
        self._measured = self._limits.clamp(positions)
        # A stamp ahead of the clock would keep a dead source alive for longer than the timeout.
        self._measured_ns = min(stamp_ns, now_ns)
        if moved_unseen:
            # A simulator that restarted has put the arm elsewhere: hold it there.
            self._command = self._measured

    def accept(self, chunk: Chunk, now_ns: int) -> None:
        """Let a chunk replace the present one from the next tick on.

        Raises ChunkRefused (wrong_width, out_of_order, stale, future); the present one continues.
        """
        self._watch_clock(now_ns)
        width = len(self._limits.lower)
        if chunk.rows.shape[1] != width:
            raise ChunkRefused(
                Refusal.WRONG_WIDTH, f"{chunk.rows.shape[1]} channels; expected {width}"
            )
        if chunk.plan_id == 1 and chunk.stamp_ns > self._newest_stamp_ns:
            # The planner restarted. Remembered even when this first plan is refused below,
            # or every plan after it would be out of order.
            self._newest_plan_id = 0
        if chunk.plan_id <= self._newest_plan_id:
            raise ChunkRefused(
                Refusal.OUT_OF_ORDER,
                f"plan {chunk.plan_id} came after plan {self._newest_plan_id}; "
                "expected ids that count up, from one planner",
            )
        if chunk.end_ns < now_ns:
            raise ChunkRefused(
                Refusal.STALE,
                f"its last row was due {_seconds(now_ns - chunk.end_ns)} s ago; expected a plan "
                "that is faster than its horizon, and clocks that agree",
            )
        ahead_ns = chunk.stamp_ns - now_ns
        if ahead_ns > self._timeouts.clock_jump_s * NS_PER_S:
            raise ChunkRefused(
                Refusal.FUTURE,
                f"its stamp is {_seconds(ahead_ns)} s ahead of the clock; expected clocks that "
                "agree, and use_sim_time alike in all nodes",
            )
        self._newest_plan_id = chunk.plan_id
        self._newest_stamp_ns = chunk.stamp_ns
        self._pending = chunk

    def tick(self, now_ns: int) -> Command | None:
        """The command for now; None while WAITING."""
        self._watch_clock(now_ns)
        if self._measured is None:
            return None
        if self._command is None:
            self._command = self._measured
        previous_ns = now_ns if self._tick_ns is None else self._tick_ns
        if self._pending is not None:
            # From the last command at its own time, so that a moving arm does not pause.
            self._schedule = Schedule(self._pending, previous_ns, self._command)
            self._pending = None
        self._tick_ns = now_ns
        self._enter(self._reason_to_hold(now_ns))
        if self._schedule is not None and self.state is State.TRACKING:
            dt_s = min((now_ns - previous_ns) / NS_PER_S, MAX_STEP_S)
            target = self._schedule.at(now_ns)
            self._command, limited = self._limits.step(target, self._command, dt_s)
            self.saturated += limited
        return Command(self._command, self.state)

    def _reason_to_hold(self, now_ns: int) -> str:
        """Empty when there is none."""
        timeouts = self._timeouts
        if self._schedule is None:
            return self._flush_reason or "no chunk has arrived"
        if self._measured_ns is None:
            return "no joint states since the clock jumped"
        if now_ns - self._measured_ns > timeouts.joint_timeout_s * NS_PER_S:
            return f"joint states are older than {timeouts.joint_timeout_s} s"
        if now_ns > self._schedule.end_ns + timeouts.hold_grace_s * NS_PER_S:
            return "the chunk has ended"
        return ""

    def _enter(self, reason_to_hold: str) -> None:
        state = State.HOLDING if reason_to_hold else State.TRACKING
        if self.state is State.TRACKING and state is State.HOLDING:
            self.holds += 1
        self.state, self.reason = state, reason_to_hold

    def _is_jump(self, forward_ns: int) -> bool:
        return forward_ns > self._timeouts.clock_jump_s * NS_PER_S

    def _watch_clock(self, now_ns: int) -> None:
        """Notice a jump of the clock before anything is done with its time."""
        before_ns, self._clock_ns = self._clock_ns, now_ns
        if before_ns is None:
            return
        leap_ns = now_ns - before_ns
        if leap_ns >= 0 and not self._is_jump(leap_ns):
            return
        # Times of before say nothing any more; the last measurement is the best guess of where
        # the arm is, and to be told where it is asks it to do nothing.
        self._flush_reason = f"the clock jumped by {_seconds(leap_ns)} s"
        self._schedule = self._pending = None
        self._newest_plan_id = self._newest_stamp_ns = 0
        self._tick_ns = None
        self._measured_ns = None
        self._command = self._measured


def _seconds(duration_ns: int) -> str:
    return f"{duration_ns / NS_PER_S:.3f}"
