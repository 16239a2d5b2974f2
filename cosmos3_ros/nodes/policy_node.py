"""The policy node: cameras, joint states and an instruction in; action chunks out.

It thinks a few times a second and fails apart from the controller node, which holds the arm.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from rclpy.clock import JumpThreshold, TimeJump
from rclpy.duration import Duration
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64, String
from tokenizers import Tokenizer

from cosmos3_ros.control.overlap import Heard, Overlap, Strategy
from cosmos3_ros.control.space import Space
from cosmos3_ros.engine.backends import open_backend
from cosmos3_ros.engine.bundle import TOKENIZER, Bundle, load_bundle
from cosmos3_ros.msg import ActionChunk, ControllerStatus, PolicyStatus
from cosmos3_ros.nodes.chunks import message_from_chunk, time_message
from cosmos3_ros.nodes.frame_painter import FramePainter
from cosmos3_ros.nodes.images import image_message
from cosmos3_ros.nodes.joints import JointMap
from cosmos3_ros.nodes.managed_node import ManagedNode
from cosmos3_ros.nodes.measured import pose_topic
from cosmos3_ros.nodes.observer import Observer, Tolerances
from cosmos3_ros.nodes.parameters import DeclaredParameters, ParameterError, qos_profile
from cosmos3_ros.nodes.planner import Planner, PlannerStatus, StampedPlan
from cosmos3_ros.nodes.policy_parameters import PolicyParameters
from cosmos3_ros.nodes.running import leave, run
from cosmos3_ros.policy.commands import CommandSpace, command_space
from cosmos3_ros.policy.embodiment import load_embodiment
from cosmos3_ros.policy.plan import Observation, Policy, draw_noise, require_match

STATUS_PERIOD_S = 1.0
WARM_UP_INSTRUCTION = "Hold still."


class PolicyNode(ManagedNode):
    """See the module and the README for topics and parameters."""

    def __init__(self, **node_arguments: Any) -> None:
        super().__init__("cosmos3_policy", **node_arguments)
        self._declared = DeclaredParameters(self, PolicyParameters)
        self._settings: PolicyParameters
        self._bundle: Bundle
        self._policy: Policy
        self._space: CommandSpace
        self._planner: Planner | None = None
        self._painter: FramePainter | None = None
        self._state = PolicyStatus.STATE_WAITING_FOR_INSTRUCTION

    def configure(self) -> None:
        parameters = self._settings = self._declared.read()
        if not parameters.bundle:
            raise ParameterError(
                "parameter 'bundle' is empty; expected the folder of a bundle, made by "
                "'cosmos3 export engines/NAME.yaml --out FOLDER'"
            )
        self._bundle = load_bundle(parameters.bundle)
        contract = self._bundle.manifest.contract
        embodiment = load_embodiment(parameters.embodiment or contract.embodiment)
        require_match(contract, embodiment)  # before an engine is built for another robot
        self._space = command_space(embodiment)
        # Only a state row asks for joints; without one the robot need not publish any.
        self._joints = JointMap(embodiment, parameters.joint_names) if contract.state_row else None
        if parameters.predicted_frame_rows > contract.predicted_rows:
            raise ParameterError(
                f"parameter 'predicted_frame_rows' is {parameters.predicted_frame_rows}, the "
                f"bundle decodes {contract.predicted_rows} frames; expected no more"
            )
        if parameters.state_ahead and not contract.state_row:
            raise ParameterError(
                "parameter 'state_ahead' is true, the bundle plans from pictures alone; expected "
                "false, or a checkpoint with a state row"
            )
        if parameters.state_ahead and parameters.strategy == Strategy.PREFIX:
            raise ParameterError(
                "parameter 'state_ahead' is true with strategy 'prefix': a plan that begins when "
                "it arrives has no rows before that to be told of; expected one of both"
            )
        engine = open_backend(
            self._bundle,
            parameters.backend,
            parameters.threads,
            rebuild=parameters.engine_rebuild,
            cuda_graphs=parameters.engine_cuda_graphs,
            report=self.get_logger().info,
        )
        self.until_cleaned_up(engine.close)
        tokenizer = Tokenizer.from_file(str(self._bundle.path / TOKENIZER))
        self._policy = Policy(contract, embodiment, engine, tokenizer)

        frame_qos = qos_profile(parameters.predicted_frame_reliability, 1)
        latched = qos_profile("reliable", 1, transient_local=True)
        reliable = qos_profile("reliable", 10)
        self._chunks = self.own_publisher(ActionChunk, "action_chunk", reliable)
        self._frames = self.own_publisher(Image, "predicted_frame", frame_qos)
        self._status = self.own_publisher(PolicyStatus, "status", latched)
        self._diagnostics = self.own_publisher(DiagnosticArray, "/diagnostics", reliable)
        manifest = self._bundle.manifest
        self.get_logger().info(
            f"bundle '{manifest.name}' ({manifest.precision}, {manifest.source}) on "
            f"{parameters.backend}, embodiment '{embodiment.name}': {contract.chunk} rows at "
            f"{contract.fps:g} Hz, {contract.sampler.steps} steps, guidance "
            f"{contract.sampler.guidance:g}"
        )
        for warning in manifest.warnings:
            self.get_logger().warning(f"bundle '{manifest.name}': {warning}")

    def _warm_up(self) -> float:
        """A plan and a frame on grey pictures, twice: a GPU's first run is plain, the second is
        captured as the graph that then runs. Returns the seconds that the second took."""
        embodiment = self._policy.embodiment
        grey = {v.name: np.full((v.height, v.width, 3), 128, np.uint8) for v in embodiment.cameras}
        noise = draw_noise(self._policy.contract, np.random.default_rng(0))
        for _ in range(2):
            started = time.monotonic()
            prompt = self._policy.prefill(WARM_UP_INSTRUCTION)
            plan = self._policy.plan(Observation(grey, embodiment.offset), prompt, noise)
            self._policy.predict_frames(plan)
        return time.monotonic() - started

    def start(self) -> None:
        self.get_logger().info(f"warm-up plan took {self._warm_up() * 1e3:.0f} ms")
        parameters, embodiment = self._settings, self._policy.embodiment
        limits = Tolerances(
            parameters.camera_skew_s, parameters.observation_max_age_s, parameters.joint_skew_s
        )
        gripper_topic = parameters.gripper_source == "topic"
        self._id = secrets.randbits(64)
        self._seen_ns = 0  # the clock when something was observed last
        contract, space = self._policy.contract, self._space
        held = ~np.isnan(space.hysteresis)
        strategy = Strategy(parameters.strategy)
        pose_topics = tuple(pose_topic(block.prefix) for block in space.poses)
        planner = self._planner = Planner(
            self._id,
            self._policy,
            space,
            Observer(embodiment, self._joints, gripper_topic, limits, pose_topics),
            Overlap(
                strategy,
                contract.chunk,
                contract.fps,
                Space(space.width, space.quaternions),
                held,
                1 / parameters.plan_rate_hz if parameters.plan_rate_hz > 0 else 0.0,
            ),
            self.now_ns,
            self._publish_plan,
            self._refused,
            self._failed,
            parameters.seed,
            parameters.plan_rate_hz,
            parameters.added_latency_s,
            parameters.state_ahead,
        )
        self._painter = FramePainter(
            self._policy, parameters.predicted_frame_rate_hz, self._publish_frame, self._failed
        )
        self._painter.start()
        planner.start()
        self.while_active(planner.stop)
        self.while_active(self._painter.stop)

        compressed = parameters.image_transport == "compressed"
        kind, ending = (CompressedImage, "/compressed") if compressed else (Image, "")
        image_qos = qos_profile(parameters.image_reliability, parameters.image_depth)
        for view in embodiment.cameras:
            topic = f"camera/{view.name}/image{ending}"
            self.listen(kind, topic, image_qos, partial(self._on_image, view.name))
        joint_qos = qos_profile(parameters.joint_states_reliability, parameters.joint_states_depth)
        self.listen(JointState, "joint_states", joint_qos, self._on_joint_states)
        for topic in pose_topics:
            self.listen(PoseStamped, topic, joint_qos, partial(self._on_pose, topic))
        if gripper_topic:
            self.listen(Float64, "gripper_state", joint_qos, self._on_gripper)
        latched = qos_profile("reliable", 1, transient_local=True)
        self.listen(String, "instruction", latched, self._on_instruction)
        self.listen(ControllerStatus, "controller_status", latched, self._on_controller_status)

        self.repeat(STATUS_PERIOD_S, self._publish_status)
        backwards = JumpThreshold(
            min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True
        )
        jumps = self.get_clock().create_jump_callback(backwards, post_callback=self._on_jump)
        self.while_active(jumps.unregister)

    def say_goodbye(self) -> None:
        self._publish_status(ended=True)
        self._planner = self._painter = None

    def _on_image(self, camera: str, message: Image | CompressedImage) -> None:
        self._observe(lambda observer: observer.on_image(camera, message), wake=True)

    def _on_joint_states(self, message: JointState) -> None:
        self._observe(lambda observer: observer.on_joint_states(message))

    def _on_pose(self, topic: str, message: PoseStamped) -> None:
        self._observe(lambda observer: observer.on_pose(topic, message))

    def _on_gripper(self, message: Float64) -> None:
        now_ns = self.now_ns()
        self._observe(lambda observer: observer.on_gripper(message.data, now_ns))

    def _observe(self, change: Callable[[Observer], None], *, wake: bool = False) -> None:
        """Of a system's clock that is set back nobody else tells: ROS does of a simulator's."""
        assert self._planner is not None
        now_ns = self.now_ns()
        if now_ns < self._seen_ns:
            self._on_jump()
        self._seen_ns = now_ns
        self._planner.update(change, wake)

    def _on_instruction(self, message: String) -> None:
        assert self._planner is not None
        self.get_logger().info(f"instruction: '{message.data}'")
        self._planner.instruct(message.data)

    def _on_controller_status(self, message: ControllerStatus) -> None:
        assert self._planner is not None
        mine = message.planner == self._id
        stays = message.state in (ControllerStatus.STATE_STOPPED, ControllerStatus.STATE_INACTIVE)
        tracks = message.state == ControllerStatus.STATE_TRACKING
        heard = Heard(
            tracked=message.plan_id if mine and tracks else 0,
            newest=message.newest_plan_id if mine else 0,
            obeys=not stays and (mine or message.planner == 0),
        )
        self._planner.hear(heard)

    def _on_jump(self, _: TimeJump | None = None) -> None:
        assert self._planner is not None
        self._seen_ns = 0
        self.get_logger().warning("the clock jumped back: earlier observations are dropped")
        self._planner.forget()

    def _publish_plan(self, stamped: StampedPlan) -> None:
        """On the planning thread."""
        self._chunks.publish(message_from_chunk(stamped.chunk, self._space))
        assert self._painter is not None
        self._painter.offer(stamped)
        if self._state != PolicyStatus.STATE_PLANNING:
            self._publish_status()

    def _publish_frame(self, stamped: StampedPlan, frames: np.ndarray) -> None:
        """On the painting thread."""
        rows = self._settings.predicted_frame_rows
        ahead_ns = round(rows / self._policy.contract.fps * 1e9)
        stamp = time_message(stamped.chunk.start_ns + ahead_ns)
        self._frames.publish(image_message(frames[rows - 1], stamp, "cosmos3_canvas"))

    def _refused(self, reason: str, message: str) -> None:
        """On the planning thread: logged once a second at most, counted always."""
        self.get_logger().warning(f"{reason}: {message}", throttle_duration_sec=1.0)
        if self._state == PolicyStatus.STATE_PLANNING:
            self._publish_status()

    def _failed(self, message: str) -> None:
        """On the planning or painting thread: it ends, and nothing may hide that."""
        self.get_logger().error(message)
        self._publish_status()

    def _publish_status(self, *, ended: bool = False) -> None:
        if self._planner is None or self._painter is None:
            return
        status, manifest = self._planner.status(), self._bundle.manifest
        latency = np.array(status.latencies_s or [np.nan])
        now_ns = self.now_ns()
        message = PolicyStatus()
        message.header.stamp = time_message(now_ns)
        max_age_s = self._settings.observation_max_age_s
        message.state, message.reason = policy_state(status, now_ns, max_age_s)
        if ended:
            message.state, message.reason = PolicyStatus.STATE_INACTIVE, "the node was deactivated"
        message.planner = self._id
        self._state = message.state
        message.backend = self._settings.backend
        message.bundle, message.bundle_sha256 = manifest.name, self._bundle.sha256
        message.instruction = status.instruction
        message.strategy = status.strategy
        message.plan_latency_last = float(latency[-1])
        message.plan_latency_p50 = float(np.percentile(latency, 50))
        message.plan_latency_p99 = float(np.percentile(latency, 99))
        stamp_ns = status.last_stamp_ns
        message.observation_age = np.nan if stamp_ns is None else (now_ns - stamp_ns) / 1e9
        message.plans, message.observations = status.plans, status.observations
        message.predicted_frames = self._painter.painted
        refused = status.rejected_observations
        message.rejected_observation_reasons = list(refused)
        message.rejected_observation_counts = list(refused.values())
        message.rejected_chunk_reasons = list(status.rejected_chunks)
        message.rejected_chunk_counts = list(status.rejected_chunks.values())
        self._status.publish(message)
        self._diagnostics.publish(self._diagnosis(message, status.degraded))
        if status.degraded:
            self.get_logger().warning(status.degraded, throttle_duration_sec=10.0)

    def _diagnosis(self, status: PolicyStatus, degraded: str) -> DiagnosticArray:
        level = {
            PolicyStatus.STATE_PLANNING: DiagnosticStatus.OK,
            PolicyStatus.STATE_FAULT: DiagnosticStatus.ERROR,
        }.get(status.state, DiagnosticStatus.WARN)
        values = {
            "plans": status.plans,
            "observations": status.observations,
            "plan_latency_p50_s": f"{status.plan_latency_p50:.4f}",
            "plan_latency_p99_s": f"{status.plan_latency_p99:.4f}",
            "observation_age_s": f"{status.observation_age:.3f}",
            "strategy": status.strategy,
            "degraded": degraded,
            "instruction": status.instruction,
            "bundle": status.bundle,
            "backend": status.backend,
        }
        entry = DiagnosticStatus(
            level=level,
            name=f"{self.get_name()}: plans",
            message=status.reason or "planning",
            hardware_id=self._policy.embodiment.name,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        array = DiagnosticArray(status=[entry])
        array.header.stamp = status.header.stamp
        return array


def policy_state(status: PlannerStatus, now_ns: int, max_age_s: float) -> tuple[int, str]:
    """State and reason of a PolicyStatus message."""
    if status.fault:
        return PolicyStatus.STATE_FAULT, status.fault
    if not status.prompted:
        return PolicyStatus.STATE_WAITING_FOR_INSTRUCTION, status.waiting
    if status.waiting:
        return PolicyStatus.STATE_WAITING_FOR_OBSERVATION, status.waiting
    if status.picture_ns is not None:
        age_s = (now_ns - status.picture_ns) / 1e9
        if age_s > max_age_s:
            reason = f"the newest picture is {age_s:.1f} s old; have the cameras stopped?"
            return PolicyStatus.STATE_WAITING_FOR_OBSERVATION, reason
    return PolicyStatus.STATE_PLANNING, ""


def main() -> int:
    """Run the node until it is told to end."""
    return run(PolicyNode)


if __name__ == "__main__":
    leave(main())
