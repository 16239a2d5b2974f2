"""Whether what is measured may be the robot: no robot leaps."""

from __future__ import annotations

import numpy as np

from cosmos3_ros.control.limits import Limits

# What a robot does between two measurements is allowed for so long at least.
_MEASURED_S = 0.05


def leaps(
    limits: Limits, before: np.ndarray | None, after: np.ndarray, passed_s: float
) -> np.ndarray:
    """In which parts of a step [step_width] a robot cannot have moved from ``before`` [width] to
    ``after`` in this time; in none from nowhere."""
    if before is None:
        return np.zeros(limits.space.step_width, bool)
    apart = np.abs(limits.space.difference(after, before))
    far: np.ndarray = apart > limits.velocity * max(passed_s, _MEASURED_S)
    return far


class Belief:
    """Lost by a leap; won back where the robot is found near its command, or within reach of where
    it was believed to be. ``holds``: what is measured may be the robot."""

    def __init__(self, limits: Limits, follows: np.ndarray) -> None:
        """``follows`` [width]: channels that are measured where they are commanded."""
        self._limits, self._parts = limits, limits.space.of_step(follows)
        # Believed last, and before that: of a robot that tells its joints by halves, one of them
        # is still as it was before the other half came.
        self._last: np.ndarray | None = None
        self._before: np.ndarray | None = None
        self._between_s = 0.0
        self.holds = True

    def measure(self, position: np.ndarray, passed_s: float, *, near: bool) -> None:
        """``passed_s``: since the last measurement. ``near``: it is near its command."""
        from_last = self._is_leap(self._last, position, passed_s)
        # While it is not believed, no more time passes for what was.
        from_before = self._is_leap(self._before, position, passed_s + self._between_s)
        self.holds = near or not (from_last and from_before)
        if self.holds:
            self._before, self._last, self._between_s = self._last, position, passed_s

    def _is_leap(self, since: np.ndarray | None, position: np.ndarray, passed_s: float) -> bool:
        if since is None:
            return self._last is not None  # there is nothing before the first
        return bool(np.any(leaps(self._limits, since, position, passed_s) & self._parts))
