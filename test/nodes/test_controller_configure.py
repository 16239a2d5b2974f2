"""What the controller node is set to, and how it is configured, activated and ended."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

from controller_graph import (
    FAILURE,
    HOME,
    SPEED,
    SUCCESS,
    Maker,
    due_rate_hz,
    first_joint,
    stamp_ns,
)
from lifecycle import state_label
from rclpy.parameter import Parameter
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from cosmos3_ros.control.chunk import NS_PER_S
from cosmos3_ros.msg import ControllerStatus, PolicyStatus


@pytest.mark.parametrize("rate_hz", [20.0, 100.0])
def test_the_control_rate_is_a_parameter(graph: Maker, rate_hz: float) -> None:
    g = graph(control_rate_hz=rate_hz)
    g.activate()
    g.spin(1.0)
    assert due_rate_hz(g.values()) == pytest.approx(rate_hz, rel=0.2)


def test_a_stop_outlasts_a_deactivation(graph: Maker) -> None:
    g = graph()
    g.activate()
    assert g.call("stop").success
    g.node.trigger_deactivate()
    g.node.trigger_activate()
    assert g.enters(ControllerStatus.STATE_STOPPED)
    assert g.states[-1].detail == "~/stop was called"
    g.policy_status.publish(PolicyStatus(state=PolicyStatus.STATE_PLANNING, planner=5))
    g.spin(0.5)
    assert g.call("resume").success
    assert g.enters(ControllerStatus.STATE_HOLDING)


def test_a_whole_trajectory_is_sent_when_what_is_to_come_has_changed(graph: Maker) -> None:
    g = graph(command_interface="joint_trajectory_chunk")
    assert g.node.trigger_configure() == SUCCESS
    assert g.until(lambda: g.robot.count_publishers("joint_trajectory") > 0)
    g.spin(0.3)  # its publisher has found us, too
    assert g.node.trigger_activate() == SUCCESS
    assert g.until(lambda: len(g.commands) > 0), "where it holds"

    def paused() -> int:
        """How often the loop may have paused so long that the arm has come to rest meanwhile."""
        return int(g.node._run.loop.statistics.missed) // 4

    g.spin(0.5)
    assert len(g.commands) <= 1 + paused()
    sent = len(g.commands)
    g.chunks.publish(g.ramp(seconds=2.0))
    assert g.until(lambda: len(g.commands) > sent)
    points = g.commands[sent].points
    assert 80 <= len(points) <= 110, "a point a control period, to the end"
    assert points[-1].positions[0] == pytest.approx(2 * SPEED, abs=0.02)
    g.spin(0.3)
    assert len(g.commands) <= 2 + paused()
    sent = len(g.commands)
    g.node.trigger_deactivate()
    assert g.until(lambda: len(g.commands) > sent)
    stopped = g.commands[sent].points
    assert len(stopped) < 20 and stopped[-1].positions[0] < 1.8 * SPEED, "it brakes at once"


def test_the_control_loop_does_not_wait_for_a_whole_trajectory_to_be_made(graph: Maker) -> None:
    g = graph(command_interface="joint_trajectory_chunk")
    assert g.node.trigger_configure() == SUCCESS
    interface = g.node._interface

    def slow(*given: Any) -> Any:
        time.sleep(1.0)
        return interface.build(*given)

    g.node._interface = replace(interface, build=slow)
    assert g.node.trigger_activate() == SUCCESS
    assert g.until(lambda: len(g.commands) > 0)
    assert float(g.values()["execution_max_ms"]) < 900


def test_cpus_that_are_no_numbers_are_refused(
    graph: Maker, capfd: pytest.CaptureFixture[str]
) -> None:
    g = graph(cpu_affinity=["all"])
    assert g.node.trigger_configure() == FAILURE
    assert "'cpu_affinity' is ['all']; expected numbers of CPUs" in capfd.readouterr().err


def test_a_priority_that_is_refused_is_said_and_the_arm_is_held(
    graph: Maker, capfd: pytest.CaptureFixture[str]
) -> None:
    g = graph(cpu_affinity=["4000"])
    g.activate()
    assert "running on CPU 4000 alone was refused" in capfd.readouterr().err
    assert len(g.commands) > 0


def test_the_command_interface_is_a_parameter(graph: Maker) -> None:
    arrays = graph(command_interface="position_commands")
    arrays.activate()
    assert isinstance(arrays.commands[0], Float64MultiArray)
    assert arrays.commands[0].data.tolist() == pytest.approx(HOME)
    arrays.node.trigger_deactivate()
    trajectories = graph(command_interface="joint_trajectory")
    trajectories.activate()
    assert isinstance(trajectories.commands[0], JointTrajectory)
    assert trajectories.commands[0].points[0].time_from_start.nanosec == 20_000_000


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"command_interface": "smoke"}, "'command_interface' is 'smoke'; expected one of"),
        ({"control_rate_hz": 0.0}, "'control_rate_hz' is 0.0; expected a float"),
        ({"control_rate_hz": 50}, "'control_rate_hz' is 50; expected a float"),
        ({"joint_names": ["a", "b"]}, "'joint_names' is ['a', 'b']; expected 7 names"),
        ({"embodiment": "dishwasher"}, "embodiment 'dishwasher' is not known"),
        ({"embodiment": "pusht"}, "expected joint_position, pose_delta or base_velocity"),
        ({"embodiment": "av"}, "expected pose_command for embodiment 'av'"),
        (
            {"embodiment": "umi", "command_interface": "pose_command"},
            "embodiment 'umi' has no limit of position_x (velocity, acceleration, jump)",
        ),
        ({"embodiment": "/nowhere/arm.yaml"}, "'/nowhere/arm.yaml' does not exist"),
    ],
)
def test_a_wrong_parameter_leaves_the_node_unconfigured_with_the_reason_in_the_log(
    graph: Maker, capfd: pytest.CaptureFixture[str], parameters: dict[str, Any], reason: str
) -> None:
    g = graph(**parameters)
    assert g.node.trigger_configure() == FAILURE
    assert reason in capfd.readouterr().err
    assert state_label(g.robot, g.until) == "unconfigured"


def test_a_wrong_parameter_can_be_put_right_and_configured_again(graph: Maker) -> None:
    g = graph(control_rate_hz=-1.0)
    assert g.node.trigger_configure() == FAILURE
    g.node.set_parameters([Parameter("control_rate_hz", value=25.0)])
    g.activate()


def test_transitions_back_to_back_ten_times_and_commands_every_time(graph: Maker) -> None:
    g = graph()
    for _ in range(10):
        assert g.node.trigger_configure() == SUCCESS
        assert g.node.trigger_activate() == SUCCESS
        assert g.node.trigger_deactivate() == SUCCESS
        assert g.node.trigger_activate() == SUCCESS
        g.commands.clear()
        assert g.until(lambda: len(g.commands) > 2)
        assert g.node.trigger_deactivate() == SUCCESS
        assert g.node.trigger_cleanup() == SUCCESS
    assert list(g.node.timers) == []
    topics = {s.topic_name for s in g.node.subscriptions}
    assert not topics & {"/joint_states", "/action_chunk"}
    assert g.node.trigger_shutdown() == SUCCESS


@pytest.mark.parametrize("simulated", [False, True])
def test_deactivation_holds_and_then_ends_commands_with_one_last_report(
    graph: Maker, simulated: bool
) -> None:
    g = graph(use_sim_time=simulated)
    g.now_ns = 100 * NS_PER_S if simulated else None
    g.activate()
    g.track(g.ramp(seconds=4.0))
    g.spin(0.3)
    reports = len(g.diagnostics)
    g.node.trigger_deactivate()
    assert g.until(lambda: len(g.diagnostics) > reports)
    g.spin(0.2)  # what was on its way has arrived
    last = {entry.key: entry.value for entry in g.diagnostics[-1].values}
    assert g.diagnostics[-1].name == "cosmos3_controller: commands"
    assert (last["state"], last["detail"]) == ("stopped", "the node is being deactivated")
    assert g.states[-1].state == ControllerStatus.STATE_INACTIVE
    passed_s = np.diff([stamp_ns(command) for command in g.commands]) / NS_PER_S
    # Simulated time stands still between two of its messages.
    speeds = np.diff(first_joint(g.commands))[passed_s > 0] / passed_s[passed_s > 0]
    fast = np.flatnonzero(speeds > 0.8 * SPEED)
    assert fast.size and speeds[-1] == pytest.approx(0.0, abs=1e-9)
    slower = speeds[fast[-1] + 1 :]
    assert np.any(slower > 1e-9) or passed_s.max() > 0.09, "it brakes as the limits allow"
    reports = len(g.diagnostics) - 1
    sent = len(g.commands)
    g.spin(1.2)
    assert (len(g.commands), len(g.diagnostics)) == (sent, reports + 1)


def test_an_activation_begins_from_nothing(graph: Maker) -> None:
    g = graph()
    g.activate()
    g.track(g.ramp(seconds=6.0))
    g.node.trigger_deactivate()
    g.spin(0.2)
    g.position[0] = -0.4  # moved by hand
    g.spin(0.2)
    g.commands.clear()
    g.node.trigger_activate()
    assert g.until(lambda: len(g.commands) > 10)
    assert set(first_joint(g.commands)) == {-0.4}
