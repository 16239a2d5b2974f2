"""The policy node over real topics: plans flow, and bad input is refused, counted and survived."""

from __future__ import annotations

import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from bundles import Exported
from host_cuda import HostCuda
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64, String

from cosmos3_ros.control.chunk import Chunk
from cosmos3_ros.engine.bundle import load_bundle
from cosmos3_ros.engine.compile import find_target
from cosmos3_ros.engine.engine_key import require_engines
from cosmos3_ros.msg import ActionChunk, PolicyStatus
from cosmos3_ros.nodes.images import image_message
from cosmos3_ros.nodes.parameters import qos_profile
from cosmos3_ros.nodes.planner import StampedPlan
from cosmos3_ros.nodes.policy_node import PolicyNode
from cosmos3_ros.policy.plan import Plan
from cosmos3_ros.policy.program import PLAN

JOINTS = [*(f"panda_joint{i}" for i in range(1, 8)), "panda_finger_joint1"]
HOME = [0.0, 0.3, 0.0, -2.3, 0.0, 2.6, 0.8, 0.04]
LATCHED = qos_profile("reliable", 1, transient_local=True)


def picture(brightness: int = 90, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    image = np.full((*size, 3), brightness, np.uint8)
    image[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = (200, 20, 20)
    return image


@dataclass
class World:
    """A policy node, and a peer that plays the robot and hears what the node says."""

    context: Context
    executor: SingleThreadedExecutor
    policy: PolicyNode
    peer: Node
    chunks: list[ActionChunk] = field(default_factory=list)
    frames: list[Image] = field(default_factory=list)
    statuses: list[PolicyStatus] = field(default_factory=list)

    def __post_init__(self) -> None:
        peer = self.peer
        self.images = peer.create_publisher(Image, "camera/exterior/image", 5)
        self.compressed = peer.create_publisher(
            CompressedImage, "camera/exterior/image/compressed", 5
        )
        self.joints = peer.create_publisher(JointState, "joint_states", 10)
        self.gripper = peer.create_publisher(Float64, "gripper_state", 10)
        self.instructions = peer.create_publisher(String, "instruction", LATCHED)
        self.clock = peer.create_publisher(Clock, "/clock", 10)
        peer.create_subscription(ActionChunk, "action_chunk", self.chunks.append, 10)
        peer.create_subscription(Image, "predicted_frame", self.frames.append, 10)
        peer.create_subscription(PolicyStatus, "status", self.statuses.append, LATCHED)

    def transition(self, name: str) -> TransitionCallbackReturn:
        """Drive a transition on the executor's thread, as the lifecycle services do."""
        future = self.executor.create_task(getattr(self.policy, f"trigger_{name}"))
        self.until(future.done, f"{name} has ended")
        return future.result()

    def activate(self) -> None:
        assert self.transition("configure") == TransitionCallbackReturn.SUCCESS
        assert self.transition("activate") == TransitionCallbackReturn.SUCCESS
        self.until(lambda: self.images.get_subscription_count() > 0, "the node listens")

    def instruct(self, text: str) -> None:
        self.instructions.publish(String(data=text))

    def send(
        self,
        image: Image | None = None,
        positions: list[float] | None = None,
        names: list[str] | None = None,
        age_s: float = 0.0,
    ) -> Time:
        """One observation, stamped ``age_s`` ago; returns its stamp."""
        ns = self.peer.get_clock().now().nanoseconds - int(age_s * 1e9)
        stamp = Time(sec=ns // 10**9, nanosec=ns % 10**9)
        state = JointState(name=names or JOINTS, position=positions or HOME)
        state.header.stamp = stamp
        self.joints.publish(state)
        image = image or image_message(picture(), stamp, "camera")
        image.header.stamp = stamp
        self.images.publish(image)
        return stamp

    def until(self, done: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
        end = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < end, f"waited {timeout_s} s until {what}"
            time.sleep(0.01)

    def send_until(
        self, done: Callable[[], bool], what: str, send: Callable[[], Any] | None = None
    ) -> None:
        """Send observations at about 15 Hz until something has happened."""
        end = time.monotonic() + 20.0
        while not done():
            assert time.monotonic() < end, f"sent 20 s of observations until {what}"
            (send or self.send)()
            time.sleep(0.06)

    def says(self, state: int) -> bool:
        """Whether the newest status, if there is one, has a state."""
        return bool(self.statuses) and self.statuses[-1].state == state

    def rejected(self, reason: str) -> int:
        for status in reversed(self.statuses):
            counts = zip(
                status.rejected_observation_reasons,
                status.rejected_observation_counts,
                strict=True,
            )
            return dict(counts).get(reason, 0)
        return 0


@pytest.fixture
def make_world(ros_domain_id: int, tiny: Exported) -> Iterator[Callable[..., World]]:
    context = Context()
    context.init(domain_id=ros_domain_id)
    executor = SingleThreadedExecutor(context=context)
    nodes: list[Node] = []
    thread = threading.Thread(target=executor.spin, daemon=True)

    def make(**parameters: Any) -> World:
        values = {"bundle": str(tiny.bundle.path), "seed": 1} | parameters
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        policy = PolicyNode(context=context, parameter_overrides=overrides)
        peer = Node("peer", context=context)
        nodes.extend([policy, peer])
        for node in (policy, peer):
            executor.add_node(node)
        thread.start()
        return World(context, executor, policy, peer)

    yield make
    if nodes:
        ended = executor.create_task(nodes[0].trigger_shutdown)
        while not ended.done():
            time.sleep(0.01)
    executor.shutdown()
    thread.join(5)
    for node in nodes:
        node.destroy_node()
    context.try_shutdown()


def test_an_observation_becomes_a_chunk_with_its_stamp(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(lambda: len(world.chunks) >= 3, "three chunks came")
    first, second = world.chunks[:2]
    assert (first.plan_id, second.plan_id) == (1, 2)
    assert first.embodiment == "sim_panda"
    assert first.instruction == "touch the red cube"
    assert first.header.frame_id == "panda_link0"
    assert (first.rows, first.width, first.rate_hz) == (16, 8, 15.0)
    assert first.channel_names == [*(f"joint_{i}" for i in range(1, 8)), "gripper"]
    assert first.channel_units == ["rad"] * 7 + ["1"]
    assert len(first.data) == 16 * 8 and np.isfinite(first.data).all()
    assert 0 < first.plan_latency < 5
    age = world.peer.get_clock().now().nanoseconds / 1e9 - first.header.stamp.sec
    assert 0 <= age < 30


def test_a_chunk_carries_the_stamp_of_the_picture_it_was_planned_from(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.activate()
    world.instruct("touch the red cube")
    stamps: list[tuple[int, int]] = []

    def send() -> None:
        stamp = world.send()
        stamps.append((stamp.sec, stamp.nanosec))

    world.send_until(lambda: len(world.chunks) >= 3, "three chunks came", send)
    for chunk in world.chunks:
        assert (chunk.header.stamp.sec, chunk.header.stamp.nanosec) in stamps


def test_predicted_frames_are_stamped_with_the_time_they_predict(
    make_world: Callable[..., World],
) -> None:
    world = make_world(predicted_frame_rate_hz=20.0, predicted_frame_rows=3)
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(lambda: len(world.frames) >= 2, "two predicted frames came")
    starts = {c.start.sec * 10**9 + c.start.nanosec for c in world.chunks}
    for frame in world.frames:
        stamp = frame.header.stamp.sec * 10**9 + frame.header.stamp.nanosec
        assert stamp - round(3 / 15 * 1e9) in starts
        assert (frame.width, frame.height, frame.encoding) == (128, 96, "rgb8")
    assert np.frombuffer(world.frames[0].data, np.uint8).std() > 1


def test_predicted_frames_can_be_turned_off(make_world: Callable[..., World]) -> None:
    world = make_world(predicted_frame_rate_hz=0.0)
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(lambda: len(world.chunks) >= 3, "three chunks came")
    assert not world.frames


def test_status_says_what_runs_and_how_fast(
    make_world: Callable[..., World], tiny: Exported
) -> None:
    world = make_world()
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(
        lambda: world.says(PolicyStatus.STATE_PLANNING),
        "the node says that it plans",
    )
    status = world.statuses[-1]
    assert (status.backend, status.bundle) == ("onnxruntime", "tiny")
    assert status.bundle_sha256 == tiny.bundle.sha256
    assert status.instruction == "touch the red cube"
    assert status.reason == ""
    assert status.plans >= 1 and status.observations >= status.plans
    assert 0 < status.plan_latency_p50 <= status.plan_latency_p99 < 5
    assert 0 <= status.observation_age < 2


def test_without_an_instruction_nothing_is_planned(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.activate()
    world.send_until(lambda: bool(world.statuses), "a status came")
    assert world.statuses[-1].state == PolicyStatus.STATE_WAITING_FOR_INSTRUCTION
    assert "no instruction" in world.statuses[-1].reason
    assert not world.chunks


def test_an_instruction_sent_before_activation_is_heard(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.instruct("touch the blue cube")
    world.activate()
    world.send_until(lambda: bool(world.chunks), "a chunk came")
    assert world.chunks[0].instruction == "touch the blue cube"


def test_a_new_instruction_takes_effect_in_flight(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(lambda: bool(world.chunks), "a chunk came")
    world.instruct("touch the green cube")
    world.send_until(
        lambda: world.chunks[-1].instruction == "touch the green cube", "the other instruction"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "is empty"), ("   ", "is empty"), ("x" * 700, "has room for 640")],
)
def test_an_instruction_that_cannot_be_followed_ends_planning_and_is_counted(
    text: str, reason: str, make_world: Callable[..., World]
) -> None:
    world = make_world()
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(lambda: bool(world.chunks), "a chunk came")
    world.instruct(text)
    world.send_until(lambda: world.rejected("instruction") == 1, "the instruction was refused")
    assert world.statuses[-1].state == PolicyStatus.STATE_WAITING_FOR_INSTRUCTION
    assert reason in world.statuses[-1].reason
    planned = len(world.chunks)
    for _ in range(5):
        world.send()
        time.sleep(0.05)
    assert len(world.chunks) == planned
    world.instruct("touch the green cube")
    world.send_until(lambda: len(world.chunks) > planned, "planning went on")


def test_compressed_pictures_are_taken_where_that_is_asked(
    make_world: Callable[..., World],
) -> None:
    world = make_world(image_transport="compressed")
    assert world.transition("configure") == TransitionCallbackReturn.SUCCESS
    assert world.transition("activate") == TransitionCallbackReturn.SUCCESS
    world.instruct("touch the red cube")
    data = cv2.imencode(".jpg", picture()[:, :, ::-1])[1].tobytes()

    def send() -> None:
        message = CompressedImage(format="jpeg", data=data)
        message.header.stamp = world.send()
        world.compressed.publish(message)

    world.send_until(lambda: bool(world.chunks), "a chunk came", send)


def test_the_gripper_can_come_from_its_own_topic(make_world: Callable[..., World]) -> None:
    world = make_world(gripper_source="topic")
    world.activate()
    world.instruct("touch the red cube")

    def send() -> None:
        world.gripper.publish(Float64(data=0.5))
        world.send(names=JOINTS[:7], positions=HOME[:7])

    world.send_until(lambda: bool(world.chunks), "a chunk came", send)


def test_the_robot_may_name_its_joints_otherwise(make_world: Callable[..., World]) -> None:
    names = [f"fr3_joint{i}" for i in range(1, 8)]
    world = make_world(joint_names=names)
    world.activate()
    world.instruct("touch the red cube")
    send = lambda: world.send(names=[*names, JOINTS[7]])  # noqa: E731
    world.send_until(lambda: bool(world.chunks), "a chunk came", send)


@pytest.mark.parametrize(
    ("reason", "bad"),
    [
        ("camera_stale", {"age_s": 2.0}),
        ("camera_future", {"age_s": -5.0}),
        ("joints_missing", {"names": ["a", *JOINTS[1:]]}),
        ("joints_not_finite", {"positions": [math.nan, *HOME[1:]]}),
        ("camera_encoding", {"image": Image(height=2, width=2, step=4, encoding="yuv422")}),
        ("camera_malformed", {"image": Image(height=2, width=2, step=6, encoding="rgb8")}),
        ("camera_size", {"image": image_message(picture(size=(96, 96)), Time(), "camera")}),
    ],
)
def test_a_bad_observation_is_refused_and_counted_and_the_next_good_one_planned(
    reason: str, bad: dict[str, Any], make_world: Callable[..., World]
) -> None:
    world = make_world()
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(
        lambda: world.rejected(reason) > 0, f"{reason} was counted", lambda: world.send(**bad)
    )
    assert not world.chunks
    assert world.statuses[-1].state == PolicyStatus.STATE_WAITING_FOR_OBSERVATION
    assert world.statuses[-1].reason
    world.send_until(lambda: bool(world.chunks), "a good observation was planned")


def test_cameras_that_stop_are_said_in_the_status(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(
        lambda: world.says(PolicyStatus.STATE_PLANNING),
        "the node plans",
    )
    world.until(
        lambda: world.says(PolicyStatus.STATE_WAITING_FOR_OBSERVATION),
        "the node says that it waits",
    )
    assert "have the cameras stopped" in world.statuses[-1].reason


def test_the_plan_rate_is_held(make_world: Callable[..., World]) -> None:
    world = make_world(plan_rate_hz=2.0)
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(lambda: bool(world.chunks), "a chunk came")
    start, before = time.monotonic(), len(world.chunks)
    world.send_until(lambda: time.monotonic() - start > 2.0, "two seconds went by")
    assert 2 <= len(world.chunks) - before <= 5


def test_added_latency_is_latency(make_world: Callable[..., World]) -> None:
    world = make_world(added_latency_s=0.6)
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(lambda: len(world.chunks) >= 2, "two chunks came")
    assert all(0.6 < chunk.plan_latency < 1.2 for chunk in world.chunks)
    stamps = [chunk.header.stamp.sec + chunk.header.stamp.nanosec / 1e9 for chunk in world.chunks]
    assert np.diff(stamps).min() > 0.6, "one plan at a time"


class SimulatedTime:
    """A robot under simulated time, its clock in the hands of the test."""

    def __init__(self, world: World) -> None:
        self.world = world

    def at(self, second: float, *, picture_too: bool = True, joints_too: bool = True) -> None:
        """Show a time, and send what the robot sees and feels at it."""
        ns = round(second * 1e9)
        stamp = Time(sec=ns // 10**9, nanosec=ns % 10**9)
        self.world.clock.publish(Clock(clock=stamp))
        time.sleep(0.03)
        if joints_too:
            state = JointState(name=JOINTS, position=HOME)
            state.header.stamp = stamp
            self.world.joints.publish(state)
            time.sleep(0.03)
        if picture_too:
            self.world.images.publish(image_message(picture(), stamp, "camera"))

    def run(self, start: float, done: Callable[[], bool], what: str, **parts: bool) -> None:
        """Let time pass from ``start`` in steps of 0.07 s until something has happened."""
        seconds = iter(np.arange(start, start + 100.0, 0.07))
        self.world.send_until(done, what, lambda: self.at(next(seconds), **parts))


def test_plans_go_on_after_the_clock_has_jumped_back(make_world: Callable[..., World]) -> None:
    world = make_world(use_sim_time=True)
    world.activate()
    world.instruct("touch the red cube")
    robot = SimulatedTime(world)
    robot.run(100.0, lambda: bool(world.chunks), "a chunk came")
    assert world.chunks[0].header.stamp.sec >= 100
    planned = len(world.chunks)
    robot.run(5.0, lambda: len(world.chunks) > planned + 1, "plans came after the jump")
    assert world.chunks[-1].header.stamp.sec < 100


def test_a_clock_that_jumps_back_drops_what_was_seen_before(
    make_world: Callable[..., World],
) -> None:
    world = make_world(use_sim_time=True)
    world.activate()
    world.instruct("touch the red cube")
    robot = SimulatedTime(world)
    robot.run(100.0, lambda: bool(world.chunks), "a chunk came")
    # Joint states of before the jump are forgotten: they are missing, not merely old.
    robot.run(5.0, lambda: world.rejected("joints_missing") > 0, "refusals", joints_too=False)
    assert world.rejected("joints_stale") == 0


def test_a_bag_that_loops_onto_the_same_stamp_is_planned_again(
    make_world: Callable[..., World],
) -> None:
    world = make_world(use_sim_time=True)
    world.activate()
    world.instruct("touch the red cube")
    robot = SimulatedTime(world)
    robot.run(100.0, lambda: bool(world.chunks), "a chunk came")
    world.until(lambda: len(world.chunks) > 0, "the plan is out")
    time.sleep(0.5)
    planned, stamp = len(world.chunks), world.chunks[-1].header.stamp
    last = stamp.sec + stamp.nanosec / 1e9
    robot.at(last + 0.05, picture_too=False)
    robot.at(last - 0.05, picture_too=False)
    robot.at(last)
    world.until(lambda: len(world.chunks) > planned, "the same stamp was planned again")
    assert world.chunks[-1].header.stamp == stamp


def waiting_plans(world: World) -> tuple[threading.Event, threading.Event]:
    """Have every plan wait in its middle; the events: one has begun, and they may go on."""
    engine, begun, go_on = world.policy._policy._engine, threading.Event(), threading.Event()
    run = engine.run

    def wait_in_a_plan(program: str) -> None:
        if program == PLAN:
            begun.set()
            go_on.wait(10)
        run(program)

    engine.run = wait_in_a_plan
    return begun, go_on


def test_a_plan_that_is_under_way_when_the_instruction_changes_is_dropped(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.activate()
    begun, go_on = waiting_plans(world)
    world.instruct("touch the red cube")
    world.send_until(begun.is_set, "a plan is under way")
    world.instruct("touch the green cube")
    world.until(
        lambda: world.policy._planner.status().instruction == "touch the green cube", "it is heard"
    )
    go_on.set()
    world.send_until(lambda: bool(world.chunks), "a chunk came")
    assert {chunk.instruction for chunk in world.chunks} == {"touch the green cube"}


def test_an_instruction_that_is_taken_back_within_a_plan_is_followed_again(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.activate()
    begun, go_on = waiting_plans(world)
    world.instruct("touch the red cube")
    world.send_until(begun.is_set, "a plan is under way")
    told = world.policy._planner.status
    world.instruct("touch the green cube")
    world.until(lambda: told().instruction == "touch the green cube", "it is heard")
    world.instruct("touch the red cube")
    world.until(lambda: told().instruction == "touch the red cube", "it is taken back")
    go_on.set()
    world.send_until(lambda: bool(world.chunks), "a chunk came")
    assert world.chunks[-1].instruction == "touch the red cube"


def test_an_instruction_that_comes_while_the_planner_rests_ends_nothing(
    make_world: Callable[..., World],
) -> None:
    world = make_world(plan_rate_hz=1.0)
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(lambda: bool(world.chunks), "a chunk came")
    for text in ("touch the green cube", "", "touch the blue cube"):
        world.send()
        world.instruct(text)
        time.sleep(0.1)
    world.send_until(
        lambda: world.chunks[-1].instruction == "touch the blue cube", "the last instruction"
    )
    assert not world.policy._planner.status().fault


def test_a_planner_that_is_too_slow_for_its_strategy_says_so(
    make_world: Callable[..., World],
) -> None:
    world = make_world(added_latency_s=0.6)
    world.activate()
    world.instruct("touch the red cube")
    world.until(lambda: any(s.strategy == "blend" for s in world.statuses), "blend before a plan")
    world.send_until(lambda: any(s.strategy == "sync" for s in world.statuses), "sync after it")


def test_with_the_state_ahead_a_plan_starts_where_the_arm_is_when_it_arrives(
    make_world: Callable[..., World],
) -> None:
    world = make_world(state_ahead=True, added_latency_s=0.2)
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(lambda: len(world.chunks) >= 5, "five chunks came")
    ahead_s = [
        (c.start.sec - c.header.stamp.sec) + (c.start.nanosec - c.header.stamp.nanosec) / 1e9
        for c in world.chunks
    ]
    assert min(ahead_s) >= 0.2 and max(ahead_s) < 1.0


def test_a_plan_that_is_under_way_when_the_clock_jumps_back_is_dropped(
    make_world: Callable[..., World],
) -> None:
    world = make_world(use_sim_time=True)
    world.activate()
    begun, go_on = waiting_plans(world)
    world.instruct("touch the red cube")
    robot = SimulatedTime(world)
    robot.run(100.0, begun.is_set, "a plan is under way")
    robot.at(99.5, picture_too=False)
    time.sleep(0.2)
    go_on.set()
    time.sleep(0.5)
    assert not world.chunks
    robot.run(99.6, lambda: bool(world.chunks), "a plan came after the jump")


def test_the_predicted_frame_is_the_one_so_many_rows_ahead(
    make_world: Callable[..., World],
) -> None:
    world = make_world(predicted_frame_rows=3, predicted_frame_rate_hz=0.0)
    world.activate()
    world.until(lambda: world.peer.count_publishers("predicted_frame") > 0, "it is announced")
    frames = np.stack([np.full((96, 128, 3), value, np.uint8) for value in (10, 20, 30, 40)])
    rows = np.zeros((16, 8))
    stamped = StampedPlan(Chunk(1, 0, 15.0, rows, 0), Plan(rows, np.zeros(1), 0))
    world.send_until(
        lambda: bool(world.frames),
        "the frame came",
        lambda: world.policy._publish_frame(stamped, frames),
    )
    assert set(world.frames[0].data) == {30}


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"bundle": ""}, "parameter 'bundle' is empty"),
        ({"bundle": "nowhere"}, "'nowhere'"),
        ({"backend": "abacus"}, "parameter 'backend' is 'abacus'"),
        ({"embodiment": "octopus"}, "embodiment 'octopus' is not known"),
        (
            {"embodiment": "droid_exterior"},
            "does not fit the bundle: embodiment is droid_exterior, expected sim_panda",
        ),
        ({"joint_names": ["one", "two"]}, "parameter 'joint_names' is ['one', 'two']"),
        ({"image_transport": "pigeon"}, "parameter 'image_transport' is 'pigeon'"),
        ({"camera_skew_s": -1.0}, "parameter 'camera_skew_s' is -1.0"),
        ({"predicted_frame_rows": 5}, "parameter 'predicted_frame_rows' is 5"),
        ({"threads": "many"}, "parameter 'threads' is 'many'"),
        ({"state_ahead": True, "strategy": "prefix"}, "parameter 'state_ahead' is true with"),
    ],
)
def test_a_parameter_the_node_cannot_work_with_leaves_it_unconfigured(
    parameters: dict[str, Any],
    said: str,
    make_world: Callable[..., World],
    capfd: pytest.CaptureFixture[str],
) -> None:
    world = make_world(**parameters)
    assert world.transition("configure") == TransitionCallbackReturn.FAILURE
    log = capfd.readouterr().err
    assert "not configured: " in log and said in log


def test_a_bundle_with_a_changed_byte_leaves_the_node_unconfigured(
    make_world: Callable[..., World],
    tiny: Exported,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bundle = Path(shutil.copytree(tiny.bundle.path, tmp_path / "bundle"))
    data = bytearray((bundle / "denoise.onnx").read_bytes())
    data[1000] ^= 1
    (bundle / "denoise.onnx").write_bytes(data)
    world = make_world(bundle=str(bundle))
    assert world.transition("configure") == TransitionCallbackReturn.FAILURE
    assert "denoise.onnx has SHA-256" in capfd.readouterr().err


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    """CUDA in host memory: a GPU of compute capability 12.0 that loads no engine."""
    cuda = HostCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    return cuda


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="an NVIDIA driver is here")
def test_a_backend_without_its_driver_leaves_the_node_unconfigured(
    make_world: Callable[..., World], capfd: pytest.CaptureFixture[str]
) -> None:
    world = make_world(backend="tensorrt_rtx")
    assert world.transition("configure") == TransitionCallbackReturn.FAILURE
    assert "not configured: no CUDA driver found for backend" in capfd.readouterr().err


def test_an_engine_that_does_not_fit_leaves_the_node_unconfigured_with_the_command_that_mends_it(
    make_world: Callable[..., World], pretended_gpu: HostCuda, capfd: pytest.CaptureFixture[str]
) -> None:
    world = make_world(backend="tensorrt_rtx")
    assert world.transition("configure") == TransitionCallbackReturn.FAILURE
    refused = [line for line in capfd.readouterr().err.splitlines() if "not configured: " in line]
    assert len(refused) == 1
    assert "text.engine is missing; run: cosmos3 compile " in refused[0]
    assert refused[0].endswith("--backend tensorrt_rtx --compute-capability 12.0")


def test_engines_are_compiled_before_they_are_loaded_where_that_is_asked(
    make_world: Callable[..., World],
    pretended_gpu: HostCuda,
    tiny: Exported,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bundle = load_bundle(shutil.copytree(tiny.bundle.path, tmp_path / "bundle"))
    world = make_world(backend="tensorrt_rtx", bundle=str(bundle.path), engine_rebuild=True)
    assert world.transition("configure") == TransitionCallbackReturn.FAILURE
    said = capfd.readouterr().err
    assert said.count("was compiled again") == 5
    require_engines(bundle, find_target("tensorrt_rtx", "12.0"))
    if shutil.which("nvidia-smi") is None:
        assert "cannot load text.engine" in said
    assert pretended_gpu.leftovers == 0


def test_transitions_may_be_driven_back_to_back(make_world: Callable[..., World]) -> None:
    world = make_world()
    for _ in range(10):
        assert world.transition("configure") == TransitionCallbackReturn.SUCCESS
        assert world.transition("activate") == TransitionCallbackReturn.SUCCESS
        assert world.transition("deactivate") == TransitionCallbackReturn.SUCCESS
        assert world.transition("cleanup") == TransitionCallbackReturn.SUCCESS
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(lambda: bool(world.chunks), "a chunk came")


def test_a_deactivated_node_says_nothing(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(lambda: bool(world.chunks), "a chunk came")
    assert world.transition("deactivate") == TransitionCallbackReturn.SUCCESS
    time.sleep(0.3)
    planned = len(world.chunks)
    for _ in range(5):
        world.send()
        time.sleep(0.05)
    assert len(world.chunks) == planned


def test_an_engine_that_fails_is_a_fault_and_the_node_lives(
    make_world: Callable[..., World], capfd: pytest.CaptureFixture[str]
) -> None:
    world = make_world()
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(lambda: bool(world.chunks), "a chunk came")
    # Take a program out from under the running planner: its next plan meets a broken engine.
    del world.policy._policy._engine._programs[PLAN]
    world.send_until(lambda: world.says(PolicyStatus.STATE_FAULT), "the node says fault")
    assert "KeyError" in world.statuses[-1].reason
    assert "planning has ended: KeyError" in capfd.readouterr().err
    assert world.transition("deactivate") == TransitionCallbackReturn.SUCCESS
