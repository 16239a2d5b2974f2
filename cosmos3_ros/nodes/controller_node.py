"""The controller node: action chunks and joint states in; commands at control rate out.

No model is in it. Whatever the policy node does, this node keeps commanding while it is active:
falling silent is not stopping, a position controller downstream executes the last value it heard.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64

from cosmos3_ros.control.chunk import ChunkRefused, Refusal
from cosmos3_ros.control.controller import Controller, State, Timeouts
from cosmos3_ros.control.limits import Limits
from cosmos3_ros.control.statistics import IntervalStatistics
from cosmos3_ros.msg import ActionChunk
from cosmos3_ros.nodes.chunks import chunk_from_message
from cosmos3_ros.nodes.commands import COMMAND_INTERFACES
from cosmos3_ros.nodes.joints import JointMap, JointReader
from cosmos3_ros.nodes.managed_node import ManagedNode
from cosmos3_ros.nodes.parameters import (
    DeclaredParameters,
    depth_parameter,
    parameter,
    qos_profile,
    reliability_parameter,
)
from cosmos3_ros.nodes.running import leave, run
from cosmos3_ros.policy.embodiment import load_embodiment

DIAGNOSTICS_PERIOD_S = 1.0
LOG_PERIOD_S = 1.0


@dataclass(frozen=True)
class ControllerParameters:
    """Parameters of the controller node, read when it is configured."""

    embodiment: str = parameter("droid_joint_pos", "Embodiment name or file.")
    joint_names: tuple[str, ...] = parameter(
        (), "The robot's arm joints in channel order; empty: the embodiment's."
    )
    gripper_source: str = parameter(
        "joint",
        "Where closedness is measured: the gripper's joint, or the topic gripper_state.",
        choices=("joint", "topic"),
    )
    command_interface: str = parameter(
        "joint_command",
        "Topic and type of the commands: JointState, JointTrajectory, Float64MultiArray.",
        choices=tuple(COMMAND_INTERFACES),
    )
    control_rate_hz: float = parameter(
        50.0, "Commands a second.", "Hz", minimum=1.0, maximum=1000.0
    )
    joint_timeout_s: float = parameter(
        0.25, "Joint states older than this: hold.", "s", minimum=0.001, maximum=10.0
    )
    hold_grace_s: float = parameter(
        0.1,
        "Past the last row of a chunk, before it counts as a hold.",
        "s",
        minimum=0.0,
        maximum=10.0,
    )
    clock_jump_s: float = parameter(
        1.0,
        "The clock leaps forward by more than this: forget the chunk, hold where the arm is.",
        "s",
        minimum=0.01,
        maximum=3600.0,
    )
    action_chunk_reliability: str = reliability_parameter("action_chunk")
    action_chunk_depth: int = depth_parameter("action_chunk", 10)
    joint_states_reliability: str = reliability_parameter("joint_states and gripper_state")
    joint_states_depth: int = depth_parameter("joint_states and gripper_state", 10)
    command_reliability: str = reliability_parameter("the commands")
    command_depth: int = depth_parameter("the commands", 10)


class ControllerNode(ManagedNode):
    """See the module and the README for topics and parameters."""

    def __init__(self, **node_arguments: Any) -> None:
        super().__init__("cosmos3_controller", **node_arguments)
        self._declared = DeclaredParameters(self, ControllerParameters)
        self._settings: ControllerParameters
        self._joints: JointMap
        self._limits: Limits
        self._run: ControlRun | None = None

    def configure(self) -> None:
        parameters = self._settings = self._declared.read()
        embodiment = load_embodiment(parameters.embodiment)
        self._joints = JointMap(embodiment, parameters.joint_names)
        self._limits = Limits(embodiment.lower, embodiment.upper, embodiment.velocity)
        command = COMMAND_INTERFACES[parameters.command_interface]
        qos = qos_profile(parameters.command_reliability, parameters.command_depth)
        self._commands = self.own_publisher(command.message_type, parameters.command_interface, qos)
        self._diagnostics = self.own_publisher(
            DiagnosticArray, "/diagnostics", qos_profile("reliable", 10)
        )
        self.get_logger().info(
            f"embodiment '{embodiment.name}' on joints {', '.join(self._joints.names)}: "
            f"{parameters.command_interface} at {parameters.control_rate_hz:g} Hz"
        )

    def start(self) -> None:
        """Begin from nothing: the arm may have been moved since the last time."""
        parameters = self._settings
        timeouts = Timeouts(
            parameters.joint_timeout_s, parameters.hold_grace_s, parameters.clock_jump_s
        )
        self._run = ControlRun(
            Controller(self._limits, timeouts),
            JointReader(self._joints),
            IntervalStatistics(1 / parameters.control_rate_hz),
        )
        chunk_qos = qos_profile(parameters.action_chunk_reliability, parameters.action_chunk_depth)
        joint_qos = qos_profile(parameters.joint_states_reliability, parameters.joint_states_depth)
        self.listen(ActionChunk, "action_chunk", chunk_qos, self._on_chunk)
        self.listen(JointState, "joint_states", joint_qos, self._on_joint_states)
        if parameters.gripper_source == "topic":
            self.listen(Float64, "gripper_state", joint_qos, self._on_gripper)
        self.repeat(1 / parameters.control_rate_hz, self._on_tick)
        self.repeat(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics)

    def say_goodbye(self) -> None:
        self._publish_diagnostics()
        self._run = None

    def _on_chunk(self, message: ActionChunk) -> None:
        run = self._running()
        try:
            chunk = chunk_from_message(message, self._joints.embodiment)
            run.controller.accept(chunk, self.now_ns())
        except ChunkRefused as refused:
            run.rejected_chunks[refused.reason] += 1
            self.get_logger().warning(
                f"refused plan {message.plan_id}: {refused} "
                f"({run.rejected_chunks.total()} refused so far)",
                throttle_duration_sec=LOG_PERIOD_S,
            )

    def _on_joint_states(self, message: JointState) -> None:
        run = self._running()
        try:
            run.reader.read(message, self.now_ns())
        except ValueError as refused:
            run.rejected_joint_states += 1
            self.get_logger().warning(
                f"refused joint states: {refused} ({run.rejected_joint_states} refused so far)",
                throttle_duration_sec=LOG_PERIOD_S,
            )
            return
        self._measured()

    def _on_gripper(self, message: Float64) -> None:
        self._running().reader.read_gripper(message.data)
        self._measured()

    def _measured(self) -> None:
        run, now_ns = self._running(), self.now_ns()
        channels = run.reader.channels
        if channels is not None and now_ns > 0:
            run.controller.measure(channels, run.reader.stamp_ns, now_ns)

    def _on_tick(self) -> None:
        run = self._running()
        now = self.get_clock().now()
        # With use_sim_time the clock shows 0 until the first /clock arrives.
        command = run.controller.tick(now.nanoseconds) if now.nanoseconds > 0 else None
        if command is not None:
            build = COMMAND_INTERFACES[self._settings.command_interface].build
            period_s = 1 / self._settings.control_rate_hz
            self._commands.publish(build(self._joints, command.positions, now.to_msg(), period_s))
            run.intervals.add(time.monotonic_ns())
        self._log_change()

    def _log_change(self) -> None:
        """Log what the node does now when that is news, once a second at most.

        Not the logger's own throttle: it would drop the last of several changes, not delay it.
        """
        run, now_s = self._running(), time.monotonic()
        state, reason = self._state_and_reason()
        if (state, reason) == run.logged or now_s < run.logged_s + LOG_PERIOD_S:
            return
        run.logged, run.logged_s = (state, reason), now_s
        if state is State.TRACKING:
            self.get_logger().info("tracking")
        else:
            self.get_logger().warning(f"{state}: {reason}")

    def _state_and_reason(self) -> tuple[State, str]:
        run = self._running()
        if run.controller.state is not State.WAITING:
            return run.controller.state, run.controller.reason
        if self.now_ns() == 0:
            return State.WAITING, "no /clock has arrived (use_sim_time is set)"
        missing = run.reader.missing
        if missing and len(missing) < len(self._joints.names):
            return State.WAITING, f"no joint states have named {', '.join(missing)}"
        return State.WAITING, run.controller.reason

    def _publish_diagnostics(self) -> None:
        run = self._running()
        state, reason = self._state_and_reason()
        rejected = {f"rejected_{r}": run.rejected_chunks[r] for r in Refusal}
        intervals = run.intervals
        values = {
            "state": state,
            "reason": reason,
            "commands": intervals.events,
            "holds": run.controller.holds,
            "saturated": run.controller.saturated,
            "rejected_chunks": run.rejected_chunks.total(),
            **rejected,
            "rejected_joint_states": run.rejected_joint_states,
            "missing_joints": ", ".join(run.reader.missing),
            "command_rate_hz": f"{intervals.rate_hz:.3f}",
            "command_jitter_p50_ms": f"{intervals.percentile_ms(50):.3f}",
            "command_jitter_p99_ms": f"{intervals.percentile_ms(99):.3f}",
            "command_jitter_max_ms": f"{intervals.max_ms:.3f}",
        }
        tracking = state is State.TRACKING
        entry = DiagnosticStatus(
            level=DiagnosticStatus.OK if tracking else DiagnosticStatus.WARN,
            name=f"{self.get_name()}: commands",
            message="tracking" if tracking else f"{state}: {reason}",
            hardware_id=self._joints.embodiment.name,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        array = DiagnosticArray(status=[entry])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    def _running(self) -> ControlRun:
        assert self._run is not None, "called while the node is not active"
        return self._run


class ControlRun:
    """What one activation of the node knows and counts."""

    def __init__(
        self, controller: Controller, reader: JointReader, intervals: IntervalStatistics
    ) -> None:
        self.controller = controller
        self.reader = reader
        self.intervals = intervals
        self.rejected_chunks: Counter[Refusal] = Counter()
        self.rejected_joint_states = 0
        self.logged: tuple[State, str] | None = None
        self.logged_s = -math.inf


def main() -> int:
    """Run the node until it is told to end."""
    return run(ControllerNode)


if __name__ == "__main__":
    leave(main())
