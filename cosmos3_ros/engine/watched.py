"""An engine whose calls can be watched, for measuring and for testing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cosmos3_ros.engine.session import Call, Engine, Program

Hook = Callable[[Engine, Call], None]


class Watched:
    """Runs each call of a program by itself on a real engine, with a hook before and after it."""

    def __init__(
        self, engine: Engine, before: Hook | None = None, after: Hook | None = None
    ) -> None:
        self.engine = engine
        self._before, self._after = before, after
        self._programs: dict[str, Program] = {}

    def prepare(self, programs: Mapping[str, Program]) -> None:
        for name, program in programs.items():
            self._programs[name] = program
            self.engine.prepare({f"{name}#{i}": [call] for i, call in enumerate(program)})

    def write(self, buffer: str, array: np.ndarray) -> None:
        self.engine.write(buffer, array)

    def read(self, buffer: str) -> np.ndarray:
        return self.engine.read(buffer)

    def run(self, program: str) -> None:
        for index, call in enumerate(self._programs[program]):
            if self._before:
                self._before(self.engine, call)
            self.engine.run(f"{program}#{index}")
            if self._after:
                self._after(self.engine, call)

    def close(self) -> None:
        self.engine.close()
