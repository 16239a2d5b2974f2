"""A chunk is followed, blended, limited, forecast and replaced; what is none is refused."""

from __future__ import annotations

import numpy as np
import pytest
from controlled_arm import HOME, PERIOD_NS, PLANNER, START_NS, TIMEOUTS, TOLD, Arm, ns, path

from cosmos3_ros.control.admission import Following
from cosmos3_ros.control.chunk import NS_PER_S, Chunk, ChunkRefused, Refusal
from cosmos3_ros.control.controller import Controller, State
from cosmos3_ros.control.limits import Limits
from cosmos3_ros.control.space import Space
from cosmos3_ros.control.watchdog import Moment, Reason


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
    rows = np.column_stack((np.full(8, 0.5), [0.05, 0.09, 0.0, 0.08, 0.6, 0.67, 0.55, 0.7]))
    arm.follow(arm.plan(1, rows))
    closed = np.array([c.positions[1] for c in arm.run(0.79)])
    assert set(closed[:20].round(9)) <= {0.0}
    assert set(closed[-12:].round(9)) == {0.6}


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_a_gripper_that_closes_or_opens_step_by_step_does_so_altogether(end: float) -> None:
    arm = Arm()
    arm.position = np.array([0.5, 1.0 - end])
    arm.tick()
    closing = np.array([0.0, 0.2, 0.45, 0.7, 0.91, 1.0, 1.0, 1.0])
    arm.follow(arm.plan(1, np.column_stack((np.full(8, 0.5), np.abs(1.0 - end - closing)))))
    assert arm.run(0.7)[-1].positions[1] == end


def test_a_plan_that_the_arm_stood_still_for_is_followed_to_its_end() -> None:
    """An observation ages from the plan's start on, but no later than from its arrival."""
    arm = Arm(observation_s=2.0)
    arm.tick()
    arm.follow(arm.plan(1, np.tile(HOME, (18, 1)), age_s=1.5, start_ns=arm.now_ns))
    arm.run(1.85)
    assert arm.controller.state is State.TRACKING
    late = arm.plan(2, np.tile(HOME, (18, 1)), age_s=2.1, start_ns=arm.now_ns)
    assert arm.refusal_of(late) is Refusal.STALE
    arm.follow(arm.plan(3, np.tile(HOME, (90, 1)), start_ns=arm.now_ns + ns(5.0)))
    arm.run(2.2)
    assert arm.reason is Reason.OBSERVATION_STALE, "however late it says it starts"


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


def test_an_empty_instruction_ends_what_is_followed_and_another_one_does_not() -> None:
    arm = Arm()
    arm.controller.instruct(TOLD)
    arm.tick()
    arm.follow(arm.ramp())
    arm.run(0.2)
    arm.controller.instruct("touch the blue cube")
    assert arm.tick().state is State.TRACKING, "until the first chunk of that"
    arm.controller.instruct("")
    assert arm.tick().state is State.HOLDING and arm.reason is Reason.NO_CHUNK
    assert str(arm.controller.cause) == "the instruction was ended by an empty one"
    arm.controller.instruct(TOLD)
    arm.follow(arm.plan(2, [arm.position] * 10))
    assert arm.tick().state is State.TRACKING


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
    arm.controller.hear(PLANNER + 1, arm.steady_ns)
    arm.run(0.3)
    assert arm.controller.state is State.HOLDING, "another one's life says nothing of its chunk"
    assert arm.reason is Reason.NO_CHUNK and arm.controller.is_at_rest
    assert arm.refusal_of(arm.ramp(plan_id=2)) is Refusal.ANOTHER_PLANNER, "its last words"
    arm.follow(arm.ramp(planner=PLANNER + 1))
    assert arm.tick().state is State.TRACKING


def test_a_chunk_is_in_force_once_it_is_accepted_and_begins_with_what_follows_it() -> None:
    arm = Arm()
    arm.tick()
    arm.follow(arm.ramp(plan_id=3))
    assert arm.controller.plan_id == 3
    began = arm.tick().began
    assert began is not None and began.plan_id == 3
    arm.measuring = False
    arm.run(0.3)
    assert arm.reason is Reason.JOINTS_STALE
    arm.follow(arm.ramp(plan_id=4))
    assert arm.controller.plan_id == 4
    held = arm.tick()
    assert held.state is State.HOLDING and held.began is None


def test_a_forecast_keeps_a_gripper_as_commands_do() -> None:
    arm = Arm()
    arm.tick()
    closing = np.array([0.5, 0.5, 0.55, 0.55, 1.0, 1.0])
    arm.follow(arm.plan(1, np.column_stack((np.full(6, 0.5), closing))))
    arm.tick()
    moment = Moment(arm.now_ns - PERIOD_NS, arm.steady_ns - PERIOD_NS)
    forecast = arm.controller.outlook(moment).commands(0.02)
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
    forecast = arm.controller.outlook(moment).commands(0.02)
    came = np.array([c.positions for c in arm.run(0.8)])
    assert forecast[:38] == pytest.approx(came[:38], abs=1e-9)
    assert forecast[-1] == pytest.approx([1.3, 0.0], abs=1e-3)
    arm.controller.stop("the button")
    arm.tick()
    assert len(arm.controller.outlook(arm.moment).commands(0.02)) == 1, "it rests already"


