"""The robot's own description has the last word on its joints."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

from cosmos3_ros.nodes.description import objections
from cosmos3_ros.nodes.joints import JointMap
from cosmos3_ros.policy.embodiment import load_embodiment

PANDA = load_embodiment("sim_panda")
JOINTS = JointMap(PANDA)


def urdf(**changes: str) -> str:
    """A description that fits; ``changes`` replace the limits of a joint, or "" takes it out."""
    lines = []
    for channel, name in zip(PANDA.channels, JOINTS.names, strict=True):
        kind, limits = "revolute", f'lower="{channel.lower}" upper="{channel.upper}"'
        limits += f' velocity="{channel.velocity}"'
        if name.startswith("panda_finger"):
            kind, limits = "prismatic", 'lower="0" upper="0.04" velocity="0.2"'
        limits = changes.get(name, limits)
        if limits:
            lines.append(f'<joint name="{name}" type="{kind}"><limit {limits}/></joint>')
    fixed = '<joint name="panda_hand_joint" type="fixed"/>'
    return f"<robot name='panda'>{fixed}{''.join(lines)}</robot>"


def test_a_description_that_allows_as_much_fits() -> None:
    assert objections(urdf(), JOINTS) == []
    wide = 'lower="-9" upper="9" velocity="9"'
    assert objections(urdf(panda_joint1=wide), JOINTS) == []


@pytest.mark.parametrize(
    ("joint", "limits", "said"),
    [
        ("panda_joint3", "", "joint 'panda_joint3' is not in it"),
        (
            "panda_joint1",
            'lower="-1" upper="2.8" velocity="2.175"',
            "joint 'panda_joint1' may go from -2.8 to 2.8 rad; the robot's from -1 to 2.8",
        ),
        (
            "panda_joint2",
            'lower="-1.7" upper="1.7" velocity="1.0"',
            "joint 'panda_joint2' may move at 2.175 rad/s; the robot's at 1",
        ),
        (
            "panda_finger_joint1",
            'lower="0" upper="0.03" velocity="0.2"',
            "joint 'panda_finger_joint1' may go from 0 to 0.04 m; the robot's from 0 to 0.03",
        ),
    ],
)
def test_what_the_robot_cannot_do_is_told_by_joint(joint: str, limits: str, said: str) -> None:
    assert objections(urdf(**{joint: limits}), JOINTS) == [said]


def test_a_joint_that_slides_is_none_that_turns() -> None:
    slides = urdf().replace(
        'name="panda_joint4" type="revolute"', 'name="panda_joint4" type="prismatic"'
    )
    assert objections(slides, JOINTS) == ["joint 'panda_joint4' moves in rad; the robot's in m"]


def test_a_gripper_that_is_driven_apart_need_not_be_in_it() -> None:
    without = urdf(panda_finger_joint1="")
    assert objections(without, JOINTS) == ["joint 'panda_finger_joint1' is not in it"]
    assert objections(without, JOINTS, gripper_apart=True) == []


def test_names_that_were_replaced_are_looked_for() -> None:
    left = JointMap(PANDA, tuple(f"left_{i}" for i in range(7)))
    assert objections(urdf(), left)[0] == "joint 'left_0' is not in it"


def test_a_joint_that_turns_without_end_has_no_limits() -> None:
    endless = urdf().replace(
        'name="panda_joint7" type="revolute"', 'name="panda_joint7" type="continuous"'
    )
    assert objections(endless, JOINTS) == []
    wider = replace(PANDA.channels[6], lower=-99.0)
    robot = replace(PANDA, channels=(*PANDA.channels[:6], wider, PANDA.channels[7]))
    assert objections(endless, JointMap(robot)) == []


@pytest.mark.parametrize(("text", "said"), [("no", "is no XML"), ("<sdf/>", "begins with <sdf>")])
def test_what_is_no_description_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        objections(text, JOINTS)
