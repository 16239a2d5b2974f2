"""What one activation of the controller node knows, counts, and says of itself."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable

import numpy as np

from cosmos3_ros.control.chunk import Refusal
from cosmos3_ros.control.controller import Controller, State
from cosmos3_ros.control.loop import DeadlineLoop
from cosmos3_ros.control.statistics import Histogram
from cosmos3_ros.control.watchdog import Cause, Moment, Reason
from cosmos3_ros.msg import ActionChunk
from cosmos3_ros.nodes.measured import Measured

# The reason of a controller that follows a chunk.
FOLLOWING = "following"


def said(cause: Cause | None, plan_id: int) -> tuple[str, str]:
    """Reason and sentence of a status: of a hold its cause, else which plan is followed."""
    if cause is None:
        return FOLLOWING, f"plan {plan_id} is followed"
    return str(cause.reason), cause.text


class ControlRun:
    """``lock``: of the controller, which the loop's thread and the executor's share.

    ``wanted``: what the last command was on its way to. ``rests``: stopped, and come to rest.
    ``objection``: what the robot's description does not allow. ``clock_stands_since_ns``, steady:
    from when on the node's clock stands still while the robot comes to rest; None: it runs.
    """

    def __init__(
        self, controller: Controller, make_reader: Callable[[], Measured], loop: DeadlineLoop
    ) -> None:
        self.controller = controller
        self._make_reader, self.reader = make_reader, make_reader()
        self._jumps = 0  # of the clock, before the reader was made
        self._closedness = math.nan  # of the gripper, when it was
        self.loop = loop
        self.lock = threading.Lock()
        self.commands = self.failures = 0
        self.wanted: np.ndarray | None = None
        self.rests = False
        self.objection = ""
        self.clock_stands_since_ns: int | None = None
        self.frame_to_command = Histogram()
        self.rejected_chunks: Counter[Refusal] = Counter()
        self.rejected_joint_states = 0
        self._newest = (0, 0)

    def reader_at(self, stamp_ns: int, moment: Moment, gripper: int | None) -> Measured | None:
        """What takes a measurement of ``stamp_ns``; None for one of before the clock jumped.

        After a jump it is a new one: of before nothing counts. But many grippers, channel
        ``gripper``, report only when they move, and nothing depends on when. Under the lock.
        """
        predates = self.controller.predates_jump(stamp_ns, moment)
        if self.controller.clock.jumps != self._jumps:
            known = self.reader.channels
            if known is not None and gripper is not None:
                self._closedness = float(known[gripper])
            self._jumps, self.reader = self.controller.clock.jumps, self._make_reader()
            self.reader.read_gripper(self._closedness)
        return None if predates else self.reader

    @property
    def newest_plan_id(self) -> int:
        """That has come from the planner, followed or refused; 0: none."""
        planner, plan_id = self._newest
        return plan_id if planner == self.controller.planner else 0

    def hear(self, message: ActionChunk) -> None:
        """A chunk has come, and the controller has looked at it."""
        if message.planner == self.controller.planner:
            self._newest = (message.planner, message.plan_id)

    def state_and_cause(self, now_ns: int, width: int) -> tuple[State, str, str]:
        """State, reason and sentence; what ROS knows of a controller that waits, besides.

        ``now_ns``: of the node's clock. ``width``: how many channels are to be measured.
        """
        with self.lock:
            state, cause = self.controller.state, self.controller.cause
            plan_id = self.controller.plan_id
        reason, detail = said(cause, plan_id)
        if reason == Reason.NO_JOINTS:
            missing = self.reader.missing
            if now_ns == 0:
                detail = "no /clock has arrived (use_sim_time is set)"
            elif missing and len(missing) < width:
                detail = f"nothing has told of {', '.join(missing)}"
        return state, reason, detail

    def values(self) -> dict[str, object]:
        """Counts and durations for diagnostics, by name."""
        counts, loop = self.controller.counts, self.loop.statistics
        values: dict[str, object] = {
            "commands": self.commands,
            "transitions": counts.transitions,
            "holds": counts.holds,
            **{f"holds_{cause}": counts.causes[cause] for cause in Reason},
            "saturated": counts.saturated,
            "rejected_chunks": self.rejected_chunks.total(),
            **{f"rejected_{reason}": self.rejected_chunks[reason] for reason in Refusal},
            "rejected_joint_states": self.rejected_joint_states,
            "missing_joints": ", ".join(self.reader.missing),
            "failures": self.failures,
            "periods": loop.periods,
            "missed_periods": loop.missed,
            "early_commands": loop.early,
            "command_rate_hz": f"{loop.rate_hz:.3f}",
        }
        for name, measured in {
            "command_jitter": loop.jitter,
            "wake_up": loop.wake_up,
            "execution": loop.execution,
            # From a picture's stamp to the first command of its plan, without the engine's work.
            "frame_to_command": self.frame_to_command,
        }.items():
            values[f"{name}_p50_ms"] = f"{measured.percentile_ms(50):.3f}"
            values[f"{name}_p99_ms"] = f"{measured.percentile_ms(99):.3f}"
            values[f"{name}_max_ms"] = f"{measured.max_ms:.3f}"
        return values
