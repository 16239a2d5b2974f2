"""How every node of ours runs and ends."""

from __future__ import annotations

from collections.abc import Callable

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node


def run(make_node: Callable[[], Node]) -> int:
    """Spin a node until it is interrupted; returns the exit code of the process.

    Ctrl-C in a terminal reaches a node twice, from the terminal and from launch: the second must
    not cut the clean-up short, nor turn the exit code into a failure.
    """
    rclpy.init()
    node = None
    try:
        node = make_node()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        _without_interrupts(node.destroy_node if node is not None else None)
        _without_interrupts(rclpy.try_shutdown)
    return 0


def _without_interrupts(step: Callable[[], object] | None) -> None:
    try:
        if step is not None:
            step()
    except KeyboardInterrupt:
        _without_interrupts(step)
