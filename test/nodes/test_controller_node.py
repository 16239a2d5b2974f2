"""The controller node on a real graph: its topics, its transitions, its process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle import state_label
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64, Float64MultiArray, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from cosmos3_ros.control.chunk import NS_PER_S, Chunk
from cosmos3_ros.msg import ActionChunk, ControllerStatus, PolicyStatus
from cosmos3_ros.nodes.chunks import message_from_chunk
from cosmos3_ros.nodes.commands import COMMAND_INTERFACES
from cosmos3_ros.nodes.controller_node import ControllerNode
from cosmos3_ros.nodes.parameters import qos_profile
from cosmos3_ros.policy.commands import command_space
from cosmos3_ros.policy.embodiment import load_embodiment

pytestmark = pytest.mark.timeout(60)

PANDA = command_space(load_embodiment("sim_panda"))
ARM = [f"panda_joint{i}" for i in range(1, 8)]
FINGER = "panda_finger_joint1"
HOME = np.array([0.0, 0.3, 0.0, -2.3, 0.0, 2.6, 0.8, 0.0])  # channels; the gripper open
SPEED = 0.5  # rad/s of the first joint in a ramp, well inside its limit
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


def time_message(ns: int) -> Time:
    return Time(sec=ns // NS_PER_S, nanosec=ns % NS_PER_S)


def stamp_ns(message: JointState) -> int:
    return int(message.header.stamp.sec) * NS_PER_S + int(message.header.stamp.nanosec)


class Graph:
    """The controller node and, on the same domain, a robot and a planner that the test plays."""

    def __init__(self, context: Context, **parameters: Any) -> None:
        given = {"embodiment": "sim_panda", **parameters}
        self.node = ControllerNode(
            context=context,
            parameter_overrides=[Parameter(name, value=value) for name, value in given.items()],
        )
        self.robot = rclpy.create_node("robot", context=context)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.executor.add_node(self.robot)
        self.joint_states = self.robot.create_publisher(JointState, "joint_states", 10)
        self.gripper_state = self.robot.create_publisher(Float64, "gripper_state", 10)
        self.chunks = self.robot.create_publisher(ActionChunk, "action_chunk", 10)
        self.clock = self.robot.create_publisher(Clock, "/clock", 10)
        latched = qos_profile("reliable", 1, transient_local=True)
        self.instruction = self.robot.create_publisher(String, "instruction", latched)
        self.policy_status = self.robot.create_publisher(PolicyStatus, "status", latched)
        self.states: list[ControllerStatus] = []
        self.robot.create_subscription(
            ControllerStatus, "controller_status", self.states.append, latched
        )
        self.commands: list[Any] = []
        self.diagnostics: list[DiagnosticStatus] = []
        asked = given.get("command_interface", "joint_command")
        kind = COMMAND_INTERFACES[asked].message_type if asked in COMMAND_INTERFACES else JointState
        topic = asked.removesuffix("_chunk")
        self.robot.create_subscription(kind, topic, self.commands.append, 100)
        self.robot.create_subscription(
            DiagnosticArray, "/diagnostics", lambda a: self.diagnostics.extend(a.status), 100
        )
        self.position = HOME.copy()
        self.measuring = True
        self.now_ns: int | None = None  # None: the system's clock; else simulated, 5 ms a step
        self.robot.create_timer(0.005, self._step)

    def _step(self) -> None:
        if self.now_ns is not None:
            self.now_ns += 5_000_000
            self.clock.publish(Clock(clock=time_message(self.now_ns)))
        if self.measuring:
            joints = [*self.position[:7], 0.04 * (1 - self.position[7])]
            self.send_joints([*ARM, FINGER], joints)

    def send_joints(self, names: list[str], positions: list[float]) -> None:
        message = JointState(name=names, position=positions)
        message.header.stamp = time_message(self.time_ns())
        self.joint_states.publish(message)

    def time_ns(self) -> int:
        return time.time_ns() if self.now_ns is None else self.now_ns

    def spin(self, seconds: float) -> None:
        self.until(lambda: False, seconds)

    def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> bool:
        end = time.monotonic() + seconds
        while not condition() and (left := end - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left)
        return condition()

    def activate(self) -> None:
        assert self.node.trigger_configure() == SUCCESS
        assert self.node.trigger_activate() == SUCCESS
        discovered = ("joint_states", "action_chunk")
        assert self.until(lambda: all(self.node.count_publishers(t) for t in discovered))
        assert self.until(lambda: len(self.commands) > 0)

    def ramp(self, plan_id: int = 1, seconds: float = 2.0, **other: Any) -> ActionChunk:
        """The first joint away from HOME at SPEED, from the time of the stamp."""
        rows = np.tile(HOME, (round(seconds * 15), 1))
        rows[:, 0] += SPEED * np.arange(1, len(rows) + 1) / 15
        now_ns = self.time_ns()
        chunk = Chunk(plan_id, now_ns, 15.0, rows, now_ns, **other)
        return message_from_chunk(chunk, PANDA)

    def track(self, chunk: ActionChunk) -> None:
        """Send a chunk, and wait until the arm moves by it."""
        began = len(self.commands)
        self.chunks.publish(chunk)
        start = self.commands[-1].position[0]
        assert self.until(lambda: self.commands[-1].position[0] > start + 0.05)
        del self.commands[:began]

    def call(self, service: str) -> Trigger.Response:
        """Call ~/stop or ~/resume as an operator does."""
        client = self.robot.create_client(Trigger, f"/cosmos3_controller/{service}")
        assert self.until(client.service_is_ready)
        future = client.call_async(Trigger.Request())
        assert self.until(future.done)
        return future.result()

    def enters(self, state: int, seconds: float = 5.0) -> bool:
        return self.until(lambda: bool(self.states) and self.states[-1].state == state, seconds)

    def values(self) -> dict[str, str]:
        """The controller's diagnostics, once a new one has come."""
        seen = len(self.diagnostics)
        assert self.until(lambda: len(self.diagnostics) > seen)
        return {entry.key: entry.value for entry in self.diagnostics[-1].values}

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        self.robot.destroy_node()


