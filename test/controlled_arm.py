"""A controller beside an arm that does as it is told: what its tests share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cosmos3_ros.control.admission import Following
from cosmos3_ros.control.chunk import NS_PER_S, Chunk, ChunkRefused, Refusal
from cosmos3_ros.control.controller import Command, Controller
from cosmos3_ros.control.limits import Limits
from cosmos3_ros.control.space import Space
from cosmos3_ros.control.watchdog import Moment, Reason, Timeouts

START_NS = 1_763_000_000 * NS_PER_S
PERIOD_NS = 20_000_000
LIMITS = Limits(
    Space(2),
    np.array([-2.0, 0.0]),
    np.array([2.0, 1.0]),
    np.array([4.0, 8.0]),
    np.array([20.0, np.inf]),
)
HYSTERESIS, JUMP = np.array([np.nan, 0.1]), np.array([1.0, np.inf])
STAYS = np.full(2, np.nan)
TIMEOUTS = Timeouts(planner_s=1.5, chunk_s=4.0, observation_s=5.0)
HOME = np.array([0.5, 0.0])
PLANNER, TOLD = 77, "touch the red cube"


def ns(seconds: float) -> int:
    return round(seconds * NS_PER_S)


class Arm:
    """A controller ticked at 50 Hz, beside joint states that say what was last commanded.

    ``steady_ns`` always runs on; ``now_ns`` is the node's clock, and may be made to jump.
    """

    def __init__(
        self, *, observation_s: float = 5.0, simulated_time: bool = False, **following: float
    ) -> None:
        self.controller = Controller(
            LIMITS,
            Following(HYSTERESIS, JUMP, STAYS, **following),
            replace(TIMEOUTS, observation_s=observation_s),
            simulated_time=simulated_time,
        )
        self.now_ns, self.steady_ns = START_NS, 5 * NS_PER_S
        self.position = HOME
        self.measuring = self.planner_lives = True

    @property
    def moment(self) -> Moment:
        return Moment(self.now_ns, self.steady_ns)

    def tick(self) -> Command:
        if self.measuring:
            self.controller.measure(self.position, self.now_ns, self.moment)
        if self.planner_lives:
            self.controller.hear(PLANNER, self.steady_ns)
        command = self.controller.tick(self.moment)
        assert command is not None
        self.position = command.positions
        self.pass_by(PERIOD_NS)
        return command

    def pass_by(self, passed_ns: int) -> None:
        self.now_ns += passed_ns
        self.steady_ns += passed_ns

    def run(self, seconds: float) -> list[Command]:
        return [self.tick() for _ in range(round(seconds * NS_PER_S / PERIOD_NS))]

    def ramp(self, plan_id: int = 1, rows: int = 10, age_s: float = 0.0, **other: object) -> Chunk:
        """Away from HOME at 1 unit a second in the first channel, up to its limit; 10 rows a
        second."""
        steps = np.minimum(0.5 + np.arange(1, rows + 1) / 10, 2.0)
        return self.plan(plan_id, np.column_stack((steps, np.zeros(rows))), age_s, **other)

    def plan(self, plan_id: int, rows: object, age_s: float = 0.0, **other: object) -> Chunk:
        stamp_ns = self.now_ns - ns(age_s)
        known = {"planner": PLANNER, "instruction": TOLD, "start_ns": stamp_ns} | other
        return Chunk(plan_id, stamp_ns, 10.0, np.array(rows, np.float64), **known)  # type: ignore[arg-type]

    def follow(self, chunk: Chunk) -> None:
        if self.measuring:
            self.controller.measure(self.position, self.now_ns, self.moment)
        self.controller.accept(chunk, self.moment)

    def refusal_of(self, chunk: Chunk) -> Refusal:
        with pytest.raises(ChunkRefused) as caught:
            self.controller.accept(chunk, self.moment)
        return caught.value.reason

    @property
    def reason(self) -> Reason | None:
        cause = self.controller.cause
        return None if cause is None else cause.reason


def path(commands: list[Command]) -> np.ndarray:
    return path_of([command.positions for command in commands])


def path_of(positions: list[np.ndarray]) -> np.ndarray:
    return np.array(positions)[:, 0]
