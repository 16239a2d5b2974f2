"""Simulated time beside the steady clock."""

from __future__ import annotations

import time
from collections.abc import Callable

# Up to this much is caught up by stepping without a pause; what is more is given up.
TOLERATED_LAG_S = 0.25


class Pace:
    """Says how long to wait so that ``real_time_factor`` simulated seconds pass in a second.

    Factor 0: never wait. ``slips`` and ``lost_s`` count what a slow machine could not catch up.
    """

    def __init__(
        self, real_time_factor: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._factor = real_time_factor
        self._clock = clock
        self._start = clock()
        self.slips = 0
        self.lost_s = 0.0

    def restart(self) -> None:
        """Simulated time begins anew, now."""
        self._start = self._clock()

    def wait_s(self, simulated_s: float) -> float:
        """Seconds until ``simulated_s`` after the start is due, not above 0 when it already is."""
        if self._factor == 0:
            return 0.0
        wait = self._start + simulated_s / self._factor - self._clock()
        if wait < -TOLERATED_LAG_S:
            self.slips += 1
            self.lost_s -= wait
            self._start -= wait
            return 0.0
        return wait
