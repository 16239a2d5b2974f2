"""The processes around a simulated arm: simulator, policy node, controller node and others."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos3_ros.engine.backends import open_backend
from cosmos3_ros.engine.bundle import Bundle
from cosmos3_ros.policy.embodiment import Embodiment, load_embodiment
from cosmos3_ros.processes import Child, Children, ProcessFailed
from cosmos3_ros.sim.world import CAMERAS, JOINTS

if TYPE_CHECKING:
    from rclpy.node import Node

CONTROL_RATE_HZ = 50.0
BRINGUP_TIMEOUT_S = 120.0
RECORDED = {
    "action_chunk": "cosmos3_ros/msg/ActionChunk",
    "camera/exterior/image": "sensor_msgs/msg/Image",
    "camera/wrist/image": "sensor_msgs/msg/Image",
    "controller_status": "cosmos3_ros/msg/ControllerStatus",
    "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
    "instruction": "std_msgs/msg/String",
    "joint_command": "sensor_msgs/msg/JointState",
    "joint_states": "sensor_msgs/msg/JointState",
    "predicted_frame": "sensor_msgs/msg/Image",
    "sim/state": "cosmos3_ros/msg/SimState",
    "status": "cosmos3_ros/msg/PolicyStatus",
}
FROM_THE_SIMULATOR = ("camera/exterior/image", "camera/wrist/image", "joint_states", "sim/state")
RECORDER = "cosmos3_recorder"  # the recorder node's name
RECORDER_TIMEOUT_S = 60.0

Parameters = Mapping[str, object]


class AnotherRobot(ValueError):
    """A bundle is for another robot than the simulated arm."""


@dataclass(frozen=True)
class Team:
    """Started in this order; they end in the other."""

    sim: Child
    policy: Child
    controller: Child


def require_arm(bundle: Bundle) -> Embodiment:
    """The bundle's embodiment. Raises AnotherRobot where that is not of the simulated arm."""
    embodiment = load_embodiment(bundle.manifest.contract.embodiment)
    cameras = [view.name for view in embodiment.cameras]
    if embodiment.joints != JOINTS or not cameras or not set(cameras) <= set(CAMERAS):
        raise AnotherRobot(
            f"bundle '{bundle.manifest.name}' is for embodiment '{embodiment.name}'; expected one "
            f"of the simulated arm, with joints {', '.join(JOINTS)} and cameras out of "
            f"{', '.join(CAMERAS)}"
        )
    return embodiment


def require_runnable(bundle: Bundle) -> None:
    """Open a bundle as the policy node will. Raises BundleError where this CPU cannot run it."""
    open_backend(bundle, "onnxruntime", threads=1).close()


def start_team(
    children: Children,
    bundle: Path,
    embodiment: str,
    *,
    sim: Parameters,
    policy: Parameters,
    controller: Parameters | None = None,
) -> Team:
    """Start the three nodes. ``sim``, ``policy``, ``controller``: their parameters besides the
    usual ones."""
    common = {"embodiment": embodiment, "use_sim_time": "true"}
    return Team(
        sim=start_node(children, "sim_node", "sim", sim),
        policy=start_node(children, "policy_node", "nodes", {"bundle": bundle, **common, **policy}),
        controller=start_node(
            children,
            "controller_node",
            "nodes",
            {"control_rate_hz": CONTROL_RATE_HZ, **common, **(controller or {})},
        ),
    )


def start_node(
    children: Children,
    name: str,
    room: str,
    parameters: Parameters,
    *words: str,
    module: str | None = None,
) -> Child:
    """Start a node's module with parameters and further ROS arguments. ``module``: where the
    child's name is another."""
    given = [word for key, value in parameters.items() for word in ("-p", f"{key}:={value}")]
    path = f"cosmos3_ros.{room}.{module or name}"
    return children.start_module(name, path, "--ros-args", *given, *words)


def start_recorder(children: Children, recording: Path) -> Child:
    """Start to record all that the team says, into an MCAP file."""
    topics = json.dumps([f"{topic}:{kind}" for topic, kind in RECORDED.items()])
    return start_node(children, "recorder_node", "nodes", {"output": recording, "topics": topics})


def await_recorder(children: Children, recorder: Child, observer: Node) -> None:
    """Until what the simulator sends is being recorded: the arm moves as soon as nodes are up.

    ``observer``: a node that sees who subscribes. Raises ProcessFailed when a process ends, or the
    recorder is not there in time.
    """
    end_s = time.monotonic() + RECORDER_TIMEOUT_S
    while missing := [t for t in FROM_THE_SIMULATOR if not _is_recorded(t, observer)]:
        children.check()
        if time.monotonic() > end_s:
            raise recorder.failure(
                f"has not subscribed to {', '.join(missing)} within {RECORDER_TIMEOUT_S:g} s; free "
                "the machine and try again"
            )
        time.sleep(0.05)


def _is_recorded(topic: str, observer: Node) -> bool:
    about = observer.get_subscriptions_info_by_topic(topic)
    return any(end.node_name == RECORDER for end in about)


def bring_up(children: Children, team: Team) -> None:
    """Configure and activate policy and controller. Raises ProcessFailed with their logs' ends."""
    bringup = children.start_module(
        "bringup", "cosmos3_ros.nodes.bringup", "cosmos3_policy", "cosmos3_controller"
    )
    try:
        children.wait(bringup, BRINGUP_TIMEOUT_S)
    except ProcessFailed as error:
        # It names the node; why, only the node's own log says.
        logs = [f"{child.log}:\n{child.tail()}" for child in (team.policy, team.controller)]
        raise ProcessFailed("\n".join([str(error), *logs])) from None
