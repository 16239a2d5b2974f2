"""Predicted frames, decoded beside the planning: decoding costs more than a plan."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from cosmos3_ros.nodes.planner import StampedPlan
from cosmos3_ros.nodes.worker import Worker
from cosmos3_ros.policy.plan import Policy


class FramePainter(Worker):
    """Decodes the newest plan on a thread of its own, at a limited rate.

    ``publish`` is called there with each plan and its frames, uint8 RGB [n, H, W, 3]; ``fail``
    with what ended the painting, should it fail: plans go on without it.
    """

    def __init__(
        self,
        policy: Policy,
        rate_hz: float,
        publish: Callable[[StampedPlan, np.ndarray], None],
        fail: Callable[[str], None],
    ) -> None:
        """``rate_hz``: at most so many frames a second; 0: none."""
        super().__init__("frames")
        self._policy, self._publish, self._fail = policy, publish, fail
        self._rate_hz = rate_hz
        self._offered: StampedPlan | None = None
        self.painted = 0

    def offer(self, stamped: StampedPlan) -> None:
        """A plan to decode, unless a newer one comes first."""
        if self._rate_hz > 0:
            with self.changed:
                self._offered = stamped
                self.changed.notify_all()

    def work(self) -> None:
        try:
            while (stamped := self._next()) is not None:
                started = time.monotonic()
                self._publish(stamped, self._policy.predict_frames(stamped.plan))
                self.painted += 1
                self.rest_until(started + 1 / self._rate_hz)
        except Exception as error:
            self._fail(f"no more predicted frames: {type(error).__name__}: {error}")

    def _next(self) -> StampedPlan | None:
        with self.changed:
            while not self.stopping and self._offered is None:
                self.changed.wait()
            stamped, self._offered = self._offered, None
            return None if self.stopping else stamped
