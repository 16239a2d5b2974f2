"""Episodes of LeRobot v3 data sets become bags; what is missing or broken is named."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from episodes import CAMERAS, LENGTHS, shade, write_video
from recordings import FPS, HEIGHT, JOINTS, WIDTH

from cosmos3_ros.cli import main
from cosmos3_ros.replay.bags import open_bag

MakeDataset = Callable[..., Path]
WRIST, EXTERIOR = "/camera/wrist/image", "/camera/exterior_1/image"


def messages(bag_path: Path, topic: str) -> list[Any]:
    with open_bag(bag_path) as bag:
        return [m.decoded() for m in bag.messages([topic])]


def stamps(found: list[Any]) -> list[int]:
    return [m.header.stamp.sec * 1_000_000_000 + m.header.stamp.nanosec for m in found]


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a command which is refused prints."""
    assert main(["bag-from-lerobot", *map(str, arguments)]) == 1
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    return error


def write_csv(path: Path, rows: int, **columns: Any) -> Path:
    table: dict[str, Any] = {"timestamp": [f"{i / FPS:.6f}" for i in range(rows)]}
    table |= {f"q{j}": [j / 10 + i / 100 for i in range(rows)] for j in range(1, 8)}
    table |= {"gripper": [i / rows for i in range(rows)], "action_gripper": [0.5] * rows} | columns
    table = {name: values for name, values in table.items() if values is not None}
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return path


@pytest.mark.parametrize("episode", [0, 1])
def test_each_episode_of_a_shared_file_gets_its_own_frames(
    dataset: Path, tmp_path: Path, episode: int
) -> None:
    out = tmp_path / "out.mcap"
    assert main(["bag-from-lerobot", str(dataset), str(out), "--episode", str(episode)]) == 0
    length = LENGTHS[episode]
    expected_ns = [1_000_000_000 + round(i / FPS * 1e9) for i in range(length)]
    for camera, topic in enumerate((WRIST, EXTERIOR)):
        images = messages(out, topic)
        assert len(images) == length
        assert {(m.encoding, m.width, m.height, m.step) for m in images} == {
            ("rgb8", WIDTH, HEIGHT, WIDTH * 3)
        }
        found = [float(m.data.mean()) for m in images]
        assert found == pytest.approx([shade(camera, episode, f) for f in range(length)], abs=1.5)
        assert stamps(images) == pytest.approx(expected_ns, abs=100)


