"""Whatever fails, the arm is held, at once and as its limits allow; the clock may jump."""

from __future__ import annotations

import numpy as np
import pytest
from controlled_arm import (
    HOME,
    HYSTERESIS,
    JUMP,
    LIMITS,
    PERIOD_NS,
    START_NS,
    STAYS,
    TIMEOUTS,
    Arm,
    ns,
    path,
)

from cosmos3_ros.control.admission import Following
from cosmos3_ros.control.chunk import NS_PER_S, Chunk, Refusal
from cosmos3_ros.control.controller import Controller, State
from cosmos3_ros.control.limits import Limits
from cosmos3_ros.control.space import Space
from cosmos3_ros.control.watchdog import Moment, Reason


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


def test_rows_that_end_are_held_after_the_grace_and_counted_once() -> None:
    arm = Arm()
    arm.follow(arm.ramp(rows=5))
    commands = arm.run(1.0)
    held = [c for c in commands if c.state is State.HOLDING]
    assert len(commands) - len(held) == 31  # 0.5 s of rows, 0.1 s of grace, and both ends
    assert path(held) == pytest.approx(1.0, abs=1e-6)
    assert arm.controller.counts.holds == 1
    assert arm.controller.counts.causes == {Reason.CHUNK_ENDED: 1}


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
    arm.follow(arm.plan(1, np.tile(HOME, (100, 1)), age_s=3.0))
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


def test_a_measurement_from_before_a_jump_forward_is_not_held_after_it() -> None:
    arm = Arm()
    arm.run(0.1)
    before_ns = arm.now_ns
    arm.now_ns += 10 * NS_PER_S
    arm.controller.measure(HOME, before_ns, arm.moment)
    arm.controller.measure(np.array([-1.0, 0.0]), arm.now_ns, arm.moment)
    assert arm.controller.tick(arm.moment).positions.tolist() == [-1.0, 0.0]  # type: ignore[union-attr]


def test_after_a_jump_back_plans_count_from_wherever_they_do() -> None:
    arm = Arm()
    arm.follow(arm.ramp(plan_id=50))
    arm.run(0.5)
    arm.now_ns -= 10 * NS_PER_S
    # Arrives before the next tick has seen the clock.
    arm.follow(arm.plan(7, np.tile([1.0, 0.0], (9, 1))))
    assert arm.tick().state is State.TRACKING


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


def test_a_simulator_that_restarts_has_put_the_gripper_elsewhere_too() -> None:
    arm = Arm(simulated_time=True)
    arm.tick()
    arm.follow(arm.plan(1, [[0.5, 1.0]] * 10))
    arm.run(0.6)
    assert arm.position[1] == 1.0
    # The arm as near as it may be, the gripper open.
    arm.position = np.array([0.51, 0.0])
    arm.now_ns -= ns(3)
    assert arm.tick().positions.tolist() == [0.51, 0.0]


def test_a_simulators_clock_that_goes_back_moves_nothing_that_stayed_where_it_was() -> None:
    arm = Arm(simulated_time=True)
    arm.tick()
    arm.follow(arm.plan(1, [[0.5, 1.0]] * 10))
    arm.run(0.6)
    arm.position = np.array([0.48, 0.4])  # it lags behind, and holds something
    arm.controller.measure(arm.position, arm.now_ns, arm.moment)
    arm.now_ns -= ns(3)
    assert arm.tick().positions.tolist() == [0.5, 1.0]


def test_what_a_simulator_sent_before_its_clock_went_back_is_not_taken_for_new() -> None:
    """However little it went back: an episode may be shorter than any jump of a clock."""
    arm = Arm(simulated_time=True)
    arm.tick()
    arm.follow(arm.ramp())
    arm.run(0.8)
    of_before, before_ns, was_at = arm.ramp(2), arm.now_ns, arm.position
    arm.now_ns -= ns(0.8)
    arm.controller.tick(arm.moment)
    arm.controller.measure(was_at, before_ns, arm.moment)
    assert arm.refusal_of(of_before) is Refusal.FUTURE
    arm.position = np.array([-1.0, 0.0])
    assert arm.tick().positions.tolist() == [-1.0, 0.0], "the arm was held where it had been"
    arm.follow(arm.plan(1, [[-1.0, 0.0]] * 10))
    arm.tick()
    assert arm.controller.state is State.TRACKING


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


def test_a_pause_of_which_simulated_time_saw_little_ends_within_the_limits() -> None:
    controller = Controller(
        LIMITS, Following(HYSTERESIS, JUMP, STAYS), TIMEOUTS, simulated_time=True
    )
    moment, at, stamps_ns = Moment(START_NS, 5 * NS_PER_S), [], []
    controller.measure(HOME, START_NS, moment)
    controller.tick(moment)
    rows = np.column_stack((0.5 + np.arange(1, 11) / 10, np.zeros(10)))
    controller.accept(Chunk(1, START_NS, 10.0, rows, START_NS, planner=1), moment)
    for tick in range(1, 30):
        # A machine that is busy: the loop pauses, and the simulator does not get far either.
        paused = tick == 15
        moment = Moment(
            moment.now_ns + (2 if paused else 1) * PERIOD_NS,
            moment.steady_ns + (10 if paused else 1) * PERIOD_NS,
        )
        controller.measure(HOME if not at else np.array([at[-1], 0.0]), moment.now_ns, moment)
        command = controller.tick(moment)
        assert command is not None
        assert (command.state is State.HOLDING) == paused
        at.append(float(command.positions[0]))
        stamps_ns.append(moment.now_ns)
    passed_s = np.diff(stamps_ns) / NS_PER_S
    velocity = np.diff(at) / passed_s
    assert np.all(np.abs(np.diff(velocity)) <= 20.0 * passed_s[1:] + 1e-9)


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
