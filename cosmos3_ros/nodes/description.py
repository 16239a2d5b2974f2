"""An embodiment's joints against the robot's own description (URDF, topic robot_description)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from cosmos3_ros.nodes.joints import JointMap

# What counts as the same limit: descriptions are rounded.
_SLACK = 1e-3


@dataclass(frozen=True)
class DescribedJoint:
    """``unit``: what it moves in, rad or m; its limits, infinite where none is told."""

    unit: str
    lower: float
    upper: float
    velocity: float


def objections(urdf: str, joints: JointMap, *, gripper_apart: bool = False) -> list[str]:
    """What of an embodiment the description of the robot does not allow; empty where it fits.

    A joint has to be there, to turn where the embodiment says rad and to slide where it says m, and
    its limits must not be narrower than those of the embodiment. ``gripper_apart``: the gripper is
    no joint of the commands. Raises ValueError for what is no URDF.
    """
    found = _joints_of(urdf)
    return [
        objection
        for index, name in enumerate(joints.names)
        if not (gripper_apart and joints.is_gripper[index])
        for objection in _objections_to(name, found.get(name), joints, index)
    ]


def _objections_to(
    name: str, found: DescribedJoint | None, joints: JointMap, index: int
) -> Iterator[str]:
    if found is None:
        yield f"joint '{name}' is not in it"
        return
    robot = joints.embodiment
    unit = robot.channels[index].unit
    # A gripper's channel is closedness: its joint may turn or slide.
    if not joints.is_gripper[index] and unit != found.unit:
        yield f"joint '{name}' moves in {unit}; the robot's in {found.unit}"
        return
    # A gripper that closes towards zero has its limits the other way round.
    ends = (joints.to_joints(robot.lower)[index], joints.to_joints(robot.upper)[index])
    least, most = min(ends), max(ends)
    if least < found.lower - _SLACK or most > found.upper + _SLACK:
        yield (
            f"joint '{name}' may go from {least:g} to {most:g} {found.unit}; the robot's from "
            f"{found.lower:g} to {found.upper:g}"
        )
    speed = robot.velocity[index]
    # A gripper is told open or closed, and goes there as fast as it can.
    if not joints.is_gripper[index] and speed > found.velocity + _SLACK:
        yield (
            f"joint '{name}' may move at {speed:g} {found.unit}/s; the robot's at "
            f"{found.velocity:g}"
        )


def _joints_of(urdf: str) -> dict[str, DescribedJoint]:
    """Every joint that moves."""
    try:
        root = ElementTree.fromstring(urdf)
    except ElementTree.ParseError as error:
        raise ValueError(f"robot_description is no XML ({error}); expected a URDF") from None
    if root.tag != "robot":
        raise ValueError(f"robot_description begins with <{root.tag}>; expected <robot>, a URDF")
    found = {}
    for joint in root.iter("joint"):
        kind = joint.get("type")
        if kind in ("revolute", "prismatic", "continuous"):
            limit = joint.find("limit")
            told = {} if limit is None else limit.attrib
            turns = kind == "continuous"
            found[str(joint.get("name"))] = DescribedJoint(
                "m" if kind == "prismatic" else "rad",
                -math.inf if turns else float(told.get("lower", 0.0)),
                math.inf if turns else float(told.get("upper", 0.0)),
                float(told.get("velocity", math.inf)),
            )
    return found