Maker = Callable[..., Graph]


@pytest.fixture
def graph(ros_domain_id: int) -> Iterator[Maker]:
    context = Context()
    rclpy.init(args=[], context=context, domain_id=ros_domain_id)
    made: list[Graph] = []

    def make(**parameters: Any) -> Graph:
        made.append(Graph(context, **parameters))
        return made[-1]

    yield make
    for each in made:
        each.close()
    rclpy.shutdown(context=context)


def due_rate_hz(values: dict[str, str]) -> float:
    """Of the control loop, those periods included that a loaded machine has missed."""
    runs, missed = int(values["periods"]) - 1, int(values["missed_periods"])
    return float(values["command_rate_hz"]) * (runs + missed) / runs


def first_joint(commands: list[JointState]) -> list[float]:
    return [c.position[0] for c in commands]


def test_before_a_chunk_it_holds_where_the_arm_is_at_the_control_rate(graph: Maker) -> None:
    g = graph()
    g.activate()
    g.spin(2.0)
    assert all(list(c.name) == [*ARM, FINGER] for c in g.commands)
    assert all(c.position.tolist() == pytest.approx([*HOME[:7], 0.04]) for c in g.commands)
    values = g.values()
    assert due_rate_hz(values) == pytest.approx(50.0, rel=0.05)
    assert float(values["command_jitter_p50_ms"]) < 10
    assert (values["state"], values["reason"]) == ("holding", "no_chunk")
    assert values["holds"] == "0"


@pytest.mark.parametrize("rate_hz", [20.0, 100.0])
def test_the_control_rate_is_a_parameter(graph: Maker, rate_hz: float) -> None:
    g = graph(control_rate_hz=rate_hz)
    g.activate()
    g.spin(1.0)
    assert due_rate_hz(g.values()) == pytest.approx(rate_hz, rel=0.05)


