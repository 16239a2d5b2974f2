"""Demonstrations of the simulated arm: the scripted expert's episodes as a LeRobot v3 data set."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.pool import IMapIterator
from pathlib import Path

import numpy as np

from cosmos3_ros.policy.embodiment import Embodiment, load_embodiment
from cosmos3_ros.replay.episode import LeRobotError
from cosmos3_ros.sim.expert import RATE_HZ, Expert, closedness, finger_position
from cosmos3_ros.sim.tasks import COLOURS, KINDS, SUCCESS, WORDINGS, Judge, Task, draw_task
from cosmos3_ros.sim.world import CAMERAS, CUBES, GRIPPER_JOINT, JOINTS, STEPS_PER_FRAME, World
from cosmos3_ros.training.bars import Bar
from cosmos3_ros.training.dataset_writer import Layout, Recording, finish, is_written, write_file

EMBODIMENT = "pico_panda"
EPISODES_PER_FILE = 50
# After the goal the expert goes on for so long [frames]. With a cube in the air it is more than a
# chunk, so that clips begin there: without them a policy let go just below the height that counts.
# With a cube touched it is less: of clips that begin there one learns to stay, whatever is said.
_STAYS = {"touch": 14, "lift": 24, "any": 14}
# The scene is drawn from (seed, episode): a task drawn from the same numbers would be told by where
# the cubes stand, and a policy would learn that in place of the words.
_TASK_STREAM = 1
# Clips of a chunk's length begin anywhere: an episode has room for some of them [frames].
SHORTEST = 24
# How often to see whether the processes still live.
_LOOK_PERIOD_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, help="folder of the data set")
    parser.add_argument("--episodes", type=int, default=200, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (default: %(default)s)")
    parser.add_argument(
        "--processes", type=int, default=2, help="that share the work (default: %(default)s)"
    )


def main(args: argparse.Namespace) -> int:
    make_episodes(args.out, args.episodes, args.seed, args.processes)
    print(f"{args.out}: {args.episodes} episodes of embodiment '{EMBODIMENT}'")
    return 0


def make_episodes(
    out: Path,
    episodes: int,
    seed: int,
    processes: int = 2,
    written: Callable[[], None] = lambda: None,
) -> None:
    """Write ``episodes`` demonstrations, or what is missing of them.

    ``written``: called after each file of them. Raises LeRobotError where there is another data
    set, or a number that makes none.
    """
    if episodes < 1 or processes < 1:
        raise LeRobotError(
            f"{episodes} episodes by {processes} processes; expected at least one of both"
        )
    if seed < 0:
        raise LeRobotError(f"seed {seed} of the scenes; expected at least 0")
    plan = out / "demonstrations.txt"
    made_as = f"{episodes} episodes, seed {seed}\n"
    if plan.is_file():
        is_another = plan.read_text() != made_as
    else:
        is_another = out.exists() and any(out.iterdir())
    if is_another:
        raise LeRobotError(
            f"'{out}' exists and is not a data set of {made_as.strip()}; name another folder, or "
            "remove it"
        )
    if (out / "meta" / "info.json").is_file():
        return
    out.mkdir(parents=True, exist_ok=True)
    plan.write_text(made_as)
    files = -(-episodes // EPISODES_PER_FILE)
    missing = [index for index in range(files) if not is_written(out, index)]
    write = partial(_write_file, out, episodes, seed)
    there = episodes - sum(len(_episodes_of(index, episodes)) for index in missing)
    with (
        Bar("demonstrations", "episode", episodes, there) as bar,
        # A renderer belongs to one process; it does not survive a fork.
        multiprocessing.get_context("spawn").Pool(processes) as pool,
    ):
        for count in _from(pool.imap_unordered(write, missing)):
            bar.update(count)
            written()
    finish(out, layout(load_embodiment(EMBODIMENT)), files)


def _from(counts: IMapIterator[int]) -> Iterator[int]:
    """What the processes of a pool give. Raises LeRobotError when one of them is killed: the pool
    puts another in its place, and what it was at would be waited for in vain."""
    began = {process.pid for process in multiprocessing.active_children()}
    while True:
        try:
            yield counts.next(timeout=_LOOK_PERIOD_S)
        except StopIteration:
            return
        except multiprocessing.TimeoutError:
            now = {process.pid for process in multiprocessing.active_children()}
            if now != began:
                raise LeRobotError(
                    "a process that makes demonstrations was killed, perhaps for want of memory; "
                    "what is written stays: run the same command again, with fewer processes"
                ) from None


def layout(embodiment: Embodiment) -> Layout:
    """What every demonstration has: the embodiment's cameras, joints and gripper."""
    return Layout(
        robot=embodiment.name,
        fps=round(RATE_HZ),
        cameras=CAMERAS,
        channels=(*JOINTS, GRIPPER_JOINT),
        tasks=tuple(
            wording.format(colour)
            for kind in KINDS
            for colour in COLOURS
            for wording in WORDINGS[kind]
        ),
    )


