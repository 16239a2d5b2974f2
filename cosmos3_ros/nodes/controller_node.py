"""The controller node: action chunks and joint states in; commands at control rate out.

No model is in it. Whatever the policy node does, this node keeps commanding while it is active:
falling silent is not stopping, a position controller downstream executes the last value it heard.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64, String
from std_srvs.srv import Trigger

from cosmos3_ros.control.admission import Following
from cosmos3_ros.control.chunk import NS_PER_S, ChunkRefused
from cosmos3_ros.control.controller import Controller, NotReady, State, Transition
from cosmos3_ros.control.limits import Limits
from cosmos3_ros.control.loop import DeadlineLoop
from cosmos3_ros.control.outlook import Outlook
from cosmos3_ros.control.realtime import Scheduling
from cosmos3_ros.control.space import Space
from cosmos3_ros.control.watchdog import Moment
from cosmos3_ros.msg import ActionChunk, ControllerStatus, PolicyStatus
from cosmos3_ros.nodes.chunks import chunk_from_message, time_message
from cosmos3_ros.nodes.commands import CommandInterface, Target, command_topics, interface_for
from cosmos3_ros.nodes.control_run import ControlRun, said
from cosmos3_ros.nodes.controller_parameters import ControllerParameters
from cosmos3_ros.nodes.description import objections
from cosmos3_ros.nodes.forecaster import Forecaster
from cosmos3_ros.nodes.gripper import GripperClient
from cosmos3_ros.nodes.joints import JointMap
from cosmos3_ros.nodes.managed_node import ManagedNode
from cosmos3_ros.nodes.measured import BaseReader, Measured, PoseReader, reader_for
from cosmos3_ros.nodes.observer import stamp_ns
from cosmos3_ros.nodes.parameters import DeclaredParameters, ParameterError, qos_profile
from cosmos3_ros.nodes.running import leave, run
from cosmos3_ros.policy.commands import command_space
from cosmos3_ros.policy.embodiment import JOINT_POSITION, load_embodiment

DIAGNOSTICS_PERIOD_S = 1.0
LOG_PERIOD_S = 1.0
# How soon transitions are published and logged; the loop does not wait for either.
_REPORT_PERIOD_S = 0.02
# How often the gripper's action may get a goal.
_GRIPPER_PERIOD_S = 0.05
# Of these a reader that is behind, or comes later, gets as many as it asks for.
_KEPT_TRANSITIONS = 10
# A node that is deactivated holds until the robot rests: so much longer than that can take.
_REST_SLACK_S = 0.5
# Points of a trajectory that holds all that is to come are at least so far apart.
_POINT_PERIOD_S = 0.02
_NOT_ACTIVE = "the node is not active"
_STATES = {
    State.WAITING: ControllerStatus.STATE_WAITING,
    State.TRACKING: ControllerStatus.STATE_TRACKING,
    State.HOLDING: ControllerStatus.STATE_HOLDING,
    State.STOPPED: ControllerStatus.STATE_STOPPED,
}


class ControllerNode(ManagedNode):
    """See the module and the README for topics and parameters."""

    def __init__(self, **node_arguments: Any) -> None:
        super().__init__("cosmos3_controller", **node_arguments)
        self._declared = DeclaredParameters(self, ControllerParameters)
        self._settings: ControllerParameters
        self._scheduling: Scheduling
        self._target: Target
        self._gripper: GripperClient | None
        self._interface: CommandInterface
        self._forecaster: Forecaster | None = None
        self._limits: Limits
        self._run: ControlRun | None = None
        self._latched = ""  # why ~/stop holds, until ~/resume

    def configure(self) -> None:
        parameters = self._settings = self._declared.read()
        self._scheduling = parameters.scheduling
        embodiment = load_embodiment(parameters.embodiment)
        space = command_space(embodiment)
        is_arm = embodiment.action_space == JOINT_POSITION
        joints = JointMap(embodiment, parameters.joint_names) if is_arm else None
        gripper = embodiment.gripper
        if parameters.gripper_action and gripper is None:
            raise ParameterError(
                f"parameter 'gripper_action' is '{parameters.gripper_action}', embodiment "
                f"'{embodiment.name}' has no gripper; expected an empty one"
            )
        apart = bool(parameters.gripper_action)
        target = self._target = Target(embodiment, space, joints, apart)
        self._gripper = None
        if apart and gripper is not None:
            effort = parameters.gripper_max_effort
            self._gripper = GripperClient(self, parameters.gripper_action, gripper, effort)
            self.until_cleaned_up(self._gripper.close)
        interface = self._interface = interface_for(parameters.command_interface, target)
        embodiment.require_limits()
        self._limits = Limits(
            Space(space.width, space.quaternions),
            space.lower,
            space.upper,
            space.velocity,
            space.acceleration,
        )
        qos = qos_profile(parameters.command_reliability, parameters.command_depth)
        topics = command_topics(interface, target, parameters.command_topic)
        self._commands = [
            self.own_publisher(interface.message_type, topic, qos) for topic in topics
        ]
        # Transitions may follow each other faster than a reader takes them: none is to be lost.
        kept = qos_profile("reliable", _KEPT_TRANSITIONS, transient_local=True)
        self._status = self.own_publisher(
            ControllerStatus, "controller_status", kept, inactive_too=True
        )
        self._diagnostics = self.own_publisher(
            DiagnosticArray, "/diagnostics", qos_profile("reliable", 10)
        )
        if space.poses and gripper is not None and not apart:
            self.get_logger().warning(
                f"the gripper of embodiment '{embodiment.name}' is in no pose and stays as it is; "
                "name the action that drives it in gripper_action"
            )
        self._publish_inactive(0, 0)
        channels = ", ".join(joints.names if joints else space.names)
        self.get_logger().info(
            f"embodiment '{embodiment.name}', {channels}: "
            f"{parameters.command_interface} at {parameters.control_rate_hz:g} Hz"
        )

    def start(self) -> None:
        """Begin from nothing: the arm may have been moved since the last time."""
        parameters, target = self._settings, self._target
        space = target.space
        following = Following(
            space.hysteresis,
            space.jump,
            space.rest,
            parameters.range_tolerance,
            parameters.blend_s,
            parameters.open_loop,
        )
        loop = DeadlineLoop(
            1 / parameters.control_rate_hz,
            self._tick,
            self._tick_failed,
            self._scheduling,
            self.get_logger().warning,
        )
        simulated = bool(self.get_parameter("use_sim_time").value)
        controller = Controller(
            self._limits, following, parameters.timeouts, simulated_time=simulated
        )
        if self._latched:
            controller.stop(self._latched)
        gripper_topic = parameters.gripper_source == "topic"
        make_reader = partial(
            reader_for, target.embodiment, space, target.joints, gripper_topic=gripper_topic
        )
        self._run = ControlRun(controller, make_reader, loop)
        self._forecaster = None
        if self._interface.whole:
            self._forecaster = Forecaster(self._send_outlook, self._tick_failed)
        reader = self._run.reader
        chunk_qos = qos_profile(parameters.action_chunk_reliability, parameters.action_chunk_depth)
        joint_qos = qos_profile(parameters.joint_states_reliability, parameters.joint_states_depth)
        latched = qos_profile("reliable", 1, transient_local=True)
        self.listen(ActionChunk, "action_chunk", chunk_qos, self._on_chunk)
        if isinstance(reader, PoseReader):
            for topic in reader.topics:
                self.listen(PoseStamped, topic, joint_qos, partial(self._on_pose, topic))
        if isinstance(reader, BaseReader):
            self.repeat(parameters.joint_timeout_s / 4, self._measured)
        else:
            self.listen(JointState, "joint_states", joint_qos, self._on_joint_states)
        if gripper_topic:
            self.listen(Float64, "gripper_state", joint_qos, self._on_gripper)
        self.listen(String, "instruction", latched, self._on_instruction)
        self.listen(PolicyStatus, "status", latched, self._on_policy_status)
        if target.joints is not None:
            self.listen(String, "robot_description", latched, self._on_description)
        self.serve(Trigger, "~/stop", self._on_stop)
        self.serve(Trigger, "~/resume", self._on_resume)
        self.repeat(_REPORT_PERIOD_S, self._report_transitions)
        if self._gripper is not None:
            self._gripper.forget()
            self.repeat(_GRIPPER_PERIOD_S, self._follow_gripper)
        self.repeat(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics)
        for refusal in self._scheduling.of_another_thread().apply_to_this_thread():
            self.get_logger().warning(refusal)
        if self._forecaster is not None:
            self._forecaster.start()  # with this thread's priority: it shares Python's lock, too
        self.while_active(self._scheduling.release)
        self.while_active(self._come_to_rest)
        loop.start()

    def say_goodbye(self) -> None:
        self._report_transitions()
        self._publish_diagnostics()
        counts = self._running().controller.counts
        self._publish_inactive(counts.transitions + 1, counts.holds)
        self._run = None

    def _publish_inactive(self, transitions: int, holds: int) -> None:
        message = ControllerStatus(
            state=ControllerStatus.STATE_INACTIVE,
            reason="inactive",
            detail=_NOT_ACTIVE,
            transitions=transitions,
            holds=holds,
        )
        message.header.stamp = time_message(self.now_ns())
        self._status.publish(message)
        self.get_logger().info(f"inactive: {_NOT_ACTIVE}")

    def _come_to_rest(self) -> None:
        """Hold, then silence: the last command is one of a robot at rest."""
        run = self._running()
        with run.lock:
            # Simulated time is a message, and none is taken while this waits.
            if self.get_parameter("use_sim_time").value:
                run.clock_stands_since_ns = time.monotonic_ns()
            run.controller.stop("the node is being deactivated")
        end_s = time.monotonic() + run.controller.to_rest_s + _REST_SLACK_S
        while not run.rests and time.monotonic() < end_s:
            time.sleep(self._period_s)
        run.loop.stop()
        if self._forecaster is not None:
            self._forecaster.stop()
        # Of channels that are something else at rest, as a base's velocities, whatever happened.
        rest = self._target.space.rest
        if run.wanted is not None and not np.isnan(rest).all():
            last = np.where(np.isnan(rest), run.wanted, rest)
            self._send(last, time_message(self._moment().now_ns))

    def _tick(self) -> None:
        """On the control loop's thread."""
        run = self._running()
        with run.lock:
            moment = self._moment()
            # With use_sim_time the clock shows 0 until the first /clock arrives.
            if moment.now_ns == 0 and run.wanted is None:
                run.rests = True  # nothing was ever commanded
                return
            command = run.controller.tick(moment)
            run.rests = run.controller.state is State.STOPPED and run.controller.is_at_rest
            if command is None:
                return
            run.wanted = command.wanted
            if self._forecaster is not None and command.anew:
                # A message that holds all that is to come goes out when that has changed.
                self._forecaster.give(run.controller.outlook(moment))
        if self._forecaster is None:
            self._send(command.positions, time_message(moment.now_ns))
            run.commands += 1
        if (began := command.began) is not None:
            spent_ns = round(began.engine_s * NS_PER_S)
            run.frame_to_command.add(max(self.now_ns() - began.stamp_ns - spent_ns, 0))

    def _send_outlook(self, outlook: Outlook) -> None:
        """On the forecaster's thread."""
        self._send(outlook.commands(self._ahead_s), time_message(outlook.now_ns))
        self._running().commands += 1

    def _send(self, commands: np.ndarray, stamp: Time) -> None:
        messages = self._interface.build(self._target, commands, stamp, self._ahead_s)
        for publisher, message in zip(self._commands, messages, strict=True):
            publisher.publish(message)

    def _tick_failed(self, error: Exception) -> None:
        """On the control loop's thread, or the forecaster's."""
        self._running().failures += 1
        self.get_logger().error(
            f"no command was sent: {type(error).__name__}: {error}",
            throttle_duration_sec=LOG_PERIOD_S,
        )

    def _follow_gripper(self) -> None:
        """On the executor's thread: an action's answers need it."""
        run, gripper = self._running(), self._target.embodiment.gripper
        with run.lock:
            # Before the first chunk it is left alone: told to be where it is, it would grip no
            # longer.
            wanted = run.wanted if run.controller.has_followed else None
        if wanted is None:
            return
        if self._gripper is not None and gripper is not None:
            # Not the commands on the way there: every goal has a driver begin anew.
            channel = self._target.space.names.index(gripper.channel)
            self._gripper.follow(float(wanted[channel]))

    def _on_chunk(self, message: ActionChunk) -> None:
        run = self._running()
        try:
            chunk = chunk_from_message(message, self._target.space)
            with run.lock:
                run.controller.accept(chunk, self._moment())
                if self._settings.command_at_once:
                    run.loop.advance()
            run.hear(message)
        except ChunkRefused as refused:
            run.hear(message)
            run.rejected_chunks[refused.reason] += 1
            if message.planner == run.controller.planner:
                # It plans from what it takes for executed: tell it at once that this is not.
                self._publish_present_status()
            self.get_logger().warning(
                f"refused plan {message.plan_id}: {refused} "
                f"({run.rejected_chunks.total()} refused so far)",
                throttle_duration_sec=LOG_PERIOD_S,
            )

    def _on_joint_states(self, message: JointState) -> None:
        run, reader = self._running(), self._reader(stamp_ns(message))
        if reader is None:
            return
        try:
            reader.read(message, self.now_ns())
        except ValueError as refused:
            run.rejected_joint_states += 1
            self.get_logger().warning(
                f"refused joint states: {refused} ({run.rejected_joint_states} refused so far)",
                throttle_duration_sec=LOG_PERIOD_S,
            )
            return
        self._measured()

    def _on_pose(self, topic: str, message: PoseStamped) -> None:
        run, reader = self._running(), self._reader(stamp_ns(message))
        if not isinstance(reader, PoseReader):
            return
        try:
            reader.read_pose(topic, message, self.now_ns())
        except ValueError as refused:
            run.rejected_joint_states += 1
            self.get_logger().warning(
                f"refused a pose: {refused} ({run.rejected_joint_states} refused so far)",
                throttle_duration_sec=LOG_PERIOD_S,
            )
            return
        self._measured()

    def _on_gripper(self, message: Float64) -> None:
        if reader := self._reader(0):
            reader.read_gripper(message.data)
            self._measured()

    def _reader(self, stamp_ns: int) -> Measured | None:
        """What takes a measurement of ``stamp_ns``, 0: of now; None where none does."""
        run, gripper = self._running(), self._target.embodiment.gripper
        channel = self._target.space.names.index(gripper.channel) if gripper else None
        with run.lock:
            moment = self._moment()
            if moment.now_ns == 0:
                return run.reader  # no /clock has arrived
            return run.reader_at(stamp_ns or moment.now_ns, moment, channel)

    def _measured(self) -> None:
        run = self._running()
        channels = run.reader.channels
        if channels is None:
            return
        with run.lock:
            moment = self._moment()
            if moment.now_ns > 0:
                stamp_ns = run.reader.stamp_ns or moment.now_ns
                run.controller.measure(channels, stamp_ns, moment)

    def _on_instruction(self, message: String) -> None:
        run = self._running()
        with run.lock:
            run.controller.instruct(message.data)

    def _on_policy_status(self, message: PolicyStatus) -> None:
        run = self._running()
        alive = message.state not in (PolicyStatus.STATE_INACTIVE, PolicyStatus.STATE_FAULT)
        blind = message.state == PolicyStatus.STATE_WAITING_FOR_OBSERVATION
        with run.lock:
            run.controller.hear(
                message.planner,
                time.monotonic_ns(),
                alive=alive,
                lacks=message.reason if blind else "",
            )

    def _on_description(self, message: String) -> None:
        """The robot's own description: what it does not allow is not done."""
        run, joints = self._running(), self._target.joints
        assert joints is not None
        try:
            wrong = objections(message.data, joints, gripper_apart=self._target.gripper_apart)
        except ValueError as error:
            wrong = [str(error)]
        run.objection = ""
        if wrong:
            run.objection = (
                f"the robot_description does not fit embodiment '{joints.embodiment.name}': "
                f"{'; '.join(wrong)}; correct the embodiment file or joint_names"
            )
            self.get_logger().error(run.objection)
            with run.lock:
                run.controller.stop(run.objection)

    def _on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        run, self._latched = self._running(), "~/stop was called"
        with run.lock:
            run.controller.stop(self._latched)
        response.success, response.message = True, "holding until ~/resume is called"
        return response

    def _on_resume(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        run = self._running()
        try:
            if run.objection:
                raise NotReady(run.objection)
            with run.lock:
                run.controller.resume(self._moment())
            self._latched = ""
            response.success, response.message = True, "the next chunk is followed"
        except NotReady as missing:
            response.success, response.message = False, f"still stopped: {missing}"
            self.get_logger().warning(f"not resumed: {missing}")
        return response

    def _report_transitions(self) -> None:
        """Publish and log what the loop has entered since the last time."""
        run = self._running()
        with run.lock:
            transitions = run.controller.take_transitions()
        for transition in transitions:
            self._publish_transition(transition)
            if transition.cause is None:
                self.get_logger().info(f"tracking plan {transition.plan_id}")
            else:
                self.get_logger().warning(f"{transition.state}: {transition.cause.text}")

    def _publish_transition(self, transition: Transition) -> None:
        reason, detail = said(transition.cause, transition.plan_id)
        self._publish_status(_STATES[transition.state], reason, detail, transition.plan_id)

    def _publish_status(self, state: int, reason: str, detail: str, plan_id: int = 0) -> None:
        run = self._running()
        controller = run.controller
        message = ControllerStatus(
            state=state,
            reason=reason,
            detail=detail,
            plan_id=plan_id,
            planner=controller.planner or 0,
            newest_plan_id=run.newest_plan_id,
            transitions=controller.counts.transitions,
            holds=controller.counts.holds,
        )
        message.header.stamp = time_message(self.now_ns())
        self._status.publish(message)

    def _publish_present_status(self) -> tuple[State, str, str]:
        run = self._running()
        state, reason, detail = run.state_and_cause(self.now_ns(), self._target.space.width)
        self._publish_status(_STATES[state], reason, detail, run.controller.plan_id)
        return state, reason, detail

    def _publish_diagnostics(self) -> None:
        run = self._running()
        state, reason, detail = self._publish_present_status()
        gripper = self._gripper
        values = {
            "state": state,
            "reason": reason,
            "detail": detail,
            **run.values(),
            "gripper_goals": gripper.goals if gripper else 0,
            "gripper_goals_refused": gripper.refused if gripper else 0,
        }
        tracking = state is State.TRACKING
        entry = DiagnosticStatus(
            level=DiagnosticStatus.OK if tracking else DiagnosticStatus.WARN,
            name=f"{self.get_name()}: commands",
            message="tracking" if tracking else f"{state}: {detail}",
            hardware_id=self._target.embodiment.name,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        array = DiagnosticArray(status=[entry])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    @property
    def _period_s(self) -> float:
        return 1 / self._settings.control_rate_hz

    @property
    def _ahead_s(self) -> float:
        """How far ahead of now the first command of a message is, and of that each other."""
        return max(self._period_s, _POINT_PERIOD_S if self._interface.whole else 0.0)

    def _moment(self) -> Moment:
        """Asked for under the lock: between two threads an older one would be a jump back."""
        now_ns, steady_ns = self.now_ns(), time.monotonic_ns()
        stands_since_ns = self._running().clock_stands_since_ns
        if stands_since_ns is not None and now_ns > 0:
            now_ns += steady_ns - stands_since_ns
        return Moment(now_ns, steady_ns)

    def _running(self) -> ControlRun:
        assert self._run is not None, "called while the node is not active"
        return self._run


def main() -> int:
    """Run the node until it is told to end."""
    return run(ControllerNode)


if __name__ == "__main__":
    leave(main())
