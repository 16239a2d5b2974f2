"""An embodiment's joints against the robot's own description (URDF, topic robot_description)."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from cosmos3_ros.nodes.joints import JointMap

# What counts as the same limit: descriptions are rounded.
_SLACK = 1e-3


def objections(urdf: str, joints: JointMap) -> list[str]:
    """What of an embodiment the description of the robot does not allow; empty where it fits.

    A joint has to be there, and its limits [rad or m, a second] must not be narrower than those of
    the embodiment. Raises ValueError for what is no URDF.
    """
    found = _limits(urdf)
    robot = joints.embodiment
    lower, upper = joints.to_joints(robot.lower), joints.to_joints(robot.upper)
    wrong = []
    for index, name in enumerate(joints.names):
        if name not in found:
            wrong.append(f"joint '{name}' is not in it")
            continue
        allowed_lower, allowed_upper, allowed_speed = found[name]
        # A gripper that closes towards zero has its limits the other way round.
        least, most = sorted((lower[index], upper[index]))
        if least < allowed_lower - _SLACK or most > allowed_upper + _SLACK:
            wrong.append(
                f"joint '{name}' may go from {least:g} to {most:g}; the robot's from "
                f"{allowed_lower:g} to {allowed_upper:g}"
            )
        speed = robot.velocity[index]
        if not joints.is_gripper[index] and speed > allowed_speed + _SLACK:
            wrong.append(
                f"joint '{name}' may move at {speed:g}; the robot's at {allowed_speed:g} rad/s"
            )
    return wrong


def _limits(urdf: str) -> dict[str, tuple[float, float, float]]:
    """Lower, upper and velocity limit of every joint that moves; infinite where none is told."""
    try:
        root = ElementTree.fromstring(urdf)
    except ElementTree.ParseError as error:
        raise ValueError(f"robot_description is no XML ({error}); expected a URDF") from None
    if root.tag != "robot":
        raise ValueError(f"robot_description begins with <{root.tag}>; expected <robot>, a URDF")
    found = {}
    for joint in root.iter("joint"):
        if joint.get("type") in ("revolute", "prismatic", "continuous"):
            limit = joint.find("limit")
            told = {} if limit is None else limit.attrib
            turns = joint.get("type") == "continuous"
            found[str(joint.get("name"))] = (
                -math.inf if turns else float(told.get("lower", 0.0)),
                math.inf if turns else float(told.get("upper", 0.0)),
                float(told.get("velocity", math.inf)),
            )
    return found