def test_joints_and_actions_carry_names_and_the_robots_gripper_units(
    dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mcap"
    assert main(["bag-from-lerobot", str(dataset), str(out), "--episode", "1"]) == 0
    measured, recorded = messages(out, "/joint_states"), messages(out, "/recorded_action")
    assert len(measured) == len(recorded) == LENGTHS[1]
    assert list(measured[0].name) == list(recorded[0].name) == JOINTS
    # finger_joint closes at 0.8 rad; the last column is closedness.
    expected = [*(0.1 * j + 1 for j in range(7)), 0.8 * 4 / 20]
    assert measured[4].position == pytest.approx(expected, abs=1e-6)
    assert recorded[4].position == pytest.approx([*(0.2 * j + 1 for j in range(7)), 0.4])


def test_log_times_are_the_stamps_and_joints_come_before_the_picture(
    dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mcap"
    assert main(["bag-from-lerobot", str(dataset), str(out)]) == 0
    with open_bag(out) as bag:
        found = list(bag.messages([WRIST, "/joint_states"]))
    assert [m.topic for m in found[:4]] == ["/joint_states", WRIST] * 2
    assert all(m.log_ns == m.stamp_ns for m in found)


def test_the_instruction_is_the_first_wording_and_follows_the_task(
    dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mcap"
    assert main(["bag-from-lerobot", str(dataset), str(out), "--episode", "1"]) == 0
    with open_bag(out) as bag:
        assert bag.topics["/instruction"].transient_local
        found = [(m.log_ns, m.decoded().data) for m in bag.messages(["/instruction"])]
    assert [text for _, text in found] == ["Pick it up.", "c"]
    assert found[1][0] == pytest.approx(1_000_000_000 + 5 / FPS * 1e9, abs=100)


def test_an_instruction_can_be_given_and_a_missing_one_is_said(
    make_dataset: MakeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, out = make_dataset(task_index=None), tmp_path / "out.mcap"
    assert main(["bag-from-lerobot", str(dataset), str(out)]) == 0
    assert "give --instruction" in capsys.readouterr().err
    assert messages(out, "/instruction") == []
    assert main(["bag-from-lerobot", str(dataset), str(out), "--instruction", "Go."]) == 0
    assert [m.data for m in messages(out, "/instruction")] == ["Go."]


def test_cameras_can_be_chosen_renamed_and_compressed(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mcap"
    command = ["bag-from-lerobot", str(dataset), str(out), "--jpeg"]
    assert main([*command, "--camera", "exterior_image_1_left=front"]) == 0
    with open_bag(out) as bag:
        assert [t for t in bag.topics if t.startswith("/camera")] == [
            "/camera/front/image/compressed"
        ]
    images = messages(out, "/camera/front/image/compressed")
    assert len(images) == LENGTHS[0]
    picture = cv2.imdecode(images[3].data, cv2.IMREAD_COLOR)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert picture.mean() == pytest.approx(shade(1, 0, 3), abs=2)


def test_a_camera_that_is_not_on_disk_is_refused_until_others_are_chosen(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mcap"
    (dataset / "videos" / CAMERAS[1] / "chunk-000" / "file-001.mp4").unlink()
    error = refused(capsys, dataset, out)
    assert f"on disk are {CAMERAS[0]};" in error and "--camera" in error
    error = refused(capsys, dataset, out, "--camera", "exterior_image_1_left")
    assert "'exterior_image_1_left' is not in" in error and CAMERAS[0] in error
    assert main(["bag-from-lerobot", str(dataset), str(out), "--camera", "wrist_image_left"]) == 0


def test_broken_joint_columns_point_to_a_joints_file(
    make_dataset: MakeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scalars = [0.1] * sum(LENGTHS)
    dataset = make_dataset(**{"observation.state": scalars, "action": scalars})
    error = refused(capsys, dataset, tmp_path / "out.mcap")
    assert "column 'observation.state'" in error and "holds 1 number a row; expected 7" in error
    assert "--joints-csv" in error


def test_joints_from_a_file_replace_the_data_sets_columns(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    dataset = make_dataset(**{"observation.state": [0.1] * sum(LENGTHS)})
    out, joints = tmp_path / "out.mcap", write_csv(tmp_path / "joints.csv", LENGTHS[0])
    assert main(["bag-from-lerobot", str(dataset), str(out), "--joints-csv", str(joints)]) == 0
    measured, recorded = messages(out, "/joint_states"), messages(out, "/recorded_action")
    expected = [*(j / 10 + 3 / 100 for j in range(1, 8)), 0.8 * 3 / LENGTHS[0]]
    assert measured[3].position == pytest.approx(expected)
    # The file holds no asked-for joints, only what was asked of the gripper.
    assert list(recorded[3].name) == ["finger_joint"]
    assert recorded[3].position == pytest.approx([0.4])


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        (LENGTHS[0], {"q3": None}, "columns are timestamp, q1, q2, q4"),
        (LENGTHS[0], {"q8": [0] * LENGTHS[0]}, "columns are .*q8"),
        (LENGTHS[0] - 1, {}, f"{LENGTHS[0] - 1} rows; expected {LENGTHS[0]}"),
        (LENGTHS[0], {"q2": ["x", *[0] * (LENGTHS[0] - 1)]}, "line 2 has no finite .* column q2"),
        (LENGTHS[0], {"q2": [*[0] * (LENGTHS[0] - 1), "nan"]}, "line 13 has no finite"),
        (LENGTHS[0], {"timestamp": [i / 5 for i in range(LENGTHS[0])]}, "line 13 is 1.467 s from"),
    ],
)
def test_a_joints_file_that_does_not_fit_is_refused(
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: int,
    columns: dict[str, Any],
    words: str,
) -> None:
    joints = write_csv(tmp_path / "joints.csv", rows, **columns)
    out = tmp_path / "out.mcap"
    error = refused(capsys, dataset, out, "--joints-csv", joints)
    assert re.search(words, error), error
    assert not out.exists()


def test_an_episode_out_of_range_names_those_that_are_there(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, dataset, tmp_path / "out.mcap", "--episode", 2)
    assert "has no episode 2; it has 0 to 1" in error


def test_a_video_that_ends_early_or_is_damaged_leaves_no_bag(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = dataset / "videos" / CAMERAS[0] / "chunk-000" / "file-001.mp4"
    write_video(video, [50] * (LENGTHS[0] - 2))
    out = tmp_path / "out.mcap"
    error = refused(capsys, dataset, out)
    assert f"has no frame at {(LENGTHS[0] - 2) / FPS:.3f} s" in error
    video.write_bytes(b"no video at all" * 100)
    assert "cannot be decoded" in refused(capsys, dataset, out)
    assert [p.name for p in tmp_path.iterdir()] == ["dataset"]


def test_what_is_no_lerobot_v3_data_set_is_refused(
    make_dataset: MakeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mcap"
    assert "has no meta/info.json" in refused(capsys, tmp_path, out)
    dataset = make_dataset(info={"codebase_version": "v2.1"})
    error = refused(capsys, dataset, out)
    assert "codebase_version v2.1; expected v3.0" in error
    (dataset / "meta" / "info.json").write_text('{"codebase_version": "v3.0"}')
    assert "is not what LeRobot v3.0 writes" in refused(capsys, dataset, out)


def test_a_data_set_with_a_part_missing_is_refused(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset / "data" / "chunk-000" / "file-003.parquet").unlink()
    error = refused(capsys, dataset, tmp_path / "out.mcap")
    assert "file-003.parquet" in error and "is the download whole?" in error


def test_the_real_droid_episode_becomes_a_bag(
    droid_episode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "droid.mcap"
    error = refused(capsys, droid_episode, out)
    assert "on disk are observation.image.exterior_image_2_left;" in error
    camera = ["--camera", "exterior_image_2_left"]
    error = refused(capsys, droid_episode, out, *camera)
    assert "holds 1 number a row; expected 7" in error and "--joints-csv" in error

    joints = droid_episode / "joint_positions.csv"
    command = ["bag-from-lerobot", str(droid_episode), str(out), *camera, "--jpeg"]
    assert main([*command, "--joints-csv", str(joints)]) == 0
    with open_bag(out) as bag:
        counts = {topic: about.count for topic, about in bag.topics.items()}
        assert (bag.end_ns - bag.start_ns) / 1e9 == pytest.approx(721 / 15, abs=1e-6)
    assert counts == {
        "/camera/exterior_2/image/compressed": 722,
        "/joint_states": 722,
        "/recorded_action": 722,
    }
    first = messages(out, "/joint_states")[0]
    assert list(first.name) == JOINTS
    assert first.position[:2] == pytest.approx([0.043769, -0.409437])
    picture = cv2.imdecode(
        messages(out, "/camera/exterior_2/image/compressed")[0].data, cv2.IMREAD_COLOR
    )
    assert picture.shape == (360, 640, 3) and np.std(picture) > 20
