"""The nodes' clock of a recorded run, where messages were logged by another one."""

from __future__ import annotations

import numpy as np

from cosmos3_ros.replay.bags import Bag


class NodeClock:
    """Stamps and times of arrival as seconds from the run's start, by the joint states."""

    def __init__(self, bag: Bag, joint_topics: list[str]) -> None:
        pairs = np.array([(m.log_ns, m.stamp_ns) for m in bag.messages(joint_topics)])
        if not len(pairs):
            pairs = np.array([(bag.start_ns, bag.start_ns), (bag.end_ns, bag.end_ns)])
        self._logs, self._stamps = pairs[:, 0], np.maximum.accumulate(pairs[:, 1])
        self.start_ns, self.end_ns = int(self._stamps[0]), int(self._stamps[-1])
        self.end_s = max(self.seconds(self.end_ns), 0.1)

    def seconds(self, stamp_ns: int) -> float:
        return (stamp_ns - self.start_ns) / 1e9

    def arrived(self, log_ns: np.ndarray) -> np.ndarray:
        """Seconds at which messages arrived, for those that carry no stamp [n]."""
        # Relative to the first: nanoseconds of today do not fit a float.
        logs = (log_ns - self._logs[0]).astype(float)
        known = (self._logs - self._logs[0]).astype(float)
        return np.interp(logs, known, (self._stamps - self.start_ns) / 1e9)
