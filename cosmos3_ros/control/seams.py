"""The seam between two plans: what it would be to go from one to the other without blending."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cosmos3_ros.control.chunk import NS_PER_S, Chunk
from cosmos3_ros.control.schedule import Schedule, Target
from cosmos3_ros.control.space import Space


@dataclass(frozen=True)
class Seam:
    """``position_s``: how far apart the plans are where one takes over, as the time [s] in which
    the channel that is farthest apart could travel it at its velocity limit. ``velocity``: the
    largest change of velocity from one command to the next, as a share of the velocity limit, of
    the channel that changes most: a gap counts as what it takes to cross it in one period."""

    position_s: float
    velocity: float


def seam(
    old: Chunk,
    new: Chunk,
    now_ns: int,
    period_ns: int,
    speed: np.ndarray,
    space: Space,
    held: np.ndarray,
) -> Seam:
    """Where ``new`` takes over from ``old`` at ``now_ns``, commanded once a ``period_ns``.

    A plan that begins with the rows of the one before it takes over without a gap; its seam is
    where they end, and the change there is between rows. ``speed`` [step_width]: velocity limits.
    ``held`` [width]: channels that keep a row's value, which do not count.
    """
    moving = ~space.of_step(held)

    def at(chunk: Chunk, when_ns: int) -> Target:
        return Schedule(chunk, chunk.start_ns, chunk.rows[0], space, held).at(when_ns)

    # Before its first row is due a plan says nothing of where the robot should be.
    taken_ns = max(now_ns, new.due_ns(0))
    was, will = at(old, taken_ns), at(new, taken_ns)
    gap = space.difference(will.position, was.position)
    # Across the gap in a period, and from there on as the new plan goes.
    across = gap / (period_ns / NS_PER_S)
    changes = [across, will.velocity - was.velocity - across]
    first_free, last = new.committed_rows, len(new.rows) - 1
    if first_free and new.due_ns(first_free - 1) > taken_ns:
        for row in (first_free - 1, first_free):
            if row < last:
                before, after = at(new, new.due_ns(row) - 1), at(new, new.due_ns(row) + 1)
                changes.append(after.velocity - before.velocity)
    change = np.max(np.abs(changes), axis=0)
    return Seam(
        float(np.max((np.abs(gap) / speed)[moving])), float(np.max((change / speed)[moving]))
    )
