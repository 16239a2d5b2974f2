"""Demonstrations: the expert does what its instruction says, and they are the same every time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cosmos3_ros.cli import main
from cosmos3_ros.policy.embodiment import load_embodiment
from cosmos3_ros.replay.bags import open_bag
from cosmos3_ros.replay.episode import LeRobotError, load_dataset, load_episodes
from cosmos3_ros.sim.world import GRIPPER_JOINT, JOINTS, STEPS_PER_FRAME, World
from cosmos3_ros.training import episodes as module
from cosmos3_ros.training.dataset_writer import _part, _write_video, is_written
from cosmos3_ros.training.episodes import demonstrations, layout, make_episodes

EXPERTS_EPISODES = 40


def test_the_expert_does_what_it_is_told() -> None:
    done = [
        (task.kind, there) for task, _, there in demonstrations(World(), 9, range(EXPERTS_EPISODES))
    ]
    assert sum(there for _, there in done) >= EXPERTS_EPISODES - 1
    assert {kind for kind, _ in done} == {"touch", "lift", "any"}


def test_a_scene_does_not_tell_its_task() -> None:
    """Where a cube stands says nothing of the colour that is named, of the kind, or of the goal."""
    world, places, tasks = World(render=False), [], []
    for episode in range(400):
        world.reset(5, episode, practice=True)
        places.append([*world.cubes[:, :2].ravel(), *world.fingertip])
        task, goal = module.draw_demonstration(5, episode)
        tasks.append([task.colour == "red", task.colour == "blue", task.kind == "any", goal])
    both = np.corrcoef(np.array(places, float).T, np.array(tasks, float).T)
    # Five deviations of the correlation of independent numbers.
    assert np.abs(both[:9, 9:]).max() < 5 / np.sqrt(400), both[:9, 9:]


def test_an_episode_holds_what_the_expert_saw_did_and_was_told() -> None:
    world = World()
    robot = load_embodiment("pico_panda")
    for task, recorded, _ in demonstrations(world, 3, range(3)):
        count = len(recorded.states)
        assert count >= 24
        assert recorded.instruction == task.instruction
        assert {len(frames) for frames in recorded.frames.values()} == {count}
        assert recorded.states.shape == recorded.actions.shape == (count, 8)
        # An action is where the arm is a little later.
        ahead = np.abs(recorded.states[6:, :7] - recorded.actions[4:-2, :7]).max()
        assert ahead < np.abs(recorded.states[6:, :7] - recorded.actions[:-6, :7]).max()
        lower, upper = robot.lower - 1e-6, robot.upper + 1e-6
        assert ((recorded.actions >= lower) & (recorded.actions <= upper)).all()


def test_clips_begin_where_a_cube_was_lifted_to() -> None:
    """A policy that has seen no chunk from there on lets go just below the height that counts."""
    world, chunk, heights = World(), 16, []
    for task, recorded, there in demonstrations(world, 4, range(12)):
        if task.kind == "lift" and there:
            last_begin = recorded.states[len(recorded.states) - chunk - 1]
            heights.append(world.forward_kinematics(last_begin[:7])[2])
    assert len(heights) >= 2
    assert min(heights) > 0.15


def test_demonstrations_leave_the_cube_they_begin_on_for_the_one_that_is_named() -> None:
    """Without them a policy that touched a cube stays there, whatever it is told next."""
    world, left = World(render=False), 0
    for episode in range(120):
        task, goal = module.draw_demonstration(4, episode)
        world.reset(4, episode, practice=True)
        world.step(STEPS_PER_FRAME)
        if world.contacts and world.contacts.isdisjoint(task.goals):
            [(_, recorded, there)] = demonstrations(World(), 4, range(episode, episode + 1))
            tip = world.forward_kinematics(recorded.states[-1, :7])
            assert there, task
            assert np.hypot(*(tip - world.cubes[goal])[:2]) < 0.03
            left += 1
        if left == 3:
            return
    raise AssertionError(f"{left} of 120 demonstrations began on another cube")


def make_a_file_each(tmp_path: Path) -> list[str]:
    """A program that makes demonstrations, each in a file of its own: its arguments are folder,
    episodes, seed and processes."""
    script = (
        "from cosmos3_ros.training import episodes\nimport sys\nfrom pathlib import Path\n"
        # Workers are fresh interpreters, which have to be told of the size of a file, too.
        "episodes.EPISODES_PER_FILE = 1\nif __name__ == '__main__':\n"
        "    episodes.make_episodes(Path(sys.argv[1]), *map(int, sys.argv[2:]))\n"
    )
    (tmp_path / "make.py").write_text(script)
    return [sys.executable, str(tmp_path / "make.py")]


def test_demonstrations_are_the_same_every_time_and_of_every_number_of_processes(
    tmp_path: Path,
) -> None:
    for name, processes in (("one", 1), ("two", 2)):
        words = [str(tmp_path / name), "3", "5", str(processes)]
        subprocess.run([*make_a_file_each(tmp_path), *words], check=True, timeout=300)
    one, two = (load_episodes(load_dataset(tmp_path / name)) for name in ("one", "two"))
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert a.rows.equals(b.rows)
        for camera in a.dataset.cameras:
            both = (np.stack([*each.frames(camera)]).astype(int) for each in (a, b))
            difference = np.abs(np.subtract(*both)).max((1, 2, 3))
            assert not difference.any(), f"episode {a.index}, {camera}: {difference.tolist()}"
    assert one[0].dataset.path.joinpath("meta", "stats.json").is_file()


def test_the_same_frames_make_the_same_video(tmp_path: Path) -> None:
    """Where an encoder reads what nobody wrote, they do not now and then."""
    recordings = [recording for _, recording, _ in demonstrations(World(), 0, range(4))]
    random, left, file = np.random.default_rng(0), [], tmp_path / "wrist.mp4"
    videos: list[set[bytes]] = [set() for _ in recordings]
    for _ in range(400):
        for recording, made in zip(recordings, videos, strict=True):
            left.append(random.integers(0, 255, random.integers(1000, 300_000), np.uint8))
            del left[: -random.integers(1, 20)]
            frames = [frame.copy() for frame in recording.frames["wrist"]]
            height, width, _ = frames[0].shape
            _write_video(file, 15, (width, height), frames)
            made.add(file.read_bytes())
    assert [len(made) for made in videos] == [1, 1, 1, 1]


def test_a_killed_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "data"
    command = [*make_a_file_each(tmp_path), str(out), "6", "2", "1"]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 60
    while not is_written(out, 1):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    subprocess.run(["kill", "-KILL", "--", f"-{process.pid}"], check=True)
    process.wait()
    assert not (out / "meta" / "info.json").exists(), "half a data set never looks whole"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("file-000.mp4")}
    assert before
    # One that the machine was switched off over: it is made again.
    _part(out, 1).write_bytes(b"")
    assert not is_written(out, 1)
    subprocess.run(command, check=True, timeout=300)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "made twice"
    assert len(load_episodes(load_dataset(out))) == 6
    assert not list(out.rglob(".*"))


def test_a_process_that_is_killed_ends_the_run_with_what_to_do(tmp_path: Path) -> None:
    out = tmp_path / "data"
    words = ["make-episodes", str(out), "--episodes", "200", "--processes", "2"]
    command = [sys.executable, "-m", "cosmos3_ros.cli", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60

        def workers() -> list[int]:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            began = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
            return [pid for pid, command in began.items() if b"spawn_main" in command]

        while not (out / "demonstrations.txt").exists() or len(workers()) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(workers()[0], signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "cosmos3 make-episodes: a process that makes demonstrations was killed" in said
    assert "Traceback" not in said


def test_an_empty_folder_is_filled_and_one_that_holds_something_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    words = ["--episodes", "1", "--processes", "1"]
    assert main(["make-episodes", str(tmp_path / "empty"), *words]) == 0
    assert len(load_episodes(load_dataset(tmp_path / "empty"))) == 1
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    assert main(["make-episodes", str(tmp_path / "full"), *words]) == 1
    assert "exists and is not a data set of 1 episodes" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_another_data_set_in_the_folder_is_refused(tmp_path: Path) -> None:
    make_episodes(tmp_path / "data", 1, seed=0, processes=1)
    with pytest.raises(LeRobotError, match="is not a data set of 1 episodes, seed 1"):
        make_episodes(tmp_path / "data", 1, seed=1, processes=1)
    with pytest.raises(LeRobotError, match="0 episodes by 1 processes"):
        make_episodes(tmp_path / "none", 0, seed=1, processes=1)
    with pytest.raises(LeRobotError, match="seed -1 of the scenes; expected at least 0"):
        make_episodes(tmp_path / "none", 1, seed=-1, processes=1)
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two demonstrations."""
    path = tmp_path_factory.mktemp("made") / "data"
    make_episodes(path, 2, seed=0, processes=1)
    return path


