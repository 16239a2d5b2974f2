"""What a data set has to be to be trained on, and what is refused of one that is not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bundles import Exported
from training_parts import (
    FIRST,
    FRAMES,
    PICO_PANDA,
    SECOND,
    TASKS,
    TASKS_FILE,
    edited,
    index_first,
    layout,
    point,
    recording,
    replaced,
    truncate,
    without_frame,
    write_demonstrations,
)

from cosmos3_ros.engine.session import Contract
from cosmos3_ros.policy.embodiment import EmbodimentError, load_embodiment
from cosmos3_ros.replay.episode import LeRobotError, load_dataset, load_episode, load_episodes
from cosmos3_ros.replay.lerobot import _motion
from cosmos3_ros.training.dataset import ACTION, STATE, Clip, Demonstrations
from cosmos3_ros.training.dataset_writer import finish, write_file
from cosmos3_ros.training.latents import _cut_out


@pytest.fixture(scope="module")
def contract(pico: Exported) -> Contract:
    return pico.bundle.manifest.contract


def test_demonstrations_are_what_was_recorded(tmp_path: Path, contract: Contract) -> None:
    shown = Demonstrations(write_demonstrations(tmp_path / "data"), PICO_PANDA, contract)
    assert len(shown) == 4 and shown.too_short == 0
    for i in range(4):
        recorded = recording(i, TASKS[i % 3])
        np.testing.assert_allclose(shown.states[i], recorded.states, atol=1e-6)
        np.testing.assert_allclose(shown.actions[i], recorded.actions, atol=1e-6)
        assert shown.instructions[i] == [recorded.instruction] * FRAMES
        canvases = shown.canvases(i)
        assert canvases.shape == (FRAMES, 96, 192, 3)
        for view in PICO_PANDA.cameras:
            cell = canvases[:, view.y : view.y + view.height, view.x : view.x + view.width]
            off = cell.astype(float) - np.stack(recorded.frames[view.name])
            assert np.abs(off).mean() < 2, "the video is near to lossless"


def test_every_picture_stands_beside_its_own_row(tmp_path: Path, contract: Contract) -> None:
    """Each frame is as bright as its number, in every episode of a video they share."""

    def bright(frame: int) -> int:
        return 20 + 10 * frame

    made = []
    for i in range(4):
        plain = recording(i, TASKS[0])
        frames = {
            view.name: [
                np.full((view.height, view.width, 3), bright(frame), np.uint8)
                for frame in range(FRAMES)
            ]
            for view in PICO_PANDA.cameras
        }
        made.append(replace(plain, frames=frames))
    for index, part in enumerate((made[:3], made[3:])):
        write_file(tmp_path / "data", layout(), index, part)
    finish(tmp_path / "data", layout(), 2)
    shown = Demonstrations(tmp_path / "data", PICO_PANDA, contract)
    for episode in range(4):
        found = shown.canvases(episode).mean((1, 2, 3))
        np.testing.assert_allclose(found, [bright(frame) for frame in range(FRAMES)], atol=3)
    clips = [Clip(1, 3), Clip(1, 5), Clip(3, 0)]
    for clip, pictures in zip(clips, _cut_out(shown, clips), strict=True):
        assert len(pictures) == contract.chunk + 1
        for row, frame in ((0, clip.first), (-1, clip.first + contract.chunk)):
            assert pictures[row].mean() == pytest.approx(bright(frame), abs=3)
        np.testing.assert_array_equal(shown.rows(clip)[0], shown.states[clip.episode][clip.first])


def test_channels_are_read_in_their_own_order(tmp_path: Path, contract: Contract) -> None:
    """The gripper may stand anywhere among them."""
    assert PICO_PANDA.gripper is not None
    turned = (PICO_PANDA.channels[-1], *PICO_PANDA.channels[:-1])
    robot = replace(PICO_PANDA, channels=turned)
    names = (PICO_PANDA.gripper.joint, *PICO_PANDA.joints)
    write_demonstrations(tmp_path / "other")
    with pytest.raises(LeRobotError, match=f"expected {', '.join(names)}"):
        Demonstrations(tmp_path / "other", robot, contract)


def test_a_bag_has_the_gripper_where_its_channel_stands(tmp_path: Path) -> None:
    assert PICO_PANDA.gripper is not None
    turned = (PICO_PANDA.channels[-1], *PICO_PANDA.channels[:-1])
    episode = load_episodes(load_dataset(write_demonstrations(tmp_path / "data")))[0]
    values = episode.numbers(STATE)
    for channels, first in ((PICO_PANDA.channels, 7), (turned, 0)):
        robot = replace(PICO_PANDA, channels=channels)
        motion = _motion(episode, STATE, (), robot.joints, robot, "")
        assert motion.names == (*robot.joints, PICO_PANDA.gripper.joint)
        np.testing.assert_array_equal(motion.positions[:, :7], np.delete(values, first, 1))
        finger = PICO_PANDA.gripper.joint_position(float(values[0, first]))
        assert motion.positions[0, 7] == pytest.approx(finger)


def test_two_videos_of_one_name_are_refused(tmp_path: Path, contract: Contract) -> None:
    path = write_demonstrations(tmp_path / "data")
    info = json.loads((path / "meta" / "info.json").read_text())
    depth = info["features"]["observation.images.wrist"]
    info["features"]["observation.depth.wrist"] = depth
    (path / "meta" / "info.json").write_text(json.dumps(info))
    with pytest.raises(LeRobotError, match="observation.depth.wrist, both of them 'wrist'; expect"):
        Demonstrations(path, PICO_PANDA, contract)


def test_pictures_in_columns_are_not_read(tmp_path: Path) -> None:
    path = write_demonstrations(tmp_path / "data")
    pictures = pa.array([{"bytes": b"png", "path": "a"}] * 44)
    edited(path, lambda table: table.append_column("observation.images.tactile", pictures), FIRST)
    episode = load_episodes(load_dataset(path))[0]
    assert "observation.images.tactile" not in episode.rows.column_names
    assert STATE in episode.rows.column_names


def test_all_episodes_are_what_they_are_one_by_one(tmp_path: Path) -> None:
    dataset = load_dataset(write_demonstrations(tmp_path / "data", 5))
    episodes = load_episodes(dataset)
    assert [episode.index for episode in episodes] == list(range(5))
    for episode in episodes:
        alone = load_episode(dataset, episode.index)
        assert episode.rows.equals(alone.rows) and episode.instructions == alone.instructions
        frames = zip(episode.frames(dataset.cameras[0]), alone.frames(dataset.cameras[0]))  # noqa: B905
        assert all(np.array_equal(one, same) for one, same in frames)


def test_pandas_finds_the_tasks_by_their_texts(tmp_path: Path) -> None:
    path = write_demonstrations(tmp_path / "data")
    schema = pq.read_schema(path / TASKS_FILE)
    told = schema.pandas_metadata
    (index,) = told["index_columns"]
    assert index in schema.names and schema.field(index).type == pa.string()
    columns = {column["field_name"]: column["name"] for column in told["columns"]}
    assert columns == {"task_index": "task_index", index: None}


@pytest.mark.parametrize("told", [True, False], ids=["with pandas' word", "without"])
@pytest.mark.parametrize("column", ["__index_level_0__", "task"])
def test_tasks_are_read_however_lerobot_wrote_them(tmp_path: Path, column: str, told: bool) -> None:
    path = write_demonstrations(tmp_path / "data")

    def rewritten(table: pa.Table) -> pa.Table:
        renamed = table.rename_columns(["task_index", column])
        return renamed if told else renamed.replace_schema_metadata(None)

    edited(path, rewritten, TASKS_FILE)
    said = [episode.instructions[0] for episode in load_episodes(load_dataset(path))]
    assert said == [TASKS[i % 3] for i in range(4)]


def test_the_statistics_of_the_pictures_are_those_of_their_colours(tmp_path: Path) -> None:
    path = write_demonstrations(tmp_path / "data")
    stats = json.loads((path / "meta" / "stats.json").read_text())
    for view in PICO_PANDA.cameras:
        frames = np.stack([recording(i, "").frames[view.name] for i in range(4)]) / 255
        found = stats[f"observation.images.{view.name}"]
        assert found.keys() == {"mean", "std", "min", "max", "count"}
        # Of some frames: fewer than all, of every file.
        assert 2 <= found["count"][0] < 4 * FRAMES
        for name in ("mean", "std", "min", "max"):
            assert np.shape(found[name]) == (3, 1, 1)
            expected = getattr(frames, name)((0, 1, 2, 3))
            np.testing.assert_allclose(np.ravel(found[name]), expected, atol=0.01)


def test_clips_are_spread_over_an_episode_and_stay_inside(
    tmp_path: Path, contract: Contract
) -> None:
    shown = Demonstrations(write_demonstrations(tmp_path / "data"), PICO_PANDA, contract)
    room = FRAMES - contract.chunk
    drawn = [shown.draw_clips(1, 2, seed) for seed in range(200)]
    firsts = np.array([[clip.first for clip in clips] for clips in drawn])
    assert (firsts[:, 0] < room / 2).all() and (firsts[:, 1] >= room / 2).all()
    assert set(firsts.ravel().tolist()) == set(range(room))
    assert shown.draw_clips(1, 2, 7) == drawn[7]


def test_a_clip_has_the_state_it_begins_in_and_the_actions_from_it(
    tmp_path: Path, contract: Contract
) -> None:
    shown = Demonstrations(write_demonstrations(tmp_path / "data"), PICO_PANDA, contract)
    rows = shown.rows(Clip(episode=1, first=3))
    assert rows.shape == (1 + contract.chunk, PICO_PANDA.width)
    np.testing.assert_array_equal(rows[0], shown.states[1][3])
    np.testing.assert_array_equal(rows[1:], shown.actions[1][3 : 3 + contract.chunk])


def test_short_episodes_are_left_out_and_counted(tmp_path: Path, contract: Contract) -> None:
    path = write_demonstrations(tmp_path / "data")
    keep = 10
    # Episode 1 ends early: its rows, and what its meta says.
    edited(path, lambda t: t.slice(0, FRAMES + keep), FIRST)
    meta = "meta/episodes/chunk-000/file-000.parquet"
    edited(path, replaced("length", lambda lengths: [lengths[0], keep]), meta)
    shown = Demonstrations(path, PICO_PANDA, contract)
    assert (len(shown), shown.too_short) == (3, 1)
    assert [episode.index for episode in shown.episodes] == [0, 2, 3]


def refusal(path: Path, contract: Contract) -> str:
    with pytest.raises(LeRobotError) as refused:
        Demonstrations(path, PICO_PANDA, contract)
    return str(refused.value)


def test_a_missing_video_is_refused_with_its_path(tmp_path: Path, contract: Contract) -> None:
    path = write_demonstrations(tmp_path / "data")
    (video,) = path.glob("videos/*wrist/*/file-001.mp4")
    video.unlink()
    said = refusal(path, contract)
    assert "episode 2 has no video" in said and str(video) in said


def cut_short_with_its_index_first(video: Path) -> None:
    index_first(video)
    truncate(video)


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (truncate, "cannot be decoded"),
        (cut_short_with_its_index_first, "cannot be decoded|has no frame at"),
        (point, "cannot be decoded"),
        (lambda video: video.write_bytes(b""), "cannot be decoded"),
    ],
    ids=["truncated", "truncated, index first", "Git LFS pointer", "empty"],
)
def test_a_video_that_cannot_be_read_to_its_end_is_refused_by_name(
    tmp_path: Path, contract: Contract, spoil: Callable[[Path], object], found: str
) -> None:
    path = write_demonstrations(tmp_path / "data")
    (video,) = path.glob("videos/*wrist/*/file-001.mp4")
    spoil(video)
    said = refusal(path, contract)
    assert f"video '{video}'" in said and re.search(found, said)


def test_a_video_with_its_index_first_is_read(tmp_path: Path, contract: Contract) -> None:
    path = write_demonstrations(tmp_path / "data")
    for video in path.glob("videos/*/*/*.mp4"):
        index_first(video)
    assert len(Demonstrations(path, PICO_PANDA, contract)) == 4


def test_a_video_that_ends_before_its_episodes_is_refused(
    tmp_path: Path, contract: Contract
) -> None:
    path = write_demonstrations(tmp_path / "data")
    (short,) = path.glob("videos/*wrist/*/file-001.mp4")
    other = write_demonstrations(tmp_path / "other", episodes=2)
    # One episode of 22 frames where there should be two.
    (one,) = other.glob("videos/*wrist/*/file-001.mp4")
    one.rename(short)
    assert f"video '{short}' has no frame at {FRAMES / 15:.3f} s" in refusal(path, contract)


@pytest.mark.parametrize("frame", [3, FRAMES + 9])
def test_a_video_that_lacks_a_frame_in_its_middle_is_refused(
    tmp_path: Path, contract: Contract, frame: int
) -> None:
    path = write_demonstrations(tmp_path / "data")
    (video,) = path.glob("videos/*wrist/*/file-001.mp4")
    without_frame(video, frame)
    assert f"video '{video}' has no frame at {frame / 15:.3f} s" in refusal(path, contract)


def slower(times_s: list[float], share: float) -> list[float]:
    return [time_s * share for time_s in times_s]


def with_a_gap(times_s: list[float]) -> list[float]:
    """Of two episodes, the second waits a frame before its row 7."""
    later = FRAMES + 7
    return times_s[:later] + [time_s + 1 / 15 for time_s in times_s[later:]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_a_gap, "episode 3 of .*: row 7 is 0.533 s after the first; expected 0.467 s"),
        (lambda t: slower(t, 1.5), "episode 2 of .*: row 1 is 0.100 s .*; expected 0.067 s"),
        # Every step alone is near enough.
        (lambda t: slower(t, 1.1), "episode 2 of .*: row 5 is 0.367 s .*; expected 0.333 s"),
    ],
    ids=["a gap", "another rate", "a rate a little off"],
)
def test_rows_that_are_not_a_frame_apart_are_refused_with_their_episode(
    tmp_path: Path, contract: Contract, change: Callable[[list[float]], list[float]], said: str
) -> None:
    path = write_demonstrations(tmp_path / "data")
    edited(path, replaced("timestamp", change), SECOND)
    assert re.search(said, refusal(path, contract))


def test_rows_that_are_a_frame_apart_within_the_tolerance_are_read(
    tmp_path: Path, contract: Contract
) -> None:
    path = write_demonstrations(tmp_path / "data")

    def jittered(times_s: list[float]) -> list[float]:
        return [time_s + (i % 2) * 0.4 / 15 for i, time_s in enumerate(times_s)]

    edited(path, replaced("timestamp", jittered), SECOND)
    assert len(Demonstrations(path, PICO_PANDA, contract)) == 4


@pytest.mark.parametrize("column", [STATE, ACTION])
def test_nan_is_refused_with_its_row(tmp_path: Path, contract: Contract, column: str) -> None:
    def spoil(rows: list[list[float]]) -> list[list[float]]:
        rows[FRAMES + 3][2] = float("nan")
        return rows

    path = edited(write_demonstrations(tmp_path / "data"), replaced(column, spoil), FIRST)
    said = refusal(path, contract)
    assert f"episode 1 of '{path}': column '{column}' is NaN or infinite in row 3; " in said


def test_ragged_rows_are_refused(tmp_path: Path, contract: Contract) -> None:
    def cut(rows: list[list[float]]) -> list[list[float]]:
        rows[4] = rows[4][:-1]
        return rows

    path = edited(write_demonstrations(tmp_path / "data"), replaced(ACTION, cut), SECOND)
    said = refusal(path, contract)
    assert f"episode 2 of '{path}': column 'action' is no table of numbers" in said
    assert "expected as many in every row" in said


def test_an_episode_with_rows_missing_is_refused(tmp_path: Path, contract: Contract) -> None:
    path = edited(write_demonstrations(tmp_path / "data"), lambda t: t.slice(0, 30), FIRST)
    said = refusal(path, contract)
    assert f"episode 1 of '{path}' has 8 rows; expected {FRAMES}" in said


def test_another_robots_joints_are_refused_by_name(tmp_path: Path, contract: Contract) -> None:
    joints = tuple(f"ur_joint{i}" for i in range(8))
    path = write_demonstrations(tmp_path / "data", channels=joints)
    said = refusal(path, contract)
    assert "'observation.state' names ur_joint0" in said and "panda_joint1" in said


def test_a_robot_that_is_not_told_joint_positions_is_refused(
    tmp_path: Path, contract: Contract
) -> None:
    path = write_demonstrations(tmp_path / "data")
    robot = load_embodiment("droid_lerobot")
    with pytest.raises(EmbodimentError) as refused:
        Demonstrations(path, robot, replace(contract, fps=15.0))
    said = "embodiment 'droid_lerobot' has action_space pose_delta; expected joint_position"
    assert said in str(refused.value)


def test_another_number_of_joints_is_refused(tmp_path: Path, contract: Contract) -> None:
    path = write_demonstrations(tmp_path / "data")
    info = json.loads((path / "meta" / "info.json").read_text())
    for column in (STATE, ACTION):
        info["features"][column]["names"] = None
    (path / "meta" / "info.json").write_text(json.dumps(info))
    edited(path, replaced(STATE, lambda rows: [row[:6] for row in rows]), FIRST)
    said = refusal(path, contract)
    assert "column 'observation.state' of episode 0 holds 6 numbers a row; expected 8" in said


def test_another_rate_is_refused(tmp_path: Path, contract: Contract) -> None:
    path = write_demonstrations(tmp_path / "data", fps=30)
    assert "has 30 frames a second; expected 15" in refusal(path, contract)


def test_cameras_that_the_embodiment_looks_for_and_that_are_not_there_are_named(
    tmp_path: Path, contract: Contract
) -> None:
    path = write_demonstrations(tmp_path / "data")
    info = json.loads((path / "meta" / "info.json").read_text())
    info["features"]["observation.images.top"] = info["features"].pop("observation.images.wrist")
    (path / "meta" / "info.json").write_text(json.dumps(info))
    assert "has cameras exterior, top as video; expected exterior, wrist" in refusal(path, contract)


def test_an_episode_without_an_instruction_is_refused(tmp_path: Path, contract: Contract) -> None:
    path = write_demonstrations(tmp_path / "data")
    edited(path, replaced("__index_level_0__", lambda tasks: ["", *tasks[1:]]), TASKS_FILE)
    said = refusal(path, contract)
    assert "has no instruction at frame 0" in said


def test_a_data_set_of_no_episodes_is_refused(tmp_path: Path, contract: Contract) -> None:
    path = write_demonstrations(tmp_path / "data")
    for file in path.glob("meta/episodes/*/*.parquet"):
        pq.write_table(pq.read_table(file).slice(0, 0), file)
    assert "has no episodes" in refusal(path, contract)


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path, contract: Contract) -> None:
    assert "it has no meta/info.json" in refusal(tmp_path, contract)
