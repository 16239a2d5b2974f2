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
    WRONG_WIDTH = "wrong_width"
    WRONG_NAMES = "wrong_names"
    WRONG_UNITS = "wrong_units"
    NOT_FINITE = "not_finite"
    STALE = "stale"  # every row was due before it arrived
    FUTURE = "future"  # planned from an observation that the clock has not reached
    OUT_OF_ORDER = "out_of_order"


class ChunkRefused(ValueError):
    """A chunk the controller does not execute; ``reason`` is what is counted."""

    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True)
class Chunk:
    """One plan: ``rows`` [rows, width] of channel positions in the embodiment's physical units.

    Row i is due at ``stamp_ns + (i + 1) / rate_hz``, on the clock of the observation's stamp.
    Raises ChunkRefused (malformed, not_finite). The rows are made read-only.
    """

    plan_id: int
    stamp_ns: int
    rate_hz: float
    rows: np.ndarray

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
        """When each row is due [s after the stamp], [rows]."""
        return np.arange(1, len(self.rows) + 1) / self.rate_hz

    def due_ns(self, row: int) -> int:
        return self.stamp_ns + round((row + 1) * NS_PER_S / self.rate_hz)

    @property
    def end_ns(self) -> int:
        """When the last row is due."""
        return self.due_ns(len(self.rows) - 1)
