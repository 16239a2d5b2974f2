"""The node's clock, which may be set or begin anew, beside a steady one: has it jumped?"""

from __future__ import annotations

from cosmos3_ros.control.chunk import NS_PER_S
from cosmos3_ros.control.watchdog import Moment

# A node may see a simulator's clock so much later than what was stamped by it.
_LAG_S = 0.1


class Clock:
    """A jump is any step back, and one forward of the steady clock by more than ``jump_s``.

    ``jumps``: how many were noticed. ``set_back_ns``: by how much a simulator's clock went back at
    the last; None where that was another jump, or there was none.
    """

    def __init__(self, jump_s: float, *, simulated: bool) -> None:
        """``simulated``: it runs at a pace of its own, and the robot with it."""
        self.simulated = simulated
        self._jump_ns = jump_s * NS_PER_S
        self._shown: Moment | None = None  # the latest
        self.jumps = 0
        self.set_back_ns: int | None = None

    def show(self, moment: Moment) -> int | None:
        """Take what both clocks show; returns by how much [ns] it jumped since the last call."""
        before, self._shown = self._shown, moment
        if before is None or not self.jumped(before, moment):
            return None
        leap_ns = moment.now_ns - before.now_ns
        self.jumps += 1
        self.set_back_ns = -leap_ns if self.simulated and leap_ns < 0 else None
        return leap_ns

    def jumped(self, before: Moment, after: Moment) -> bool:
        """Whether it did in between."""
        passed_ns = after.now_ns - before.now_ns
        return passed_ns < 0 or passed_ns - (after.steady_ns - before.steady_ns) > self._jump_ns

    @property
    def most_ahead_ns(self) -> float:
        """How far ahead of it a stamp may be. What a simulator sent before its clock went back is
        ahead by as much as that."""
        if self.set_back_ns is None:
            return self._jump_ns
        return min(self._jump_ns, max(self.set_back_ns / 2, _LAG_S * NS_PER_S))

    def is_far_from(self, stamp_ns: int, now_ns: int) -> bool:
        """Whether a stamp is farther from it, behind or ahead, than it is from a jump to another:
        of what arrives after a jump, this was sent before."""
        return now_ns - stamp_ns > self._jump_ns or stamp_ns - now_ns > self.most_ahead_ns

    def passed_s(self, before: Moment, after: Moment) -> float:
        """The time for which a robot may have moved. In real time it moves by the steady clock, and
        the node's may be set while it runs: what is within the limits by both is within them."""
        steady_s = (after.steady_ns - before.steady_ns) / NS_PER_S
        if self.jumped(before, after):
            return steady_s
        passed_s = (after.now_ns - before.now_ns) / NS_PER_S
        return passed_s if self.simulated else min(passed_s, steady_s)