def demonstrations(
    world: World, seed: int, episodes: range
) -> Iterator[tuple[Task, Recording, bool]]:
    """The expert's episodes: task, what was recorded, and whether it got there."""
    for episode in episodes:
        task, goal = draw_demonstration(seed, episode)
        world.reset(seed, episode, practice=True)
        yield task, *_demonstrate(world, task, CUBES[goal])


def draw_demonstration(seed: int, episode: int) -> tuple[Task, int]:
    """What the expert is told in an episode, and which of CUBES it goes to."""
    random = np.random.default_rng((seed, episode, _TASK_STREAM))
    task = draw_task(random)
    return task, CUBES.index(task.goals[random.integers(len(task.goals))])


def instructions_of(episodes: int, seed: int) -> list[str]:
    """What is said in the demonstrations, each once, without making them."""
    drawn = (draw_demonstration(seed, episode)[0] for episode in range(episodes))
    return sorted({task.instruction for task in drawn})


def _episodes_of(file_index: int, episodes: int) -> range:
    first = file_index * EPISODES_PER_FILE
    return range(first, min(first + EPISODES_PER_FILE, episodes))


def _write_file(out: Path, episodes: int, seed: int, file_index: int) -> int:
    wanted = _episodes_of(file_index, episodes)
    world = World()
    recorded = [recording for _, recording, _ in demonstrations(world, seed, wanted)]
    write_file(out, layout(load_embodiment(EMBODIMENT)), file_index, recorded)
    return len(wanted)


def _demonstrate(world: World, task: Task, goal: str) -> tuple[Recording, bool]:
    expert, judge = Expert(world, task, goal), Judge(task)
    frames: dict[str, list[np.ndarray]] = {camera: [] for camera in CAMERAS}
    states, actions = [], []
    left = round(task.limit_s * RATE_HZ)
    while left > 0:
        for camera, seen in frames.items():
            seen.append(world.frame(camera))
        positions = world.positions
        action = expert.act()
        states.append(np.append(positions[:7], closedness(float(positions[7]))))
        actions.append(action)
        _obey(world, action)
        touched = _advance(world)
        undecided = judge.verdict is None
        # What it began on, or brushes on its way, does not end its way to the goal.
        judge.see(len(states) / RATE_HZ, touched & {goal}, world.cubes, world.cube_distances)
        left -= 1
        if undecided and judge.verdict is not None:
            left = max(_STAYS[task.kind], SHORTEST - len(states))
    recording = Recording(frames, np.array(states), np.array(actions), task.instruction)
    return recording, judge.verdict == SUCCESS


def _obey(world: World, action: np.ndarray) -> None:
    gripper = finger_position(float(action[7]))
    world.command(dict(zip(JOINTS, action[:7].tolist(), strict=True)) | {GRIPPER_JOINT: gripper})


def _advance(world: World) -> frozenset[str]:
    """One frame on; the cubes touched meanwhile."""
    touched: frozenset[str] = frozenset()
    for _ in range(STEPS_PER_FRAME):
        world.step()
        touched |= world.contacts
    return touched
