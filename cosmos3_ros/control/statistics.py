"""How regularly commands leave: percentiles over a whole run, in constant memory and time."""

from __future__ import annotations

import math

import numpy as np

BIN_MS = 0.01
BINS = 20_000  # up to 200 ms; beyond it only the maximum is known
NS_PER_MS = 1_000_000


class IntervalStatistics:
    """Jitter |interval - period| of events on a steady clock.

    A histogram in steps of 0.01 ms: a percentile is the upper edge of its bin, the maximum exact.
    """

    def __init__(self, period_s: float) -> None:
        self._period_ms = period_s * 1e3
        self._counts = np.zeros(BINS + 1, np.int64)
        self._max_ms = math.nan
        self._first_ns = 0
        self._last_ns = 0
        self.events = 0

    def add(self, steady_ns: int) -> None:
        """An event now."""
        if self.events:
            interval_ms = (steady_ns - self._last_ns) / NS_PER_MS
            jitter_ms = abs(interval_ms - self._period_ms)
            self._counts[min(int(jitter_ms / BIN_MS), BINS)] += 1
            self._max_ms = jitter_ms if math.isnan(self._max_ms) else max(jitter_ms, self._max_ms)
        else:
            self._first_ns = steady_ns
        self._last_ns = steady_ns
        self.events += 1

    @property
    def rate_hz(self) -> float:
        """Events a second from the first to the last; NaN before the second."""
        if self.events < 2:
            return math.nan
        return (self.events - 1) * 1e9 / (self._last_ns - self._first_ns)

    @property
    def max_ms(self) -> float:
        """The largest jitter [ms]; NaN before the second event."""
        return self._max_ms

    def percentile_ms(self, percent: float) -> float:
        """Jitter that ``percent`` of the intervals do not exceed [ms]; NaN before the second."""
        if self.events < 2:
            return math.nan
        rank = math.ceil((self.events - 1) * percent / 100)
        index = int(np.searchsorted(np.cumsum(self._counts), rank))
        return self._max_ms if index >= BINS else min((index + 1) * BIN_MS, self._max_ms)
