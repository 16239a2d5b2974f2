"""A loop on a thread of its own, woken by deadlines of a steady clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cosmos3_ros.control.realtime import Scheduling
from cosmos3_ros.control.statistics import LoopStatistics

# Work that begins nearer to a deadline than it takes would make the loop late for it.
_WORK_NS = 1_000_000


class DeadlineLoop:
    """Calls ``work`` every period, at deadlines that do not drift with how long work takes.

    A period that passes before the thread wakes, or while work takes too long, is missed: counted,
    and not made up for. Between two deadlines it can be told to work once more, at once; shortly
    before a deadline, with it. What ``work`` raises goes to ``failed``, and the loop goes on:
    falling silent is not stopping.
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
        # Held, but while work is due ahead of its time: waiting for it is what the loop does.
        self._nothing_early = threading.Lock()
        self._nothing_early.acquire()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self.statistics = LoopStatistics(self._period_ns)

    def start(self) -> None:
        self._thread.start()

    def advance(self) -> None:
        """Work now, once more than the period asks for; at most once before each deadline.

        For one thread at a time.
        """
        if self._nothing_early.locked():
            self._nothing_early.release()

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
            # On Linux both are absolute waits on the monotonic clock.
            room_s = _seconds_until(due_ns - _WORK_NS)
            if room_s > 0 and self._nothing_early.acquire(timeout=room_s):
                woken_ns = time.monotonic_ns()
                self._work_once()
                self.statistics.add_early(woken_ns, time.monotonic_ns())
            if (left_s := _seconds_until(due_ns)) > 0:
                time.sleep(left_s)
            woken_ns = time.monotonic_ns()
            missed = max((woken_ns - due_ns) // self._period_ns, 0)
            # Whatever asked for work by now has it with this.
            self._nothing_early.acquire(blocking=False)
            self._work_once()
            self.statistics.add(due_ns, woken_ns, time.monotonic_ns(), missed)
            due_ns += (1 + missed) * self._period_ns

    def _work_once(self) -> None:
        try:
            self._work()
        except Exception as error:
            self._failed(error)


def _seconds_until(due_ns: int) -> float:
    return max(due_ns - time.monotonic_ns(), 0) / 1e9
