"""``cosmos3 bag-from-lerobot``: a LeRobot v3 episode as a bag of what a robot would publish."""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from cosmos3_ros.policy.embodiment import Embodiment, load_embodiment
from cosmos3_ros.replay.bags import BagWriter, encode, message_class
from cosmos3_ros.replay.episode import Episode, LeRobotError, load_dataset, load_episode

# Time of the first frame [ns]. Not zero: a ROS clock at zero is one that has not started.
START_NS = 1_000_000_000
JPEG_QUALITY = 95

# Columns that data sets keep joints, gripper and actions in, the first that is there.
JOINT_COLUMNS = (
    "observation.state.joint_positions",
    "observation.state.joint_position",
    "observation.state",
)
GRIPPER_COLUMNS = ("observation.state.gripper_position",)
ACTION_COLUMNS = ("action.joint_position", "action.joint_positions", "action")
ACTION_GRIPPER_COLUMNS = ("action.gripper_position",)
NO_COLUMN = "none"
JOINT_STATE = "sensor_msgs/msg/JointState"

# DROID's camera keys, and the names its embodiments give these cameras.
DROID_CAMERAS = {
    "wrist_image_left": "wrist",
    "exterior_image_1_left": "exterior_1",
    "exterior_image_2_left": "exterior_2",
}


@dataclass(frozen=True)
class Motion:
    """Joints over time: ``positions`` [n, len(names)], in the robot's own units [rad, m]."""

    names: tuple[str, ...]
    positions: np.ndarray


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, metavar="DIR", help="LeRobot v3 data set")
    parser.add_argument("out", type=Path, metavar="OUT.mcap", help="bag to write")
    parser.add_argument("--episode", type=int, default=0, help="episode index (default: 0)")
    parser.add_argument(
        "--camera",
        action="append",
        metavar="KEY[=NAME]",
        help="take this camera, as topic camera/NAME/image; repeat for more (default: all of them)",
    )
    parser.add_argument(
        "--embodiment",
        default="droid_joint_pos",
        help="name or YAML file of the robot: joint names and gripper (default: droid_joint_pos)",
    )
    parser.add_argument(
        "--joint-names", help="arm joints, separated by commas (default: the embodiment's)"
    )
    parser.add_argument("--joint-column", help=f"default: the first of {', '.join(JOINT_COLUMNS)}")
    parser.add_argument(
        "--action-column",
        help=f"default: the first of {', '.join(ACTION_COLUMNS)}; '{NO_COLUMN}' leaves them out",
    )
    parser.add_argument(
        "--joints-csv",
        type=Path,
        help="joints from a file: timestamp [s], q1..qN [rad], gripper (0 open, 1 closed) and, "
        "where it was recorded, action_gripper",
    )
    parser.add_argument("--instruction", help="instead of the episode's own task")
    parser.add_argument("--jpeg", action="store_true", help="CompressedImage instead of Image")


def main(args: argparse.Namespace) -> int:
    episode = load_episode(load_dataset(args.dataset), args.episode)
    cameras = choose_cameras(episode, args.camera)
    measured, recorded = _motions(episode, args)
    instructions = _instructions(episode, args.instruction)
    if not instructions[0]:
        print(
            f"episode {episode.index} has no instruction, neither will the bag: give --instruction "
            "here or to 'cosmos3 replay'",
            file=sys.stderr,
        )
    write_episode(args.out, episode, cameras, measured, recorded, instructions, jpeg=args.jpeg)
    print(
        f"{args.out}: episode {episode.index}, {len(episode.rows)} frames in "
        f"{episode.times_s[-1] - episode.times_s[0]:.1f} s, cameras {', '.join(cameras.values())}, "
        f"instruction '{instructions[0]}'"
    )
    return 0


def choose_cameras(episode: Episode, selection: list[str] | None) -> dict[str, str]:
    """Camera keys of the data set to the names of their topics; ``selection`` has ``KEY[=NAME]``.

    Raises LeRobotError for a camera that the data set does not have or whose video is not there.
    """
    keys = episode.dataset.cameras
    there = [key for key in keys if episode.video_file(key).is_file()]
    if selection is None:
        absent = [key for key in keys if key not in there]
        if absent or not keys:
            raise LeRobotError(
                f"data set '{episode.dataset.path}' lists {', '.join(keys) or 'no camera'}; on "
                f"disk are {', '.join(there) or 'none'}; take those that are there with "
                "--camera KEY=NAME, or get the missing videos"
            )
        named = {key: camera_name(key) for key in keys}
        twice = [name for name in named.values() if list(named.values()).count(name) > 1]
        if twice:
            raise LeRobotError(
                f"data set '{episode.dataset.path}' has two cameras '{twice[0]}' among "
                f"{', '.join(keys)}; take one of them with --camera KEY=NAME"
            )
        return named
    chosen: dict[str, str] = {}
    for entry in selection:
        short, _, name = entry.partition("=")
        key = next((k for k in keys if short in (k, _last_part(k))), None)
        if key not in there:
            raise LeRobotError(
                f"camera '{short}' is not in '{episode.dataset.path}'; on disk are "
                f"{', '.join(there) or 'none'}"
            )
        chosen[key] = name or camera_name(key)
    if len(set(chosen.values())) < len(selection):
        raise LeRobotError(
            f"--camera {' '.join(selection)} has a camera or a name twice; expected different ones"
        )
    return chosen


