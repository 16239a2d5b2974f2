"""Demonstrations to train on: a LeRobot v3 data set of the embodiment's robot, checked first."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cosmos3_ros.engine.session import Contract
from cosmos3_ros.policy.canvas import Composer, Fitter
from cosmos3_ros.policy.embodiment import JOINT_POSITION, Embodiment, EmbodimentError
from cosmos3_ros.replay.episode import (
    FRAME_TOLERANCE,
    Episode,
    LeRobotError,
    load_dataset,
    load_episodes,
    video_times_s,
)
from cosmos3_ros.replay.lerobot import camera_name

STATE, ACTION = "observation.state", "action"
# Apart from the streams that scenes and tasks are drawn from.
_CLIP_STREAM = 2


@dataclass(frozen=True)
class Clip:
    """A chunk's worth of an episode: its frames ``first`` .. ``first`` + chunk."""

    episode: int
    first: int


class Demonstrations:
    """The episodes of a data set that are long enough for a chunk, in the embodiment's terms.

    ``states``, ``actions``: physical [n, width] for each episode. ``instructions``: one a frame.
    ``too_short``: how many episodes are left out.
    """

    def __init__(self, path: Path, embodiment: Embodiment, contract: Contract) -> None:
        """Raises LeRobotError for a data set that does not fit, naming what it was, and
        EmbodimentError for a robot whose rows are no joints."""
        dataset = load_dataset(path)
        _require_robot(dataset.features, path, embodiment)
        if abs(dataset.fps - contract.fps) > 1e-6:
            raise LeRobotError(
                f"data set '{path}' has {dataset.fps:g} frames a second; expected "
                f"{contract.fps:g}, the rate of embodiment '{embodiment.name}' or the recipe's fps"
            )
        self._keys = _camera_keys(dataset.cameras, path, embodiment)
        self._embodiment, self._contract = embodiment, contract
        self.chunk = contract.chunk
        found = load_episodes(dataset)
        self.episodes = [episode for episode in found if len(episode.rows) > contract.chunk]
        self.too_short = len(found) - len(self.episodes)
        if not self.episodes:
            raise LeRobotError(
                f"data set '{path}': none of its {len(found)} episodes has more than "
                f"{contract.chunk} frames; expected a chunk and the frame before it"
            )
        for episode in self.episodes:
            _require_rate(episode)
        for key in self._keys.values():
            _require_videos(self.episodes, key)
        self.states = [_numbers(episode, STATE, embodiment) for episode in self.episodes]
        self.actions = [_numbers(episode, ACTION, embodiment) for episode in self.episodes]
        self.instructions = [_instructions(episode) for episode in self.episodes]

    def __len__(self) -> int:
        return len(self.episodes)

    def canvases(self, index: int) -> np.ndarray:
        """The canvas of every frame, uint8 RGB [n,H,W,3], as the policy composes it.

        Several threads may call this.
        """
        robot = self._embodiment
        compose = Composer(robot)
        fit = Fitter(robot.canvas_height, robot.canvas_width, self._contract)
        episode = self.episodes[index]
        pictures = zip(*(episode.frames(key) for key in self._keys.values()), strict=True)
        return np.stack(
            [fit(compose(dict(zip(self._keys, shown, strict=True)))).copy() for shown in pictures]
        )

    def rows(self, clip: Clip) -> np.ndarray:
        """Physical rows of a clip [rows,width]: where the embodiment has a state row, the state at
        the first frame; then the actions from it."""
        actions = self.actions[clip.episode][clip.first : clip.first + self.chunk]
        state = self.states[clip.episode][clip.first : clip.first + 1]
        return np.concatenate([state, actions]) if self._embodiment.state_row else actions

    def draw_clips(self, episode: int, count: int, seed: int) -> list[Clip]:
        """``count`` clips of an episode, spread over it: one in each of as many equal parts."""
        random = np.random.default_rng((seed, episode, _CLIP_STREAM))
        room = len(self.episodes[episode].rows) - self.chunk
        bounds = np.linspace(0, room, count + 1)
        firsts = (random.uniform(low, high) for low, high in pairwise(bounds))
        return [Clip(episode, min(int(first), room - 1)) for first in firsts]


def joint_names(embodiment: Embodiment) -> list[str]:
    """What the numbers of a row are, in channel order.

    Raises EmbodimentError for a robot that is told something else than joint positions.
    """
    if embodiment.action_space != JOINT_POSITION:
        raise EmbodimentError(
            f"embodiment '{embodiment.name}' has action_space {embodiment.action_space}; expected "
            f"{JOINT_POSITION}: demonstrations are read as joint positions alone"
        )
    gripper, joints = embodiment.gripper, iter(embodiment.joints)
    return [
        gripper.joint if gripper and name == gripper.channel else next(joints)
        for name in embodiment.channel_names
    ]