def test_rows_are_interpolated_at_the_times_of_the_commands(graph: Maker) -> None:
    g = graph()
    g.activate()
    chunk = g.ramp(seconds=1.0)
    g.track(chunk)
    began_ns = stamp_ns(chunk)
    g.spin(0.8)
    # By the third row the arm has caught up with a chunk that came late.
    begin_ns, end_ns = began_ns + 3 * NS_PER_S / 15, began_ns + 0.99 * NS_PER_S
    on_the_line = [c for c in g.commands if begin_ns < stamp_ns(c) < end_ns]
    assert len(on_the_line) > 20
    for command in on_the_line:
        elapsed_s = (stamp_ns(command) - began_ns) / NS_PER_S
        assert command.position[0] == pytest.approx(SPEED * elapsed_s, abs=1e-3)


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
    assert first_joint(g.commands) == pytest.approx([SPEED * 0.6] * len(g.commands))


def test_joint_states_that_stop_end_in_a_hold_that_keeps_speaking(graph: Maker) -> None:
    g = graph()
    g.activate()
    g.track(g.ramp(seconds=4.0))
    g.measuring = False
    g.spin(0.25 + 0.2)
    held = first_joint(g.commands)[-1]
    g.commands.clear()
    values = g.values()
    assert values["detail"] == "joint states are older than 0.25 s"
    assert g.until(lambda: len(g.commands) > 20)
    assert set(first_joint(g.commands)) == {held}
    g.measuring = True
    assert g.until(lambda: first_joint(g.commands)[-1] > held + 0.05), "it tracks again"


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
    g = graph()
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


def test_a_planner_is_told_at_once_that_its_chunk_is_refused(graph: Maker) -> None:
    g = graph()
    g.activate()
    g.track(g.ramp(plan_id=4, seconds=4.0))
    far = g.ramp(plan_id=5, seconds=4.0)
    far.data = [value + (2.0 if i % 8 == 1 else 0.0) for i, value in enumerate(far.data)]
    g.states.clear()
    g.chunks.publish(far)
    assert g.until(lambda: any(s.newest_plan_id == 5 for s in g.states), 0.5)
    told = next(s for s in g.states if s.newest_plan_id == 5)
    assert (told.state, told.plan_id) == (ControllerStatus.STATE_TRACKING, 4)


def test_a_whole_trajectory_is_sent_when_what_is_to_come_has_changed(graph: Maker) -> None:
    g = graph(command_interface="joint_trajectory_chunk")
    assert g.node.trigger_configure() == SUCCESS
    assert g.until(lambda: g.robot.count_publishers("joint_trajectory") > 0)
    g.spin(0.3)  # its publisher has found us, too
    assert g.node.trigger_activate() == SUCCESS
    assert g.until(lambda: len(g.commands) == 1), "where it holds"
    g.spin(0.5)
    assert len(g.commands) == 1
    g.chunks.publish(g.ramp(seconds=1.0))
    assert g.until(lambda: len(g.commands) == 2)
    points = g.commands[-1].points
    assert 40 <= len(points) <= 60, "a point a control period, to the end"
    assert points[-1].positions[0] == pytest.approx(SPEED, abs=0.02)
    g.spin(0.3)
    assert len(g.commands) == 2
    g.node.trigger_deactivate()
    assert g.until(lambda: len(g.commands) == 3)
    stopped = g.commands[-1].points
    assert len(stopped) < 20 and stopped[-1].positions[0] < 0.9 * SPEED, "it brakes at once"


def test_a_robot_whose_description_does_not_fit_is_stopped_for_good(graph: Maker) -> None:
    g = graph()
    g.activate()
    g.track(g.ramp(seconds=6.0))
    latched = qos_profile("reliable", 1, transient_local=True)
    description = g.robot.create_publisher(String, "robot_description", latched)
    description.publish(String(data="<robot name='dishwasher'/>"))
    assert g.enters(ControllerStatus.STATE_STOPPED)
    assert "joint 'panda_joint1' is not in it" in g.states[-1].detail
    answer = g.call("resume")
    assert not answer.success and "correct the embodiment file" in answer.message


