"""How a node's process ends, and what it survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

from cosmos3_ros.processes import Children, ros_environment
from cosmos3_ros.resources import resource

NODE = """
import gc
from rclpy.node import Node
from cosmos3_ros.nodes.running import leave, run

def make_node():
    node = Node("of_a_terminal")
    node.create_timer(0.05, lambda: print("spins", len(gc.get_objects()), flush=True))
    return node

leave(run(make_node))
"""


def test_what_was_imported_is_not_looked_through_while_a_node_runs(ros_domain_id: int) -> None:
    node = subprocess.Popen(
        [sys.executable, "-c", NODE],
        env={**os.environ, "ROS_DOMAIN_ID": str(ros_domain_id)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with node:
        assert node.stdout is not None
        _, collected = node.stdout.readline().split()
        node.send_signal(signal.SIGINT)
        node.communicate(timeout=60)
    # Of tens of thousands, those made since then.
    assert int(collected) < 5000


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize(("under", "ends"), [([], True), (["nohup"], False)])
def test_a_lost_terminal_ends_a_node_in_order_but_not_under_nohup(
    ros_domain_id: int, under: list[str], ends: bool
) -> None:
    node = subprocess.Popen(
        [*under, sys.executable, "-c", NODE],
        env={**os.environ, "ROS_DOMAIN_ID": str(ros_domain_id)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    with node:
        assert node.stdout is not None and "spins" in node.stdout.readline()
        node.send_signal(signal.SIGHUP)
        if not ends:
            time.sleep(1.0)
            assert node.poll() is None
            node.send_signal(signal.SIGINT)
        node.communicate(timeout=60)
    assert node.returncode == 0


def shared_memory() -> set[str]:
    """What the middleware has put there."""
    return {path.name for path in Path("/dev/shm").iterdir() if "fastrtps_" in path.name}


def test_nodes_that_have_ended_leave_no_shared_memory_behind(
    ros_domain_id: int, tmp_path: Path
) -> None:
    before = shared_memory()
    bundle = resource("engines", "pico")
    with Children(tmp_path, ros_environment(ros_domain_id)) as children:
        for name, words in {
            "controller_node": ["embodiment:=pico_panda"],
            "policy_node": [f"bundle:={bundle}"],
            "recorder_node": [],  # it lacks parameters, and ends at once
        }.items():
            given = [word for parameter in words for word in ("-p", parameter)]
            child = children.start_module(name, f"cosmos3_ros.nodes.{name}", "--ros-args", *given)
        assert child.process.wait(120) == 1
        children.running.remove(child)
        words = ("cosmos3_controller", "cosmos3_policy")
        children.wait(children.start_module("bringup", "cosmos3_ros.nodes.bringup", *words), 120)
        assert shared_memory() > before
    assert shared_memory() <= before
