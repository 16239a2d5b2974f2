"""Messages that hold all that is to come: making one takes longer than the control loop has."""

from __future__ import annotations

from collections.abc import Callable

from cosmos3_ros.control.outlook import Outlook
from cosmos3_ros.nodes.worker import Worker


class Forecaster(Worker):
    """Sends the newest outlook that it is given, on a thread of its own; the last before it ends.

    What ``send`` raises goes to ``failed``, and it goes on.
    """

    def __init__(
        self, send: Callable[[Outlook], None], failed: Callable[[Exception], None]
    ) -> None:
        super().__init__("forecast")
        self._send, self._failed = send, failed
        self._newest: Outlook | None = None

    def give(self, outlook: Outlook) -> None:
        with self.changed:
            self._newest = outlook
            self.changed.notify_all()

    def work(self) -> None:
        while (outlook := self._take()) is not None:
            try:
                self._send(outlook)
            except Exception as error:
                self._failed(error)

    def _take(self) -> Outlook | None:
        """Waits for one; None: told to stop, and all are sent."""
        with self.changed:
            while self._newest is None and not self.stopping:
                self.changed.wait()
            outlook, self._newest = self._newest, None
            return outlook