def test_chunks_of_another_instruction_or_planner_are_refused_by_name(graph: Maker) -> None:
    g = graph()
    g.activate()
    g.instruction.publish(String(data="touch the red cube"))
    told = {"instruction": "touch the red cube", "planner": 5}
    g.spin(0.3)
    g.track(g.ramp(seconds=6.0, **told))
    g.chunks.publish(g.ramp(plan_id=2, **{**told, "instruction": "touch the blue cube"}))
    g.chunks.publish(g.ramp(plan_id=2, **{**told, "planner": 6}))
    values = g.values()
    while int(values["rejected_chunks"]) < 2:
        values = g.values()
    assert values["rejected_wrong_instruction"] == values["rejected_another_planner"] == "1"
    assert values["state"] == "tracking"
    # Its node was deactivated: another may be followed.
    g.policy_status.publish(PolicyStatus(planner=5, state=PolicyStatus.STATE_INACTIVE))
    g.spin(0.3)
    g.chunks.publish(g.ramp(plan_id=1, seconds=6.0, **{**told, "planner": 6}))
    assert g.until(lambda: g.states[-1].planner == 6, 3.0)


def test_a_policy_node_that_falls_silent_ends_in_a_hold(graph: Maker) -> None:
    g = graph(planner_timeout_s=0.6)
    g.activate()
    g.track(g.ramp(seconds=6.0, planner=5))
    began_s = time.monotonic()
    assert g.enters(ControllerStatus.STATE_HOLDING)
    assert time.monotonic() - began_s < 0.9
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


def test_a_clock_that_jumps_back_flushes_the_chunk_and_holds_where_the_arm_is(
    graph: Maker,
) -> None:
    g = graph(use_sim_time=True)
    g.now_ns = 100 * NS_PER_S
    g.activate()
    g.track(g.ramp(seconds=5.0))
    g.position[0] = -0.3
    g.spin(0.2)
    g.now_ns -= 10 * NS_PER_S
    assert g.until(lambda: stamp_ns(g.commands[-1]) < 95 * NS_PER_S)
    g.commands.clear()
    g.spin(0.3)
    assert len(g.commands) > 5
    assert set(first_joint(g.commands)) == {-0.3}
    values = g.values()
    assert "the clock jumped by -9.9" in values["detail"]
    assert values["holds"] == "1"
    g.chunks.publish(g.ramp(plan_id=1))
    assert g.until(lambda: first_joint(g.commands)[-1] > 0.0), "a loop of the bag is followed"


def test_without_a_clock_it_waits_and_says_so(graph: Maker) -> None:
    g = graph(use_sim_time=True)
    assert g.node.trigger_configure() == SUCCESS
    assert g.node.trigger_activate() == SUCCESS
    values = g.values()
    assert (values["state"], values["commands"]) == ("waiting", "0")
    assert "/clock" in values["detail"]


def spoil_nan(message: ActionChunk) -> None:
    message.data[3] = math.nan


def spoil_width(message: ActionChunk) -> None:
    message.width, message.data = 7, message.data[: message.rows * 7]


def spoil_names(message: ActionChunk) -> None:
    message.channel_names = list(reversed(message.channel_names))


def spoil_embodiment(message: ActionChunk) -> None:
    message.embodiment = "droid_joint_pos"


def spoil_stamp(message: ActionChunk) -> None:
    message.header.stamp.sec -= 100


def spoil_order(message: ActionChunk) -> None:
    message.plan_id = 4


def spoil_shape(message: ActionChunk) -> None:
    message.rows += 1


