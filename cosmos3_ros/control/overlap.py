"""Planning while the arm moves: when a plan may begin, and what the arm does until it is there.

A plan takes ``delay``: from the stamp of what it is made of to its arrival. By then the arm has
done what the plan before it said. Three strategies:

- sync: the arm finishes a chunk and rests, then the next is planned, and starts when it is there;
- blend: plan on, and let the controller fade from one chunk to the next;
- prefix: plan on, and tell the planner the rows that will be executed before its plan arrives
  (Black, Galliker and Levine 2025, "Real-Time Execution of Action Chunking Flow Policies").

A chunk of H rows is ``delay`` old when it takes over, and is executed for the horizon, ``delay`` or
the planner's period if that is longer, until the next one does: where delay + horizon is more than
H, rows run out. Then this degrades to sync.
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
# Chunks that were sent and may still be followed.
_KEPT = 16


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


@dataclass(frozen=True)
class Arrival:
    """Where the arm is commanded to be, ``state`` [width], when a plan arrives at ``at_ns``."""

    state: np.ndarray
    at_ns: int


@dataclass(frozen=True)
class Heard:
    """What a controller has said last of this planner's chunks, by their plan ids.

    ``tracked``: the one it follows, 0: none. ``newest``: the newest that has reached it, whether
    followed or refused. ``obeys``: it will follow one that comes.
    """

    tracked: int = 0
    newest: int = 0
    obeys: bool = True


@dataclass(frozen=True)
class Sent:
    """A chunk that was sent to the controller, and the line through its rows."""

    chunk: Chunk
    path: Schedule


class Overlap:
    """What one planner knows of its own plans. Not thread-safe.

    ``chunk`` rows of a plan at ``rate_hz``; ``held`` [width]: channels that keep a row's value.
    ``period_s``: plans begin at least so long after one another.
    """

    def __init__(
        self,
        strategy: Strategy,
        chunk: int,
        rate_hz: float,
        space: Space,
        held: np.ndarray,
        period_s: float = 0.0,
    ) -> None:
        self._strategy = strategy
        self._chunk, self._rate_hz = chunk, rate_hz
        self._space, self._held = space, held
        self._period_s = period_s
        self._delays_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._age_s = 0.0  # so much later than in sync may a plan be, by its picture's age
        self._sent: dict[int, Sent] = {}
        self._newest = 0  # plan id of what may be on its way, 0: none
        self._began: Chunk | None = None  # what moved the arm when the plan under way was begun
        self._controller = Heard()

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
        chunk_s, delay_s = self._chunk / self._rate_hz, self.delay_s + self._age_s
        horizon_s = max(delay_s, self._period_s)
        if self._strategy is Strategy.SYNC or delay_s + horizon_s <= chunk_s:
            return ""
        aged = f" with a picture {self._age_s:.2f} s old" if self._age_s else ""
        return (
            f"plans take {delay_s:.2f} s{aged}, the next comes {horizon_s:.2f} s after, a chunk "
            f"lasts {chunk_s:.2f} s: expected at least both to {self._strategy}; the arm waits for "
            "each plan (sync)"
        )

    def may_begin(self, stamp_ns: int) -> bool:
        """Whether to plan from what was seen at ``stamp_ns``: in sync, not before the arm rests."""
        return self.strategy is not Strategy.SYNC or self._moved_by(stamp_ns) is None

    def begin(self, stamp_ns: int) -> None:
        """A plan is begun from what was seen at ``stamp_ns``, the next to arrive."""
        moving = self._moved_by(stamp_ns)
        self._began = None if moving is None else moving.chunk

    def committed(self, stamp_ns: int) -> Committed | None:
        """What a plan from ``stamp_ns`` is told of the plan before it.

        None where the arm rests, or the strategy does not tell the planner.
        """
        moving = self._moved_by(stamp_ns)
        if moving is None or self.strategy is not Strategy.PREFIX:
            return None
        count = min(math.ceil(self.delay_s * self._rate_hz), self._chunk - 1)
        period_ns = round(NS_PER_S / self._rate_hz)
        due_ns = [stamp_ns + (i + 1) * period_ns for i in range(self._chunk)]
        known = sum(due <= moving.chunk.end_ns for due in due_ns)
        rows = np.array([moving.path.at(due).position for due in due_ns])
        # A held row stands until it is due: its value is the one before that, not the next.
        standing = np.array([moving.path.at(due - period_ns // 2).position for due in due_ns])
        rows = np.where(self._held, standing, rows)
        return Committed(rows[:count], rows[count:known]) if count else None

    def arrival(self, stamp_ns: int) -> Arrival | None:
        """When a plan from ``stamp_ns`` is there, and where the arm is then (Tang et al. 2025,
        "VLASH"): a plan from that state starts then. None where the arm rests until it is there."""
        moving = self._moved_by(stamp_ns)
        if moving is None or self.strategy is Strategy.SYNC:
            return None
        at_ns = stamp_ns + round(self.delay_s * NS_PER_S)
        return Arrival(moving.path.at(at_ns).position, at_ns)

    def arrived(self, stamp_ns: int, now_ns: int) -> int:
        """A plan from ``stamp_ns`` is there: when it starts. Its delay counts, used or not.

        It starts at its observation; where the arm has stood still since, now; and where the chunk
        that moved it ended in between, as long before now as it still moved: else the arm would go
        back to where it was seen.
        """
        # In sync pictures are fresh, otherwise as old as they come, about a row: without that the
        # strategy would go to and fro.
        self._age_s = 1 / self._rate_hz if self.strategy is Strategy.SYNC else 0.0
        now_ns = max(now_ns, stamp_ns)  # a stamp may be a little ahead of the clock
        self._delays_s.append((now_ns - stamp_ns) / NS_PER_S)
        if self._moved_by(stamp_ns) is not None:
            return stamp_ns
        if self._began is None or self._began.end_ns > now_ns:
            return now_ns
        return now_ns - max(self._began.end_ns - stamp_ns, 0)

    def published(self, chunk: Chunk) -> None:
        """A chunk was sent to the controller."""
        path = Schedule(chunk, chunk.start_ns, chunk.rows[0], self._space, self._held)
        self._sent[chunk.plan_id] = Sent(chunk, path)
        # What is sent to a controller that takes none moves nothing.
        if self._controller.obeys:
            self._newest = chunk.plan_id
        for old in [plan_id for plan_id in self._sent if plan_id <= chunk.plan_id - _KEPT]:
            del self._sent[old]

    def hear(self, heard: Heard) -> None:
        """The controller has said what it follows."""
        self._controller = heard

    def forget(self) -> None:
        """No chunk that was sent is followed any more."""
        self._sent.clear()
        self._began = None

    def _moved_by(self, stamp_ns: int) -> Sent | None:
        """What moves the arm from ``stamp_ns`` on: the newest chunk if it is on its way, else what
        the controller follows. None where the arm rests."""
        said = self._controller
        on_its_way = self._newest > said.newest and said.obeys
        sent = self._sent.get(self._newest if on_its_way else said.tracked)
        return None if sent is None or stamp_ns >= sent.chunk.end_ns else sent