@pytest.mark.parametrize("pause_s", [0.12, 0.3, 3.0])
@pytest.mark.parametrize("newer", [False, True])
def test_after_a_pause_an_arm_that_was_told_what_is_to_come_goes_on_from_where_that_led_it(
    pause_s: float, newer: bool
) -> None:
    arm = Arm()
    arm.tick()
    arm.follow(arm.ramp())
    arm.run(0.1)
    moment = Moment(arm.now_ns - PERIOD_NS, arm.steady_ns - PERIOD_NS)
    told = arm.controller.outlook(moment).commands(0.02)
    paused = round(pause_s / 0.02)
    arm.pass_by(ns(pause_s) - PERIOD_NS)
    driven = arm.position = told[min(paused, len(told)) - 1]
    if newer:
        arm.follow(arm.ramp(2))
    command = arm.tick()
    assert command.anew and command.state is State.HOLDING
    assert command.positions == pytest.approx(driven, abs=2e-3)
    moment = Moment(arm.now_ns - PERIOD_NS, arm.steady_ns - PERIOD_NS)
    braking = arm.controller.outlook(moment).commands(0.02)[:, 0]
    assert np.all(np.diff(braking) >= -1e-9), "it is not called back"
    assert braking[-1] - command.positions[0] <= 4.0**2 / 2 / 20.0


def fast_arm(seconds: float) -> Arm:
    """On its way at 3 units a second, since so long."""
    arm = Arm()
    arm.tick()
    fast = np.minimum(0.5 + np.arange(1, 16) * 0.3, 2.0)
    arm.follow(arm.plan(1, np.column_stack((fast, np.zeros(15)))))
    arm.run(seconds)
    return arm


def told_ahead(arm: Arm) -> np.ndarray:
    """What it has said is to come after its last command [n, width]."""
    moment = Moment(arm.now_ns - PERIOD_NS, arm.steady_ns - PERIOD_NS)
    return arm.controller.outlook(moment).commands(0.02)


def test_what_was_told_ahead_is_nothing_to_go_by_where_the_arm_was_moved_since() -> None:
    arm = Arm()
    arm.tick()
    arm.follow(arm.ramp(rows=4))
    arm.run(1.2)
    told_ahead(arm)
    arm.position = arm.position - [0.8, 0.0]
    arm.tick()
    here = arm.position = arm.position - [0.8, 0.0]
    arm.follow(arm.plan(2, [here] * 10))
    arm.pass_by(ns(0.2))
    arm.position = here
    assert arm.tick().positions == pytest.approx(here, abs=1e-6)


def test_a_clock_that_is_set_in_a_pause_does_not_call_the_arm_back() -> None:
    arm = fast_arm(0.2)
    told = told_ahead(arm)
    arm.pass_by(ns(0.3))
    arm.now_ns += ns(2)
    arm.measuring = False
    assert arm.tick().positions == pytest.approx(told[15], abs=1e-6), "it has gone on meanwhile"


def test_a_pause_after_the_clock_was_set_back_moves_nothing_that_rests() -> None:
    arm = Arm()
    arm.tick()
    arm.follow(arm.ramp())
    arm.run(0.2)
    arm.controller.stop("the button")
    arm.tick()
    told_ahead(arm)
    rest = arm.run(0.5)[-1].positions
    arm.now_ns -= ns(2)
    arm.tick()
    arm.pass_by(ns(0.15))
    assert arm.tick().positions.tolist() == rest.tolist()


def test_an_arm_that_obeyed_through_a_pause_is_not_taken_for_one_that_does_not_follow() -> None:
    arm = fast_arm(0.06)
    told = told_ahead(arm)
    # Joint states come 40 ms late, and the first of them before the loop goes on.
    arm.pass_by(ns(0.4))
    late = told[20 - 2]
    arm.controller.measure(late, arm.now_ns - ns(0.04), arm.moment)
    arm.measuring = False
    arm.tick()
    assert arm.reason is Reason.OVERRUN and arm.controller.plan_id == 1


def test_after_a_pause_what_was_measured_before_it_is_not_where_the_arm_is() -> None:
    arm = fast_arm(0.3)
    told_ahead(arm)
    before = arm.position - [0.1, 0.0]
    arm.controller.measure(before, arm.now_ns - ns(0.02), arm.moment)
    arm.measuring = False
    arm.pass_by(ns(0.2))
    here = arm.tick().positions
    arm.controller.measure(before, arm.now_ns - ns(0.2), arm.moment)  # it was in a queue
    assert arm.reason is Reason.OVERRUN
    arm.controller.accept(arm.plan(2, [here + np.array([0.1, 0.0])] * 10), arm.moment)
    assert abs(arm.tick().positions[0] - here[0]) < 4.0 * 0.02 + 1e-9


def test_a_measurement_that_is_not_finite_is_ignored() -> None:
    arm = Arm()
    arm.controller.measure(np.array([np.nan, 0.0]), START_NS, arm.moment)
    assert arm.controller.tick(arm.moment) is None
