"""What belongs together in time makes an observation; the rest is refused with a word."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import Image, JointState

from cosmos3_ros.nodes.images import image_message
from cosmos3_ros.nodes.joints import JointMap
from cosmos3_ros.nodes.observer import Observer, Refusal, Tolerances
from cosmos3_ros.policy.embodiment import Embodiment, load_embodiment

MS = 1_000_000
NOW = 10_000 * MS
LIMITS = Tolerances(camera_skew_s=0.05, observation_max_age_s=0.5, joint_skew_s=0.1)


@pytest.fixture
def droid() -> Embodiment:
    return load_embodiment("droid_joint_pos")


def picture(at_ns: int, value: int = 0, size: tuple[int, int] = (360, 640)) -> Image:
    stamp = Time(sec=at_ns // 10**9, nanosec=at_ns % 10**9)
    return image_message(np.full((*size, 3), value, np.uint8), stamp, "camera")


def joints(at_ns: int, names: list[str], positions: list[float]) -> JointState:
    message = JointState(name=names, position=positions)
    message.header.stamp = Time(sec=at_ns // 10**9, nanosec=at_ns % 10**9)
    return message


def complete(embodiment: Embodiment, gripper_topic: bool = False) -> Observer:
    """All three cameras at NOW, and joint states 0.1 .. 0.8 with the gripper half closed."""
    observer = Observer(embodiment, JointMap(embodiment), gripper_topic, LIMITS)
    for view in embodiment.cameras:
        observer.on_image(view.name, picture(NOW))
    names = [*embodiment.joints, "finger_joint"]
    positions = [*(0.1 * (i + 1) for i in range(7)), 0.4]
    observer.on_joint_states(joints(NOW, names, positions))
    return observer


def refusal_of(observer: Observer, now_ns: int = NOW) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        observer.observe(now_ns)
    return refusal.value


def test_a_complete_observation_has_every_picture_and_the_state_in_channel_order(
    droid: Embodiment,
) -> None:
    stamped = complete(droid).observe(NOW + 20 * MS)
    assert stamped.stamp_ns == NOW
    assert sorted(stamped.observation.images) == ["exterior_1", "exterior_2", "wrist"]
    expected = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.5]
    assert stamped.observation.state == pytest.approx(expected)


def test_joints_are_matched_by_name_in_any_order_and_over_several_messages(
    droid: Embodiment,
) -> None:
    observer = Observer(droid, JointMap(droid), False, LIMITS)
    for view in droid.cameras:
        observer.on_image(view.name, picture(NOW))
    names = ["wheel", *reversed(droid.joints)]
    positions = [99.0, *(0.1 * (7 - i) for i in range(7))]
    observer.on_joint_states(joints(NOW - 5 * MS, names, positions))
    observer.on_joint_states(joints(NOW - 8 * MS, ["finger_joint"], [0.8]))
    state = observer.observe(NOW).observation.state
    assert state == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0])


def test_the_joint_state_nearest_to_the_picture_is_taken(droid: Embodiment) -> None:
    observer = complete(droid)
    for offset in (-30, 30):
        observer.on_image("wrist", picture(NOW + offset * MS))
        names = [*droid.joints, "finger_joint"]
        observer.on_joint_states(joints(NOW + offset * MS, names, [offset / 100] * 8))
    assert observer.observe(NOW + 40 * MS).observation.state[0] == pytest.approx(0.3)


def test_of_two_joint_states_of_one_time_the_later_is_taken(droid: Embodiment) -> None:
    """A leftover of before a jump of the clock may have the stamp of one after it."""
    observer = complete(droid)
    names = [*droid.joints, "finger_joint"]
    observer.on_joint_states(joints(NOW, names, [0.9] * 8))
    assert observer.observe(NOW).observation.state[0] == pytest.approx(0.9)


def test_other_robots_name_their_joints_otherwise(droid: Embodiment) -> None:
    names = tuple(f"fr3_joint{i}" for i in range(1, 8))
    observer = Observer(droid, JointMap(droid, names), False, LIMITS)
    for view in droid.cameras:
        observer.on_image(view.name, picture(NOW))
    observer.on_joint_states(joints(NOW, [*names, "finger_joint"], [0.2] * 7 + [0.0]))
    assert observer.observe(NOW).observation.state == pytest.approx([0.2] * 7 + [0.0])


def test_closedness_comes_from_the_topic_where_that_is_asked(droid: Embodiment) -> None:
    observer = complete(droid, gripper_topic=True)
    observer.on_gripper(0.9, NOW)
    assert observer.observe(NOW).observation.state[7] == pytest.approx(0.9)


def test_a_silent_gripper_topic_is_refused(droid: Embodiment) -> None:
    refusal = refusal_of(complete(droid, gripper_topic=True))
    assert refusal.reason == "joints_missing"
    assert "gripper_state: nothing of the gripper" in str(refusal)


def pose(at_ns: int, x: float, frame: str = "panda_link0", turn: float = 1.0) -> PoseStamped:
    message = PoseStamped()
    message.header.frame_id = frame
    message.header.stamp = Time(sec=at_ns // 10**9, nanosec=at_ns % 10**9)
    message.pose.position.x, message.pose.orientation.w = x, turn
    return message


def looking(embodiment: Embodiment, *poses: PoseStamped) -> Observer:
    """All three cameras at NOW, and an end effector's poses instead of joints."""
    observer = Observer(embodiment, None, False, LIMITS, ("pose",))
    for view in embodiment.cameras:
        observer.on_image(view.name, picture(NOW))
    for message in poses:
        observer.on_pose("pose", message)
    return observer


