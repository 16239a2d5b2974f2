"""What the operating system can do for a thread that must not be late, where it lets us."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

_MCL_CURRENT, _MCL_FUTURE = 1, 2
_PR_SET_TIMERSLACK = 29
_REMEDY = {
    "fifo": "run as root, or give the user 'rtprio' in /etc/security/limits.conf",
    "cpus": "name CPUs of this machine, in cpu_affinity",
    "memory": "run as root, or give the user 'memlock unlimited' in /etc/security/limits.conf",
}


@dataclass(frozen=True)
class Scheduling:
    """``fifo_priority``: of SCHED_FIFO, 1 to 99; 0: ordinary scheduling. ``cpus``: where the thread
    may run; none: anywhere. ``lock_memory``: nothing of the process is paged out."""

    fifo_priority: int = 0
    cpus: tuple[int, ...] = ()
    lock_memory: bool = False

    def of_another_thread(self) -> Scheduling:
        """For a thread that shares Python's lock with this one's: it must not be kept from giving
        the lock back by processes that are in no hurry."""
        return Scheduling(max(self.fifo_priority - 1, 1) if self.fifo_priority else 0)

    def apply_to_this_thread(self) -> list[str]:
        """Ask for it, of the calling thread; returns a sentence for each thing refused."""
        asked: list[tuple[str, str, Callable[[], object]]] = []
        if self.fifo_priority:
            parameters = os.sched_param(self.fifo_priority)
            asked.append(
                (
                    "fifo",
                    f"SCHED_FIFO with priority {self.fifo_priority}",
                    lambda: os.sched_setscheduler(0, os.SCHED_FIFO, parameters),
                )
            )
        if self.cpus:
            asked.append(
                (
                    "cpus",
                    f"running on CPU {', '.join(map(str, self.cpus))} alone",
                    lambda: os.sched_setaffinity(0, self.cpus),
                )
            )
        if self.lock_memory:
            asked.append(("memory", "locking memory", _lock_memory))
        refused = []
        for kind, what, ask in asked:
            try:
                ask()
            except (OSError, OverflowError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                refused.append(
                    f"{what} was refused ({why}), the loop goes on without: {_REMEDY[kind]}"
                )
        # Ordinary threads are woken up to 50 us late, to save wake-ups.
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
        return refused

    def release(self) -> None:
        """Give back what was asked for that outlives a loop: the calling thread's priority, and the
        process's memory."""
        if self.fifo_priority:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        if self.lock_memory:
            ctypes.CDLL(None).munlockall()


def _lock_memory() -> None:
    if ctypes.CDLL(None, use_errno=True).mlockall(_MCL_CURRENT | _MCL_FUTURE) != 0:
        number = ctypes.get_errno() or errno.EPERM
        raise OSError(number, os.strerror(number))
