"""The picture of a run shows what was recorded."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Text
from recordings import (
    FPS,
    HEIGHT,
    JOINTS,
    WIDTH,
    header,
    image,
    joint_state,
    string,
    write_recording,
)

from cosmos3_ros.replay.bags import BagWriter, encode, message_class, open_bag
from cosmos3_ros.replay.recorded_run import GLIMPSES, Run, read_run
from cosmos3_ros.replay.report import COMMANDED, CUBE_COLOURS, MEASURED, compose, report

# From the fingertip to the centres of the red, the green and the blue cube [m].
DISTANCES_M = (0.10, 0.25, 0.20)


def read(path: Path, inputs: Path | None = None) -> Run:
    with open_bag(path) as output, open_bag(inputs or path) as played:
        return read_run(output, played)


def count_pixels(picture: np.ndarray, colour: str, tolerance: int = 6) -> int:
    """Pixels of a picture (BGR) within ``tolerance`` of a colour ``#rrggbb``."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(picture.astype(int) - rgb[::-1]).max(2) <= tolerance).sum())


def write_simulated(path: Path, recording: Path) -> Path:
    """The recording with what a simulator adds: red is touched 1 s after it was asked for, green,
    which is asked for 3.2 s from the start, is not."""
    types = {"/sim/state": "cosmos3_ros/msg/SimState", "/instruction": "std_msgs/msg/String"}
    point = message_class("geometry_msgs/msg/Point")(0.0, 0.0, 0.0)
    state = message_class(types["/sim/state"])
    with open_bag(recording) as bag:
        topics = {topic: added.type for topic, added in bag.topics.items()} | types
        with BagWriter(path, topics) as writer:
            for message in bag.messages(list(bag.topics)):
                writer.write(message.topic, message.log_ns, message.raw)

            def log(seconds: float) -> int:
                # At twice the pace, as all of the recording.
                return bag.start_ns + round(seconds * 1e9 / 2)

            for said_s, cube in ((1.0, "red"), (3.2, "green")):
                writer.write("/instruction", log(said_s), string(f"touch the {cube} cube"))
            for i in range(6 * FPS + 1):
                stamp = header(1_000_000_000 + round(i / FPS * 1e9))
                distances = np.array(DISTANCES_M)
                touched = ["red"] if i == 2 * FPS else []
                message = state(stamp, 0, 0, list(CUBE_COLOURS), [point] * 3, distances, touched)
                writer.write("/sim/state", log(i / FPS), encode(message))
    return path


def texts(run: Run) -> set[str]:
    return {text.get_text() for text in compose(run).findobj(Text)}


def test_what_was_said_and_what_came_of_it_is_written(recording: Path, tmp_path: Path) -> None:
    written = texts(read(write_simulated(tmp_path / "simulated.mcap", recording)))
    assert "“touch the red cube” “touch the green cube”" in written
    assert "“touch the red cube”: touched red after 1.0 s" in written
    assert "“touch the green cube”: nothing was touched" in written
    # Without a simulator the policy node says what it was told.
    assert "“Pick up the pen.”" in texts(read(recording))


def test_the_way_to_each_cube_is_drawn_and_the_touch_marked(
    recording: Path, tmp_path: Path
) -> None:
    simulated = write_simulated(tmp_path / "simulated.mcap", recording)
    for path, least, most in ((simulated, 800, 9000), (recording, 0, 0)):
        png = tmp_path / "report.png"
        report(path, png)
        for colour in CUBE_COLOURS.values():
            assert least <= count_pixels(cv2.imread(str(png)), colour) <= most, colour
    lines = compose(read(simulated)).findobj(Line2D)
    for cube, distance_m in zip(CUBE_COLOURS, DISTANCES_M, strict=True):
        curve = next(line for line in lines if line.get_label() == f"{cube} cube")
        assert curve.get_xdata()[[0, -1]] == pytest.approx([0, 6])
        assert curve.get_ydata() == pytest.approx(100 * distance_m)
    (mark,) = (line for line in lines if line.get_marker() == "o")
    assert (*mark.get_xdata(), *mark.get_ydata()) == pytest.approx((2.0, 10.0), abs=0.02)


