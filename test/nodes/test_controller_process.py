"""The controller node in a process of its own: its services, its signals, its command line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle import state_label
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import JointState

from cosmos3_ros.control.chunk import Chunk
from cosmos3_ros.msg import ActionChunk
from cosmos3_ros.nodes.chunks import message_from_chunk
from cosmos3_ros.policy.commands import command_space
from cosmos3_ros.policy.embodiment import load_embodiment

JOINTS = [*(f"panda_joint{i}" for i in range(1, 8)), "panda_finger_joint1"]
HOME = [0.0, 0.3, 0.0, -2.3, 0.0, 2.6, 0.8, 0.04]
_REACHED = {
    Transition.TRANSITION_CONFIGURE: "inactive",
    Transition.TRANSITION_ACTIVATE: "active",
}


class Process:
    """The node in a process of its own, driven by its lifecycle services."""

    def __init__(self, context: Context, domain_id: int, *parameters: str) -> None:
        self.node = rclpy.create_node("operator", context=context)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.commands: list[JointState] = []
        self.diagnostics: list[DiagnosticStatus] = []
        self.node.create_subscription(JointState, "joint_command", self.commands.append, 100)
        self.node.create_subscription(
            DiagnosticArray, "/diagnostics", lambda a: self.diagnostics.extend(a.status), 100
        )
        self.joint_states = self.node.create_publisher(JointState, "joint_states", 10)
        self.node.create_timer(0.01, self._measure)
        self._change = self.node.create_client(ChangeState, "/cosmos3_controller/change_state")
        command = [sys.executable, "-m", "cosmos3_ros.nodes.controller_node", "--ros-args"]
        command += [part for p in ("embodiment:=sim_panda", *parameters) for part in ("-p", p)]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "ROS_DOMAIN_ID": str(domain_id)},
            stderr=subprocess.PIPE,
            text=True,
        )

    def _measure(self) -> None:
        self.joint_states.publish(JointState(name=JOINTS, position=HOME))

    def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> bool:
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.1)
        return condition()

    def change(self, transition: int) -> Any:
        assert self.until(self._change.service_is_ready)
        future = self._change.call_async(ChangeState.Request(transition=Transition(id=transition)))
        if self.until(future.done, 3.0):
            return future.result().success
        # A server that has not yet found its client's reader answers into the void.
        end = time.monotonic() + 15.0
        while state_label(self.node, self.until) != _REACHED[transition]:
            if time.monotonic() > end:
                return False
            self.until(lambda: False, 0.5)
        return True

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self.executor.shutdown()
        self.node.destroy_node()


@pytest.fixture
def process(ros_domain_id: int) -> Iterator[Callable[..., Process]]:
    context = Context()
    rclpy.init(args=[], context=context, domain_id=ros_domain_id)
    made: list[Process] = []

    def make(*parameters: str) -> Process:
        made.append(Process(context, ros_domain_id, *parameters))
        return made[-1]

    yield make
    for each in made:
        each.close()
    rclpy.shutdown(context=context)


@pytest.mark.parametrize("transitions", [0, 1, 2], ids=["unconfigured", "inactive", "active"])
def test_two_interrupts_end_the_process_with_exit_code_0(
    process: Callable[..., Process], transitions: int
) -> None:
    p = process()
    assert p.until(p._change.service_is_ready)
    for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)[
        :transitions
    ]:
        assert p.change(transition)
    if transitions == 2:
        assert p.until(lambda: len(p.commands) > 2)
    p.process.send_signal(signal.SIGINT)
    time.sleep(0.01)
    p.process.send_signal(signal.SIGINT)
    _, errors = p.process.communicate(timeout=45)
    assert p.process.returncode == 0, errors
    assert "Traceback" not in errors


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("interrupt", [signal.SIGINT, signal.SIGHUP])
def test_an_interrupt_brakes_a_moving_arm_before_its_node_falls_silent(
    process: Callable[..., Process], interrupt: signal.Signals
) -> None:
    p = process()
    assert p.change(Transition.TRANSITION_CONFIGURE)
    assert p.change(Transition.TRANSITION_ACTIVATE)
    chunks = p.node.create_publisher(ActionChunk, "action_chunk", 10)
    assert p.until(lambda: len(p.commands) > 2 and chunks.get_subscription_count() > 0)
    rows = np.tile([*HOME[:7], 0.0], (60, 1))
    rows[:, 0] += 0.5 * np.arange(1, 61) / 15
    now_ns = time.time_ns()
    chunk = Chunk(1, now_ns, 15.0, rows, now_ns)
    space = command_space(load_embodiment("sim_panda"))
    chunks.publish(message_from_chunk(chunk, space))
    assert p.until(lambda: p.commands[-1].position[0] > 0.2)
    p.process.send_signal(interrupt)
    assert p.until(lambda: p.process.poll() is not None)
    p.until(lambda: False, 0.3)  # what was on its way has arrived
    told = [command.position[0] for command in p.commands]
    steps = np.diff(told[-20:])
    assert steps.max() > 0.005, "it was moving"
    assert steps.min() >= 0 and steps[-1] == 0.0, "it came to rest, and did not leap back"
    assert told[-1] < 1.5, "and did not go on to the end of the plan"


def test_the_loop_gets_the_priority_and_the_memory_it_asks_for(
    process: Callable[..., Process],
) -> None:
    p = process("fifo_priority:=20", "lock_memory:=true")
    assert p.change(Transition.TRANSITION_CONFIGURE)
    assert p.change(Transition.TRANSITION_ACTIVATE)
    assert p.until(lambda: len(p.commands) > 2)
    of_process = Path(f"/proc/{p.process.pid}")
    threads = [int(task.name) for task in of_process.joinpath("task").iterdir()]
    fifo = [thread for thread in threads if os.sched_getscheduler(thread) == os.SCHED_FIFO]
    priorities = [os.sched_getparam(thread).sched_priority for thread in fifo]
    locked = re.findall(r"VmLck:\s+(\d+) kB", of_process.joinpath("status").read_text())
    p.process.send_signal(signal.SIGINT)
    _, errors = p.process.communicate(timeout=45)
    if "was refused" in errors:
        pytest.skip(f"not granted here: {errors}")
    # The loop's, and one less of the thread that takes the messages.
    assert priorities.count(20) == 1 and 19 in priorities
    assert int(locked[0]) > 0


def test_a_transition_the_state_does_not_have_silences_nothing(
    process: Callable[..., Process],
) -> None:
    p = process()
    assert p.change(Transition.TRANSITION_CONFIGURE)
    assert p.change(Transition.TRANSITION_ACTIVATE)
    assert p.until(lambda: len(p.commands) > 2)
    p.change(Transition.TRANSITION_ACTIVATE)
    p.commands.clear()
    assert p.until(lambda: len(p.commands) > 5, 3.0), "commands ended with the stray request"
    assert p.until(lambda: bool(p.diagnostics)), "no report"
    reports = len(p.diagnostics)
    p.process.send_signal(signal.SIGINT)
    assert p.until(lambda: len(p.diagnostics) > reports, 5.0), "no last report"
    _, errors = p.process.communicate(timeout=45)
    assert p.process.returncode == 0, errors
    assert "request refused" in errors


def test_parameters_from_the_command_line_reach_the_node(
    process: Callable[..., Process],
) -> None:
    p = process("control_rate_hz:=oops", "joint_names:=[]")
    assert p.change(Transition.TRANSITION_CONFIGURE) is False
    p.process.send_signal(signal.SIGINT)
    _, errors = p.process.communicate(timeout=45)
    assert "parameter 'control_rate_hz' is 'oops'; expected a float" in errors
    assert "joint_names" not in errors
