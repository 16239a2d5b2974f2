"""The processes of ``sim.launch.py``, run for real as launch would run them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import launch_stand_in
import pytest
from bundles import Exported
from launch_stand_in import performed

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import JointState

from cosmos3_ros.nodes.bringup import ManagedNode
from cosmos3_ros.processes import Children, ros_environment

NAMESPACE = "cell"


@contextmanager
def launched(bundle: Path, domain_id: int, folder: Path) -> Iterator[Children]:
    """What ``ros2 launch cosmos3_ros sim.launch.py bundle:=...`` starts, on loopback."""
    environment = ros_environment(domain_id)
    context = performed(
        "sim.launch.py",
        environment,
        bundle=str(bundle),
        namespace=NAMESPACE,
        bringup_timeout="60.0",
    )
    with Children(folder / "logs", context.environment) as children:
        for process in context.processes:
            room = "sim" if process.executable == "sim_node" else "nodes"
            children.start_module(
                process.executable,
                f"cosmos3_ros.{room}.{process.executable}",
                *process.command_line(folder / f"{process.executable}.yaml"),
            )
        yield children


def ended(children: Children, name: str, timeout_s: float = 60.0) -> int:
    (child,) = [child for child in children.running if child.name == name]
    return child.process.wait(timeout_s)


def log_of(children: Children, name: str) -> str:
    return (children.logs / f"{name}.log").read_text()


@dataclass
class Peer:
    """Somebody else on the nodes' domain and in their namespace."""

    node: Node
    executor: SingleThreadedExecutor

    def states(self) -> set[str]:
        """The lifecycle states of both nodes, asked for with their services."""
        found = set()
        for name in ("cosmos3_controller", "cosmos3_policy"):
            managed = ManagedNode(self.node, self.executor, name)
            managed.wait(10.0)
            found.add(managed.state())
        return found


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    launch_stand_in.install(monkeypatch)


@pytest.fixture
def peer(ros_context: Context) -> Peer:
    node = rclpy.create_node("peer", context=ros_context, namespace=NAMESPACE)
    executor = SingleThreadedExecutor(context=ros_context)
    executor.add_node(node)
    return Peer(node, executor)


def test_launched_nodes_come_up_and_command_the_arm(
    stand_in: None, peer: Peer, ros_domain_id: int, pico: Exported, tmp_path: Path
) -> None:
    commands: list[JointState] = []
    peer.node.create_subscription(JointState, "joint_command", commands.append, 10)
    with launched(pico.bundle.path, ros_domain_id, tmp_path) as children:
        assert ended(children, "bringup") == 0, log_of(children, "bringup")
        assert peer.states() == {"active"}
        deadline = time.monotonic() + 20.0
        while len(commands) < 10 and time.monotonic() < deadline:
            peer.executor.spin_once(timeout_sec=0.1)
        listening = peer.node.count_subscribers("instruction")
    assert len(commands) >= 10
    assert "panda_joint1" in commands[-1].name
    text = (launch_stand_in.ROOT / "launch" / "sim.launch.py").read_text()
    assert f"pub --once -w {listening} /instruction" in text, "it has to wait for all of them"


def test_bundle_that_is_not_there_fails_the_bring_up_and_leaves_nothing_half_active(
    stand_in: None, peer: Peer, ros_domain_id: int, tmp_path: Path
) -> None:
    with launched(tmp_path / "nowhere", ros_domain_id, tmp_path) as children:
        assert ended(children, "bringup") == 1
        assert "cosmos3_policy: configure failed" in log_of(children, "bringup")
        assert "nowhere" in log_of(children, "policy_node")
        assert peer.states() == {"unconfigured"}


def test_ros2_launch_brings_both_nodes_up(
    peer: Peer, ros_domain_id: int, pico: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real launch, where it is installed: a robot with ROS from apt."""
    pytest.importorskip("launch_ros", reason="launch_ros is not in this environment")
    import launch
    from launch.actions import EmitEvent, IncludeLaunchDescription, OpaqueFunction, TimerAction
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    for name, value in ros_environment(ros_domain_id).items():
        monkeypatch.setenv(name, value)
    seen: set[str] = set()

    def ask(_: object) -> list[object]:
        deadline = time.monotonic() + 60.0
        while time.monotonic() < deadline and seen != {"active"}:
            seen.clear()
            seen.update(peer.states())
            time.sleep(0.5)
        return [EmitEvent(event=launch.events.Shutdown(reason="asked"))]

    path = str(launch_stand_in.ROOT / "launch" / "sim.launch.py")
    arguments = [("bundle", str(pico.bundle.path)), ("namespace", NAMESPACE)]
    service = launch.LaunchService(noninteractive=True)
    service.include_launch_description(
        launch.LaunchDescription(
            [
                IncludeLaunchDescription(
                    PythonLaunchDescriptionSource(path), launch_arguments=arguments
                ),
                TimerAction(period=5.0, actions=[OpaqueFunction(function=ask)]),
            ]
        )
    )
    assert service.run() == 0
    assert seen == {"active"}
