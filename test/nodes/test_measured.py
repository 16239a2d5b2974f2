"""Where a robot is: a gripper that a topic of its own tells of, whatever its joint says."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

from controller_graph import ARM, FINGER, HOME, SUCCESS, Maker
from geometry_msgs.msg import Pose, PoseStamped, Quaternion
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64

from cosmos3_ros.nodes.joints import JointMap, JointReader
from cosmos3_ros.nodes.measured import PoseReader
from cosmos3_ros.policy.commands import command_space
from cosmos3_ros.policy.embodiment import Gripper, load_embodiment

PANDA = load_embodiment("sim_panda")
ANOTHER_UNIT = 85.0  # millimetres, say


def test_the_grippers_joint_is_passed_over_where_a_topic_tells_of_it() -> None:
    reader = JointReader(JointMap(PANDA), gripper_topic=True)
    reader.read_gripper(0.5)
    arm = HOME[:7].tolist()
    for position in (ANOTHER_UNIT, math.nan):
        reader.read(JointState(name=[*ARM, FINGER], position=[*arm, position]), 1)
        assert reader.channels == pytest.approx([*arm, 0.5])
    reader.read(JointState(name=[FINGER], position=[ANOTHER_UNIT]), 2)
    assert reader.channels == pytest.approx([*arm, 0.5])
    with pytest.raises(ValueError, match="position of panda_joint1 is not finite"):
        reader.read(JointState(name=ARM, position=[math.nan, *arm[1:]]), 3)


def test_the_joint_of_a_gripper_beside_poses_is_passed_over_too() -> None:
    gripper = Gripper("gripper", "finger", open=0.0, closed=0.8)
    robot = replace(load_embodiment("droid_lerobot"), gripper=gripper)
    reader = PoseReader(robot, command_space(robot), gripper_topic=True)
    reader.read_pose("pose", PoseStamped(pose=Pose(orientation=Quaternion(w=1.0))), 1)
    reader.read(JointState(name=["finger"], position=[ANOTHER_UNIT]), 1)
    assert reader.missing == ["finger"]
    reader.read_gripper(0.25)
    reader.read(JointState(name=["finger"], position=[ANOTHER_UNIT]), 2)
    assert reader.channels == pytest.approx([0, 0, 0, 0, 0, 0, 1, 0.25])


def test_the_controller_holds_the_gripper_where_its_topic_says_it_is(graph: Maker) -> None:
    g = graph(gripper_source="topic")
    g.measuring = False
    assert g.node.trigger_configure() == SUCCESS
    assert g.node.trigger_activate() == SUCCESS
    publishers = (g.joint_states, g.gripper_state)
    assert g.until(lambda: all(p.get_subscription_count() for p in publishers))
    g.spin(0.3)  # the node has found them, too
    g.gripper_state.publish(Float64(data=0.5))
    g.spin(0.5)
    g.send_joints([*ARM, FINGER], [*HOME[:7], ANOTHER_UNIT])
    assert g.until(lambda: len(g.commands) > 0)
    assert g.commands[0].position[7] == pytest.approx(0.02)
