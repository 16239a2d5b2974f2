"""Track, or hold: what the arm is told, for any sequence of chunks, clocks and measurements."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cosmos3_ros.control.chunk import NS_PER_S, Chunk, ChunkRefused, Refusal
from cosmos3_ros.control.controller import MAX_STEP_S, Command, Controller, State, Timeouts
from cosmos3_ros.control.limits import Limits

START_NS = 1_763_000_000 * NS_PER_S
PERIOD_NS = 20_000_000
LIMITS = Limits(np.array([-2.0, 0.0]), np.array([2.0, 1.0]), np.array([4.0, 8.0]))
TIMEOUTS = Timeouts(joint_timeout_s=0.25, hold_grace_s=0.1, clock_jump_s=1.0)
HOME = np.array([0.5, 0.0])


def ramp(plan_id: int = 1, stamp_ns: int = START_NS, rows: int = 10) -> Chunk:
    """Away from HOME at 1 unit a second in the first channel, at 10 rows a second."""
    steps = np.arange(1, rows + 1) / 10
    return Chunk(plan_id, stamp_ns, 10.0, np.column_stack((0.5 + steps, np.zeros(rows))))


class Arm:
    """A controller, ticked at 50 Hz, beside joint states that say what was last commanded."""

    def __init__(self) -> None:
        self.controller = Controller(LIMITS, TIMEOUTS)
        self.now_ns = START_NS
        self.position = HOME
        self.measuring = True

    def tick(self) -> Command:
        if self.measuring:
            self.controller.measure(self.position, self.now_ns, self.now_ns)
        command = self.controller.tick(self.now_ns)
        assert command is not None
        self.position = command.positions
        self.now_ns += PERIOD_NS
        return command

    def run(self, seconds: float) -> list[Command]:
        return [self.tick() for _ in range(round(seconds * NS_PER_S / PERIOD_NS))]

    def refusal_of(self, chunk: Chunk) -> Refusal:
        with pytest.raises(ChunkRefused) as caught:
            self.controller.accept(chunk, self.now_ns)
        return caught.value.reason


def test_before_any_measurement_nothing_is_commanded() -> None:
    controller = Controller(LIMITS, TIMEOUTS)
    controller.accept(ramp(), START_NS)
    assert controller.tick(START_NS) is None
    assert controller.state is State.WAITING
    assert controller.reason == "no joint states have arrived"


def test_before_any_chunk_it_holds_where_the_arm_is() -> None:
    arm = Arm()
    commands = arm.run(0.5)
    assert all(c.state is State.HOLDING and c.positions.tolist() == [0.5, 0.0] for c in commands)
    assert arm.controller.holds == 0


def test_a_hold_does_not_follow_an_arm_that_sags() -> None:
    arm = Arm()
    arm.tick()
    arm.position = HOME - 0.1
    assert arm.tick().positions.tolist() == HOME.tolist()


def test_a_chunk_is_followed_on_time() -> None:
    arm = Arm()
    arm.tick()
    arm.controller.accept(ramp(), arm.now_ns)
    for _ in range(40):
        elapsed_s = (arm.now_ns - START_NS) / NS_PER_S
        command = arm.tick()
        assert command.state is State.TRACKING
        assert command.positions[0] == pytest.approx(0.5 + elapsed_s, abs=1e-6)


def test_rows_that_end_are_held_after_the_grace_and_counted_once() -> None:
    arm = Arm()
    arm.controller.accept(ramp(rows=5), arm.now_ns)
    commands = arm.run(1.0)
    held = [c for c in commands if c.state is State.HOLDING]
    assert len(commands) - len(held) == 31  # 0.5 s of rows, 0.1 s of grace, and both ends
    assert all(c.positions.tolist() == held[0].positions.tolist() for c in held)
    assert held[0].positions == pytest.approx([1.0, 0.0])
    assert arm.controller.holds == 1
    assert arm.controller.reason == "the chunk has ended"


def test_a_newer_chunk_takes_over_without_a_jump() -> None:
    arm = Arm()
    arm.controller.accept(ramp(), arm.now_ns)
    before = arm.run(0.3)[-1]
    arm.controller.accept(Chunk(2, arm.now_ns, 10.0, np.tile([0.0, 0.0], (10, 1))), arm.now_ns)
    after = arm.run(0.3)
    path = np.array([c.positions[0] for c in [before, *after]])
    assert np.all(np.abs(np.diff(path)) <= 4.0 * PERIOD_NS / NS_PER_S + 1e-9)
    assert after[-1].positions == pytest.approx([0.0, 0.0], abs=1e-6)


def test_joint_states_that_stop_end_in_a_hold_and_their_return_ends_it() -> None:
    arm = Arm()
    arm.controller.accept(ramp(rows=30), arm.now_ns)
    arm.run(0.2)
    arm.measuring = False
    commands = arm.run(0.4)
    states = [c.state for c in commands]
    assert states.index(State.HOLDING) == 12  # the first tick more than 0.25 s after the last
    last_tracked = commands[11].positions
    assert all(c.positions.tolist() == last_tracked.tolist() for c in commands[12:])
    assert arm.controller.reason == "joint states are older than 0.25 s"
    arm.measuring = True
    assert arm.tick().state is State.TRACKING
    assert arm.controller.holds == 1


def test_old_stamps_on_new_joint_states_do_not_keep_an_arm_moving() -> None:
    arm = Arm()
    arm.controller.accept(ramp(), arm.now_ns)
    arm.tick()
    arm.measuring = False
    for _ in range(20):
        arm.controller.measure(HOME, START_NS, arm.now_ns)
        arm.tick()
    assert arm.controller.state is State.HOLDING


@pytest.mark.parametrize("jump_s", [-10.0, -0.001, 10.0])
def test_a_jump_of_the_clock_flushes_the_chunk_and_holds_where_the_arm_is(jump_s: float) -> None:
    arm = Arm()
    arm.controller.accept(ramp(rows=300), arm.now_ns)
    arm.run(0.5)
    arm.position = measured = np.array([0.8, 0.0])
    arm.now_ns += round(jump_s * NS_PER_S) - PERIOD_NS * (jump_s < 0)
    commands = arm.run(0.2)
    assert all(c.state is State.HOLDING for c in commands)
    assert all(c.positions.tolist() == measured.tolist() for c in commands)
    assert arm.controller.holds == 1
    assert "the clock jumped by" in arm.controller.reason


def test_after_a_jump_the_first_new_measurement_is_held() -> None:
    """A simulator that restarted put the arm elsewhere, and says so after its clock."""
    arm = Arm()
    arm.run(0.1)
    arm.position = sagged = np.array([0.4, 0.0])
    assert arm.tick().positions.tolist() == HOME.tolist()
    arm.measuring = False
    arm.now_ns -= 10 * NS_PER_S
    assert arm.tick().positions.tolist() == sagged.tolist()
    arm.position, arm.measuring = np.array([-1.0, 0.5]), True
    assert arm.tick().positions.tolist() == [-1.0, 0.5]


def test_a_measurement_from_before_a_jump_back_is_not_held_after_it() -> None:
    arm = Arm()
    arm.run(0.1)
    before_ns = arm.now_ns
    arm.measuring = False
    arm.now_ns -= 10 * NS_PER_S
    arm.tick()
    old, new = np.array([0.7, 0.7]), np.array([-1.0, 0.5])
    arm.controller.measure(old, before_ns, arm.now_ns)
    assert arm.tick().positions.tolist() == HOME.tolist()
    arm.controller.measure(new, arm.now_ns, arm.now_ns)
    assert arm.tick().positions.tolist() == new.tolist()
    # Stamps that are a little ahead are of this clock.
    arm.now_ns -= 10 * NS_PER_S
    arm.tick()
    arm.controller.measure(old, arm.now_ns + NS_PER_S // 2, arm.now_ns)
    assert arm.tick().positions.tolist() == old.tolist()


def test_after_a_jump_back_plans_count_from_wherever_they_do() -> None:
    arm = Arm()
    arm.controller.accept(ramp(plan_id=50), arm.now_ns)
    arm.run(0.5)
    arm.now_ns -= 10 * NS_PER_S
    # Arrives before the next tick has seen the clock.
    arm.controller.accept(ramp(plan_id=7, stamp_ns=arm.now_ns), arm.now_ns)
    assert arm.tick().state is State.TRACKING


def test_refused_chunks_leave_the_present_one_in_force() -> None:
    arm = Arm()
    arm.controller.accept(ramp(plan_id=5, rows=20), arm.now_ns)
    arm.run(0.3)
    now_ns = arm.now_ns
    assert arm.refusal_of(ramp(5, now_ns)) is Refusal.OUT_OF_ORDER
    assert arm.refusal_of(ramp(4, now_ns)) is Refusal.OUT_OF_ORDER
    assert arm.refusal_of(ramp(1, START_NS)) is Refusal.OUT_OF_ORDER
    assert arm.refusal_of(ramp(6, now_ns - 2 * NS_PER_S)) is Refusal.STALE
    assert arm.refusal_of(ramp(6, now_ns + 2 * NS_PER_S)) is Refusal.FUTURE
    assert arm.refusal_of(Chunk(6, now_ns, 10.0, np.zeros((5, 3)))) is Refusal.WRONG_WIDTH
    elapsed_s = (arm.now_ns - START_NS) / NS_PER_S
    command = arm.tick()
    assert command.state is State.TRACKING
    assert command.positions[0] == pytest.approx(0.5 + elapsed_s, abs=1e-6)


def test_a_planner_that_restarted_is_followed_again() -> None:
    arm = Arm()
    arm.controller.accept(ramp(plan_id=90), arm.now_ns)
    arm.run(0.3)
    arm.controller.accept(ramp(plan_id=1, stamp_ns=arm.now_ns), arm.now_ns)
    arm.controller.accept(ramp(plan_id=2, stamp_ns=arm.now_ns), arm.now_ns)


def test_a_restarted_planner_is_followed_though_its_first_plan_came_too_late() -> None:
    arm = Arm()
    arm.controller.accept(ramp(plan_id=90), arm.now_ns)
    arm.run(2.0)
    late = Chunk(1, START_NS + 1, 10.0, np.zeros((1, 2)))
    assert arm.refusal_of(late) is Refusal.STALE
    arm.controller.accept(ramp(plan_id=2, stamp_ns=arm.now_ns), arm.now_ns)


def test_positions_outside_the_limits_are_clamped_and_counted() -> None:
    arm = Arm()
    far = Chunk(1, START_NS, 10.0, np.tile([9.0, -3.0], (20, 1)))
    arm.controller.accept(far, arm.now_ns)
    commands = arm.run(1.0)
    assert commands[-1].positions.tolist() == [2.0, 0.0]
    assert arm.controller.saturated == pytest.approx(50, abs=1)


def test_a_stall_of_the_process_is_not_made_up_for_in_one_step() -> None:
    arm = Arm()
    arm.controller.accept(Chunk(1, START_NS, 100.0, np.tile([2.0, 0.0], (200, 1))), arm.now_ns)
    before = arm.tick().positions[0]
    arm.now_ns += round(0.9 * NS_PER_S)
    assert arm.tick().positions[0] == pytest.approx(before + 4.0 * MAX_STEP_S)


def test_a_measurement_that_is_not_finite_is_ignored() -> None:
    controller = Controller(LIMITS, TIMEOUTS)
    controller.measure(np.array([np.nan, 0.0]), START_NS, START_NS)
    assert controller.tick(START_NS) is None


# Anything may happen in any order: each event comes with the time the clock shows at it.
event = st.one_of(
    st.tuples(st.just("tick"), st.none()),
    st.tuples(
        st.just("measure"), arrays(np.float64, 2, elements=st.floats(allow_nan=True, width=32))
    ),
    st.tuples(
        st.just("accept"),
        st.tuples(
            st.integers(0, 5),
            st.floats(-1.0, 1.0),
            st.floats(1.0, 100.0),
            arrays(
                np.float64,
                st.tuples(st.integers(1, 6), st.integers(1, 3)),
                elements=st.floats(-1e3, 1e3) | st.just(np.nan),
            ),
        ),
    ),
)
steps_ns = st.one_of(
    st.integers(0, 50_000_000), st.integers(0, 3 * NS_PER_S), st.integers(-3 * NS_PER_S, 0)
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(steps_ns, event), max_size=60))
def test_whatever_happens_every_command_is_finite_and_inside_the_limits(events: list) -> None:
    controller = Controller(LIMITS, TIMEOUTS)
    now_ns = START_NS
    last: tuple[int, np.ndarray] | None = None  # None after a jump: the arm may be anywhere
    measured = False
    elsewhere = True  # the next measurement is where the arm is held
    for step_ns, (kind, argument) in [(0, ("tick", None)), *events]:
        now_ns += step_ns
        if not 0 <= step_ns <= NS_PER_S:
            last, elsewhere = None, True
        if kind == "measure":
            controller.measure(argument, now_ns, now_ns)
            if np.all(np.isfinite(argument)):
                measured = True
                last, elsewhere = (None if elsewhere else last), False
        elif kind == "accept":
            plan_id, age_s, rate_hz, rows = argument
            try:
                stamp_ns = now_ns - round(age_s * NS_PER_S)
                controller.accept(Chunk(plan_id, stamp_ns, rate_hz, rows.copy()), now_ns)
            except ChunkRefused:
                pass
        else:
            command = controller.tick(now_ns)
            assert (command is not None) == measured
            if command is None:
                continue
            assert np.all(np.isfinite(command.positions))
            assert np.all(command.positions >= LIMITS.lower)
            assert np.all(command.positions <= LIMITS.upper)
            if last is not None:
                dt_s = min((now_ns - last[0]) / NS_PER_S, MAX_STEP_S)
                step = np.abs(command.positions - last[1])
                assert np.all(step <= LIMITS.velocity * dt_s + 1e-9)
            last = (now_ns, command.positions)
