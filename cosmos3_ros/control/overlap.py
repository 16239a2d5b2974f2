"""Planning while the arm moves: when a plan may begin, and what the arm does until it is there.

A plan takes ``delay``: from the stamp of what it is made of to its arrival. By then the arm has
done what the plan before it said. Three strategies:

- sync: the arm finishes a chunk and rests, then the next is planned, and starts when it is there;
- blend: plan on, and let the controller fade from one chunk to the next;
- prefix: plan on, and tell the planner the rows that will be executed before its plan arrives
  (Black, Galliker and Levine 2025, "Real-Time Execution of Action Chunking Flow Policies").

A chunk of H rows is executed for ``delay`` before the next one takes over, which is ``delay`` old
by then: where 2 * delay is more than H, rows run out. Then this degrades to sync.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from cosmos3_ros.control.chunk import NS_PER_S, Chunk
from cosmos3_ros.control.schedule import Schedule
from cosmos3_ros.control.space import Space

# Plans whose delay counts, and which of them: one in twenty is slower.
_REMEMBERED, _PERCENTILE = 40, 95


class Strategy(StrEnum):
    SYNC = "sync"
    BLEND = "blend"
    PREFIX = "prefix"


@dataclass(frozen=True)
class Committed:
    """``rows`` [n, width] of the next plan that are executed before it arrives, and the rows
    ``continuation`` [m, width] that the present plan has for the time after them."""

    rows: np.ndarray
    continuation: np.ndarray


def rows_of(committed: Committed | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Committed rows and their continuation; None and None without."""
    return (None, None) if committed is None else (committed.rows, committed.continuation)


class Overlap:
    """What one planner knows of its own plans. Not thread-safe.

    ``chunk`` rows of a plan at ``rate_hz``; ``held`` [width]: channels that keep a row's value.
    """

    def __init__(
        self, strategy: Strategy, chunk: int, rate_hz: float, space: Space, held: np.ndarray
    ) -> None:
        self._strategy = strategy
        self._chunk, self._rate_hz = chunk, rate_hz
        self._space, self._held = space, held
        self._delays_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._last: Chunk | None = None
        self._path: Schedule | None = None

    @property
    def delay_s(self) -> float:
        """The 95th percentile of recent plans; 0 before the first."""
        delays = self._delays_s
        return float(np.percentile(delays, _PERCENTILE)) if delays else 0.0

    @property
    def strategy(self) -> Strategy:
        """The one in force."""
        return Strategy.SYNC if self.degraded else self._strategy

    @property
    def degraded(self) -> str:
        """Why the strategy that was asked for cannot be followed; empty when it can."""
        horizon_s = self._chunk / self._rate_hz
        if self._strategy is Strategy.SYNC or 2 * self.delay_s <= horizon_s:
            return ""
        return (
            f"plans take {self.delay_s:.2f} s, a chunk lasts {horizon_s:.2f} s: expected at most "
            f"half of it to {self._strategy}; the arm waits for each plan (sync)"
        )

    def may_begin(self, stamp_ns: int) -> bool:
        """Whether to plan from what was seen at ``stamp_ns``: in sync, not before the arm rests."""
        waits = self.strategy is Strategy.SYNC and self._last is not None
        return not waits or stamp_ns >= self._end_ns

    def committed(self, stamp_ns: int) -> Committed | None:
        """What a plan from ``stamp_ns`` is told of the plan before it.

        None where there is none, or the strategy does not tell the planner.
        """
        if self._path is None or self.strategy is not Strategy.PREFIX:
            return None
        count = min(math.ceil(self.delay_s * self._rate_hz), self._chunk - 1)
        period_ns = round(NS_PER_S / self._rate_hz)
        due_ns = [stamp_ns + (i + 1) * period_ns for i in range(self._chunk)]
        known = sum(due <= self._end_ns for due in due_ns)
        rows = np.array([self._path.at(due).position for due in due_ns])
        # A held row stands until it is due: its value is the one before that, not the next.
        standing = np.array([self._path.at(due - period_ns // 2).position for due in due_ns])
        rows = np.where(self._held, standing, rows)
        return Committed(rows[:count], rows[count:known]) if count else None

    def state_on_arrival(self, stamp_ns: int) -> np.ndarray | None:
        """Where the arm is commanded to be when a plan from ``stamp_ns`` arrives [width]."""
        if self._path is None or self.strategy is Strategy.SYNC:
            return None
        return self._path.at(stamp_ns + round(self.delay_s * NS_PER_S)).position

    def arrived(self, stamp_ns: int, now_ns: int) -> int:
        """A plan from ``stamp_ns`` is there: when it starts. Its delay counts, used or not.

        It starts at its observation; where the arm has stood still since, now.
        """
        now_ns = max(now_ns, stamp_ns)  # a stamp may be a little ahead of the clock
        self._delays_s.append((now_ns - stamp_ns) / NS_PER_S)
        return now_ns if self._last is None or stamp_ns >= self._end_ns else stamp_ns

    def published(self, chunk: Chunk) -> None:
        """A chunk was sent to the controller."""
        self._last = chunk
        self._path = Schedule(chunk, chunk.start_ns, chunk.rows[0], self._space, self._held)

    def rests(self, plan_id: int) -> None:
        """The controller holds; ``plan_id``: the chunk it followed last."""
        if self._last is not None and plan_id >= self._last.plan_id:
            self.forget()

    def forget(self) -> None:
        """The chunk that was sent last is not followed any more."""
        self._last = self._path = None

    @property
    def _end_ns(self) -> int:
        assert self._last is not None
        return self._last.end_ns
