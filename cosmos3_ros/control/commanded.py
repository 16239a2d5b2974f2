"""Where the arm was told to be a moment ago: what is measured then is compared with that."""

from __future__ import annotations

from collections import deque

import numpy as np

from cosmos3_ros.control.chunk import NS_PER_S


class Commanded:
    """Commands [width] by their times [ns], for ``kept_s`` at most.

    Times asked for do not go back: what stood before the last of them is dropped.
    """

    def __init__(self, kept_s: float) -> None:
        self._kept_ns = round(kept_s * NS_PER_S)
        self._told: deque[tuple[int, np.ndarray]] = deque()

    def add(self, now_ns: int, position: np.ndarray) -> None:
        self._told.append((now_ns, position))
        self._drop_before(now_ns - self._kept_ns)

    def at(self, now_ns: int) -> np.ndarray | None:
        """The command that stood at a time, else the oldest that is kept; None without any."""
        self._drop_before(now_ns)
        return self._told[0][1] if self._told else None

    @property
    def has_changed(self) -> bool:
        """Whether the command is another than at the time that was asked for last."""
        return bool(self._told) and not np.array_equal(self._told[0][1], self._told[-1][1])

    def forget(self) -> None:
        self._told.clear()

    def _drop_before(self, now_ns: int) -> None:
        while len(self._told) > 1 and self._told[1][0] <= now_ns:
            self._told.popleft()