def camera_name(key: str) -> str:
    """Topic name of a camera key: DROID's cameras by their names, others by their last part."""
    part = _last_part(key)
    return DROID_CAMERAS.get(part, re.sub(r"\W", "_", part))


def write_episode(
    out: Path,
    episode: Episode,
    cameras: Mapping[str, str],
    measured: Motion,
    recorded: Motion | None,
    instructions: list[str],
    *,
    jpeg: bool = False,
) -> None:
    """Write an episode's messages to ``out``, log times and stamps from ``START_NS`` on.

    ``cameras`` maps the data set's camera keys to topic names, ``instructions`` holds one a frame.
    """
    kind, ending = ("CompressedImage", "/compressed") if jpeg else ("Image", "")
    image_topics = {key: f"/camera/{name}/image{ending}" for key, name in cameras.items()}
    topics = dict.fromkeys(image_topics.values(), f"sensor_msgs/msg/{kind}")
    topics["/joint_states"] = JOINT_STATE
    if recorded is not None:
        topics["/recorded_action"] = JOINT_STATE
    if any(instructions):
        topics["/instruction"] = "std_msgs/msg/String"
    make_image = _compressed if jpeg else _image

    stamps = START_NS + np.rint(episode.times_s * 1e9).astype(np.int64)
    pictures = zip(*(episode.frames(key) for key in cameras), strict=True)
    spoken = ""
    with BagWriter(out, topics, {"/instruction"}) as writer:
        for row, frames in enumerate(tqdm(pictures, total=len(stamps), unit="frame", disable=None)):
            stamp = int(stamps[row])
            if instructions[row] != spoken:
                spoken = instructions[row]
                writer.write("/instruction", stamp, _string(spoken))
            writer.write("/joint_states", stamp, _joint_state(measured, row, stamp))
            if recorded is not None:
                writer.write("/recorded_action", stamp, _joint_state(recorded, row, stamp))
            for (key, topic), frame in zip(image_topics.items(), frames, strict=True):
                writer.write(topic, stamp, make_image(frame, stamp, cameras[key]))


def read_joints_csv(
    path: Path, episode: Episode, joints: int, gripper: bool
) -> dict[str, np.ndarray]:
    """Columns of a joints file, each [n] in float64, one row a frame of the episode.

    Raises LeRobotError for other columns, another number of rows, other times, or no numbers.
    """
    required = ["timestamp", *(f"q{i + 1}" for i in range(joints)), *(["gripper"] * gripper)]
    optional = ["action_gripper"] * gripper
    try:
        with path.open(newline="") as stream:
            reader = csv.DictReader(stream)
            header = list(reader.fieldnames or [])
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LeRobotError(f"--joints-csv {path}: cannot be read: {error}") from error
    if not set(required) <= set(header) <= set(required + optional):
        raise LeRobotError(
            f"--joints-csv {path}: columns are {', '.join(header) or 'none'}; expected "
            f"{', '.join(required)}{' and optionally ' * gripper}{', '.join(optional)}"
        )
    if len(rows) != len(episode.rows):
        raise LeRobotError(
            f"--joints-csv {path}: {len(rows)} rows; expected {len(episode.rows)}, one a frame of "
            f"episode {episode.index}"
        )
    columns = {name: np.array([_number(row[name]) for row in rows]) for name in header}
    for name, values in columns.items():
        if not np.isfinite(values).all():
            line = int(np.flatnonzero(~np.isfinite(values))[0]) + 2
            raise LeRobotError(
                f"--joints-csv {path}: line {line} has no finite number in column {name}"
            )
    apart_s = np.abs(columns["timestamp"] - episode.times_s)
    if apart_s.max() > 0.5 / episode.dataset.fps:
        raise LeRobotError(
            f"--joints-csv {path}: timestamp of line {int(apart_s.argmax()) + 2} is "
            f"{apart_s.max():.3f} s from the frame's; expected the episode's own timestamps"
        )
    return columns


