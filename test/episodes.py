"""LeRobot v3 data sets that the tests stand on, laid out as LeRobot lays them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from recordings import FPS, HEIGHT, WIDTH

# A data set of two episodes in one file, as LeRobot v3 packs them.
LENGTHS = (12, 9)
CAMERAS = ("observation.images.wrist_image_left", "observation.images.exterior_image_1_left")


def shade(camera: int, episode: int, frame: int) -> int:
    """Brightness by which a frame of the data set is told from every other one."""
    return 20 + 100 * camera + 60 * episode + 4 * frame


def write_dataset(path: Path, **changes: Any) -> Path:
    """Two episodes. ``changes`` replace columns of the data by name, or ``info`` entries.

    A column that is replaced by None is left out.
    """
    info = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {
            **{key: {"dtype": "video", "shape": [HEIGHT, WIDTH, 3]} for key in CAMERAS},
            "observation.state": {"dtype": "float32", "shape": [8]},
            "action": {"dtype": "float32", "shape": [8]},
        },
    }
    (path / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (path / "meta" / "info.json").write_text(json.dumps(info | changes.pop("info", {})))
    tasks = {"task_index": [0, 1, 2], "__index_level_0__": ["a", " | Pick it up. | Take it", "c"]}
    pq.write_table(pa.table(tasks), path / "meta" / "tasks.parquet")

    starts = [0, LENGTHS[0]]
    episodes: dict[str, list[Any]] = {
        "episode_index": [0, 1],
        "length": list(LENGTHS),
        "dataset_from_index": starts,
        "dataset_to_index": [LENGTHS[0], sum(LENGTHS)],
        "data/chunk_index": [0, 0],
        "data/file_index": [3, 3],
        "stats/action/mean": [[0.0], [0.0]],
    }
    for key in CAMERAS:
        episodes[f"videos/{key}/chunk_index"] = [0, 0]
        episodes[f"videos/{key}/file_index"] = [1, 1]
        episodes[f"videos/{key}/from_timestamp"] = [start / FPS for start in starts]
    meta_file = path / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    pq.write_table(pa.table(episodes), meta_file)

    frames = [(e, f) for e, length in enumerate(LENGTHS) for f in range(length)]
    columns: dict[str, Any] = {
        "episode_index": [e for e, _ in frames],
        "frame_index": [f for _, f in frames],
        "timestamp": pa.array([f / FPS for _, f in frames], pa.float32()),
        "task_index": [1 if e == 0 or f < 5 else 2 for e, f in frames],
        "observation.state": [[0.1 * j + e for j in range(7)] + [f / 20] for e, f in frames],
        "action": [[0.2 * j + e for j in range(7)] + [0.5] for e, f in frames],
    }
    (path / "data" / "chunk-000").mkdir(parents=True)
    data = {name: values for name, values in (columns | changes).items() if values is not None}
    pq.write_table(pa.table(data), path / "data" / "chunk-000" / "file-003.parquet")

    for camera, key in enumerate(CAMERAS):
        video = path / "videos" / key / "chunk-000" / "file-001.mp4"
        video.parent.mkdir(parents=True)
        write_video(video, [shade(camera, e, f) for e, f in frames])
    return path


def write_video(path: Path, shades: list[int]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "5", "g": "6"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for brightness in shades:
            picture = np.full((HEIGHT, WIDTH, 3), brightness, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
