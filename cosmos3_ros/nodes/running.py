"""How every node of ours runs and ends."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

# How soon an interrupt is noticed when nothing else wakes the node.
WAKE_PERIOD_S = 0.1


def run(make_node: Callable[[], Node]) -> int:
    """Spin a node until SIGINT or SIGTERM; returns the exit code of the process.

    The signals are taken before rclpy starts and instead of rclpy's own handler, which would shut
    the context down at once: the node still deactivates with its last words. Ctrl-C reaches a node
    twice, from the terminal and from launch; the second changes nothing.
    """
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = make_node()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not interrupted and rclpy.ok():
            _spin_once(executor, node)
        if isinstance(node, LifecycleNode):
            _finalize(node)
        node.destroy_node()
    finally:
        rclpy.try_shutdown()
        # Python gives a signal it handles back to its default when it ends, but not an ignored one.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    return 0


def _spin_once(executor: SingleThreadedExecutor, node: Node) -> None:
    try:
        executor.spin_once(timeout_sec=WAKE_PERIOD_S)
    except ExternalShutdownException:
        pass  # somebody in this process ended ROS; the loop sees it
    except rclpy_implementation.RCLError as error:
        # Jazzy raises a transition that the present state does not have out of the executor.
        # A stray request must not silence a node that holds an arm.
        node.get_logger().error(f"request refused: {error}")


def _finalize(node: LifecycleNode) -> None:
    try:
        node.trigger_shutdown()
    except rclpy_implementation.RCLError:
        pass  # finalized already
