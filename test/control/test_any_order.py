"""Whatever happens in whatever order: no command leaves the limits, or follows what is stale."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cosmos3_ros.control.admission import Following
from cosmos3_ros.control.chunk import NS_PER_S, Chunk, ChunkRefused
from cosmos3_ros.control.controller import MAX_STEP_S, Controller, NotReady, State
from cosmos3_ros.control.limits import Limits
from cosmos3_ros.control.space import Space
from cosmos3_ros.control.watchdog import Moment, Reason, Timeouts

START_NS = 1_763_000_000 * NS_PER_S
TIMEOUTS = Timeouts(joint_s=0.15, planner_s=0.3, chunk_s=0.6, observation_s=0.5)
NAN, INF = np.nan, np.inf


@dataclass(frozen=True)
class Body:
    """What is commanded, where it begins, and how plans are followed there."""

    limits: Limits
    following: Following
    home: np.ndarray


def arm(blend_s: float) -> Body:
    """A joint, and a gripper."""
    limits = Limits(
        Space(2), np.array([-2.0, 0.0]), np.array([2.0, 1.0]), np.array([4.0, 8.0]),
        np.array([20.0, INF]),
    )  # fmt: skip
    following = Following(
        np.array([NAN, 0.1]), np.array([1.0, INF]), np.full(2, NAN), 0.05, blend_s
    )
    return Body(limits, following, np.array([0.5, 0.0]))


def base(blend_s: float) -> Body:
    """Two velocities, which are nothing at rest."""
    limits = Limits(Space(2), -np.ones(2), np.ones(2), np.full(2, 2.0), np.full(2, INF))
    following = Following(np.full(2, NAN), np.full(2, 1.0), np.zeros(2), 0.05, blend_s)
    return Body(limits, following, np.zeros(2))


def hand(blend_s: float) -> Body:
    """A pose: a position and a quaternion."""
    free = np.full(4, INF)
    limits = Limits(
        Space(7, (3,)), np.array([-1.0] * 3 + [-INF] * 4), np.array([1.0] * 3 + [INF] * 4),
        np.array([2.0] * 3 + [3.0] * 3), np.array([10.0] * 3 + [20.0] * 3),
    )  # fmt: skip
    following = Following(
        np.full(7, NAN), np.array([0.5] * 3 + [1.0] * 3), np.concatenate(([NAN] * 3, free * NAN)),
        0.05, blend_s,
    )  # fmt: skip
    return Body(limits, following, np.array([0.2, 0.0, 0.1, 0.0, 0.0, 0.0, 1.0]))


def ns(seconds: float) -> int:
    return round(seconds * NS_PER_S)


# Mostly what happens while all is well, and now and then anything. Steps are of a walk that begins
# at the last command, as shares of what the velocity limits allow in a row's time.
step = st.floats(-0.4, 0.4)
spoilt = st.sampled_from([NAN, INF, -1e3, 2.5])
often = st.sampled_from([True] * 9 + [False])


@st.composite
def chunk_events(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    rows = draw(st.integers(1, 12))
    return "accept", {
        "newer": draw(st.integers(1, 2)) if draw(often) else draw(st.integers(-2, 0)),
        "age_s": draw(st.floats(0.0, 0.3)) if draw(often) else draw(st.floats(-1.5, 6.0)),
        "late_s": draw(st.sampled_from([0.0, 0.0, 0.2])),
        "rate_hz": draw(st.sampled_from([5.0, 10.0, 15.0, 30.0, 50.0]) | st.floats(4.0, 60.0)),
        "walk": np.array(draw(st.lists(step, min_size=rows * 7, max_size=rows * 7))),
        "spoilt": None if draw(often) else draw(spoilt),
        "planner": 1 if draw(often) else 2,
        "instruction": "a" if draw(often) else "b",
    }


event = st.one_of(
    st.just(("tick", None)),
    st.tuples(st.just("run"), st.tuples(st.integers(1, 40), often, st.booleans())),
    chunk_events(),
    chunk_events(),
    st.tuples(st.just("measure"), st.none() | st.floats(-3, 3) | st.just(NAN)),
    st.just(("measure", None)),
    st.tuples(st.just("measure"), st.sampled_from([2.03, -2.03, 1.015])),
    st.tuples(st.just("hear"), st.tuples(st.sampled_from([1, 1, 1, 2]), often)),
    st.tuples(st.just("instruct"), st.sampled_from(["a", "a", "a", "b"])),
    st.sampled_from([("stop", None)] + [("resume", None)] * 4),
)
waits_ns = st.sampled_from([ns(0.02)] * 6) | st.integers(0, ns(0.05)) | st.integers(0, ns(3))
jumps_ns = st.sampled_from([0] * 19 + [1]).flatmap(
    lambda jumps: st.integers(-ns(12), ns(12)) if jumps else st.just(0)
)


class Trial:
    """A controller, and what is known of it from the outside."""

    def __init__(self, body: Body, pace: float | None, ahead: bool) -> None:
        """``pace``: of simulated time, by the steady clock; None: it is no simulation. ``ahead``:
        the robot is told all that is to come, and goes on by it whatever becomes of the loop."""
        self.body, self.pace, self.ahead = body, pace, ahead
        self.told: list[np.ndarray] = []  # a command every 20 ms
        self.controller = Controller(
            body.limits, body.following, TIMEOUTS, simulated_time=pace is not None
        )
        self.moment = Moment(START_NS, 5 * NS_PER_S)
        self.position = body.home
        self.found: list[np.ndarray] = []  # where it was measured since the last tick, and before
        self.velocities = [np.zeros(body.limits.space.step_width)]  # one of them it has
        self.unseen_s = 0.0  # steps too short to see a velocity in
        self.ticked: Moment | None = None
        self.shown: Moment | None = None
        self.measured_ns: int | None = None
        self.heard_ns: int | None = None
        self.accepted_ns = self.observed_ns = self.end_ns = 0
        self.plan_id = self.planner = 0
        self.jumped = self.may_be_moved = self.astray = False
        self.seen: Counter[str] = Counter()

    def pass_by(self, wait_ns: int, jump_ns: int) -> None:
        before = self.moment
        passed_ns = round(wait_ns * (self.pace or 1.0))
        self.moment = Moment(before.now_ns + passed_ns + jump_ns, before.steady_ns + wait_ns)

    @property
    def leaps(self) -> bool:
        """Whether the clock has jumped since the controller was shown it last."""
        if self.shown is None:
            return False
        passed_ns = self.moment.now_ns - self.shown.now_ns
        jump_ns = passed_ns - (self.moment.steady_ns - self.shown.steady_ns)
        return passed_ns < 0 or jump_ns > ns(TIMEOUTS.clock_jump_s)

    def show(self) -> None:
        """The controller is about to see what time it is."""
        if self.leaps:
            self.jumped, self.plan_id = True, 0
        self.shown = self.moment

    def happen(self, kind: str, argument: Any) -> None:
        controller, moment = self.controller, self.moment
        if kind == "measure":
            self.measure(argument)
        elif kind == "hear":
            planner, alive = argument
            known = controller.planner
            controller.hear(planner, moment.steady_ns, alive=alive)
            if known in (None, planner) and (alive or known is not None):
                self.heard_ns = moment.steady_ns if alive else None
        elif kind == "instruct":
            controller.instruct(argument)
        elif kind == "stop":
            controller.stop("told to")
        elif kind == "resume":
            self.show()
            self.may_be_moved |= controller.state is not State.TRACKING
            try:
                controller.resume(moment)
            except NotReady:
                self.seen["not resumed"] += 1
        elif kind == "accept":
            self.accept(**argument)
        elif kind == "run":
            self.run(*argument)
        else:
            self.tick()

    def run(self, ticks: int, measuring: bool, heard: bool) -> None:
        """Nothing new for so long."""
        for _ in range(ticks):
            if measuring:
                self.measure(None)
            if heard and self.controller.planner is not None:
                self.happen("hear", (self.controller.planner, True))
            self.tick()
            self.pass_by(ns(0.02), 0)

    def measure(self, everywhere: float | None) -> None:
        """Where the arm was told to be, or somewhere else altogether."""
        found = self.position if everywhere is None else np.full(len(self.position), everywhere)
        if self.body.limits.space.quaternions:
            found = np.concatenate((found[:3], self.position[3:]))
        if np.all(np.isfinite(found)):
            self.show()
        self.controller.measure(found, self.moment.now_ns, self.moment)
        limits = self.body.limits
        span = np.nan_to_num(limits.upper - limits.lower, posinf=0.0)
        room = np.where(self.body.following.held, 0.5, 0.01) * span
        if np.all((limits.lower - room <= found) & (found <= limits.upper + room)):
            self.measured_ns = self.moment.now_ns
            self.found.append(np.where(self.body.following.held, np.clip(found, 0, 1), found))
            self.may_be_moved |= self.jumped or self.ticked is None
            self.jumped = False
            following = self.body.following
            follows = limits.space.of_step(~following.held & np.isnan(following.rest))
            beyond = following.beyond_jump(found, self.position, limits.space)
            self.astray = self.ticked is not None and bool(np.any(beyond & follows))

    def accept(
        self, newer: int, age_s: float, late_s: float, rate_hz: float, walk: np.ndarray,
        spoilt: float | None, planner: int, instruction: str,
    ) -> None:  # fmt: skip
        space = self.body.limits.space
        rows, here = [], self.position
        for turn in walk.reshape(-1, 7):
            reach = self.body.limits.velocity / rate_hz
            here = space.add(here, turn[: space.step_width] * reach)
            rows.append(here)
        made = np.array(rows)
        if spoilt is not None:
            made[-1, 0] = spoilt
        stamp_ns = self.moment.now_ns - ns(age_s)
        self.may_be_moved |= self.controller.state is not State.TRACKING
        try:
            chunk = Chunk(
                (0 if self.leaps else self.plan_id) + newer, stamp_ns, rate_hz, made,
                stamp_ns + ns(late_s), planner, instruction,
            )  # fmt: skip
            self.show()
            self.controller.accept(chunk, self.moment)
        except (ChunkRefused, OverflowError) as refused:
            self.seen[str(refused).partition(":")[0]] += 1
            return
        self.plan_id += newer
        self.planner = planner
        self.heard_ns = self.accepted_ns = self.moment.steady_ns
        # An arm that stands still until a plan starts is where it was seen.
        self.observed_ns, self.end_ns = chunk.start_ns, chunk.end_ns

    def tick(self) -> None:
        self.show()
        command = self.controller.tick(self.moment)
        if command is None:
            return
        self.seen[command.state] += 1
        limits, position = self.body.limits, command.positions
        assert np.all(np.isfinite(position))
        # Outside them a robot can be found; from there it comes back, and never goes farther.
        came_from = [self.position, *(self.found if self.may_be_moved else [])]
        assert np.all(np.minimum(limits.lower, np.min(came_from, 0)) <= position)
        assert np.all(position <= np.maximum(limits.upper, np.max(came_from, 0)))
        for first in limits.space.quaternions:
            assert np.linalg.norm(position[first : first + 4]) == pytest.approx(1.0)
        if command.state is State.TRACKING:
            self.require_fresh()
        if self.ticked is not None:
            self.require_within_reach(position, self.ticked)
        if self.ahead and command.anew:
            to_come = self.controller.outlook(self.moment).commands(0.02)
            self.told = [position, *to_come]
        self.position, self.ticked, self.may_be_moved = position, self.moment, False
        self.found = self.found[-1:]

    def require_fresh(self) -> None:
        now_ns, steady_ns = self.moment.now_ns, self.moment.steady_ns
        assert self.controller.planner == self.planner
        assert self.measured_ns is not None and self.heard_ns is not None
        assert not self.jumped
        assert not self.astray or self.may_be_moved
        assert now_ns - self.measured_ns <= ns(TIMEOUTS.joint_s)
        assert steady_ns - self.heard_ns <= ns(TIMEOUTS.planner_s)
        assert steady_ns - self.accepted_ns <= ns(TIMEOUTS.chunk_s)
        assert now_ns - self.observed_ns <= ns(TIMEOUTS.observation_s)
        assert now_ns <= self.end_ns + ns(TIMEOUTS.grace_s)
        if self.ticked is not None:
            assert steady_ns - self.ticked.steady_ns <= ns(TIMEOUTS.overrun_s)

    def require_within_reach(self, position: np.ndarray, before: Moment) -> None:
        """From the command before, by velocities and accelerations that are allowed."""
        limits, cause = self.body.limits, self.controller.cause
        passed_ns = self.moment.now_ns - before.now_ns
        steady_ns = self.moment.steady_ns - before.steady_ns
        if passed_ns < 0 or passed_ns - steady_ns > ns(TIMEOUTS.clock_jump_s):
            passed_ns = steady_ns
        elif self.pace is None:
            # Both clocks: by neither it is faster than that.
            passed_ns = min(passed_ns, steady_ns)
        dt_s = min(passed_ns / NS_PER_S, MAX_STEP_S)
        moved = limits.space.difference(position, self.position)
        late = cause and cause.reason is Reason.OVERRUN and self.pace is None
        paused = passed_ns > MAX_STEP_S * NS_PER_S or late
        # An arm that may have been moved sets off from rest, or went on as it was.
        if paused and self.told and self.was_led_to(position):
            self.velocities, self.unseen_s = [], 0.0
            return
        began = [] if paused else self.velocities
        if paused or self.may_be_moved:
            began = [*began, np.zeros_like(moved)]
        seen = dt_s > 1e-4
        velocity = moved / max(dt_s, 1e-4)
        change = (
            limits.acceleration * max(dt_s + self.unseen_s, 1e-9) + 1e-9 / max(dt_s, 1e-4) + 1e-6
        )
        unknown = not paused and not self.velocities  # since it was led through a pause
        goes_on = np.all(np.abs(moved) <= limits.velocity * dt_s + 1e-9) and (
            not seen
            or unknown
            or any(np.all(np.abs(velocity - start) <= change) for start in began)
        )
        possible = [velocity] if goes_on else []
        if self.may_be_moved:
            # Somebody else has put the arm elsewhere while nobody looked: it sets off from there.
            follows = limits.space.of_step(~self.body.following.held)
            reach = np.where(follows, limits.velocity * dt_s + 1e-9, np.inf)
            apart = [limits.space.difference(position, found) for found in self.found]
            near = [step for step in apart if np.all(np.abs(step) <= reach)]
            possible += [np.where(follows & seen, step / max(dt_s, 1e-4), 0.0) for step in near]
        assert possible
        if seen or not goes_on:
            self.velocities, self.unseen_s = possible, 0.0 if seen else dt_s
        else:
            self.unseen_s += dt_s

    def was_led_to(self, position: np.ndarray) -> bool:
        """Whether a command is on the way that the robot was told, to a step of it."""
        limits = self.body.limits
        held = limits.space.of_step(self.body.following.held)
        step = np.where(held, np.inf, limits.velocity * 0.02 + 1e-6)
        apart = [limits.space.difference(position, row) for row in self.told]
        return any(bool(np.all(np.abs(each) <= step)) for each in apart)


@pytest.mark.parametrize("body", [arm, base, hand])
def test_whatever_happens_no_command_leaves_the_limits_or_follows_what_is_stale(body: Any) -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.lists(st.tuples(waits_ns, jumps_ns, event), min_size=10, max_size=80),
        st.sampled_from([0.0, 0.3]),
        st.sampled_from([None, None, 0.3, 1.0, 3.0]),
        st.booleans(),
    )
    def run(events: list, blend_s: float, pace: float | None, ahead: bool) -> None:
        trial = Trial(body(blend_s), pace, ahead)
        for wait_ns, jump_ns, (kind, argument) in events:
            trial.pass_by(wait_ns, jump_ns)
            trial.happen(kind, argument)
        seen.update(trial.seen)

    run()
    # It is no answer that nothing ever moved.
    assert seen[State.TRACKING] > 50 and seen[State.HOLDING] and seen[State.STOPPED], seen
