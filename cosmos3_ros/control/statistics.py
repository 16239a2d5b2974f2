"""How regularly a control loop runs: distributions of a whole run, in constant memory and time."""

from __future__ import annotations

import math

import numpy as np

BIN_MS = 0.01
BINS = 20_000  # up to 200 ms; beyond it only the maximum is known
NS_PER_MS = 1_000_000


class Histogram:
    """Durations in steps of 0.01 ms: a percentile is the upper edge of its bin, the maximum exact.

    ``count`` is how many; percentile and maximum are NaN before the first [ms].
    """

    def __init__(self) -> None:
        self._counts = np.zeros(BINS + 1, np.int64)
        self.count = 0
        self.max_ms = math.nan

    def add(self, duration_ns: int) -> None:
        duration_ms = duration_ns / NS_PER_MS
        self._counts[min(int(duration_ms / BIN_MS), BINS)] += 1
        self.max_ms = duration_ms if self.count == 0 else max(duration_ms, self.max_ms)
        self.count += 1

    def percentile_ms(self, percent: float) -> float:
        """What ``percent`` of the durations do not exceed."""
        if self.count == 0:
            return math.nan
        rank = math.ceil(self.count * percent / 100)
        index = int(np.searchsorted(np.cumsum(self._counts), max(rank, 1)))
        return self.max_ms if index >= BINS else min((index + 1) * BIN_MS, self.max_ms)


class LoopStatistics:
    """Of a loop that is due every ``period_ns`` on a steady clock.

    ``jitter``: |interval - period| between wake-ups. ``wake_up``: from the first deadline after the
    last run to the wake-up. ``execution``: from there to the end of the work. ``missed``: periods
    in which it did not run. ``early``: runs before their deadline, which are no period's.
    """

    def __init__(self, period_ns: int) -> None:
        self._period_ns = period_ns
        self.jitter, self.wake_up, self.execution = Histogram(), Histogram(), Histogram()
        self.periods = self.missed = self.early = 0
        self._first_ns = self._last_ns = 0

    def add(self, due_ns: int, woken_ns: int, done_ns: int, missed: int) -> None:
        """One run of the loop, and how many periods had passed without one before it."""
        if self.periods:
            self.jitter.add(abs(woken_ns - self._last_ns - self._period_ns))
        else:
            self._first_ns = woken_ns
        self._last_ns = woken_ns
        self.wake_up.add(max(woken_ns - due_ns, 0))
        self.execution.add(done_ns - woken_ns)
        self.periods += 1
        self.missed += missed

    def add_early(self, woken_ns: int, done_ns: int) -> None:
        """One more run, between two deadlines."""
        self.execution.add(done_ns - woken_ns)
        self.early += 1

    @property
    def rate_hz(self) -> float:
        """Periods' runs a second from the first to the last; NaN before the second."""
        if self.periods < 2:
            return math.nan
        return (self.periods - 1) * 1e9 / (self._last_ns - self._first_ns)
