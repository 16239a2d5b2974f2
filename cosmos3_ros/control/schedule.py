"""What the arm should do at a time: a chunk as a line through its rows."""

from __future__ import annotations

import numpy as np

from cosmos3_ros.control.chunk import NS_PER_S, Chunk


class Schedule:
    """A chunk, taken over from a command.

    Linear between rows. Before the first row is due the line starts at the command that stood when
    the chunk took over, so the arm sets off at once and is not asked to jump. After the last row
    the line stays there.
    """

    def __init__(self, chunk: Chunk, start_ns: int, start: np.ndarray) -> None:
        """``start`` [width]: the command given at ``start_ns``."""
        self.end_ns = chunk.end_ns
        self._origin_ns = chunk.stamp_ns
        self._due_s = chunk.due_s
        self._rows = chunk.rows
        start_s = (start_ns - chunk.stamp_ns) / NS_PER_S
        if start_s < self._due_s[0]:
            self._due_s = np.concatenate(([start_s], self._due_s))
            self._rows = np.vstack((start, self._rows))

    def at(self, now_ns: int) -> np.ndarray:
        """Channel positions [width] at a time of the node's clock."""
        # Seconds after the stamp, not since the epoch: float64 keeps nanoseconds apart there.
        now_s = (now_ns - self._origin_ns) / NS_PER_S
        after = int(np.searchsorted(self._due_s, now_s, side="right"))
        if after == 0:
            return self._rows[0]
        if after == len(self._due_s):
            return self._rows[-1]
        before_s, after_s = self._due_s[after - 1], self._due_s[after]
        share = (now_s - before_s) / (after_s - before_s)
        return self._rows[after - 1] * (1.0 - share) + self._rows[after] * share
