"""What a channel may do, whatever a plan asks for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Below this a difference is rounding, not a limit that was met (channel units).
ROUNDING = 1e-9


@dataclass(frozen=True)
class Limits:
    """Limits of each channel, [width]: positions in channel units, ``velocity`` in units a second.

    Infinite where there is none. Raises ValueError where they leave nothing to command.
    """

    lower: np.ndarray
    upper: np.ndarray
    velocity: np.ndarray

    def __post_init__(self) -> None:
        if not (np.all(self.lower < self.upper) and np.all(self.velocity > 0)):
            raise ValueError(
                f"limits are lower {self.lower}, upper {self.upper}, velocity {self.velocity}; "
                "expected lower < upper and velocity > 0 in every channel"
            )

    def clamp(self, positions: np.ndarray) -> np.ndarray:
        """The nearest positions [width] inside the position limits."""
        return np.clip(positions, self.lower, self.upper)

    def step(
        self, target: np.ndarray, previous: np.ndarray, dt_s: float
    ) -> tuple[np.ndarray, bool]:
        """The command nearest to ``target`` that the limits allow ``dt_s`` after ``previous``.

        ``previous`` lies inside the position limits. Also says whether a limit was met.
        """
        # An unlimited channel is unlimited in no time too: inf * 0 would be NaN.
        limited = np.isfinite(self.velocity)
        reach = np.full_like(self.velocity, np.inf)
        np.multiply(self.velocity, dt_s, out=reach, where=limited)
        # Clamped last: towards ``previous``, so the step only gets shorter by it.
        command = self.clamp(np.clip(target, previous - reach, previous + reach))
        return command, bool(np.any(np.abs(command - target) > ROUNDING))
