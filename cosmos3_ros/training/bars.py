"""How far a training is: a bar on a terminal, a line now and then where there is none."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

# About as often as a run is saved.
PERIOD_S = 120.0


class Bar:
    """Counts ``total`` units of a stage, of which an earlier attempt left ``done``.

    That it goes on there is said in a line of its own, on a terminal too.
    """

    def __init__(self, name: str, unit: str, total: int, done: int = 0) -> None:
        self._name, self._units, self._total, self._done = name, f"{unit}s", total, done
        if done:
            _say(f"{name}: goes on after {done} of {total} {self._units}")
        self._bar = tqdm(desc=name, unit=unit, total=total, initial=done, disable=None)
        self._told = time.monotonic()

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def update(self, count: int = 1) -> None:
        self._done += count
        self._bar.update(count)
        if self._bar.disable and time.monotonic() - self._told >= PERIOD_S:
            _say(f"{self._name}: {self._done} of {self._total} {self._units}")
            self._told = time.monotonic()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
