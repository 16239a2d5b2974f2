"""A plan as the controller sees it, and why one is refused."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

NS_PER_S = 1_000_000_000
# Rates of rows that make sense of a plan; outside them due times lose their meaning.
MIN_RATE_HZ = 0.01
MAX_RATE_HZ = 10_000.0


class Refusal(StrEnum):
    """Why a chunk is refused, always as a whole."""

    MALFORMED = "malformed"  # the numbers do not make a chunk: shape, rate
    WRONG_EMBODIMENT = "wrong_embodiment"
    WRONG_INSTRUCTION = "wrong_instruction"  # planned by another one than is in force
    WRONG_WIDTH = "wrong_width"
    WRONG_NAMES = "wrong_names"
    WRONG_UNITS = "wrong_units"
    NOT_FINITE = "not_finite"
    OUT_OF_RANGE = "out_of_range"  # outside the position limits by more than the tolerance
    JUMP = "jump"  # begins too far from what is commanded
    NO_JOINTS = "no_joints"  # nothing is known of where the robot is
    STALE = "stale"  # every row was due before it arrived, or its observation is too old
    FUTURE = "future"  # planned from an observation that the clock has not reached
    OUT_OF_ORDER = "out_of_order"
    DUPLICATE = "duplicate"
    ANOTHER_PLANNER = "another_planner"  # while the one that is followed is alive


class ChunkRefused(ValueError):
    """A chunk the controller does not execute; ``reason`` is what is counted."""

    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True)
class Chunk:
    """One plan: ``rows`` [rows, width] of channel positions in the embodiment's physical units.

    ``stamp_ns``: time of the observation. Row i is due at ``start_ns + (i + 1) / rate_hz``, on the
    same clock; ``start_ns`` is the stamp, or later where the arm stood still until the plan came.
    ``planner``: one number an activation of a policy node. ``instruction``: what it was made of.
    ``committed_rows``: so many leading rows are those of the chunk before.
    ``latency_s``: how long planning took. ``engine_s``: how much of the time since the stamp the
    engine worked, on this plan and on the one before.
    Raises ChunkRefused (malformed, not_finite). The rows are made read-only.
    """

    plan_id: int
    stamp_ns: int
    rate_hz: float
    rows: np.ndarray
    start_ns: int
    planner: int = 0
    instruction: str = ""
    committed_rows: int = 0
    latency_s: float = 0.0
    engine_s: float = 0.0

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or 0 in self.rows.shape:
            raise ChunkRefused(
                Refusal.MALFORMED, f"rows have shape {self.rows.shape}; expected [rows, width]"
            )
        if not MIN_RATE_HZ <= self.rate_hz <= MAX_RATE_HZ:
            raise ChunkRefused(
                Refusal.MALFORMED,
                f"rate is {self.rate_hz} Hz; expected {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g}",
            )
        if self.start_ns < self.stamp_ns:
            raise ChunkRefused(
                Refusal.MALFORMED,
                f"it starts {(self.stamp_ns - self.start_ns) / NS_PER_S:.3f} s before its "
                "observation; expected at it, or later",
            )
        bad = np.argwhere(~np.isfinite(self.rows))
        if len(bad):
            row, channel = bad[0]
            raise ChunkRefused(
                Refusal.NOT_FINITE,
                f"{len(bad)} values are not finite, the first in row {row}, channel {channel}",
            )
        self.rows.setflags(write=False)

    @property
    def due_s(self) -> np.ndarray:
        """When each row is due [s after the start], [rows]."""
        return np.arange(1, len(self.rows) + 1) / self.rate_hz

    def due_ns(self, row: int) -> int:
        return self.start_ns + round((row + 1) * NS_PER_S / self.rate_hz)

    @property
    def end_ns(self) -> int:
        """When the last row is due."""
        return self.due_ns(len(self.rows) - 1)