def test_the_pose_nearest_to_the_picture_is_taken(droid: Embodiment) -> None:
    poses = [pose(NOW + offset * MS, offset / 100) for offset in (-60, 10, 40)]
    observed = looking(droid, *poses).snapshot().observe(NOW + 40 * MS).observation
    assert observed.poses.tolist() == [[0.1, 0, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("poses", "reason", "said"),
    [
        ([], "pose_missing", "pose: nothing; expected a pose within 0.1 s of the picture"),
        ([pose(NOW - 300 * MS, 0.1)], "pose_stale", "pose: one 0.300 s away; expected"),
        ([pose(NOW, math.nan)], "pose_malformed", "is no pose; expected finite numbers"),
        ([pose(NOW, 0.1, turn=0.7)], "pose_malformed", "a quaternion of length 1"),
        ([pose(NOW, 0.1, frame="map")], "pose_malformed", "in frame 'map'; expected 'panda_link0'"),
    ],
    ids=["none", "old", "nan", "no rotation", "another frame"],
)
def test_what_does_not_tell_where_the_end_effector_is_is_refused(
    droid: Embodiment, poses: list[PoseStamped], reason: str, said: str
) -> None:
    refusal = refusal_of(looking(droid, *poses))
    assert refusal.reason == reason
    assert said in str(refusal)


def test_a_missing_camera_is_refused_by_name(droid: Embodiment) -> None:
    observer = Observer(droid, JointMap(droid), False, LIMITS)
    observer.on_image("wrist", picture(NOW))
    refusal = refusal_of(observer)
    assert refusal.reason == "camera_missing"
    assert "exterior_1, exterior_2" in str(refusal)


def test_cameras_too_far_apart_are_refused_with_their_distance(droid: Embodiment) -> None:
    observer = complete(droid)
    observer.on_image("wrist", picture(NOW + 51 * MS))
    refusal = refusal_of(observer, NOW + 60 * MS)
    assert refusal.reason == "camera_skew"
    assert "0.051 s apart" in str(refusal)
    observer.on_image("wrist", picture(NOW + 50 * MS))
    assert observer.observe(NOW + 60 * MS).stamp_ns == NOW + 50 * MS


def test_an_old_picture_is_refused_with_its_age(droid: Embodiment) -> None:
    refusal = refusal_of(complete(droid), NOW + 501 * MS)
    assert refusal.reason == "camera_stale"
    assert "0.501 s old" in str(refusal)


def test_a_picture_from_the_future_is_refused(droid: Embodiment) -> None:
    refusal = refusal_of(complete(droid), NOW - 60 * MS)
    assert refusal.reason == "camera_future"
    assert "use_sim_time" in str(refusal)


def test_a_picture_of_another_shape_is_refused_with_both_sizes(droid: Embodiment) -> None:
    observer = complete(droid)
    observer.on_image("exterior_2", picture(NOW, size=(480, 640)))
    refusal = refusal_of(observer)
    assert refusal.reason == "camera_size"
    assert "picture is 640x480, its cell on the canvas 320x180" in str(refusal)


def test_missing_joints_are_refused_by_name_with_what_was_seen(droid: Embodiment) -> None:
    observer = complete(droid)
    observer._positions.clear()
    observer.on_joint_states(joints(NOW, ["panda_joint1", "wheel"], [0.0, 1.0]))
    refusal = refusal_of(observer)
    assert refusal.reason == "joints_missing"
    assert "panda_joint2" in str(refusal) and "seen so far: panda_joint1, wheel" in str(refusal)


def test_names_and_positions_that_do_not_pair_up_are_not_guessed_at(droid: Embodiment) -> None:
    observer = complete(droid)
    observer._positions.clear()
    observer.on_joint_states(joints(NOW, [*droid.joints, "finger_joint"], [0.1] * 7))
    assert refusal_of(observer).reason == "joints_missing"


def test_a_policy_that_takes_no_state_needs_no_joint_states(droid: Embodiment) -> None:
    observer = Observer(droid, None, False, LIMITS)
    for view in droid.cameras:
        observer.on_image(view.name, picture(NOW))
    assert np.isnan(observer.observe(NOW).observation.state).all()


def test_joint_states_far_from_the_picture_are_refused(droid: Embodiment) -> None:
    observer = complete(droid)
    for view in droid.cameras:
        observer.on_image(view.name, picture(NOW + 200 * MS))
    assert refusal_of(observer, NOW + 200 * MS).reason == "joints_stale"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_joint_positions_that_are_no_numbers_are_refused(value: float, droid: Embodiment) -> None:
    observer = complete(droid)
    observer._positions.clear()
    names = [*droid.joints, "finger_joint"]
    observer.on_joint_states(joints(NOW, names, [0.0] * 3 + [value] + [0.0] * 4))
    refusal = refusal_of(observer)
    assert refusal.reason == "joints_not_finite"
    assert "panda_joint4" in str(refusal)


def test_a_snapshot_is_not_changed_by_later_messages(droid: Embodiment) -> None:
    observer = complete(droid)
    copy = observer.snapshot()
    observer.clear()
    assert copy.observe(NOW).stamp_ns == NOW
    assert refusal_of(observer).reason == "camera_missing"


def test_progress_waits_for_the_camera_that_lags(droid: Embodiment) -> None:
    observer = complete(droid)
    before = observer.progress()
    observer.on_image("wrist", picture(NOW + 66 * MS))
    observer.on_image("exterior_1", picture(NOW + 66 * MS))
    assert observer.progress() == before
    observer.on_image("exterior_2", picture(NOW + 66 * MS))
    assert observer.progress() != before


def test_progress_does_not_wait_for_a_dead_camera(droid: Embodiment) -> None:
    observer = complete(droid)
    before = observer.progress()
    for name in ("wrist", "exterior_1"):
        observer.on_image(name, picture(NOW + 600 * MS))
    assert observer.progress() != before
    assert refusal_of(observer, NOW + 600 * MS).reason == "camera_stale"
