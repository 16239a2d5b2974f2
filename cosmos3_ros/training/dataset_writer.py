"""Writes LeRobot v3 data sets, file by file, so that several processes can share the work.

Each file of episodes (``EpisodeFile``) leaves its videos in their place and its numbers in a part;
``finish`` numbers all frames through and writes what LeRobot reads. ``meta/info.json`` comes last:
without it a folder is no data set yet.
"""

from __future__ import annotations

import json
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cosmos3_ros.replay.episode import FORMAT_VERSION
from cosmos3_ros.training.dataset import ACTION, STATE

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
# Near to lossless, colours at full resolution, so that small pictures stay what was rendered.
_CODEC = "libx264"
_PIXELS = "yuv444p"
_CODEC_OPTIONS = {
    "crf": "10",
    "g": "8",
    "preset": "veryfast",
    "bf": "0",
    # The macroblock tree reads what nobody wrote where pictures are as small as the wrist's: now
    # and then the same frames made another video.
    "x264-params": "mbtree=0",
}
_PARTS = ".parts"
# Every so many frames count for the statistics of the pictures.
_PICTURE_PERIOD = 10
# The column that holds the index of a pandas frame, as pandas names it.
_INDEX = "__index_level_0__"


@dataclass(frozen=True)
class Layout:
    """What every episode of a data set has.

    ``cameras``: width and height [px] by name. ``channels``: names of state and action, in order.
    ``tasks``: all instructions that an episode may have.
    """

    robot: str
    fps: int
    cameras: Mapping[str, tuple[int, int]]
    channels: tuple[str, ...]
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Recording:
    """One episode: frames uint8 RGB [n,h,w,3] by camera, states and actions [n, width]."""

    frames: Mapping[str, Sequence[np.ndarray]]
    states: np.ndarray
    actions: np.ndarray
    instruction: str


def camera_key(name: str) -> str:
    """LeRobot's key of a camera."""
    return f"observation.images.{name}"


def is_written(path: Path, file_index: int) -> bool:
    """Whether a file of episodes is complete; one that is damaged is none."""
    try:
        with np.load(_part(path, file_index)) as part:
            return all(part[name] is not None for name in ("states", *part.files))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return False


def write_file(path: Path, layout: Layout, file_index: int, episodes: Sequence[Recording]) -> None:
    """Write one file of episodes; it is complete when this returns, or not there."""
    place = {"chunk_index": 0, "file_index": file_index}
    for camera, size in layout.cameras.items():
        video = path / VIDEO_PATH.format(video_key=camera_key(camera), **place)
        video.parent.mkdir(parents=True, exist_ok=True)
        partial = video.with_name(f".{video.name}")
        _write_video(partial, layout.fps, size, [f for e in episodes for f in e.frames[camera]])
        partial.rename(video)
    held: dict[str, Any] = {
        "states": np.concatenate([e.states for e in episodes]).astype(np.float32),
        "actions": np.concatenate([e.actions for e in episodes]).astype(np.float32),
        "lengths": np.array([len(e.states) for e in episodes]),
        "tasks": np.array([layout.tasks.index(e.instruction) for e in episodes]),
    }
    for camera in layout.cameras:
        held[camera_key(camera)] = _colours([f for e in episodes for f in e.frames[camera]])
    part = _part(path, file_index)
    part.parent.mkdir(parents=True, exist_ok=True)
    partial = part.with_name(f".{part.name}")
    with partial.open("wb") as stream:
        np.savez(stream, **held)
    partial.rename(part)


def finish(path: Path, layout: Layout, files: int) -> None:
    """Make a data set of the files 0 .. ``files`` - 1, all of them written."""
    parts = [dict(np.load(_part(path, index))) for index in range(files)]
    first_episode = first_frame = 0
    for index, part in enumerate(parts):
        _write_numbers(path, layout, index, part, first_episode, first_frame)
        first_episode += len(part["lengths"])
        first_frame += len(part["states"])
    pq.write_table(_tasks(layout.tasks), path / "meta" / "tasks.parquet")
    numbers = {STATE: "states", ACTION: "actions"}
    stats: dict[str, Any] = {
        key: _statistics(np.concatenate([part[name] for part in parts]))
        for key, name in numbers.items()
    }
    for key in map(camera_key, layout.cameras):
        stats[key] = _picture_statistics(np.concatenate([part[key] for part in parts]))
    (path / "meta" / "stats.json").write_text(json.dumps(stats, indent=1))
    partial = path / "meta" / ".info.json"
    partial.write_text(json.dumps(_info(layout, first_episode, first_frame), indent=1))
    partial.rename(path / "meta" / "info.json")
    shutil.rmtree(path / _PARTS)


def _part(path: Path, file_index: int) -> Path:
    return path / _PARTS / f"{file_index:03d}.npz"


