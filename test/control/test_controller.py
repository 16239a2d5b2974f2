"""Track, hold or stay stopped: what the arm is told, for any sequence of what can happen."""

from __future__ import annotations

import numpy as np
import pytest

from cosmos3_ros.control.admission import Following
from cosmos3_ros.control.chunk import NS_PER_S, Chunk, ChunkRefused, Refusal
from cosmos3_ros.control.controller import Command, Controller, NotReady, State
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

    def __init__(self, **following: float) -> None:
        self.controller = Controller(
            LIMITS, Following(HYSTERESIS, JUMP, STAYS, **following), TIMEOUTS
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
    return np.array([command.positions[0] for command in commands])


def test_before_any_measurement_nothing_is_commanded() -> None:
    arm = Arm()
    assert arm.controller.tick(arm.moment) is None
    assert arm.controller.state is State.WAITING and arm.reason is Reason.NO_JOINTS


def test_before_any_chunk_it_holds_where_the_arm_is() -> None:
    arm = Arm()
    commands = arm.run(0.5)
    assert all(c.state is State.HOLDING and c.positions.tolist() == [0.5, 0.0] for c in commands)
    assert arm.reason is Reason.NO_CHUNK and arm.controller.counts.holds == 0


def test_a_hold_does_not_follow_an_arm_that_sags() -> None:
    arm = Arm()
    arm.tick()
    arm.position = HOME - 0.1
    assert arm.tick().positions.tolist() == HOME.tolist()


def test_a_chunk_is_followed_on_time_once_the_arm_is_up_to_speed() -> None:
    arm = Arm()
    arm.tick()
    began_ns = arm.now_ns
    arm.follow(arm.ramp())
    for _ in range(40):
        elapsed_s = (arm.now_ns - began_ns) / NS_PER_S
        command = arm.tick()
        assert command.state is State.TRACKING
        if elapsed_s > 0.12:
            assert command.positions[0] == pytest.approx(0.5 + elapsed_s, abs=1e-6)
    assert arm.controller.plan_id == 1


def test_rows_that_end_are_held_after_the_grace_and_counted_once() -> None:
    arm = Arm()
    arm.follow(arm.ramp(rows=5))
    commands = arm.run(1.0)
    held = [c for c in commands if c.state is State.HOLDING]
    assert len(commands) - len(held) == 31  # 0.5 s of rows, 0.1 s of grace, and both ends
    assert path(held) == pytest.approx(1.0, abs=1e-6)
    assert arm.controller.counts.holds == 1
    assert arm.controller.counts.causes == {Reason.CHUNK_ENDED: 1}


@pytest.mark.parametrize("blend_s", [0.0, 0.2])
def test_a_newer_chunk_takes_over_within_the_limits(blend_s: float) -> None:
    arm = Arm(blend_s=blend_s)
    arm.tick()
    arm.follow(arm.ramp())
    before = arm.run(0.3)
    arm.follow(arm.plan(2, np.tile([0.2, 0.0], (10, 1))))
    after = arm.run(0.8)
    steps = np.diff(path([*before, *after]))
    assert np.all(np.abs(steps) <= 4.0 * 0.02 + 1e-9)
    assert np.all(np.abs(np.diff(steps)) <= 20.0 * 0.02**2 + 1e-9)
    assert after[-1].positions == pytest.approx([0.2, 0.0], abs=1e-3)


def test_a_chunk_that_fades_in_is_less_of_a_jerk_than_one_that_takes_over_at_once() -> None:
    def largest_change(blend_s: float) -> float:
        arm = Arm(blend_s=blend_s)
        arm.tick()
        arm.follow(arm.ramp(rows=20))
        arm.run(0.5)
        # The new plan lags a tenth behind: as one made from what was seen before the arm moved.
        arm.follow(arm.plan(2, arm.ramp(rows=10).rows + np.array([0.3, 0.0])))
        return float(np.abs(np.diff(path(arm.run(0.6)), 2)).max())

    assert largest_change(0.4) < 0.7 * largest_change(0.0)


def test_a_gripper_keeps_a_rows_value_until_the_next_and_changes_at_once() -> None:
    arm = Arm()
    arm.tick()
    rows = np.tile([0.5, 0.0], (4, 1))
    rows[2:, 1] = 1.0
    arm.follow(arm.plan(1, rows))
    commands = arm.run(0.39)
    closed = [c.positions[1] for c in commands]
    # Where it is going is said at once, for a gripper that goes there by itself.
    assert [c.wanted[1] for c in commands] == [0.0] * 10 + [1.0] * (len(commands) - 10)
    # The limit of its speed alone: 8 a second.
    assert closed[:10] == pytest.approx([0.0] * 10)
    assert closed[11:17] == pytest.approx(np.arange(1, 7) * 0.16, abs=0.17)
    assert closed[-1] == 1.0


def test_a_gripper_does_not_follow_what_flickers() -> None:
    arm = Arm()
    arm.tick()
    rows = np.column_stack((np.full(8, 0.5), [0.05, 0.09, 0.0, 0.08, 0.9, 0.97, 0.85, 1.0]))
    arm.follow(arm.plan(1, rows))
    closed = np.array([c.positions[1] for c in arm.run(0.79)])
    assert set(closed[:20].round(9)) <= {0.0, 0.05}
    assert set(closed[-12:].round(9)) == {0.9}


def test_a_hold_brakes_as_the_limits_allow_and_begins_at_once() -> None:
    arm = Arm()
    arm.tick()
    arm.follow(arm.plan(1, np.column_stack((0.5 + np.arange(1, 11) * 0.15, np.zeros(10)))))
    arm.run(0.5)
    arm.measuring = False
    commands = arm.run(0.6)
    states = [c.state for c in commands]
    begin = states.index(State.HOLDING)
    assert begin == 12  # the first tick more than 0.25 s after the last
    speed = np.diff(path(commands[begin - 2 :])) / 0.02
    assert speed[0] == pytest.approx(1.5, abs=1e-6)
    assert np.diff(speed)[:3] == pytest.approx(-0.4)
    assert speed[5:] == pytest.approx(0.0, abs=1e-12)


def test_joint_states_that_stop_end_in_a_hold_and_their_return_ends_it() -> None:
    arm = Arm()
    arm.follow(arm.ramp(rows=30))
    arm.run(0.2)
    arm.measuring = False
    arm.run(0.4)
    assert arm.reason is Reason.JOINTS_STALE
    arm.measuring = True
    assert arm.tick().state is State.TRACKING
    assert arm.controller.counts.holds == 1


def test_old_stamps_on_new_joint_states_do_not_keep_an_arm_moving() -> None:
    arm = Arm()
    arm.follow(arm.ramp())
    arm.tick()
    arm.measuring = False
    for _ in range(20):
        arm.controller.measure(HOME, START_NS, arm.moment)
        arm.tick()
    assert arm.controller.state is State.HOLDING


def test_a_planner_that_falls_silent_ends_in_a_hold_though_rows_are_left() -> None:
    arm = Arm()
    arm.follow(arm.ramp(rows=100))
    arm.run(0.2)
    arm.planner_lives = False
    arm.run(1.45)
    assert arm.controller.state is State.TRACKING
    arm.run(0.1)
    assert arm.controller.state is State.HOLDING and arm.reason is Reason.PLANNER_SILENT
    arm.planner_lives = True
    assert arm.tick().state is State.TRACKING


def test_a_chunk_that_nothing_replaces_ends_in_a_hold_though_rows_are_left() -> None:
    arm = Arm()
    arm.follow(arm.ramp(rows=100))
    arm.run(3.9)
    assert arm.controller.state is State.TRACKING
    arm.run(0.2)
    assert arm.reason is Reason.CHUNK_STALE


def test_a_chunk_of_an_old_observation_ends_in_a_hold_though_rows_are_left() -> None:
    arm = Arm()
    arm.follow(arm.plan(1, np.tile(HOME, (100, 1)), age_s=3.0, start_ns=arm.now_ns))
    arm.run(1.9)
    assert arm.controller.state is State.TRACKING
    arm.run(0.2)
    assert arm.reason is Reason.OBSERVATION_STALE


def test_a_control_loop_that_was_late_holds_for_a_tick_and_sets_off_from_rest() -> None:
    arm = Arm()
    arm.tick()
    arm.follow(arm.ramp(rows=30))
    before = arm.run(0.4)[-1].positions[0]
    arm.pass_by(ns(0.15))
    late = arm.tick()
    assert late.state is State.HOLDING and arm.reason is Reason.OVERRUN
    assert late.positions[0] == before
    after = arm.run(0.1)
    assert after[0].state is State.TRACKING
    assert after[0].positions[0] - before == pytest.approx(20.0 * 0.02**2)


@pytest.mark.parametrize("jump_s", [-10.0, -0.03, 10.0])
def test_a_jump_of_the_clock_forgets_the_chunk_and_brakes(jump_s: float) -> None:
    arm = Arm()
    arm.tick()
    arm.follow(arm.ramp(rows=300))
    before = arm.run(0.5)
    arm.now_ns += ns(jump_s)
    after = arm.run(0.4)
    assert all(c.state is State.HOLDING for c in after)
    steps = np.diff(path([*before, *after]))
    assert np.all(np.abs(np.diff(steps)) <= 20.0 * 0.02**2 + 1e-9)
    assert steps[-5:] == pytest.approx(0.0, abs=1e-12)
    assert arm.controller.counts.causes == {Reason.CLOCK_JUMPED: 1}
    assert "the clock jumped by" in str(arm.controller.cause)


def test_after_a_jump_an_arm_that_was_put_elsewhere_is_held_there() -> None:
    """A simulator that restarted put the arm elsewhere, and says so after its clock."""
    arm = Arm()
    arm.run(0.1)
    arm.measuring = False
    arm.now_ns -= 10 * NS_PER_S
    assert arm.tick().positions.tolist() == HOME.tolist()
    arm.position, arm.measuring = np.array([-1.0, 0.0]), True
    assert arm.tick().positions.tolist() == [-1.0, 0.0]


def test_a_measurement_from_before_a_jump_back_is_not_held_after_it() -> None:
    arm = Arm()
    arm.run(0.1)
    before_ns = arm.now_ns
    arm.measuring = False
    arm.now_ns -= 10 * NS_PER_S
    arm.tick()
    old, new = np.array([1.7, 0.0]), np.array([-1.0, 0.0])
    arm.controller.measure(old, before_ns, arm.moment)
    assert arm.tick().positions.tolist() == HOME.tolist()
    arm.controller.measure(new, arm.now_ns, arm.moment)
    assert arm.tick().positions.tolist() == new.tolist()
    # Stamps that are a little ahead are of this clock.
    arm.now_ns -= 10 * NS_PER_S
    arm.tick()
    arm.controller.measure(old, arm.now_ns + NS_PER_S // 2, arm.moment)
    assert arm.tick().positions.tolist() == old.tolist()


def test_after_a_jump_back_plans_count_from_wherever_they_do() -> None:
    arm = Arm()
    arm.follow(arm.ramp(plan_id=50))
    arm.run(0.5)
    arm.now_ns -= 10 * NS_PER_S
    # Arrives before the next tick has seen the clock.
    arm.follow(arm.plan(7, np.tile([1.0, 0.0], (9, 1))))
    assert arm.tick().state is State.TRACKING


def test_refused_chunks_leave_the_present_one_in_force() -> None:
    arm = Arm()
    arm.tick()
    arm.follow(arm.ramp(plan_id=5, rows=20))
    began_ns = arm.now_ns
    arm.controller.instruct(TOLD)
    arm.run(0.3)
    for refusal, chunk in {
        Refusal.DUPLICATE: arm.ramp(5),
        Refusal.OUT_OF_ORDER: arm.ramp(4),
        Refusal.STALE: arm.ramp(6, age_s=2.0),
        Refusal.FUTURE: arm.ramp(6, age_s=-2.0),
        Refusal.WRONG_WIDTH: arm.plan(6, np.zeros((5, 3))),
        Refusal.WRONG_INSTRUCTION: arm.ramp(6, instruction="touch the blue cube"),
        Refusal.ANOTHER_PLANNER: arm.ramp(6, planner=PLANNER + 1),
        Refusal.OUT_OF_RANGE: arm.plan(6, [[0.8, 0.0], [2.3, 0.0]]),
        Refusal.JUMP: arm.plan(6, np.tile([1.9, 0.0], (5, 1)), age_s=0.2),
    }.items():
        assert arm.refusal_of(chunk) is refusal
    of_long_ago = arm.plan(6, np.tile(HOME, (100, 1)), age_s=5.1, start_ns=arm.now_ns)
    assert arm.refusal_of(of_long_ago) is Refusal.STALE
    neither_open_nor_closed = arm.plan(6, [[0.8, 0.0], [0.8, 1.6]])
    assert arm.refusal_of(neither_open_nor_closed) is Refusal.OUT_OF_RANGE
    elapsed_s = (arm.now_ns - began_ns) / NS_PER_S
    command = arm.tick()
    assert command.state is State.TRACKING
    assert command.positions[0] == pytest.approx(0.5 + elapsed_s, abs=1e-6)


def test_a_row_a_little_outside_the_limits_is_limited_and_counted() -> None:
    arm = Arm()
    arm.position = np.array([1.8, 0.0])
    # A gripper that is more than open is open.
    arm.follow(arm.plan(1, np.tile([2.1, -0.4], (30, 1))))
    commands = arm.run(2.0)
    assert commands[-1].positions == pytest.approx([2.0, 0.0], abs=1e-3)
    assert np.all(path(commands) <= 2.0)
    assert arm.controller.counts.saturated == pytest.approx(100, abs=1)


def test_chunks_before_any_instruction_are_followed() -> None:
    arm = Arm()
    arm.follow(arm.ramp(instruction="whatever a bag says"))
    assert arm.tick().state is State.TRACKING


def test_a_planner_that_ended_or_fell_silent_makes_way_for_another() -> None:
    arm = Arm()
    arm.follow(arm.ramp(plan_id=90))
    arm.run(0.3)
    arm.controller.hear(PLANNER, arm.steady_ns, alive=False)
    arm.planner_lives = False
    arm.follow(arm.ramp(plan_id=1, planner=5))
    arm.follow(arm.ramp(plan_id=2, planner=5))
    assert arm.refusal_of(arm.ramp(plan_id=3, planner=6)) is Refusal.ANOTHER_PLANNER
    arm.run(1.6)
    arm.follow(arm.plan(1, np.tile(arm.position, (9, 1)), planner=6))
    assert arm.tick().state is State.TRACKING


def test_a_stop_brakes_and_stays_until_it_is_told_to_resume() -> None:
    arm = Arm()
    arm.tick()
    arm.follow(arm.ramp(rows=40))
    arm.run(0.4)
    arm.controller.stop("the button")
    stopped = arm.run(0.3)
    assert all(c.state is State.STOPPED for c in stopped)
    assert np.diff(path(stopped))[-3:] == pytest.approx(0.0, abs=1e-12)
    # A good chunk is taken for a sign of life, and not followed.
    arm.follow(arm.plan(2, np.tile(arm.position, (9, 1))))
    assert arm.tick().state is State.STOPPED
    assert str(arm.controller.cause) == "the button"
    arm.controller.resume(arm.moment)
    assert arm.tick().state is State.HOLDING and arm.reason is Reason.NO_CHUNK
    arm.follow(arm.plan(3, np.tile(arm.position, (9, 1))))
    assert arm.tick().state is State.TRACKING


def test_it_does_not_resume_while_an_input_is_missing() -> None:
    arm = Arm()
    arm.tick()
    arm.controller.stop("the button")
    arm.measuring = False
    arm.run(0.4)
    with pytest.raises(NotReady, match="joint states are older than 0.25 s"):
        arm.controller.resume(arm.moment)
    arm.measuring, arm.planner_lives = True, False
    arm.run(1.6)
    with pytest.raises(NotReady, match="the planner was not heard for more than 1.5 s"):
        arm.controller.resume(arm.moment)
    assert arm.tick().state is State.STOPPED
    arm.planner_lives = True
    arm.tick()
    arm.controller.resume(arm.moment)
    assert arm.tick().state is State.HOLDING


def test_every_transition_is_told_once_with_its_cause() -> None:
    arm = Arm()
    arm.tick()
    arm.follow(arm.ramp(plan_id=3, rows=5))
    arm.run(1.0)
    arm.controller.stop("the button")
    arm.run(0.1)
    told = [
        (t.state, t.cause and t.cause.reason, t.plan_id) for t in arm.controller.take_transitions()
    ]
    assert told == [
        (State.WAITING, Reason.NO_JOINTS, 0),
        (State.HOLDING, Reason.NO_CHUNK, 0),
        (State.TRACKING, None, 3),
        (State.HOLDING, Reason.CHUNK_ENDED, 3),
        (State.STOPPED, Reason.STOPPED, 0),
    ]
    assert arm.controller.take_transitions() == []
    assert arm.controller.counts.transitions == 5


def test_a_base_comes_to_a_stop_when_it_holds() -> None:
    """Its channels are velocities: to hold them would be to drive on."""
    limits = Limits(Space(2), -np.ones(2), np.ones(2), np.full(2, 2.0), np.full(2, np.inf))
    following = Following(np.full(2, np.nan), np.full(2, np.inf), np.zeros(2))
    controller = Controller(limits, following, TIMEOUTS)
    told = []
    for tick in range(150):
        moment = Moment(START_NS + tick * PERIOD_NS, tick * PERIOD_NS)
        controller.measure(np.zeros(2), moment.now_ns, moment)
        controller.hear(1, moment.steady_ns)
        if tick == 1:
            rows = np.tile([0.5, -0.2], (10, 1))
            stamp_ns = moment.now_ns
            controller.accept(Chunk(1, stamp_ns, 10.0, rows, stamp_ns, planner=1), moment)
        command = controller.tick(moment)
        assert command is not None
        told.append(command)
    driving = [c for c in told if c.state is State.TRACKING]
    assert driving[-1].positions == pytest.approx([0.5, -0.2])
    # 2 m/s² from 0.5 m/s.
    held = told[[c.state for c in told].index(State.TRACKING) + len(driving) :]
    assert held[0].positions == pytest.approx([0.46, -0.16])
    assert held[13].positions == pytest.approx([0.0, 0.0], abs=1e-9)
    assert controller.is_at_rest


def test_a_chunk_may_not_begin_far_away_however_early_it_comes() -> None:
    arm = Arm()
    arm.tick()
    for age_s in (0.0, 0.05, 0.15):
        far = arm.plan(1, [[1.6, 0.0]] * 10, age_s)
        assert arm.refusal_of(far) is Refusal.JUMP, age_s
        late = arm.plan(1, [[1.6, 0.0]] * 10, age_s, start_ns=arm.now_ns)
        assert arm.refusal_of(late) is Refusal.JUMP, "it starts now"
    arm.follow(arm.plan(1, [[1.4, 0.0]] * 10))


def test_a_chunk_is_refused_while_nothing_is_known_of_where_the_robot_is() -> None:
    arm = Arm()
    assert arm.refusal_of(arm.ramp()) is Refusal.NO_JOINTS
    arm.tick()
    arm.follow(arm.ramp())
    arm.run(0.2)
    arm.now_ns -= ns(5)
    assert arm.refusal_of(arm.ramp(2)) is Refusal.NO_JOINTS, "the clock has jumped since"


def test_after_a_hold_a_chunk_is_gone_on_with_only_where_the_arm_is_near_it() -> None:
    for lost_s, state in ((0.5, State.TRACKING), (1.3, State.HOLDING)):
        arm = Arm()
        arm.tick()
        arm.follow(arm.ramp(rows=15))
        arm.measuring = False
        arm.run(0.2 + lost_s)
        assert arm.reason is Reason.JOINTS_STALE
        arm.measuring = True
        arm.tick()
        assert arm.tick().state is state, lost_s
    assert arm.reason is Reason.NO_CHUNK


def test_a_robot_outside_its_limits_is_not_moved_and_that_is_said() -> None:
    arm = Arm()
    arm.position = np.array([2.3, 0.0])
    arm.controller.measure(arm.position, arm.now_ns, arm.moment)
    assert arm.controller.tick(arm.moment) is None
    assert arm.controller.state is State.WAITING
    assert str(arm.controller.cause) == (
        "the robot is at 2.3 in channel 0; expected -2 to 2: move it there by other means"
    )
    # Measured at its limit, give or take a little, it is there.
    arm.position = np.array([2.02, -0.3])
    assert arm.tick().positions.tolist() == [2.0, 0.0]
    arm.follow(arm.plan(1, [[1.9, 0.0]] * 10))
    assert arm.tick().state is State.TRACKING
    arm.position = np.array([2.3, 0.0])
    assert arm.tick().state is State.HOLDING and arm.reason is Reason.OUTSIDE_LIMITS


def test_a_clock_that_jumps_lets_nothing_go_that_a_gripper_holds() -> None:
    arm = Arm()
    arm.tick()
    arm.follow(arm.plan(1, [[0.5, 1.0]] * 10))
    arm.run(0.6)
    assert arm.position[1] == 1.0
    arm.position = np.array([0.5, 0.4])  # it closes on something
    arm.now_ns -= ns(3)
    assert arm.tick().positions.tolist() == [0.5, 1.0]
    # Put elsewhere altogether, the arm is held there, and the gripper still does not open.
    arm.position = np.array([-1.0, 0.4])
    arm.now_ns -= ns(3)
    assert arm.tick().positions.tolist() == [-1.0, 1.0]


def test_a_clock_that_is_set_while_it_runs_makes_nothing_faster() -> None:
    arm = Arm()
    arm.tick()
    arm.follow(arm.ramp(rows=15))
    before = path(arm.run(0.3))[-1]
    arm.now_ns += ns(0.4)
    after = path(arm.run(0.02))[-1]
    assert 0 < after - before <= 4.0 * 0.02 + 1e-9, "the velocity limit, by the steady clock"


def test_simulated_time_is_the_robots_own() -> None:
    controller = Controller(
        LIMITS, Following(HYSTERESIS, JUMP, STAYS), TIMEOUTS, simulated_time=True
    )
    moment = Moment(START_NS, 5 * NS_PER_S)
    controller.measure(HOME, START_NS, moment)
    controller.tick(moment)
    rows = np.tile([1.0, 0.0], (10, 1))
    controller.accept(Chunk(1, START_NS, 10.0, rows, START_NS, planner=1), moment)
    reached = []
    for tick in range(1, 26):
        # Ten times as fast as the steady clock.
        moment = Moment(START_NS + tick * PERIOD_NS, 5 * NS_PER_S + tick * PERIOD_NS // 10)
        controller.measure(HOME, moment.now_ns, moment)
        command = controller.tick(moment)
        assert command is not None
        reached.append(command.positions[0])
    assert reached[-1] == pytest.approx(1.0, abs=0.01)


def test_a_process_that_was_stopped_for_seconds_has_paused_and_its_clock_has_not_jumped() -> None:
    arm = Arm()
    arm.tick()
    arm.follow(arm.ramp(rows=40))
    arm.run(0.2)
    arm.pass_by(ns(1.3))
    assert arm.tick().state is State.HOLDING and arm.reason is Reason.OVERRUN
    arm.now_ns += ns(1.3)
    arm.tick()
    assert arm.reason is Reason.CLOCK_JUMPED
    arm.follow(arm.plan(2, [arm.position] * 3))
    arm.run(0.1)
    arm.controller.stop("the button")
    arm.tick()
    arm.controller.resume(arm.moment)
    arm.tick()
    assert arm.reason is Reason.NO_CHUNK, "a jump of long ago is no cause any more"


def test_a_stop_before_any_measurement_is_a_stop() -> None:
    arm = Arm()
    arm.controller.stop("the button")
    assert arm.controller.tick(arm.moment) is None
    assert arm.controller.state is State.STOPPED
    assert arm.tick().state is State.STOPPED


def test_a_quaternion_that_is_no_rotation_is_refused_in_rows_and_ignored_in_measurements() -> None:
    free, still = np.full(7, np.inf), np.array([0.1, 0.2, 0.3, 0.0, 0.0, 0.0, 1.0])
    limits = Limits(Space(7, (3,)), -free, free, np.full(6, 1.0), np.full(6, 5.0))
    following = Following(np.full(7, np.nan), np.full(6, 1.0), np.full(7, np.nan))
    controller = Controller(limits, following, TIMEOUTS)
    moment = Moment(START_NS, 5 * NS_PER_S)
    controller.measure(np.zeros(7), START_NS, moment)
    assert controller.tick(moment) is None
    controller.measure(still, START_NS, moment)
    rows = np.tile(still, (5, 1))
    rows[3, 3:] = 0.0
    with pytest.raises(ChunkRefused, match="row 3 holds a quaternion that is no rotation"):
        controller.accept(Chunk(1, START_NS, 10.0, rows, START_NS), moment)


def test_a_planner_that_ends_is_not_followed_any_more() -> None:
    arm = Arm()
    arm.tick()
    arm.follow(arm.ramp())
    assert arm.tick().state is State.TRACKING
    arm.planner_lives = False
    arm.controller.hear(PLANNER, arm.steady_ns, alive=False)
    assert arm.tick().state is State.HOLDING
    assert str(arm.controller.cause) == "no planner is alive"
    assert arm.refusal_of(arm.ramp(plan_id=2)) is Refusal.ANOTHER_PLANNER, "its last words"
    arm.follow(arm.ramp(planner=PLANNER + 1))
    assert arm.tick().state is State.TRACKING


def test_it_does_not_resume_for_a_planner_that_has_ended_or_sees_nothing() -> None:
    arm = Arm()
    arm.tick()
    arm.controller.stop("the button")
    arm.planner_lives = False
    arm.controller.hear(PLANNER, arm.steady_ns, lacks="no picture of camera 'wrist'")
    with pytest.raises(NotReady, match="the planner says: no picture of camera 'wrist'"):
        arm.controller.resume(arm.moment)
    arm.controller.hear(PLANNER, arm.steady_ns, alive=False)
    with pytest.raises(NotReady, match="no planner is alive"):
        arm.controller.resume(arm.moment)
    arm.controller.hear(PLANNER + 1, arm.steady_ns)
    arm.controller.resume(arm.moment)
    assert arm.tick().state is State.HOLDING


def test_a_forecast_keeps_a_gripper_as_commands_do() -> None:
    arm = Arm()
    arm.tick()
    closing = np.array([0.5, 0.5, 0.55, 0.55, 1.0, 1.0])
    arm.follow(arm.plan(1, np.column_stack((np.full(6, 0.5), closing))))
    arm.tick()
    moment = Moment(arm.now_ns - PERIOD_NS, arm.steady_ns - PERIOD_NS)
    forecast = arm.controller.forecast(moment, 0.02)
    came = np.array([command.positions for command in arm.run(0.5)])
    assert 0.55 not in came[:, 1] and 0.5 in came[:, 1]
    assert forecast[: len(came)] == pytest.approx(came[: len(forecast)])


def test_a_command_says_when_what_was_forecast_before_it_holds_no_more() -> None:
    arm = Arm()
    arm.tick()
    arm.follow(arm.ramp(rows=4))
    assert [command.anew for command in arm.run(0.4)] == [True] + [False] * 19
    arm.run(1.0)
    arm.follow(arm.ramp(2))
    assert arm.tick().anew
    arm.pass_by(ns(0.5))
    assert arm.tick().anew, "the loop has paused"
    arm.run(0.1)
    arm.now_ns -= ns(5)
    assert arm.tick().anew, "it holds, for the clock has jumped"
    arm.now_ns -= ns(5)
    arm.position = np.array([-1.0, 0.0])
    command = arm.tick()
    assert command.anew and command.positions[0] == -1.0, "held where it was put"


def test_how_long_it_may_take_to_come_to_rest_is_known() -> None:
    arm = Arm()
    assert arm.controller.to_rest_s == 0.0
    arm.tick()
    # 4 units a second by 20 a second squared; a gripper's rest is where it is.
    assert arm.controller.to_rest_s == pytest.approx(0.2)
    free = np.full(2, np.inf)
    limits = Limits(Space(2), -free, free, np.array([2.0, 0.25]), free)
    base = Controller(limits, Following(np.full(2, np.nan), free, np.zeros(2)), TIMEOUTS)
    moment = Moment(START_NS, 5 * NS_PER_S)
    base.measure(np.array([0.0, 0.5]), START_NS, moment)
    base.tick(moment)
    assert base.to_rest_s == pytest.approx(2.0), "of a base without limits, too"


def test_a_forecast_is_what_comes_when_nothing_else_does() -> None:
    arm = Arm(blend_s=0.3)
    arm.tick()
    arm.follow(arm.ramp(rows=8))
    arm.run(0.4)
    arm.follow(arm.plan(2, np.column_stack((0.9 + np.arange(1, 9) * 0.05, np.zeros(8)))))
    arm.tick()
    moment = Moment(arm.now_ns - PERIOD_NS, arm.steady_ns - PERIOD_NS)
    forecast = arm.controller.forecast(moment, 0.02)
    came = np.array([c.positions for c in arm.run(0.8)])
    assert forecast[:38] == pytest.approx(came[:38], abs=1e-9)
    assert forecast[-1] == pytest.approx([1.3, 0.0], abs=1e-3)
    arm.controller.stop("the button")
    arm.tick()
    assert len(arm.controller.forecast(arm.moment, 0.02)) == 1, "it rests already"


def test_a_measurement_that_is_not_finite_is_ignored() -> None:
    arm = Arm()
    arm.controller.measure(np.array([np.nan, 0.0]), START_NS, arm.moment)
    assert arm.controller.tick(arm.moment) is None
