"""The parameters of the controller node."""

from __future__ import annotations

from dataclasses import dataclass

from cosmos3_ros.control.realtime import Scheduling
from cosmos3_ros.control.watchdog import Timeouts
from cosmos3_ros.nodes.commands import COMMAND_INTERFACES
from cosmos3_ros.nodes.parameters import (
    ParameterError,
    depth_parameter,
    parameter,
    reliability_parameter,
)


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
        "Topic and type of the commands: JointState; JointTrajectory, one point or the rest of the "
        "plan; Float64MultiArray; TwistStamped of a base; PoseStamped of end effectors.",
        choices=tuple(COMMAND_INTERFACES),
    )
    command_topic: str = parameter(
        "", "Where the commands go, of an interface of one topic; empty: as command_interface says."
    )
    gripper_action: str = parameter(
        "",
        "GripperCommand action that drives the gripper instead of the commands; empty: none.",
    )
    gripper_max_effort: float = parameter(
        0.0, "Of every goal of gripper_action; 0: the driver's own.", "N",
        minimum=0.0, maximum=1000.0,
    )  # fmt: skip
    control_rate_hz: float = parameter(
        50.0, "Commands a second.", "Hz", minimum=20.0, maximum=1000.0
    )
    command_at_once: bool = parameter(
        True,
        "The first command of a new chunk goes out when the chunk arrives, between two periods and "
        "limited by the time since the last one; false: with the next period.",
    )
    fifo_priority: int = parameter(
        0,
        "Priority of SCHED_FIFO for the control loop; 0: ordinary scheduling.",
        minimum=0,
        maximum=99,
    )
    cpu_affinity: tuple[str, ...] = parameter(
        (), "CPUs that the control loop may run on, as words: ['2', '3']; empty: all."
    )
    lock_memory: bool = parameter(False, "Keep the process from being paged out.")
    blend_s: float = parameter(
        0.2,
        "A chunk that replaces another one fades in for so long; 0: it takes over at once.",
        "s",
        minimum=0.0,
        maximum=10.0,
    )
    range_tolerance: float = parameter(
        0.05,
        "How far outside the position limits a row may be, as a share of their range, before the "
        "chunk is refused; a gripper's at least half.",
        minimum=0.0,
        maximum=10.0,
    )
    open_loop: bool = parameter(
        False,
        "The commands move nothing, as in a replay: joint states far from them are no reason to "
        "hold.",
    )
    joint_timeout_s: float = parameter(
        0.25, "Joint states older than this: hold.", "s", minimum=0.001, maximum=10.0
    )
    # Its status comes once a second: one of them may be late or lost.
    planner_timeout_s: float = parameter(
        2.5, "Neither a chunk nor a status of the planner for so long: hold.", "s",
        minimum=2.0, maximum=60.0,
    )  # fmt: skip
    chunk_timeout_s: float = parameter(
        3.0, "No new chunk for so long: hold, whatever rows are left.", "s",
        minimum=0.01, maximum=60.0,
    )  # fmt: skip
    observation_timeout_s: float = parameter(
        3.0,
        "What the chunk was planned from, or its start after a rest, is older than this: hold.",
        "s",
        minimum=0.01,
        maximum=60.0,
    )
    hold_grace_s: float = parameter(
        0.1,
        "Past the last row of a chunk, before it counts as a hold.",
        "s",
        minimum=0.0,
        maximum=10.0,
    )
    overrun_timeout_s: float = parameter(
        0.1,
        "The control loop paused for so long: hold; a robot in real time then sets off from rest, "
        "or from where a trajectory it was told has led it.",
        "s",
        minimum=0.001,
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

    @property
    def timeouts(self) -> Timeouts:
        return Timeouts(
            joint_s=self.joint_timeout_s,
            planner_s=self.planner_timeout_s,
            chunk_s=self.chunk_timeout_s,
            observation_s=self.observation_timeout_s,
            grace_s=self.hold_grace_s,
            overrun_s=max(self.overrun_timeout_s, 3 / self.control_rate_hz),
            clock_jump_s=self.clock_jump_s,
        )

    @property
    def scheduling(self) -> Scheduling:
        """Raises ParameterError for CPUs that are no numbers."""
        if not all(cpu.isdecimal() for cpu in self.cpu_affinity):
            raise ParameterError(
                f"parameter 'cpu_affinity' is {list(self.cpu_affinity)}; expected numbers of CPUs, "
                "for example ['2', '3']"
            )
        return Scheduling(self.fifo_priority, tuple(map(int, self.cpu_affinity)), self.lock_memory)
