"""What the arm should do at a time: a chunk as a line through its rows, and the way between two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cosmos3_ros.control.chunk import NS_PER_S, Chunk
from cosmos3_ros.control.space import Space


@dataclass(frozen=True)
class Target:
    """Where a plan is at a time [width], and how fast it moves there [step_width, a second]."""

    position: np.ndarray
    velocity: np.ndarray


class Path(Protocol):
    """Something to follow until ``end_ns``, where it stays."""

    end_ns: int

    def at(self, now_ns: int) -> Target:
        """The target at a time of the node's clock."""

    def settled(self, now_ns: int) -> Path:
        """The same from a time on, without what is over by then."""


class Schedule:
    """A chunk, taken over from a command.

    Straight between rows, and turning evenly; a held channel, as a gripper's, has a row's value
    from the row before on. Before the first row is due the line starts at the command that stood
    when the chunk took over, so the arm sets off at once and is not asked to jump. After the last
    row the line stays there.
    """

    def __init__(
        self, chunk: Chunk, begin_ns: int, begin: np.ndarray, space: Space, held: np.ndarray
    ) -> None:
        """``begin`` [width]: the command at ``begin_ns``. ``held`` [width]: which channels."""
        self.end_ns = chunk.end_ns
        self._origin_ns = chunk.start_ns
        self._due_s = chunk.due_s
        self._rows = chunk.rows
        self._space, self._held = space, held
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
            return Target(end, np.zeros(self._space.step_width))
        before_s, after_s = self._due_s[after - 1], self._due_s[after]
        before, row = self._rows[after - 1], self._rows[after]
        share = (now_s - before_s) / (after_s - before_s)
        step = self._space.difference(row, before)
        moving = self._space.add(before, share * step)
        standing = self._space.of_step(self._held)
        return Target(
            np.where(self._held, row, moving),
            np.where(standing, 0.0, step / (after_s - before_s)),
        )

    def settled(self, now_ns: int) -> Path:
        return self


class CrossFade:
    """From one path to another: all the one at ``begin_ns``, all the other ``blend_s`` later.

    A held channel changes over at once.
    """

    def __init__(
        self,
        old: Path,
        new: Path,
        begin_ns: int,
        blend_s: float,
        space: Space,
        held: np.ndarray,
    ) -> None:
        self.end_ns = new.end_ns
        self._old, self._new = old, new
        self._begin_ns, self._blend_s = begin_ns, blend_s
        self._space, self._held = space, held

    def at(self, now_ns: int) -> Target:
        new = self._new.at(now_ns)
        share = (now_ns - self._begin_ns) / NS_PER_S / self._blend_s
        if share >= 1.0:
            return new
        old = self._old.at(now_ns)
        standing = self._space.of_step(self._held)
        apart = np.where(standing, 0.0, self._space.difference(new.position, old.position))
        faster = np.where(standing, 0.0, new.velocity - old.velocity)
        return Target(
            self._space.add(new.position, (share - 1.0) * apart),
            new.velocity + (share - 1.0) * faster + apart / self._blend_s,
        )

    def settled(self, now_ns: int) -> Path:
        if (now_ns - self._begin_ns) / NS_PER_S >= self._blend_s:
            return self._new.settled(now_ns)
        old = self._old.settled(now_ns)
        if old is self._old:
            return self
        # A new one: others may be looking at this.
        return CrossFade(old, self._new, self._begin_ns, self._blend_s, self._space, self._held)