def meta_sha256(path: Path) -> str:
    """Of everything that a data set's ``meta`` says: its episodes, tasks, statistics."""
    digest = hashlib.sha256()
    for file in _files(path, "meta"):
        digest.update(f"{file.relative_to(path)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def files_of(path: Path) -> dict[str, str]:
    """What a data set's files hold, by their paths in it: SHA-256 of rows, size of videos."""
    rows = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in _files(path, "data")}
    videos = {file: f"{file.stat().st_size} bytes" for file in _files(path, "videos")}
    return {str(file.relative_to(path)): held for file, held in (rows | videos).items()}


def _files(path: Path, folder: str) -> list[Path]:
    return sorted(file for file in path.glob(f"{folder}/**/*") if file.is_file())


def _require_robot(
    features: Mapping[str, Mapping[str, Any]], path: Path, embodiment: Embodiment
) -> None:
    joints = joint_names(embodiment)
    for column in (STATE, ACTION):
        names = _flat(features.get(column, {}).get("names"))
        if names and names != joints:
            raise LeRobotError(
                f"data set '{path}': '{column}' names {', '.join(names)}; expected "
                f"{', '.join(joints)}, the joints of embodiment '{embodiment.name}': train with "
                "the embodiment of the robot that the episodes were recorded on"
            )


def _flat(names: Any) -> list[str]:
    """LeRobot writes a list of names, or lists of them under headings; some leave them out."""
    if isinstance(names, dict):
        return [name for group in names.values() for name in _flat(group)]
    return [str(name) for name in names or ()]


def _camera_keys(keys: list[str], path: Path, embodiment: Embodiment) -> dict[str, str]:
    by_name: dict[str, str] = {}
    wanted = [view.name for view in embodiment.cameras]
    for key in keys:
        name = camera_name(key)
        if name in by_name and name in wanted:
            raise LeRobotError(
                f"data set '{path}' has the cameras {by_name[name]} and {key}, both of them "
                f"'{name}'; expected one of that name: rename or leave out the other"
            )
        by_name[name] = key
    missing = [view.name for view in embodiment.cameras if view.name not in by_name]
    if missing:
        raise LeRobotError(
            f"data set '{path}' has cameras {', '.join(by_name) or 'none'} as video; expected "
            f"{', '.join(view.name for view in embodiment.cameras)}, those of embodiment "
            f"'{embodiment.name}'"
        )
    return {view.name: by_name[view.name] for view in embodiment.cameras}


def _require_rate(episode: Episode) -> None:
    """Rows are a frame's time apart: a chunk is that many of them, whatever their timestamps."""
    fps, times_s = episode.dataset.fps, episode.times_s - episode.times_s[0]
    off = np.abs(times_s * fps - np.arange(len(times_s)))
    if (off > FRAME_TOLERANCE).any():
        row = int(np.argmax(off > FRAME_TOLERANCE))
        raise LeRobotError(
            f"episode {episode.index} of '{episode.dataset.path}': row {row} is {times_s[row]:.3f} "
            f"s after the first; expected {row / fps:.3f} s, at the data set's {fps:g} frames a "
            "second; record or resample it at one rate"
        )


def _require_videos(episodes: Sequence[Episode], camera: str) -> None:
    """Every video of a camera is there, with each frame of its episodes, and the last decodes."""
    of_file: dict[Path, list[Episode]] = {}
    for episode in episodes:
        of_file.setdefault(episode.video_file(camera), []).append(episode)
    for file, shown in of_file.items():
        if not file.is_file():
            raise LeRobotError(
                f"episode {shown[0].index} has no video '{file}'; get the missing videos, or train "
                "on a data set that has them"
            )
        times_s = video_times_s(file)
        for episode in shown:
            episode.require_frames(camera, times_s)
        max(shown, key=lambda e: _end_s(e, camera)).last_frame(camera)


def _end_s(episode: Episode, camera: str) -> float:
    return float(episode.frame_times_s(camera)[-1])


def _numbers(episode: Episode, column: str, embodiment: Embodiment) -> np.ndarray:
    values = episode.numbers(column)
    if values.shape[1] != embodiment.width:
        raise LeRobotError(
            f"column '{column}' of episode {episode.index} holds {values.shape[1]} numbers a row; "
            f"expected {embodiment.width}, the channels of embodiment '{embodiment.name}'"
        )
    for channel, found in zip(embodiment.channels, values.T, strict=True):
        # A little outside is a robot that overshoots; a whole range is degrees, or a percentage.
        span = channel.upper - channel.lower
        beyond = np.abs(found - (channel.lower + channel.upper) / 2) > 1.5 * span
        if np.isfinite(span) and beyond.any():
            row = int(np.argmax(beyond))
            raise LeRobotError(
                f"episode {episode.index} of '{episode.dataset.path}': column '{column}' has "
                f"{found[row]:g} for '{channel.name}' in row {row}; expected {channel.lower:g} to "
                f"{channel.upper:g} {channel.unit}, as embodiment '{embodiment.name}' has it: "
                "convert the unit, or mend the file of the embodiment"
            )
    return values


def _instructions(episode: Episode) -> list[str]:
    said = episode.instructions
    if not all(said):
        raise LeRobotError(
            f"episode {episode.index} of '{episode.dataset.path}' has no instruction at frame "
            f"{said.index('')}; expected a task for every frame"
        )
    return said
