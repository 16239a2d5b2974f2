"""A thread that waits for work, and ends when it is told to."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable


class Worker(ABC):
    """Runs ``work`` on a thread of its own.

    ``changed`` is the one lock of what other threads give and read, and is notified of work.
    """

    def __init__(self, name: str) -> None:
        self.changed = threading.Condition()
        self.stopping = False
        self._thread = threading.Thread(target=self.work, name=name, daemon=True)

    @abstractmethod
    def work(self) -> None:
        """Return soon after ``stopping`` is set."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let ``work`` end, and wait for it."""
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def rest_until(self, moment: float, still: Callable[[], bool] = lambda: True) -> None:
        """Wait for a time of the monotonic clock [s], while ``still`` and not told to stop."""
        with self.changed:
            while not self.stopping and still() and (left := moment - time.monotonic()) > 0:
                self.changed.wait(left)
