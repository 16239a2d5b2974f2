"""The policy that ships acts through both nodes: told of another cube on its way, it goes there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from bundles import Exported
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from std_msgs.msg import String
from std_srvs.srv import Trigger

from cosmos3_ros.msg import SimState
from cosmos3_ros.nodes.parameters import qos_profile
from cosmos3_ros.processes import Children, ros_environment
from cosmos3_ros.sim.world import CUBES

EPISODES = 10
EPISODE_S = 8.0  # simulated
FRAME_RATE_HZ = 15
# Simulated time after which another cube is named, with the arm on its way to the first.
UNDER_WAY_S = 0.3

pytestmark = pytest.mark.timeout(1200)


class Operator:
    """Stands beside the arm: gives instructions, sets up scenes, sees what is touched."""

    def __init__(self, context: Context) -> None:
        self.node = rclpy.create_node("operator", context=context)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.distances = np.full(3, np.inf)
        self.touched: set[str] = set()
        self.frames = 0
        self.instruction = self.node.create_publisher(
            String, "instruction", qos_profile("reliable", 1, transient_local=True)
        )
        self.node.create_subscription(SimState, "sim/state", self._see, 10)
        self._reset = self.node.create_client(Trigger, "sim/reset")
        self._controller = self.node.create_client(ChangeState, "/cosmos3_controller/change_state")

    def _see(self, message: SimState) -> None:
        self.distances = np.array(message.distances)
        self.touched |= set(message.touched)
        self.frames += 1

    def until(self, done: Callable[[], Any], timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while not done() and time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.05)
        return bool(done())

    def call(self, client: Any, request: Any) -> Any:
        assert client.wait_for_service(10.0)
        future = client.call_async(request)
        assert self.until(future.done, 10.0), f"no answer from {client.srv_name}"
        assert future.result().success
        return future.result()

    def new_scene(self) -> None:
        """The next seeded scene; the controller starts afresh from where the arm then is."""
        self.instruct("")
        self._change(Transition.TRANSITION_DEACTIVATE)
        self.call(self._reset, Trigger.Request())
        self.distances = np.full(3, np.inf)
        assert self.until(lambda: np.isfinite(self.distances).all(), 5.0)
        self._change(Transition.TRANSITION_ACTIVATE)
        self.until(lambda: False, 0.3)  # an old plan may still be under way
        self.touched.clear()

    def _change(self, transition: int) -> None:
        request = ChangeState.Request(transition=Transition(id=transition))
        self.call(self._controller, request)

    def instruct(self, text: str) -> None:
        self.instruction.publish(String(data=text))

    def watch(self, simulated_s: float) -> str:
        """The first cubes that are touched within a simulated time, empty where none is."""
        end = self.frames + round(simulated_s * FRAME_RATE_HZ)
        self.until(lambda: self.touched or self.frames >= end, 10 + 5 * simulated_s)
        return " and ".join(sorted(self.touched))


@pytest.fixture
def operator(pico: Exported, ros_domain_id: int, tmp_path: Path) -> Iterator[Operator]:
    common = ("-p", f"embodiment:={pico.embodiment.name}", "-p", "use_sim_time:=true")
    with Children(tmp_path / "logs", ros_environment(ros_domain_id)) as children:
        children.start_module("sim_node", "cosmos3_ros.sim.sim_node", "--ros-args", "-p", "seed:=3")
        children.start_module(
            "policy_node",
            "cosmos3_ros.nodes.policy_node",
            *("--ros-args", *common, "-p", f"bundle:={pico.bundle.path}"),
            *("-p", "threads:=1", "-p", "seed:=1", "-p", "predicted_frame_rate_hz:=0.0"),
        )
        children.start_module(
            "controller_node", "cosmos3_ros.nodes.controller_node", "--ros-args", *common
        )
        bringup = children.start_module(
            "bringup", "cosmos3_ros.nodes.bringup", "cosmos3_policy", "cosmos3_controller"
        )
        children.wait(bringup, 180.0)
        context = Context()
        rclpy.init(args=[], context=context, domain_id=ros_domain_id)
        operator = Operator(context)
        yield operator
        operator.executor.shutdown()
        operator.node.destroy_node()
        rclpy.shutdown(context=context)
        children.check()


# A policy that ignores the second instruction goes to the farthest cube, and gets none right.
def test_the_arm_goes_to_the_other_cube_when_another_is_named(operator: Operator) -> None:
    outcomes = []
    for _ in range(EPISODES):
        operator.new_scene()
        farthest, other = operator.distances.argsort()[[2, 0]]
        operator.instruct(f"touch the {CUBES[farthest]} cube")
        assert operator.watch(UNDER_WAY_S) == ""
        operator.instruct(f"touch the {CUBES[other]} cube")
        outcomes.append((CUBES[other], operator.watch(EPISODE_S)))
    assert sum(told == touched for told, touched in outcomes) >= 8, outcomes
