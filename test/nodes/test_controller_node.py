"""The controller node on a real graph: it tracks, holds, stops and says so."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

from controller_graph import (
    ARM,
    FINGER,
    HOME,
    PANDA,
    SPEED,
    SUCCESS,
    Maker,
    due_rate_hz,
    first_joint,
    stamp_ns,
)
from rosgraph_msgs.msg import Clock

from cosmos3_ros.control.chunk import NS_PER_S
from cosmos3_ros.msg import ControllerStatus, PolicyStatus


def test_before_a_chunk_it_holds_where_the_arm_is_at_the_control_rate(graph: Maker) -> None:
    g = graph()
    g.activate()
    g.spin(2.0)
    assert all(list(c.name) == [*ARM, FINGER] for c in g.commands)
    assert all(c.position.tolist() == pytest.approx([*HOME[:7], 0.04]) for c in g.commands)
    values = g.values()
    assert due_rate_hz(values) == pytest.approx(50.0, rel=0.2)
    assert float(values["command_jitter_p50_ms"]) < 10
    assert (values["state"], values["reason"]) == ("holding", "no_chunk")
    assert values["holds"] == "0"


def test_rows_are_interpolated_at_the_times_of_the_commands(graph: Maker) -> None:
    g = graph()
    g.activate()
    chunk = g.ramp(seconds=2.0)
    g.track(chunk)
    began_ns = stamp_ns(chunk)
    g.spin(1.8)
    stamps_ns = [stamp_ns(c) for c in g.commands]
    paused_ns = [b for a, b in pairwise(stamps_ns) if b - a > 0.03 * NS_PER_S]
    # After a pause, and when it sets off, the arm catches up first.
    late_ns = [stamps_ns[0], *paused_ns]
    on_the_line = [
        c
        for c in g.commands
        if stamp_ns(c) < began_ns + 1.99 * NS_PER_S
        and not any(0 <= stamp_ns(c) - late < 0.4 * NS_PER_S for late in late_ns)
    ]
    assert len(on_the_line) > 20
    for command in on_the_line:
        elapsed_s = (stamp_ns(command) - began_ns) / NS_PER_S
        assert command.position[0] == pytest.approx(SPEED * elapsed_s, abs=1e-3)


@pytest.mark.parametrize("at_once", [True, False])
def test_the_first_command_of_a_chunk_comes_with_it_or_with_the_next_period(
    graph: Maker, at_once: bool
) -> None:
    g = graph(control_rate_hz=20.0, command_at_once=at_once)
    g.activate()
    g.track(g.ramp(seconds=4.0))
    for plan_id in range(2, 22):
        g.spin(0.12 + plan_id / 1e3)  # at any time of a period
        g.chunks.publish(g.ramp(plan_id, seconds=4.0))
    g.spin(0.1)
    values = g.values()
    from_stamp_ms = float(values["frame_to_command_p50_ms"])
    early = int(values["early_commands"])
    if at_once:
        assert early >= 12 and from_stamp_ms < 20
    else:
        assert early == 0 and from_stamp_ms > 15
    # The rate is that of the periods, and no step is larger for the time that it had.
    assert due_rate_hz(values) == pytest.approx(20.0, rel=0.2)
    limit = PANDA.velocity[0]
    for before, after in pairwise(g.commands):
        passed_s = (stamp_ns(after) - stamp_ns(before)) / NS_PER_S
        assert abs(after.position[0] - before.position[0]) <= limit * passed_s + 1e-9


def test_rows_that_end_are_held_to_the_last_value(graph: Maker) -> None:
    g = graph()
    g.activate()
    g.track(g.ramp(seconds=0.6))
    g.spin(0.8)
    g.commands.clear()
    values = g.values()
    assert (values["state"], values["reason"]) == ("holding", "chunk_ended")
    assert values["holds"] == "1"
    assert g.until(lambda: len(g.commands) > 20)
    assert len(set(first_joint(g.commands))) == 1
    # A loop that is late, on a busy machine, holds before it has come to it altogether.
    assert first_joint(g.commands)[0] == pytest.approx(SPEED * 0.6, abs=0.02)


def test_joint_states_that_stop_end_in_a_hold_that_keeps_speaking(graph: Maker) -> None:
    long_s = {f"{what}_timeout_s": 20.0 for what in ("planner", "chunk", "observation")}
    g = graph(joint_timeout_s=0.25, **long_s)
    g.activate()
    chunk = g.ramp(seconds=20.0)
    # No farther than a chunk may be from where the arm is held.
    chunk.data = np.minimum(np.array(chunk.data).reshape(-1, 8), [0.5, *[9.0] * 7]).ravel()
    g.track(chunk)
    g.measuring = False
    assert g.until(lambda: g.states[-1].reason == "joints_stale")
    assert g.states[-1].detail == "joint states are older than 0.25 s"
    g.spin(0.2)  # it comes to rest
    held = first_joint(g.commands)[-1]
    g.commands.clear()
    assert g.until(lambda: len(g.commands) > 20)
    assert set(first_joint(g.commands)) == {held}
    g.measuring = True
    assert g.until(lambda: first_joint(g.commands)[-1] > held + 0.02), "it tracks again"


def test_a_stop_holds_until_resume_and_every_transition_is_published(graph: Maker) -> None:
    g = graph()
    g.activate()
    g.track(g.ramp(plan_id=7, seconds=6.0))
    assert g.enters(ControllerStatus.STATE_TRACKING)
    assert g.states[-1].plan_id == 7
    assert g.call("stop").success
    assert g.enters(ControllerStatus.STATE_STOPPED)
    assert (g.states[-1].reason, g.states[-1].detail) == ("stopped", "~/stop was called")
    g.spin(0.3)
    g.commands.clear()
    g.chunks.publish(g.ramp(plan_id=8, seconds=6.0))
    g.spin(0.5)
    assert len(set(first_joint(g.commands))) == 1, "nothing moves it"
    assert g.call("resume").success
    assert g.enters(ControllerStatus.STATE_HOLDING)
    g.chunks.publish(g.ramp(plan_id=9, seconds=6.0))
    assert g.enters(ControllerStatus.STATE_TRACKING)
    assert g.states[-1].plan_id == 9
    assert g.states[-1].transitions == 6  # waited, held, tracked, stopped, held, tracked
    told = [(s.state, s.reason) for s in g.states]
    assert told[0] == (ControllerStatus.STATE_INACTIVE, "inactive"), "once it is configured"
    assert told[1] == (ControllerStatus.STATE_WAITING, "no_joints")


def test_it_does_not_resume_without_joint_states_and_says_why(graph: Maker) -> None:
    g = graph(joint_timeout_s=0.25)
    g.activate()
    assert g.call("stop").success
    g.measuring = False
    g.spin(0.5)
    answer = g.call("resume")
    assert not answer.success
    assert answer.message == "still stopped: joint states are older than 0.25 s"
    assert g.enters(ControllerStatus.STATE_STOPPED)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (PolicyStatus.STATE_INACTIVE, "no planner is alive"),
        (PolicyStatus.STATE_WAITING_FOR_OBSERVATION, "the planner says: no picture has come"),
    ],
)
def test_it_does_not_resume_for_a_policy_node_that_has_ended_or_sees_nothing(
    graph: Maker, state: int, said: str
) -> None:
    g = graph()
    g.activate()
    g.track(g.ramp(seconds=4.0, planner=5))
    assert g.call("stop").success
    g.policy_status.publish(PolicyStatus(state=state, planner=5, reason="no picture has come"))
    g.spin(0.3)
    answer = g.call("resume")
    assert (answer.success, answer.message) == (False, f"still stopped: {said}")
    g.policy_status.publish(PolicyStatus(state=PolicyStatus.STATE_PLANNING, planner=6))
    if state != PolicyStatus.STATE_INACTIVE:
        g.policy_status.publish(PolicyStatus(state=PolicyStatus.STATE_PLANNING, planner=5))
    g.spin(0.3)
    assert g.call("resume").success


def test_a_policy_node_that_falls_silent_ends_in_a_hold(graph: Maker) -> None:
    g = graph(planner_timeout_s=2.0, chunk_timeout_s=6.0, observation_timeout_s=6.0)
    g.activate()
    g.track(g.ramp(seconds=6.0, planner=5))
    began_s = time.monotonic()
    assert g.enters(ControllerStatus.STATE_HOLDING)
    assert time.monotonic() - began_s < 4.0
    assert g.states[-1].reason == "planner_silent"
    g.policy_status.publish(PolicyStatus(planner=5, state=PolicyStatus.STATE_PLANNING))
    assert g.enters(ControllerStatus.STATE_TRACKING)


def test_the_loop_says_how_regularly_it_runs(graph: Maker) -> None:
    g = graph(control_rate_hz=100.0)
    g.activate()
    g.spin(1.0)
    values = g.values()
    assert int(values["periods"]) >= int(values["commands"]) > 0
    assert int(values["periods"]) + int(values["missed_periods"]) > 80
    for name in ("command_jitter", "wake_up", "execution"):
        p50, p99, most = (float(values[f"{name}_{part}_ms"]) for part in ("p50", "p99", "max"))
        assert 0 <= p50 <= p99 <= most
    assert 0 < float(values["execution_p50_ms"]) < 10


def test_a_clock_that_jumps_back_flushes_the_chunk_and_holds_where_the_arm_is(
    graph: Maker,
) -> None:
    g = graph(use_sim_time=True)
    g.now_ns = 100 * NS_PER_S
    g.activate()
    g.track(g.ramp(seconds=5.0))
    g.obeying = False
    g.position[0] = -0.3
    g.spin(0.3)
    g.now_ns -= 10 * NS_PER_S
    assert g.until(lambda: stamp_ns(g.commands[-1]) < 95 * NS_PER_S)
    assert g.until(lambda: first_joint(g.commands)[-1] == -0.3)
    g.commands.clear()
    assert g.until(lambda: len(g.commands) > 5)
    assert set(first_joint(g.commands)) == {-0.3}
    values = g.values()
    assert "the clock jumped by -9.9" in values["detail"]
    assert values["holds"] == "1"
    g.chunks.publish(g.ramp(plan_id=1))
    assert g.until(lambda: first_joint(g.commands)[-1] > 0.0), "a loop of the bag is followed"


def test_joints_of_before_a_jump_of_the_clock_do_not_count_after_it(graph: Maker) -> None:
    g = graph(use_sim_time=True)
    g.now_ns = 100 * NS_PER_S
    g.activate()
    g.measuring = False
    g.spin(0.1)
    before_ns = g.now_ns
    g.now_ns -= 10 * NS_PER_S
    assert g.until(lambda: stamp_ns(g.commands[-1]) < 95 * NS_PER_S)
    elsewhere = [-1.0, 0.4, 0.1, -1.8, 0.2, 2.0, 0.5]
    g.send_joints(ARM, HOME[:7].tolist(), before_ns)  # was on its way
    g.send_joints(ARM[:3], elsewhere[:3])
    g.spin(0.3)
    assert g.commands[-1].position.tolist() == pytest.approx([*HOME[:7], 0.04]), "the rest is old"
    g.send_joints(ARM[3:], elsewhere[3:])
    assert g.until(lambda: g.commands[-1].position[0] == elsewhere[0])
    # The gripper tells only when it moves.
    assert g.commands[-1].position.tolist() == pytest.approx([*elsewhere, 0.04])


def test_a_simulator_that_begins_again_at_zero_does_not_silence_it(graph: Maker) -> None:
    g = graph(use_sim_time=True)
    g.now_ns = 100 * NS_PER_S
    g.activate()
    g.track(g.ramp(seconds=5.0))
    g.now_ns = None  # no more of it
    g.clock.publish(Clock())
    assert g.until(lambda: stamp_ns(g.commands[-1]) == 0)
    assert g.enters(ControllerStatus.STATE_HOLDING)
    g.commands.clear()
    assert g.until(lambda: len(g.commands) > 10), "it goes on to hold the arm"


def test_without_a_clock_it_waits_and_says_so(graph: Maker) -> None:
    g = graph(use_sim_time=True)
    assert g.node.trigger_configure() == SUCCESS
    assert g.node.trigger_activate() == SUCCESS
    values = g.values()
    assert (values["state"], values["commands"]) == ("waiting", "0")
    assert "/clock" in values["detail"]