def _write_video(path: Path, fps: int, size: tuple[int, int], frames: Sequence[np.ndarray]) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(_CODEC, rate=fps, options=_CODEC_OPTIONS)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = _PIXELS
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _write_numbers(
    path: Path,
    layout: Layout,
    file_index: int,
    part: Mapping[str, np.ndarray],
    first_episode: int,
    first_frame: int,
) -> None:
    lengths, count = part["lengths"], len(part["states"])
    episodes = first_episode + np.arange(len(lengths))
    frame = np.concatenate([np.arange(length) for length in lengths])
    data = pa.table(
        {
            STATE: list(part["states"]),
            ACTION: list(part["actions"]),
            "timestamp": pa.array(frame / layout.fps, pa.float32()),
            "frame_index": frame,
            "episode_index": np.repeat(episodes, lengths),
            "index": first_frame + np.arange(count),
            "task_index": np.repeat(part["tasks"], lengths),
        }
    )
    ends = np.cumsum(lengths)
    zeros, files = np.zeros(len(lengths), np.int64), np.full(len(lengths), file_index)
    meta: dict[str, Any] = {
        "episode_index": episodes,
        "tasks": [[layout.tasks[task]] for task in part["tasks"]],
        "length": lengths,
        "data/chunk_index": zeros,
        "data/file_index": files,
        "dataset_from_index": first_frame + ends - lengths,
        "dataset_to_index": first_frame + ends,
        "meta/episodes/chunk_index": zeros,
        "meta/episodes/file_index": files,
    }
    for camera in layout.cameras:
        key = f"videos/{camera_key(camera)}"
        meta[f"{key}/chunk_index"] = zeros
        meta[f"{key}/file_index"] = files
        meta[f"{key}/from_timestamp"] = (ends - lengths) / layout.fps
        meta[f"{key}/to_timestamp"] = ends / layout.fps
    for folder, table in (("data", data), ("meta/episodes", pa.table(meta))):
        file = path / folder / "chunk-000" / f"file-{file_index:03d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file)


def _tasks(texts: Sequence[str]) -> pa.Table:
    """Tasks as LeRobot keeps them: a pandas frame whose index is the text."""
    column = {"metadata": None, "field_name": "task_index", "name": "task_index"}
    index = {"metadata": None, "field_name": _INDEX, "name": None}
    pandas = {
        "index_columns": [_INDEX],
        "column_indexes": [],
        "columns": [
            column | {"pandas_type": "int64", "numpy_type": "int64"},
            index | {"pandas_type": "unicode", "numpy_type": "object"},
        ],
    }
    table = pa.table({"task_index": np.arange(len(texts)), _INDEX: list(texts)})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _colours(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Of some frames: mean, mean square, least and largest of each colour, 0 .. 1: [n,4,3]."""
    shown = np.stack(frames[::_PICTURE_PERIOD]).astype(np.float64) / 255
    sides = (1, 2)
    of = (shown.mean(sides), np.square(shown).mean(sides), shown.min(sides), shown.max(sides))
    return np.stack(of, 1)


def _picture_statistics(colours: np.ndarray) -> dict[str, Any]:
    """As LeRobot has them: by colour, [3,1,1], and of how many frames."""
    mean, square = colours[:, 0].mean(0), colours[:, 1].mean(0)
    of = {
        "mean": mean,
        "std": np.sqrt(np.maximum(square - np.square(mean), 0)),
        "min": colours[:, 2].min(0),
        "max": colours[:, 3].max(0),
    }
    by_name = {name: values.reshape(3, 1, 1).tolist() for name, values in of.items()}
    return {**by_name, "count": [len(colours)]}


def _statistics(values: np.ndarray) -> dict[str, list[float]]:
    return {
        "mean": values.mean(0, dtype=np.float64).tolist(),
        "std": values.std(0, dtype=np.float64).tolist(),
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
        "count": [len(values)],
    }


def _info(layout: Layout, episodes: int, frames: int) -> dict[str, Any]:
    vector = {"dtype": "float32", "shape": [len(layout.channels)], "names": list(layout.channels)}
    scalars = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64"}
    scalars |= {"index": "int64", "task_index": "int64"}
    videos = {
        camera_key(name): {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.fps": layout.fps,
                "video.codec": "h264",
                "video.pix_fmt": _PIXELS,
                "video.height": height,
                "video.width": width,
                "video.channels": 3,
                "video.is_depth_map": False,
                "has_audio": False,
            },
        }
        for name, (width, height) in layout.cameras.items()
    }
    return {
        "codebase_version": FORMAT_VERSION,
        "robot_type": layout.robot,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": len(layout.tasks),
        "chunks_size": 1000,
        "fps": layout.fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "features": {
            **videos,
            STATE: vector,
            ACTION: vector,
            **{key: {"dtype": kind, "shape": [1], "names": None} for key, kind in scalars.items()},
        },
    }