def test_refused_chunks_are_counted_by_reason_and_the_plan_in_force_continues(
    graph: Maker, capfd: pytest.CaptureFixture[str]
) -> None:
    g = graph()
    g.activate()
    g.track(g.ramp(plan_id=5, seconds=6.0))
    spoilers = {
        "not_finite": spoil_nan,
        "wrong_width": spoil_width,
        "wrong_names": spoil_names,
        "wrong_embodiment": spoil_embodiment,
        "stale": spoil_stamp,
        "out_of_order": spoil_order,
        "malformed": spoil_shape,
    }
    for spoil in spoilers.values():
        spoiled = g.ramp(plan_id=6)
        spoil(spoiled)
        g.chunks.publish(spoiled)
    values = g.values()
    while int(values["rejected_chunks"]) < len(spoilers):
        values = g.values()
    assert {reason: values[f"rejected_{reason}"] for reason in spoilers} == dict.fromkeys(
        spoilers, "1"
    )
    assert values["state"] == "tracking"
    steps = np.diff(first_joint(g.commands))
    assert np.all((steps > 0) & (steps < SPEED * 0.2)), "the ramp went on, without a jump"
    logged = [line for line in capfd.readouterr().err.splitlines() if "refused plan" in line]
    assert len(logged) == 1, "at most one a second"
    assert "refused plan 6: not_finite" in logged[0]


def test_joints_are_matched_by_name_from_whatever_messages_carry_them(graph: Maker) -> None:
    g = graph()
    g.measuring = False
    assert g.node.trigger_configure() == SUCCESS
    assert g.node.trigger_activate() == SUCCESS
    assert g.until(lambda: g.node.count_publishers("joint_states") > 0)
    values = g.values()
    assert (values["state"], values["reason"]) == ("waiting", "no_joints")

    g.send_joints(["wheel", *reversed(ARM)], [7.0, *reversed(HOME[:7])])
    values = g.values()
    assert values["missing_joints"] == FINGER
    assert values["detail"] == f"nothing has told of {FINGER}"
    assert not g.commands

    g.send_joints([FINGER], [0.01])
    assert g.until(lambda: len(g.commands) > 0)
    assert g.commands[0].position.tolist() == pytest.approx([*HOME[:7], 0.01])


def test_joint_states_of_another_robot_are_refused_and_counted(
    graph: Maker, capfd: pytest.CaptureFixture[str]
) -> None:
    g = graph(joint_names=[f"left_{i}" for i in range(7)])
    assert g.node.trigger_configure() == SUCCESS
    assert g.node.trigger_activate() == SUCCESS
    g.measuring = False
    assert g.until(lambda: g.node.count_publishers("joint_states") > 0)
    g.send_joints(ARM, HOME[:7].tolist())
    assert g.until(lambda: int(g.values()["rejected_joint_states"]) == 1, 20.0)
    assert not g.commands
    assert "refused joint states: joints are panda_joint1" in capfd.readouterr().err


def test_the_gripper_may_have_a_topic_of_its_own(graph: Maker) -> None:
    g = graph(gripper_source="topic")
    g.measuring = False
    assert g.node.trigger_configure() == SUCCESS
    assert g.node.trigger_activate() == SUCCESS
    topics = ("joint_states", "gripper_state")
    assert g.until(lambda: all(g.node.count_publishers(t) for t in topics))
    g.send_joints(ARM, HOME[:7].tolist())
    g.gripper_state.publish(Float64(data=0.5))
    assert g.until(lambda: len(g.commands) > 0)
    assert g.commands[0].position[7] == pytest.approx(0.02)


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


def test_deactivation_holds_and_then_ends_commands_with_one_last_report(graph: Maker) -> None:
    g = graph()
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
    passed_s = np.diff([stamp_ns(command) / NS_PER_S for command in g.commands])
    speeds = np.diff(first_joint(g.commands)) / passed_s
    assert speeds.max() > 0.8 * SPEED and speeds[-1] == pytest.approx(0.0, abs=1e-9)
    braking = speeds[-8:][speeds[-8:] > 1e-9]
    assert np.any(braking < 0.8 * SPEED), "it brakes as the limits allow"
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