def _motions(episode: Episode, args: argparse.Namespace) -> tuple[Motion, Motion | None]:
    """What the joints did, and what the episode's actions asked of them, where it says so."""
    embodiment = load_embodiment(args.embodiment)
    arm = tuple(args.joint_names.split(",")) if args.joint_names else embodiment.joints
    if not arm:
        raise LeRobotError(
            f"embodiment '{embodiment.name}' names no joints; name the robot's with --joint-names"
        )
    if args.joints_csv:
        return _motions_of_csv(episode, args.joints_csv, arm, embodiment)
    column = args.joint_column or _first_there(episode, JOINT_COLUMNS)
    if column is None:
        raise LeRobotError(
            f"episode {episode.index} has none of {', '.join(JOINT_COLUMNS)}; name the column of "
            "the joint positions with --joint-column, or give a file with --joints-csv"
        )
    advice = "name another with --joint-column, or take the joints from a file with --joints-csv"
    measured = _motion(episode, column, GRIPPER_COLUMNS, arm, embodiment, advice)
    action = args.action_column or _first_there(episode, ACTION_COLUMNS)
    if action is None or action == NO_COLUMN:
        return measured, None
    advice = f"name another with --action-column, or '{NO_COLUMN}' to leave the actions out"
    return measured, _motion(episode, action, ACTION_GRIPPER_COLUMNS, arm, embodiment, advice)


def _motion(
    episode: Episode,
    column: str,
    gripper_columns: tuple[str, ...],
    arm: tuple[str, ...],
    embodiment: Embodiment,
    advice: str,
) -> Motion:
    """Joints of one column; the gripper from its own, or from where its channel stands."""
    values = episode.numbers(column)
    gripper, channels = embodiment.gripper, embodiment.channel_names
    gripper_column = _first_there(episode, gripper_columns) if gripper else None
    if gripper_column and values.shape[1] == len(arm):
        values = np.hstack([values, episode.numbers(gripper_column)])
    elif gripper and values.shape[1] == len(channels) == len(arm) + 1:
        index = channels.index(gripper.channel)
        values = np.column_stack([np.delete(values, index, 1), values[:, index]])
    names = arm if gripper is None else (*arm, gripper.joint)
    if values.shape[1] != len(names):
        found = episode.numbers(column).shape[1]
        raise LeRobotError(
            f"column '{column}' of episode {episode.index} holds {found} "
            f"{'number' if found == 1 else 'numbers'} a row; expected {len(arm)}, the joints "
            f"{', '.join(arm)}{', and a gripper' if gripper else ''}; {advice}"
        )
    if gripper is not None:
        values = np.column_stack([values[:, :-1], gripper_positions(embodiment, values[:, -1])])
    return Motion(names, values)


def _motions_of_csv(
    episode: Episode, path: Path, arm: tuple[str, ...], embodiment: Embodiment
) -> tuple[Motion, Motion | None]:
    gripper = embodiment.gripper
    columns = read_joints_csv(path, episode, len(arm), gripper is not None)
    joints = np.column_stack([columns[f"q{i + 1}"] for i in range(len(arm))])
    if gripper is None:
        return Motion(arm, joints), None
    closing = gripper_positions(embodiment, columns["gripper"])
    measured = Motion((*arm, gripper.joint), np.column_stack([joints, closing]))
    if "action_gripper" not in columns:
        return measured, None
    asked = gripper_positions(embodiment, columns["action_gripper"])
    return measured, Motion((gripper.joint,), asked[:, None])


def gripper_positions(embodiment: Embodiment, closedness: np.ndarray) -> np.ndarray:
    """Positions of the gripper's joint [n] for closedness [n], 0 open to 1 closed."""
    gripper = embodiment.gripper
    assert gripper is not None
    return np.array([gripper.joint_position(value) for value in closedness.tolist()])


def _instructions(episode: Episode, given: str | None) -> list[str]:
    return episode.instructions if given is None else [given.strip()] * len(episode.rows)


def _first_there(episode: Episode, columns: tuple[str, ...]) -> str | None:
    return next((c for c in columns if c in episode.rows.column_names), None)


def _last_part(key: str) -> str:
    return key.rpartition(".")[2]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _header(stamp_ns: int, frame_id: str) -> Any:
    stamp = message_class("builtin_interfaces/msg/Time")(*divmod(stamp_ns, 1_000_000_000))
    return message_class("std_msgs/msg/Header")(stamp, frame_id)


def _string(text: str) -> bytes:
    return encode(message_class("std_msgs/msg/String")(text))


def _joint_state(motion: Motion, row: int, stamp_ns: int) -> bytes:
    nothing = np.zeros(0)
    header, names = _header(stamp_ns, ""), list(motion.names)
    return encode(
        message_class(JOINT_STATE)(header, names, motion.positions[row], nothing, nothing)
    )


def _image(rgb: np.ndarray, stamp_ns: int, camera: str) -> bytes:
    height, width = rgb.shape[:2]
    make = message_class("sensor_msgs/msg/Image")
    header = _header(stamp_ns, camera)
    return encode(make(header, height, width, "rgb8", 0, width * 3, rgb.reshape(-1)))


def _compressed(rgb: np.ndarray, stamp_ns: int, camera: str) -> bytes:
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    make = message_class("sensor_msgs/msg/CompressedImage")
    return encode(make(_header(stamp_ns, camera), "rgb8; jpeg compressed bgr8", data.reshape(-1)))
