"""What the arm should do at a time: a chunk as a line through its rows, and the way between two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cosmos3_ros.control.chunk import NS_PER_S, Chunk


@dataclass(frozen=True)
class Target:
    """Where a plan is at a time [width], and how fast it moves there [width, units a second]."""

    position: np.ndarray
    velocity: np.ndarray


class Path(Protocol):
    """Something to follow until ``end_ns``, where it stays."""

    end_ns: int

    def at(self, now_ns: int) -> Target:
        """The target at a time of the node's clock."""


class Schedule:
    """A chunk, taken over from a command.

    Linear between rows; a held channel, as a gripper's, has a row's value from the row before on.
    Before the first row is due the line starts at the command that stood when the chunk took over,
    so the arm sets off at once and is not asked to jump. After the last row the line stays there.
    """

    def __init__(self, chunk: Chunk, begin_ns: int, begin: np.ndarray, held: np.ndarray) -> None:
        """``begin`` [width]: the command at ``begin_ns``. ``held`` [width]: which channels."""
        self.end_ns = chunk.end_ns
        self._origin_ns = chunk.start_ns
        self._due_s = chunk.due_s
        self._rows = chunk.rows
        self._held = held
        begin_s = (begin_ns - chunk.start_ns) / NS_PER_S
        if begin_s < self._due_s[0]:
            self._due_s = np.concatenate(([begin_s], self._due_s))
            self._rows = np.vstack((begin, self._rows))

    def at(self, now_ns: int) -> Target:
        # Seconds after the start, not since the epoch: float64 keeps nanoseconds apart there.
        now_s = (now_ns - self._origin_ns) / NS_PER_S
        after = int(np.searchsorted(self._due_s, now_s, side="right"))
        if after in (0, len(self._due_s)):
            end = self._rows[max(after - 1, 0)]
            return Target(end, np.zeros_like(end))
        before_s, after_s = self._due_s[after - 1], self._due_s[after]
        before, row = self._rows[after - 1], self._rows[after]
        share = (now_s - before_s) / (after_s - before_s)
        return Target(
            np.where(self._held, row, before * (1.0 - share) + row * share),
            np.where(self._held, 0.0, (row - before) / (after_s - before_s)),
        )


class CrossFade:
    """From one path to another: all the one at ``begin_ns``, all the other ``blend_s`` later.

    A held channel changes over at once.
    """

    def __init__(
        self, old: Path, new: Path, begin_ns: int, blend_s: float, held: np.ndarray
    ) -> None:
        self.end_ns = new.end_ns
        self._old, self._new = old, new
        self._begin_ns, self._blend_s = begin_ns, blend_s
        self._held = held

    def at(self, now_ns: int) -> Target:
        new = self._new.at(now_ns)
        share = (now_ns - self._begin_ns) / NS_PER_S / self._blend_s
        if share >= 1.0:
            # Rows that ended are not worth keeping, nor what they replaced.
            self._old = self._new
            return new
        old = self._old.at(now_ns)
        apart = np.where(self._held, 0.0, new.position - old.position)
        slower = np.where(self._held, 0.0, new.velocity - old.velocity)
        return Target(
            new.position - (1.0 - share) * apart,
            new.velocity - (1.0 - share) * slower + apart / self._blend_s,
        )
