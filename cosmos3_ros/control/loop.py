"""A loop on a thread of its own, woken by deadlines of a steady clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cosmos3_ros.control.realtime import Scheduling
from cosmos3_ros.control.statistics import LoopStatistics


class DeadlineLoop:
    """Calls ``work`` every period, at deadlines that do not drift with how long work takes.

    A period that passes before the thread wakes, or while work takes too long, is missed: counted,
    and not made up for. What ``work`` raises goes to ``failed``, and the loop goes on: falling
    silent is not stopping.
    """

    def __init__(
        self,
        period_s: float,
        work: Callable[[], None],
        failed: Callable[[Exception], None],
        scheduling: Scheduling,
        warn: Callable[[str], None],
    ) -> None:
        """``warn``: told, on the loop's thread, what of ``scheduling`` the system refuses."""
        self._period_ns = round(period_s * 1e9)
        self._work, self._failed = work, failed
        self._scheduling, self._warn = scheduling, warn
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self.statistics = LoopStatistics(self._period_ns)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let the work under way end; there is none after this."""
        self._ending = True
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        for refusal in self._scheduling.apply_to_this_thread():
            self._warn(refusal)
        due_ns = time.monotonic_ns() + self._period_ns
        while not self._ending:
            # On Linux an absolute sleep on the monotonic clock.
            time.sleep(max(due_ns - time.monotonic_ns(), 0) / 1e9)
            woken_ns = time.monotonic_ns()
            missed = max((woken_ns - due_ns) // self._period_ns, 0)
            try:
                self._work()
            except Exception as error:
                self._failed(error)
            self.statistics.add(due_ns, woken_ns, time.monotonic_ns(), missed)
            due_ns += (1 + missed) * self._period_ns
