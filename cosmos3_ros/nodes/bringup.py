"""Brings lifecycle nodes up: configures all of them, then activates all, in the order given::

    bringup cosmos3_controller cosmos3_policy --timeout 300

Exit code 0 when every node is active. When one fails, the nodes that were moved are brought back to
unconfigured, newest first, and the exit code is 1: nothing is left half active.
"""

from __future__ import annotations

import argparse
import sys
import time

import rclpy
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.task import Future
from rclpy.utilities import remove_ros_args

from cosmos3_ros.nodes.running import leave

STATES = {
    State.PRIMARY_STATE_UNCONFIGURED: "unconfigured",
    State.PRIMARY_STATE_INACTIVE: "inactive",
    State.PRIMARY_STATE_ACTIVE: "active",
    State.PRIMARY_STATE_FINALIZED: "finalized",
}
# Transition, the state it starts from, and the state it ends in.
CONFIGURE = (Transition.TRANSITION_CONFIGURE, "unconfigured", "inactive")
ACTIVATE = (Transition.TRANSITION_ACTIVATE, "inactive", "active")
DEACTIVATE = (Transition.TRANSITION_DEACTIVATE, "active", "inactive")
CLEAN_UP = (Transition.TRANSITION_CLEANUP, "inactive", "unconfigured")
NAMES = {
    CONFIGURE: "configure",
    ACTIVATE: "activate",
    DEACTIVATE: "deactivate",
    CLEAN_UP: "clean up",
}
# What a node that answers at all needs to answer; transitions have a time-out of their own.
ANSWER_TIMEOUT_S = 10.0
# A server drops an answer while it has not discovered who asked: what may be asked twice is.
_ASK_AGAIN_S = 1.0


class BringupError(RuntimeError):
    """A node is not there, does not answer, or refuses a transition; the message says which."""


class ManagedNode:
    """A lifecycle node, seen through its services. ``name`` is relative to ours, or absolute.

    ``executor`` spins ``node``, the one that asks.
    """

    def __init__(self, node: Node, executor: Executor, name: str) -> None:
        self.name = name
        self._node = node
        self._executor = executor
        self._get = node.create_client(GetState, f"{name}/get_state")
        self._change = node.create_client(ChangeState, f"{name}/change_state")

    def wait(self, timeout_s: float) -> None:
        """Wait for the node's services. Raises BringupError when they do not appear."""
        deadline = time.monotonic() + timeout_s
        for client in (self._get, self._change):
            if not client.wait_for_service(max(0.0, deadline - time.monotonic())):
                service = self._node.resolve_service_name(client.srv_name)
                raise BringupError(
                    f"{self.name}: no service {service} after {timeout_s:g} s; is the node "
                    "running, in this namespace and on this ROS_DOMAIN_ID?"
                )

    def state(self) -> str:
        """The primary state's name, or the transition the node is in."""
        asked: list[Future] = []
        end_s = time.monotonic() + ANSWER_TIMEOUT_S
        while time.monotonic() < end_s:
            asked.append(self._get.call_async(GetState.Request()))
            self._executor.spin_until_future_complete(asked[-1], _ASK_AGAIN_S)
            if (state := _newest_state(asked)) is not None:
                return state
        raise BringupError(f"{self.name}: did not say its state within {ANSWER_TIMEOUT_S:g} s")

    def change(self, step: tuple[int, str, str], timeout_s: float) -> bool:
        """Take one step; False when the node is past it already.

        Raises BringupError when it does not arrive. A request that is invalid in the node's state
        is never sent: on Jazzy it would end the node.
        """
        transition, start, goal = step
        state = self.state()
        if state == goal or (step == CONFIGURE and state == "active"):
            return False
        if state != start:
            raise BringupError(
                f"{self.name}: cannot {NAMES[step]}: its state is {state}, expected {start}"
            )
        self._go(transition, goal, timeout_s, NAMES[step])
        if (state := self.state()) != goal:
            raise BringupError(
                f"{self.name}: {NAMES[step]} failed; its state is {state}, expected {goal}; its "
                "log says why"
            )
        return True

    def _go(self, transition: int, goal: str, timeout_s: float, what: str) -> None:
        """Ask for a transition, once, and wait for its end: its answer, or a state of ``goal``."""
        request = ChangeState.Request(transition=Transition(id=transition))
        answered = self._change.call_async(request)
        asked: list[Future] = []
        end_s = time.monotonic() + timeout_s
        while (left_s := end_s - time.monotonic()) > 0:
            self._executor.spin_until_future_complete(answered, min(left_s, _ASK_AGAIN_S))
            if answered.done() or _newest_state(asked) == goal:
                return
            asked.append(self._get.call_async(GetState.Request()))
        raise BringupError(f"{self.name}: did not {what} within {timeout_s:g} s")


def _newest_state(asked: list[Future]) -> str | None:
    """What was answered to the last question that was; None: to none."""
    for question in reversed(asked):
        if question.done():
            state = question.result().current_state
            return STATES.get(state.id, str(state.label))
    return None


def bring_up(nodes: list[ManagedNode], discovery_timeout_s: float, timeout_s: float) -> None:
    """Configure all ``nodes``, then activate all. Raises BringupError after bringing them back."""
    moved: list[ManagedNode] = []
    try:
        for node in nodes:
            node.wait(discovery_timeout_s)
        for step in (CONFIGURE, ACTIVATE):
            for node in nodes:
                if node.change(step, timeout_s) and node not in moved:
                    moved.append(node)
    except BringupError as error:
        left = bring_down(moved, timeout_s)
        raise BringupError("; ".join([str(error), *left])) from error


def bring_down(nodes: list[ManagedNode], timeout_s: float) -> list[str]:
    """Back to unconfigured, newest first; returns what went wrong, for a person."""
    left = []
    for node in reversed(nodes):
        try:
            if node.state() == "active":
                node.change(DEACTIVATE, timeout_s)
            if node.state() == "inactive":
                node.change(CLEAN_UP, timeout_s)
        except BringupError as error:
            left.append(str(error))
    return left


def main() -> int:
    """Bring the named nodes up; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bringup", description=__doc__.partition("::")[0])
    parser.add_argument("nodes", nargs="+", metavar="NODE", help="node name, relative or absolute")
    parser.add_argument(
        "--discovery-timeout", type=float, default=30.0, help="wait for a node's services [s]"
    )
    parser.add_argument("--timeout", type=float, default=300.0, help="wait for a transition [s]")
    args = parser.parse_args(remove_ros_args(sys.argv)[1:])
    rclpy.init()
    try:
        node = rclpy.create_node("cosmos3_bringup")
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        managed = [ManagedNode(node, executor, name) for name in args.nodes]
        bring_up(managed, args.discovery_timeout, args.timeout)
        node.get_logger().info(f"active: {', '.join(args.nodes)}")
        return 0
    except BringupError as error:
        node.get_logger().error(f"not brought up: {error}")
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        print("bringup: interrupted", file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    leave(main())