def test_the_picture_is_drawn_with_cameras_predictions_and_joints(
    recording: Path, tmp_path: Path
) -> None:
    png = tmp_path / "report.png"
    report(recording, png)
    picture = cv2.imread(str(png))
    assert picture.shape[1] >= 1200 and picture.shape[0] >= 800
    # The predicted frames are 60 bright, the commanded and measured curves have their colours.
    assert count_pixels(picture, "#3c3c3c", 0) > 20_000
    assert count_pixels(picture, COMMANDED) > 800
    assert count_pixels(picture, MEASURED) > 800


def test_a_prediction_stands_beside_the_picture_of_its_own_time(recording: Path) -> None:
    run = read(recording)
    assert len(run.glimpses) == GLIMPSES
    for glimpse in run.glimpses:
        # A prediction is one frame ahead of its plan; the camera gets brighter by 1 a frame.
        frame = round(glimpse.time_s * FPS)
        assert glimpse.cameras["exterior_2"].mean() == pytest.approx(40 + frame)
        assert glimpse.predicted is not None and glimpse.seen is not None
        assert glimpse.predicted.shape == glimpse.seen.shape == (HEIGHT // 2, WIDTH // 2, 3)
        assert glimpse.seen.mean() == pytest.approx(40 + frame, abs=1)


def test_what_came_is_drawn_under_what_was_predicted_for_that_time(recording: Path) -> None:
    run = read(recording)
    rows: dict[str, list[np.ndarray]] = {}
    label = ""
    for axes in compose(run).findobj(Axes):
        if axes.images:
            label = axes.get_ylabel() or label
            rows.setdefault(label, []).append(np.asarray(axes.images[0].get_array()))
    assert list(rows) == ["camera\nexterior_2", "predicted", "what came", "difference"]
    for i, glimpse in enumerate(run.glimpses):
        assert glimpse.predicted is not None and glimpse.seen is not None
        assert (rows["predicted"][i] == glimpse.predicted).all()
        assert (rows["what came"][i] == glimpse.seen).all()
        apart = abs(glimpse.predicted.mean() - glimpse.seen.mean())
        assert rows["difference"][i].mean() == pytest.approx(apart, abs=1)


def test_series_are_by_joint_name_on_the_nodes_clock(recording: Path) -> None:
    run = read(recording)
    assert list(run.commanded) == list(run.measured) == JOINTS
    measured = run.measured["panda_joint3"]
    assert measured.times_s[[0, -1]] == pytest.approx([0, 6])
    assert measured.positions == pytest.approx(np.sin(measured.times_s + 2))
    assert run.commanded["finger_joint"].times_s[1] == pytest.approx(0.02)
    assert run.plan_starts_s == pytest.approx(np.arange(12) / 2)
    assert run.plan_latencies_ms[[0, -1]] == pytest.approx([100, 210])


def test_command_intervals_are_wall_time_and_holds_cover_what_was_held(recording: Path) -> None:
    run = read(recording)
    # 50 Hz of the nodes' clock at twice the pace.
    assert run.command_intervals_ms == pytest.approx(np.full(299, 10.0), abs=0.01)
    assert run.command_times_s[-1] == pytest.approx(299 / 50, abs=0.01)
    assert run.holds_s == [pytest.approx((2.0, 5.0))]


def test_pictures_and_recorded_actions_come_from_the_played_bag(tmp_path: Path) -> None:
    output, inputs = write_recording(tmp_path / "output.mcap"), tmp_path / "inputs.mcap"
    without = tmp_path / "without_cameras.mcap"
    with open_bag(output) as bag:
        kept = {t: a.type for t, a in bag.topics.items() if not t.startswith("/camera")}
        with BagWriter(without, kept) as writer:
            for message in bag.messages(list(kept)):
                writer.write(message.topic, message.log_ns, message.raw)
    topics = {
        "/camera/exterior_2/image": "sensor_msgs/msg/Image",
        "/recorded_action": "sensor_msgs/msg/JointState",
    }
    with BagWriter(inputs, topics) as writer:
        stamp = 1_000_000_000
        writer.write("/camera/exterior_2/image", stamp, image(stamp, np.full((8, 8, 3), 77, "u1")))
        writer.write("/recorded_action", stamp, joint_state(stamp, ["finger_joint"], [0.5]))
    run = read(without, inputs)
    assert all(g.cameras["exterior_2"].mean() == 77 for g in run.glimpses)
    assert list(run.recorded) == ["finger_joint"]
    report(without, tmp_path / "report.png", inputs)
    assert (tmp_path / "report.png").stat().st_size > 20_000


def test_trajectories_without_a_stamp_are_drawn_when_they_arrived(tmp_path: Path) -> None:
    output, path = write_recording(tmp_path / "output.mcap"), tmp_path / "trajectory.mcap"
    types = {
        "/joint_states": "sensor_msgs/msg/JointState",
        "/joint_trajectory": "trajectory_msgs/msg/JointTrajectory",
    }
    point = message_class("trajectory_msgs/msg/JointTrajectoryPoint")
    duration = message_class("builtin_interfaces/msg/Duration")(0, 20_000_000)
    time = message_class("builtin_interfaces/msg/Time")(0, 0)
    header = message_class("std_msgs/msg/Header")(time, "")
    none = np.zeros(0)
    with open_bag(output) as bag, BagWriter(path, types) as writer:
        for message in bag.messages(["/joint_states"]):
            writer.write(message.topic, message.log_ns, message.raw)
        trajectory = message_class(types["/joint_trajectory"])(
            header, ["a"], [point(np.array([0.25]), none, none, none, duration)]
        )
        writer.write("/joint_trajectory", bag.start_ns + 1_000_000_000, encode(trajectory))
    series = read(path).commanded["a"]
    assert (series.times_s[0], series.positions[0]) == (pytest.approx(2.0), 0.25)


def test_a_run_in_which_nothing_flowed_still_has_a_picture(tmp_path: Path) -> None:
    path, png = tmp_path / "quiet.mcap", tmp_path / "report.png"
    with BagWriter(path, {"/joint_states": "sensor_msgs/msg/JointState"}) as writer:
        for i in range(3):
            stamp = 1_000_000_000 * (i + 1)
            writer.write("/joint_states", stamp, joint_state(stamp, ["a"], [0.1 * i]))
    report(path, png)
    assert png.stat().st_size > 10_000


@pytest.mark.parametrize("encoding", ["bgr8", "rgba8", "bgra8", "mono8", "yuv422"])
def test_every_encoding_the_policy_takes_is_drawn_and_others_are_grey(
    tmp_path: Path, encoding: str
) -> None:
    from cosmos3_ros.replay.pictures import picture

    rgb = np.full((4, 6, 3), (200, 100, 50), np.uint8)
    pixels = {
        "bgr8": rgb[..., ::-1],
        "rgba8": np.dstack([rgb, rgb[..., :1]]),
        "bgra8": np.dstack([rgb[..., ::-1], rgb[..., :1]]),
        "mono8": rgb[..., :1],
        "yuv422": rgb[..., :2],
    }[encoding]
    time = message_class("builtin_interfaces/msg/Time")(1, 0)
    header = message_class("std_msgs/msg/Header")(time, "")
    step = 6 * pixels.shape[2]
    data = np.ascontiguousarray(pixels).reshape(-1)
    found = picture(message_class("sensor_msgs/msg/Image")(header, 4, 6, encoding, 0, step, data))
    expected = {"mono8": (200, 200, 200), "yuv422": (128, 128, 128)}.get(encoding, (200, 100, 50))
    assert (found == expected).all()
