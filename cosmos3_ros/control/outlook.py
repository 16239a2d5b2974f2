"""From one command to the next, and all that are to come if nothing else does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cosmos3_ros.control.admission import Following
from cosmos3_ros.control.chunk import NS_PER_S
from cosmos3_ros.control.limits import ROUNDING, Limits, Motion
from cosmos3_ros.control.schedule import Path

# A chunk, and what an arm needs to come to rest after it.
_LONGEST_S = 10.0
_STEP_S = 0.02


@dataclass(frozen=True)
class Steps:
    """What commands of a robot follow one another, within its limits."""

    limits: Limits
    following: Following

    def towards_rest(self, motion: Motion, dt_s: float) -> Motion:
        """Braking, and those channels that have a rest on their way there."""
        limits, rest = self.limits, self.following.rest
        braking = limits.brake(motion, dt_s)
        returns = ~np.isnan(rest)
        if not returns.any():
            return braking
        target = np.where(returns, rest, motion.position)
        returning = limits.step(target, np.zeros_like(motion.velocity), motion, dt_s)
        return Motion(
            np.where(returns, returning.position, braking.position),
            np.where(limits.space.of_step(returns), returning.velocity, braking.velocity),
        )

    def where_held(self, kept: np.ndarray | None, wanted: np.ndarray) -> np.ndarray:
        """A held channel stays at its last target, ``kept``, until another is farther than its
        hysteresis. So near an end of its range it means that end: it would stop short for good."""
        hysteresis = self.following.hysteresis
        for end in (self.limits.lower, self.limits.upper):
            wanted = np.where(np.abs(wanted - end) <= hysteresis, end, wanted)
        kept = wanted if kept is None else kept
        near = np.abs(wanted - kept) <= hysteresis
        return np.where(near, kept, wanted)


@dataclass(frozen=True)
class Outlook:
    """What a controller goes on from at ``now_ns``: its last command, and the path it tracks, None
    while it holds. ``kept``: its last target. Nothing in it changes: any thread may ask it."""

    steps: Steps
    now_ns: int
    motion: Motion
    path: Path | None
    kept: np.ndarray | None

    def commands(self, period_s: float) -> np.ndarray:
        """Commands to come [n, width], one a period, until the arm rests; at least one.

        What ``Controller.tick`` would say if nothing else came: to the end of the chunk while
        tracking, else to where it brakes.
        """
        ticks = max(1, round(_LONGEST_S / period_s))
        return np.array([motion.position for motion in self._to_come(period_s, ticks)])

    def after(self, passed_s: float) -> Motion:
        """The motion so much later; at rest where nothing is to come any more by then."""
        passed_s = min(passed_s, _LONGEST_S)
        ticks = math.ceil(passed_s / _STEP_S)
        *_, last = self.motion, *self._to_come(passed_s / max(ticks, 1), ticks)
        return last

    def _to_come(self, period_s: float, ticks: int) -> Iterator[Motion]:
        motion, path, kept = self.motion, self.path, self.kept
        period_ns = round(period_s * NS_PER_S)
        end_ns = self.now_ns if path is None else path.end_ns
        for tick in range(1, ticks + 1):
            now_ns = self.now_ns + tick * period_ns
            if path is None:
                motion = self.steps.towards_rest(motion, period_s)
            else:
                target = path.at(now_ns)
                kept = self.steps.where_held(kept, target.position)
                motion = self.steps.limits.step(kept, target.velocity, motion, period_s)
            yield motion
            if now_ns >= end_ns and not np.any(np.abs(motion.velocity) > ROUNDING):
                return
