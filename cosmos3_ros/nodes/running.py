"""How every node of ours runs and ends."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

# How soon an interrupt is noticed when nothing else wakes the node.
WAKE_PERIOD_S = 0.1
# How long a control loop or a planner may have to wait for Python's lock.
_SWITCH_INTERVAL_S = 1e-4


def run(make_node: Callable[[], Node]) -> int:
    """Spin a node until SIGINT, SIGTERM or SIGHUP; returns the exit code of the process.

    The signals are taken before rclpy starts and instead of rclpy's own handler, which would shut
    the context down at once: the node still deactivates with its last words. Ctrl-C reaches a node
    twice, from the terminal and from launch; the second changes nothing. SIGHUP comes when the
    terminal is lost, as with an ssh connection; started under nohup, the node goes on.
    """
    interrupted = False
    sys.setswitchinterval(_SWITCH_INTERVAL_S)

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True

    ending = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ending.append(signal.SIGHUP)
    for number in ending:
        signal.signal(number, interrupt)
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        _spin_node(make_node, lambda: interrupted)
    finally:
        rclpy.try_shutdown()
    return 0


def _spin_node(make_node: Callable[[], Node], interrupted: Callable[[], bool]) -> None:
    node = make_node()
    # Looking through all that was imported takes Python's collector up to ten milliseconds, in
    # which every thread waits. Nothing of it will be garbage.
    gc.collect()
    gc.freeze()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while not interrupted() and rclpy.ok():
        _spin_once(executor, node)
    if isinstance(node, LifecycleNode):
        _finalize(node)
    executor.shutdown()
    node.destroy_node()


def leave(exit_code: int) -> NoReturn:
    """End the process without Python's own teardown. For the last line of a program, where nothing
    refers to its nodes any more.

    The middleware's threads outlive ``rclpy.shutdown`` and abort in that teardown, and it gives
    signals back to their defaults, so that the second Ctrl-C kills a node that has ended well.
    """
    # Nodes refer to themselves, and until they are gone the middleware keeps its files in
    # /dev/shm. Those that are left there may deafen a node that comes later.
    gc.unfreeze()
    gc.collect()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _spin_once(executor: SingleThreadedExecutor, node: Node) -> None:
    try:
        executor.spin_once(timeout_sec=WAKE_PERIOD_S)
    except ExternalShutdownException:
        pass  # somebody in this process ended ROS; the loop sees it
    except rclpy_implementation.RCLError as error:
        # Jazzy raises a transition that the present state does not have out of the executor.
        # A stray request must not silence a node that holds an arm.
        node.get_logger().error(f"request refused: {error}")
    except Exception as error:
        # Nor must a message that rclpy itself stumbles over, as a /clock of before all time.
        node.get_logger().error(f"a callback failed: {type(error).__name__}: {error}")


def _finalize(node: LifecycleNode) -> None:
    try:
        node.trigger_shutdown()
    except rclpy_implementation.RCLError:
        pass  # finalized already
