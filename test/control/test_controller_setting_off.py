"""Setting off anew: from a stop, a hold, or from where an arm was moved or has been blocked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from controlled_arm import (
    HOME,
    HYSTERESIS,
    LIMITS,
    PERIOD_NS,
    PLANNER,
    START_NS,
    STAYS,
    TIMEOUTS,
    Arm,
    ns,
    path,
    path_of,
)

from cosmos3_ros.control.admission import Following
from cosmos3_ros.control.chunk import NS_PER_S, Chunk, Refusal
from cosmos3_ros.control.controller import Controller, NotReady, State
from cosmos3_ros.control.watchdog import Moment, Reason
from cosmos3_ros.policy.embodiment import load_embodiment


def test_after_a_jump_an_arm_that_was_put_elsewhere_is_held_there() -> None:
    """A simulator that restarted put the arm elsewhere, and says so after its clock."""
    arm = Arm()
    arm.run(0.1)
    arm.measuring = False
    arm.now_ns -= 10 * NS_PER_S
    assert arm.tick().positions.tolist() == HOME.tolist()
    arm.position, arm.measuring = np.array([-1.0, 0.0]), True
    assert arm.tick().positions.tolist() == [-1.0, 0.0]


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


def test_it_does_not_resume_by_joint_states_of_before_a_jump_of_the_clock() -> None:
    arm = Arm()
    arm.tick()
    arm.controller.stop("the button")
    arm.tick()
    arm.now_ns -= ns(5.0)
    with pytest.raises(NotReady, match="no joint states since the clock jumped"):
        arm.controller.resume(arm.moment)


@pytest.mark.parametrize("rate_hz", [5.0, 10.0, 15.0, 29.97, 30.0, 37.0, 60.0, 120.0])
def test_a_chunk_may_not_begin_far_away_however_early_it_comes(rate_hz: float) -> None:
    """Nor where the time of its first row is no whole number of nanoseconds."""
    arm = Arm()
    arm.tick()
    for rows_ago in (0.0, 0.5, 1.5):
        age_s = rows_ago / rate_hz
        far = replace(arm.plan(1, [[1.6, 0.0]] * 10, age_s), rate_hz=rate_hz)
        assert arm.refusal_of(far) is Refusal.JUMP, rows_ago
        late = replace(far, start_ns=arm.now_ns)
        assert arm.refusal_of(late) is Refusal.JUMP, "it starts now"
    due = replace(far, start_ns=arm.now_ns)
    for off_ns in (-1, 0, 1):
        arm.now_ns = due.due_ns(0) + off_ns
        assert arm.refusal_of(due) is Refusal.JUMP, off_ns
    arm.follow(replace(arm.plan(1, [[1.4, 0.0]] * 10), rate_hz=rate_hz))


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
    arm.position = np.array([1.9, 0.0])
    arm.tick()
    arm.follow(arm.plan(1, [[1.8, 0.0]] * 10))
    assert arm.tick().state is State.TRACKING
    arm.position = np.array([2.3, 0.0])
    assert arm.tick().state is State.HOLDING and arm.reason is Reason.OUTSIDE_LIMITS
    arm.controller.stop("the button")
    arm.position = np.array([2.3, 0.0])
    arm.tick()
    with pytest.raises(NotReady, match="the robot is at 2.3 in channel 0; expected -2 to 2: move"):
        arm.controller.resume(arm.moment)
    assert arm.tick().state is State.STOPPED


def test_a_robot_a_little_outside_its_limits_comes_back_inside_without_a_leap() -> None:
    arm = Arm()
    arm.position = np.array([2.03, -0.3])  # a gripper that is more than open is open
    commands = arm.run(0.5)
    assert commands[0].positions[1] == 0.0
    steps = np.diff([2.03, *path(commands)])
    assert np.all(steps <= 0) and np.abs(steps).max() < 0.02
    assert np.all(np.abs(np.diff([0.0, *steps])) <= 20.0 * 0.02**2 + 1e-9)
    assert commands[-1].positions[0] == 2.0 and arm.controller.is_at_rest
    assert arm.reason is Reason.NO_CHUNK


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


def test_an_arm_that_was_moved_while_it_was_stopped_goes_on_from_where_it_is() -> None:
    arm = Arm()
    arm.follow(arm.plan(1, [[0.5, 1.0]] * 10))
    arm.run(0.5)
    arm.controller.stop("the button")
    arm.run(0.1)
    by_hand = np.array([-0.4, 0.6])  # and its gripper holds something
    arm.position = by_hand
    assert arm.tick().positions.tolist() == [0.5, 1.0], "a stop stays where it is"
    arm.position = by_hand
    arm.controller.measure(by_hand, arm.now_ns, arm.moment)
    arm.controller.resume(arm.moment)
    command = arm.tick()
    assert command.positions.tolist() == [-0.4, 1.0] and command.anew
    # An arm that sags a little is where it was told to be.
    arm.controller.stop("the button")
    arm.tick()
    arm.controller.measure(np.array([-0.5, 1.0]), arm.now_ns, arm.moment)
    arm.controller.resume(arm.moment)
    assert arm.tick().positions.tolist() == [-0.4, 1.0]


def test_an_arm_that_was_moved_while_it_was_held_follows_a_plan_from_there() -> None:
    arm = Arm()
    arm.run(0.1)
    arm.position = np.array([-0.8, 0.0])
    rows = np.column_stack((-0.8 + np.arange(1, 11) * 0.05, np.zeros(10)))
    arm.follow(arm.plan(1, rows))
    commands = [arm.tick(), *arm.run(0.5)]
    assert all(c.state is State.TRACKING for c in commands)
    assert path(commands)[0] == pytest.approx(-0.8, abs=0.02)


def test_a_command_does_not_run_away_from_an_arm_that_is_blocked() -> None:
    arm = Arm()
    arm.tick()
    arm.follow(arm.ramp(rows=15))
    commands = []
    for _ in range(70):
        arm.position = HOME
        commands.append(arm.tick())
    assert arm.controller.state is State.HOLDING and arm.reason is Reason.NOT_FOLLOWING
    assert str(arm.controller.cause).startswith("the robot does not follow: it is 1.0")
    assert path(commands)[-1] - HOME[0] < 1.1
    # Its next plan is of where it is, and is followed from there.
    arm.position = HOME
    arm.follow(arm.plan(2, [[0.4, 0.0]] * 10))
    assert arm.tick().positions[0] == pytest.approx(0.5, abs=0.01)
    assert arm.controller.state is State.TRACKING


def blocked_arm() -> Arm:
    """Held, for it is farther from its command than a chunk may begin."""
    arm = Arm()
    arm.tick()
    arm.follow(arm.ramp(rows=15))
    while arm.reason is not Reason.NOT_FOLLOWING:
        arm.position = HOME
        arm.tick()
    arm.position = HOME
    return arm


@pytest.mark.parametrize("stopped", [False, True])
def test_an_arm_that_is_blocked_is_not_pressed_on(stopped: bool) -> None:
    arm = blocked_arm()
    if stopped:
        arm.controller.stop("the button")
    commands = []
    for _ in range(60):
        arm.position = HOME
        commands.append(arm.tick())
    steps = np.diff(path(commands))
    assert np.abs(steps).max() <= 4.0 * 0.02 + 1e-9, "the velocity limit"
    assert np.abs(np.diff(steps)).max() <= 20.0 * 0.02**2 + 1e-9, "and the acceleration's"
    assert path(commands)[-1] == pytest.approx(0.5, abs=0.1)
    assert np.all(steps[-10:] == 0.0)
    assert arm.reason is (Reason.STOPPED if stopped else Reason.NOT_FOLLOWING)


def test_an_arm_that_sags_where_it_was_blocked_does_not_sink() -> None:
    arm = blocked_arm()
    for _ in range(100):
        arm.position = arm.position - [0.07, 0.0]
        arm.tick()
    assert arm.position[0] > 0.3


def test_one_wrong_measurement_of_an_arm_at_rest_moves_it_hardly() -> None:
    arm = Arm()
    arm.run(0.5)
    arm.position = np.array([-1.5, 0.0])
    commands = [arm.tick()]
    arm.position = HOME
    commands += [arm.tick()]
    for _ in range(50):
        arm.position = HOME
        commands.append(arm.tick())
    assert np.abs(path(commands) - 0.5).max() < 0.05


def yielded(arm: Arm, *found: list[float]) -> float:
    """Where the command of a blocked arm ends, that is measured so before it is at HOME."""
    for position in found:
        arm.position = np.array(position)
        arm.tick()
    for _ in range(100):
        arm.position = HOME
        arm.tick()
    return float(arm.position[0])


def test_whatever_is_said_or_measured_besides_a_blocked_arm_is_not_pressed_on() -> None:
    arm = blocked_arm()
    arm.controller.instruct("")
    assert yielded(arm) == pytest.approx(0.5, abs=0.1), "ended by an empty instruction"
    for odd in ([[0.5, 1.0]] * 3, [[-1.5, 0.0]], [[0.5, 0.0]] * 20 + [[-1.5, 0.0]]):
        assert yielded(blocked_arm(), *odd) == pytest.approx(0.5, abs=0.1), odd


def test_a_blocked_arm_is_yielded_to_whatever_its_gripper_says_between_joint_states() -> None:
    """On a topic of its own: the same joints again, with another gripper."""
    arm = blocked_arm()
    last_ns = arm.now_ns - PERIOD_NS
    for turn in range(10):
        arm.controller.measure(np.array([0.5, turn / 30]), last_ns, arm.moment)
        arm.pass_by(ns(0.02))
    # It was pushed meanwhile, no faster than it may go.
    for _ in range(100):
        arm.position = np.array([0.0, 0.3])
        arm.tick()
    assert arm.position[0] == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("end", ["stop", "instruct"])
def test_an_arm_that_is_blocked_just_as_it_is_stopped_is_not_pressed_on(end: str) -> None:
    arm = Arm()
    arm.tick()
    arm.follow(arm.plan(1, np.column_stack((0.5 + 0.3 * np.arange(1, 6), np.zeros(5)))))
    for _ in range(15):
        arm.position = HOME
        arm.tick()
    assert arm.controller.state is State.TRACKING
    if end == "stop":
        arm.controller.stop("the button")
    else:
        arm.controller.instruct("")
    commands = []
    for _ in range(60):
        arm.position = HOME
        commands.append(arm.tick())
    assert path(commands).max() - HOME[0] > 1.0, "farther than it may be, while it braked"
    assert path(commands)[-1] == pytest.approx(0.5, abs=0.1)


def test_dead_joint_states_are_stale_whatever_a_gripper_says() -> None:
    arm = Arm()
    arm.tick()
    arm.follow(arm.ramp())
    stamp_ns = arm.now_ns + ns(0.5)  # the driver's clock is ahead
    arm.measuring = False
    for turn in range(30):
        arm.controller.measure(np.array([0.5, turn / 60]), stamp_ns, arm.moment)
        arm.tick()
        if arm.controller.state is not State.TRACKING:
            break
    assert arm.reason is Reason.JOINTS_STALE


def test_once_a_blocked_arm_is_free_a_stop_stays_where_it_is() -> None:
    for silent_s in (0.0, 1.0):
        arm = blocked_arm()
        rest = yielded(arm)
        arm.controller.stop("the button")
        arm.measuring = False
        arm.run(silent_s)
        arm.measuring = True
        for turn in range(150):
            # Pushed slowly by hand; or a driver that was silent, and says something else.
            arm.position = np.array([-1.9 if silent_s else 0.5 - 0.01 * turn, 0.0])
            assert arm.tick().positions[0] == pytest.approx(rest, abs=1e-9)


def test_a_chunk_that_is_refused_sets_nothing_off() -> None:
    arm = Arm()
    arm.run(0.5)
    bag = np.array([-1.5, 0.0])
    arm.controller.measure(bag, arm.now_ns, arm.moment)
    assert arm.refusal_of(arm.plan(1, [[0.5, 0.0]] * 10)) is Refusal.JUMP
    arm.measuring = False
    assert arm.tick().positions.tolist() == HOME.tolist()


@pytest.mark.parametrize("blocked", [False, True])
def test_a_stopped_arm_does_not_go_after_joint_states_that_leap(blocked: bool) -> None:
    """Of another robot, a bag that somebody plays, or a driver that has restarted."""
    arm = blocked_arm() if blocked else Arm()
    arm.run(0.5)
    arm.controller.stop("the button")
    at = arm.run(0.5)[-1].positions
    for turn in range(100):
        arm.position = np.array([-1.5, 0.0]) if turn % 2 else at
        arm.tick()
    for _ in range(100):
        arm.position = np.array([-1.5, 0.0])
        arm.tick()
    assert np.abs(arm.tick().positions - at).max() < 0.02


def test_a_stopped_arm_that_is_pushed_by_hand_stays_where_it_was_told_to_be() -> None:
    arm = Arm()
    arm.run(0.1)
    arm.controller.stop("the button")
    for turn in range(100):
        arm.position = np.array([0.5 - 0.02 * turn, 0.0])
        assert arm.tick().positions.tolist() == [0.5, 0.0]


def test_an_arm_that_was_blocked_is_not_moved_by_old_joint_states() -> None:
    arm = blocked_arm()
    arm.measuring = False
    arm.run(0.5)
    rested = arm.run(0.2)
    assert np.ptp(path(rested)) == 0.0 and path(rested)[0] > 0.6


def test_in_open_loop_an_arm_that_stays_where_it_is_is_no_reason_to_hold() -> None:
    arm = Arm(open_loop=True)
    arm.tick()
    arm.follow(arm.ramp(rows=15))
    for _ in range(70):
        arm.position = HOME
        arm.tick()
        assert arm.controller.state is State.TRACKING


def test_an_arm_that_lags_behind_with_old_joint_states_is_followed_all_the_same() -> None:
    arm = Arm()
    arm.position = np.array([-1.9, 0.0])
    arm.tick()
    arm.follow(arm.plan(1, np.column_stack((-1.9 + np.arange(1, 11) * 0.38, np.zeros(10)))))
    arm.measuring = False
    told = [np.array([-1.9, 0.0])] * 16
    for _ in range(45):
        # At almost 4 units a second, 0.1 s behind, and told of 0.2 s later.
        arm.controller.measure(told[-15], arm.now_ns - ns(0.2), arm.moment)
        told.append(arm.tick().positions)
        assert arm.controller.state is State.TRACKING, arm.reason
    assert np.max(path_of(told)[15:] - path_of(told)[:-15]) > 1.0, "farther than it may be at once"


def test_an_arm_on_its_way_to_rest_is_not_taken_for_one_that_was_moved() -> None:
    arm = Arm()
    arm.tick()
    fast = np.minimum(0.5 + np.arange(1, 11) * 0.36, 2.0)
    arm.follow(arm.plan(1, np.column_stack((fast, np.zeros(10)))))
    arm.run(0.24)
    arm.measuring = False
    arm.controller.stop("the button")
    arm.run(0.22)
    assert arm.controller.is_at_rest
    rest = arm.position
    arm.controller.resume(arm.moment)  # the last joint states are of before it rested
    assert arm.tick().positions.tolist() == rest.tolist()
    arm.run(0.4)
    arm.follow(arm.plan(2, [rest] * 10))  # by now, they are old
    assert arm.tick().positions.tolist() == rest.tolist()


def test_a_gripper_that_holds_something_and_a_base_follow_by_definition() -> None:
    near = np.array([0.1, 0.1])
    of_arm = Following(HYSTERESIS, near, STAYS)
    of_base = Following(np.full(2, np.nan), near, np.zeros(2))
    for following, measured in ((of_arm, [0.5, 0.3]), (of_base, [0.0, 0.0])):
        controller = Controller(LIMITS, following, TIMEOUTS)
        for tick in range(20):
            moment = Moment(START_NS + tick * PERIOD_NS, 5 * NS_PER_S + tick * PERIOD_NS)
            controller.measure(np.array(measured), moment.now_ns, moment)
            if tick == 1:
                rows = np.tile([measured[0] + 0.05, 1.0], (10, 1))
                if following is of_base:
                    rows = np.tile([0.09, 0.09], (10, 1)) * np.arange(1, 11)[:, None]
                controller.accept(Chunk(1, START_NS, 10.0, rows, moment.now_ns), moment)
            command = controller.tick(moment)
        assert command is not None and command.state is State.TRACKING
        assert np.max(np.abs(command.positions - measured)) > 0.1


@pytest.mark.parametrize("name", ["droid_joint_pos", "pico_panda", "sim_panda"])
def test_a_shipped_arm_may_lag_behind_by_a_fifth_of_a_second_at_full_speed(name: str) -> None:
    arm = load_embodiment(name)
    moves = np.isnan(arm.hysteresis)
    assert np.all((arm.velocity * 0.2 < arm.jump)[moves])