def test_what_lerobot_reads_is_there(made: Path) -> None:
    info = json.loads((made / "meta" / "info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert info["total_episodes"] == 2 and info["total_tasks"] == 108
    assert info["features"]["action"]["names"][0] == "panda_joint1"
    assert set(layout(load_embodiment("pico_panda")).tasks) >= {"touch the red cube"}
    assert info["robot_type"] == module.EMBODIMENT


def test_what_is_said_in_demonstrations_is_known_before_they_are_made(made: Path) -> None:
    said = {episode.instructions[0] for episode in load_episodes(load_dataset(made))}
    assert module.instructions_of(2, seed=0) == sorted(said)


def test_a_demonstration_becomes_a_bag_of_what_the_arm_would_publish(
    made: Path, tmp_path: Path
) -> None:
    episode = load_episodes(load_dataset(made))[1]
    out = tmp_path / "demonstration.mcap"
    words = [str(made), str(out), "--episode", "1", "--embodiment", "pico_panda"]
    assert main(["bag-from-lerobot", *words]) == 0
    with open_bag(out) as bag:
        found = {topic: [m.decoded() for m in bag.messages([topic])] for topic in bag.topics}
    assert found.keys() == {
        "/camera/exterior/image",
        "/camera/wrist/image",
        "/instruction",
        "/joint_states",
        "/recorded_action",
    }
    assert [message.data for message in found["/instruction"]] == [episode.instructions[0]]
    measured = found["/joint_states"]
    assert len(measured) == len(episode.rows)
    assert list(measured[0].name) == [*JOINTS, GRIPPER_JOINT]
    state = episode.numbers("observation.state")
    gripper = load_embodiment("pico_panda").gripper
    assert gripper is not None
    expected = [*state[5, :7], gripper.joint_position(state[5, 7])]
    np.testing.assert_allclose(measured[5].position, expected, atol=1e-6)
