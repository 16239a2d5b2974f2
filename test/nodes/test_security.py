"""The SROS2 policy beside the topics and services that the two nodes really have."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

import rclpy
from bundles import ENGINES, exported
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.parameter import Parameter

from cosmos3_ros.nodes.controller_node import ControllerNode
from cosmos3_ros.nodes.policy_node import PolicyNode
from cosmos3_ros.resources import resource

EMBODIMENT = "droid_joint_pos"
# A node of another process would see it; what is in our own is enough for the graph.
_DISCOVERED_S = 10.0


@dataclass(frozen=True)
class Interfaces:
    publishes: set[str]
    subscribes: set[str]
    serves: set[str]


def permitted(node: str) -> Interfaces:
    """What the policy file permits a node, names expanded as ROS does in no namespace."""
    root = ElementTree.parse(resource("config", "security", "policy.xml")).getroot()
    profile = next(p for p in root.iter("profile") if p.get("node") == node)

    def names(kind: str, right: str, child: str) -> set[str]:
        found = profile.findall(f"{kind}[@{right}='ALLOW']/{child}")
        return {expanded(str(each.text), node) for each in found}

    return Interfaces(
        names("topics", "publish", "topic"),
        names("topics", "subscribe", "topic"),
        names("services", "reply", "service"),
    )


def expanded(name: str, node: str) -> str:
    if name.startswith("~/"):
        return f"/{node}/{name[2:]}"
    return name if name.startswith("/") else f"/{name}"


@pytest.fixture
def nodes(tmp_path: Path, ros_context: Context) -> Iterator[list[LifecycleNode]]:
    """Both nodes, active, with simulated time as the policy file allows for."""
    embodiment = resource("config", "embodiments", f"{EMBODIMENT}.yaml")
    bundle = exported(ENGINES / "tiny_droid.yaml", embodiment).bundle.path
    given = {
        PolicyNode: {"bundle": str(bundle), "embodiment": EMBODIMENT, "use_sim_time": True},
        ControllerNode: {"embodiment": EMBODIMENT, "use_sim_time": True},
    }
    made = [
        kind(
            context=ros_context,
            parameter_overrides=[Parameter(name, value=value) for name, value in values.items()],
        )
        for kind, values in given.items()
    ]
    for node in made:
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    yield made
    for node in made:
        node.trigger_deactivate()
        node.destroy_node()


def test_the_nodes_may_do_what_they_do_and_no_more(
    nodes: list[LifecycleNode], ros_context: Context
) -> None:
    observer = rclpy.create_node("observer", context=ros_context)
    executor = SingleThreadedExecutor(context=ros_context)
    executor.add_node(observer)
    for node in nodes:
        name = node.get_name()
        wanted = permitted(name)
        end_s = time.monotonic() + _DISCOVERED_S
        while (found := interfaces_of(observer, name)) != wanted and time.monotonic() < end_s:
            executor.spin_once(timeout_sec=0.1)
        assert found == wanted, name
    executor.shutdown()
    observer.destroy_node()


def interfaces_of(observer: rclpy.node.Node, name: str) -> Interfaces:
    return Interfaces(
        {topic for topic, _ in observer.get_publisher_names_and_types_by_node(name, "/")},
        {topic for topic, _ in observer.get_subscriber_names_and_types_by_node(name, "/")},
        {service for service, _ in observer.get_service_names_and_types_by_node(name, "/")},
    )
