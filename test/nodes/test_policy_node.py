"""The policy node over real topics: plans flow, and bad input is refused, counted and survived."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from bundles import Exported
from policy_world import HOME, JOINTS, World, picture
from rclpy.lifecycle import TransitionCallbackReturn
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float64

from cosmos3_ros.control.chunk import Chunk
from cosmos3_ros.msg import PolicyStatus
from cosmos3_ros.nodes.images import image_message
from cosmos3_ros.nodes.planner import StampedPlan
from cosmos3_ros.policy.plan import Plan
from cosmos3_ros.policy.program import PLAN


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
    assert world.images.get_subscription_count() == 0, "of the raw ones"


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


def test_the_predicted_frame_is_the_one_so_many_rows_ahead(
    make_world: Callable[..., World],
) -> None:
    world = make_world(predicted_frame_rows=3, predicted_frame_rate_hz=0.0)
    world.activate()
    world.until(lambda: world.peer.count_publishers("predicted_frame") > 0, "it is announced")
    frames = np.stack([np.full((96, 128, 3), value, np.uint8) for value in (10, 20, 30, 40)])
    rows = np.zeros((16, 8))
    stamped = StampedPlan(Chunk(1, 0, 15.0, rows, 0), Plan(rows, np.zeros(1), 0, 0.0))
    world.send_until(
        lambda: bool(world.frames),
        "the frame came",
        lambda: world.policy._publish_frame(stamped, frames),
    )
    assert set(world.frames[0].data) == {30}


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
