"""What the controller node takes and what it refuses: chunks, joints, the robot it is told of."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

from controller_graph import ARM, FINGER, HOME, PANDA, SUCCESS, Maker, first_joint, stamp_ns
from std_msgs.msg import Float64, String

from cosmos3_ros.control.chunk import NS_PER_S
from cosmos3_ros.msg import ActionChunk, ControllerStatus, PolicyStatus
from cosmos3_ros.nodes.parameters import qos_profile


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
    passed_s = np.diff([stamp_ns(command) for command in g.commands]) / NS_PER_S
    within = (steps >= 0) & (steps <= PANDA.velocity[0] * passed_s + 1e-9)
    assert np.all(within) and steps.sum() > 0.05, "the ramp went on, without a jump"
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
