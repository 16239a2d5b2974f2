"""What a channel may do, whatever a plan asks for: position, velocity and acceleration.

Every command is reached from the one before it by a velocity that the acceleration limit allows and
from which the arm can still come to rest inside the position limits. That holds for any sequence
of steps, however long each takes: what is left to the limit is never less than v² / 2a. From
outside the position limits every step leads back inside, as fast as the other two allow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cosmos3_ros.control.space import Space

# Below this a difference is rounding, not a limit that was met (channel units).
ROUNDING = 1e-9
# In less time than this nothing moves [s]: a distance divided by it is no velocity any more.
SHORTEST_STEP_S = 1e-6


@dataclass(frozen=True)
class Motion:
    """A command and how fast it moves: ``position`` [width], ``velocity`` [step_width, a second].

    Of channels that are velocities themselves, position is the velocity and velocity its change.
    """

    position: np.ndarray
    velocity: np.ndarray


@dataclass(frozen=True)
class Limits:
    """Limits of each channel: ``lower`` and ``upper`` positions [width] in channel units, and of
    each part of a step in ``space`` ``velocity`` [step_width] in units/s and ``acceleration`` in
    units/s².

    Infinite where there is none, as of quaternions' positions. Raises ValueError where they leave
    nothing to command.
    """

    space: Space
    lower: np.ndarray
    upper: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray

    def __post_init__(self) -> None:
        if not (
            np.all(self.lower < self.upper)
            and np.all(self.velocity > 0)
            and np.all(self.acceleration > 0)
        ):
            raise ValueError(
                f"limits are lower {self.lower}, upper {self.upper}, velocity {self.velocity}, "
                f"acceleration {self.acceleration}; expected lower < upper, velocity > 0 and "
                "acceleration > 0 in every channel"
            )

    @property
    def braking_s(self) -> float:
        """How long the slowest channel takes to come to rest; 0 where none has limits."""
        with np.errstate(invalid="ignore"):  # neither has a limit: it rests at once
            times = self.velocity / self.acceleration
        return float(np.max(times[np.isfinite(times)], initial=0.0))

    def clamp(self, positions: np.ndarray) -> np.ndarray:
        """The nearest positions [width] inside the position limits."""
        return np.clip(positions, self.lower, self.upper)

    def at_rest(self, position: np.ndarray) -> Motion:
        """A command [width] that does not move."""
        return Motion(position, np.zeros(self.space.step_width))

    def step(
        self, target: np.ndarray, target_velocity: np.ndarray, motion: Motion, dt_s: float
    ) -> Motion:
        """The motion ``dt_s`` after ``motion`` that is nearest to a target [width] that moves.

        ``motion`` came from here or is at rest inside the limits. A target that was left behind is
        caught up with as fast as the limits allow, and not overshot.
        """
        behind = self.space.difference(target, motion.position) - target_velocity * dt_s
        catch_up = np.sign(behind) * self._fastest_towards(np.abs(behind), dt_s)
        return self._move(target_velocity + catch_up, motion, dt_s)

    def brake(self, motion: Motion, dt_s: float) -> Motion:
        """The motion ``dt_s`` later of one that comes to rest as soon as the limits allow."""
        return self._move(np.zeros_like(motion.velocity), motion, dt_s)

    def _move(self, wanted: np.ndarray, motion: Motion, dt_s: float) -> Motion:
        """Take the velocity nearest to ``wanted`` that the limits allow: outside the position
        limits, one back inside."""
        if dt_s < SHORTEST_STEP_S:
            return motion
        change = self.acceleration * dt_s
        above, below = self.upper - motion.position, motion.position - self.lower
        up, down = (
            np.sign(left) * self._fastest_towards(np.abs(left), dt_s)
            for left in (self.space.of_step(above), self.space.of_step(below))
        )
        fastest = np.minimum(motion.velocity + change, self.velocity)
        highest = np.minimum(fastest, up)
        lowest = np.maximum(np.maximum(motion.velocity - change, -self.velocity), -down)
        lowest = np.minimum(lowest, fastest)
        velocity = np.clip(wanted, lowest, np.maximum(lowest, highest))
        lowest_now = np.minimum(self.lower, motion.position)
        highest_now = np.maximum(self.upper, motion.position)
        position = self.space.add(motion.position, velocity * dt_s)
        return Motion(np.clip(position, lowest_now, highest_now), velocity)

    def _fastest_towards(self, distance: np.ndarray, dt_s: float) -> np.ndarray:
        """The largest velocity to take for ``dt_s`` and still come to rest within ``distance``.

        The positive root of v dt + v² / 2a = distance, in a form that holds for an infinite a.
        """
        if dt_s < SHORTEST_STEP_S:
            return np.zeros_like(distance)
        finite = np.isfinite(distance)
        near = np.where(finite, distance, 0.0)
        root = dt_s + np.sqrt(dt_s * dt_s + 2 * near / self.acceleration)
        return np.where(finite, 2 * near / root, np.inf)
