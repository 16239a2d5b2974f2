"""One episode of a LeRobot v3 data set: its columns, its instructions, its videos."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FORMAT_VERSION = "v3.0"
# A frame is the one wanted when it is nearer than this part of a frame's time.
FRAME_TOLERANCE = 0.45


class LeRobotError(ValueError):
    """A data set or an episode of it is not what is needed."""


@dataclass(frozen=True)
class Dataset:
    """What ``meta/info.json`` says. ``features`` maps a column or camera to its description."""

    path: Path
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    data_path: str
    video_path: str

    @property
    def cameras(self) -> list[str]:
        """Keys of the cameras that are stored as video."""
        return [key for key, feature in self.features.items() if feature.get("dtype") == "video"]


@dataclass(frozen=True)
class Episode:
    """``rows``: the frames' columns; ``meta``: the episode's row of ``meta/episodes``.

    ``tasks`` maps a task index to its text.
    """

    dataset: Dataset
    index: int
    rows: pa.Table
    meta: Mapping[str, Any]
    tasks: Mapping[int, str]

    @cached_property
    def times_s(self) -> np.ndarray:
        """Time of each frame from the episode's start [n] in seconds, rising."""
        return self.numbers("timestamp")[:, 0]

    @property
    def instructions(self) -> list[str]:
        """Instruction of each frame [n]; empty where the data set has none."""
        if "task_index" not in self.rows.column_names:
            return [""] * len(self.rows)
        return [_first_wording(self.tasks.get(i, "")) for i in self.rows["task_index"].to_pylist()]

    def numbers(self, column: str) -> np.ndarray:
        """A column as float64 [n, width]; a scalar column has width 1.

        Raises LeRobotError for a column that is missing, ragged, or not finite.
        """
        if column not in self.rows.column_names:
            raise LeRobotError(
                f"episode {self.index} of '{self.dataset.path}' has no column '{column}'; found "
                f"{', '.join(sorted(self.rows.column_names))}"
            )
        try:
            values = np.array(self.rows[column].to_pylist(), np.float64)
        except (TypeError, ValueError) as error:
            raise LeRobotError(
                f"episode {self.index} of '{self.dataset.path}': column '{column}' is no table of "
                f"numbers ({error}); expected as many in every row"
            ) from None
        values = values.reshape(len(self.rows), -1)
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
            raise LeRobotError(
                f"episode {self.index} of '{self.dataset.path}': column '{column}' is NaN or "
                f"infinite in row {row}; expected finite numbers: mend the row, or leave the "
                "episode out"
            )
        return values

    def video_file(self, camera: str) -> Path:
        """Where the episode's video of a camera should lie."""
        place = {
            kind: int(self.meta.get(f"videos/{camera}/{kind}_index") or 0)
            for kind in ("chunk", "file")
        }
        return self.dataset.path / _formatted(self.dataset.video_path, place, video_key=camera)

    def frame_times_s(self, camera: str) -> np.ndarray:
        """Time of each frame from the start of the camera's video [n] in seconds."""
        return float(self.meta.get(f"videos/{camera}/from_timestamp") or 0.0) + self.times_s

    def frames(self, camera: str) -> Iterator[np.ndarray]:
        """Pictures of a camera, one a row: uint8 RGB [h, w, 3].

        Raises LeRobotError where the video is missing, cannot be decoded, or lacks a frame.
        """
        return self._frames_at(camera, self.frame_times_s(camera))

    def last_frame(self, camera: str) -> np.ndarray:
        """The last of ``frames``, without those before it; raises as they do."""
        (frame,) = self._frames_at(camera, self.frame_times_s(camera)[-1:])
        return frame

    def require_frames(self, camera: str, shown_s: np.ndarray) -> None:
        """Raises LeRobotError where a frame is not among the times of the camera's video, as
        ``video_times_s`` gives them."""
        wanted_s = self.frame_times_s(camera)
        edges = np.concatenate([[-np.inf], shown_s, [np.inf]])
        after = np.searchsorted(edges, wanted_s)
        off_s = np.minimum(wanted_s - edges[after - 1], edges[after] - wanted_s)
        lacking = np.flatnonzero(off_s > FRAME_TOLERANCE / self.dataset.fps)
        if len(lacking):
            raise _lacks_frame(self.video_file(camera), wanted_s[lacking[0]], wanted_s)

    def _frames_at(self, camera: str, times_s: np.ndarray) -> Iterator[np.ndarray]:
        return _frames_at(self.video_file(camera), times_s, FRAME_TOLERANCE / self.dataset.fps)


def video_times_s(video: Path) -> np.ndarray:
    """Time of every frame of a video, rising, in seconds. Nothing is decoded.

    Raises LeRobotError for what is no video.
    """
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            assert stream.time_base is not None
            stamps = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
            return np.sort(np.array(stamps, np.float64)) * float(stream.time_base)
    except (av.FFmpegError, IndexError) as error:
        raise _not_decoded(video, error) from error


def load_dataset(path: Path) -> Dataset:
    """Read ``meta/info.json``. Raises LeRobotError for what is no LeRobot v3 data set."""
    info_file = path / "meta" / "info.json"
    if not info_file.is_file():
        raise LeRobotError(
            f"'{path}' is no LeRobot data set: it has no meta/info.json; expected the folder that "
            "holds meta, data and videos"
        )
    try:
        info = json.loads(info_file.read_text())
        version = str(info.get("codebase_version", "none"))
        if not version.startswith("v3."):
            raise LeRobotError(
                f"data set '{path}' has codebase_version {version}; expected {FORMAT_VERSION}: "
                "convert it with LeRobot's own converter"
            )
        return Dataset(
            path=path,
            fps=float(info["fps"]),
            features=info["features"],
            data_path=info["data_path"],
            video_path=info.get("video_path") or "",
        )
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise LeRobotError(
            f"'{info_file}' is not what LeRobot {FORMAT_VERSION} writes: {error!r}"
        ) from error


def load_episode(dataset: Dataset, index: int) -> Episode:
    """Read one episode. Raises LeRobotError when there is none of this index, or it is broken."""
    try:
        meta = _episode_meta(dataset, index)
        (data_file,) = _data_files(dataset, [meta]).values()
        rows = pq.read_table(data_file, filters=[("episode_index", "=", index)])
        tasks = _tasks(dataset)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise LeRobotError(
            f"episode {index} of '{dataset.path}' cannot be read: {error}; expected LeRobot's "
            f"{FORMAT_VERSION} layout, is the download whole?"
        ) from error
    episode = Episode(dataset, index, rows, meta, tasks)
    _check_rows(episode)
    return episode


def load_episodes(dataset: Dataset) -> list[Episode]:
    """Read all episodes, in their order, each file once.

    Raises LeRobotError when there is none, or one is broken.
    """
    try:
        metas = sorted(_episode_metas(dataset), key=lambda meta: int(meta["episode_index"]))
        tables = {place: _numbers_of(file) for place, file in _data_files(dataset, metas).items()}
        tasks = _tasks(dataset) if metas else {}
        episodes = [
            Episode(dataset, meta["episode_index"], rows, meta, tasks)
            for meta in metas
            for rows in [_rows_of(tables[_data_place(meta)], meta["episode_index"])]
        ]
    except (OSError, pa.ArrowException, KeyError) as error:
        raise LeRobotError(
            f"'{dataset.path}' cannot be read: {error}; expected LeRobot's {FORMAT_VERSION} "
            "layout, is the download whole?"
        ) from error
    if not episodes:
        raise LeRobotError(f"data set '{dataset.path}' has no episodes; expected at least one")
    for episode in episodes:
        _check_rows(episode)
    return episodes


def _data_place(meta: Mapping[str, Any]) -> tuple[int, int]:
    """Chunk and file of an episode's rows."""
    return int(meta.get("data/chunk_index") or 0), int(meta.get("data/file_index") or 0)


def _data_files(dataset: Dataset, metas: list[dict[str, Any]]) -> dict[tuple[int, int], Path]:
    return {
        (chunk, file): dataset.path / _formatted(dataset.data_path, {"chunk": chunk, "file": file})
        for chunk, file in {_data_place(meta) for meta in metas}
    }


def _numbers_of(file: Path) -> pa.Table:
    """A file's rows without pictures, which may stand in columns and would all be in memory."""
    kept = [field.name for field in pq.read_schema(file) if not _holds_pictures(field.type)]
    return pq.read_table(file, columns=kept)


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_nested(kind) and not pa.types.is_struct(kind):
        return _holds_pictures(kind.field(0).type)
    if pa.types.is_dictionary(kind):
        return _holds_pictures(kind.value_type)
    of_bytes = pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary
    return pa.types.is_struct(kind) or any(of(kind) for of in of_bytes)


def _rows_of(table: pa.Table, index: int) -> pa.Table:
    """An episode's rows, which stand together."""
    there = np.flatnonzero(np.asarray(table["episode_index"]) == index)
    if not len(there):
        return table.slice(0, 0)
    if there[-1] - there[0] + 1 != len(there):
        return table.take(there)
    return table.slice(int(there[0]), len(there))


def _check_rows(episode: Episode) -> None:
    expected = int(episode.meta.get("length") or len(episode.rows))
    if len(episode.rows) == 0 or len(episode.rows) != expected:
        raise LeRobotError(
            f"episode {episode.index} of '{episode.dataset.path}' has {len(episode.rows)} rows; "
            f"expected {expected}, at least one"
        )
    if (np.diff(episode.times_s) <= 0).any() or episode.times_s[0] < 0:
        row = int(np.argmax(np.diff(episode.times_s) <= 0)) + 1
        raise LeRobotError(
            f"timestamps of episode {episode.index} do not rise from 0 on, see row {row}; expected "
            "seconds from the episode's start"
        )


def _episode_meta(dataset: Dataset, index: int) -> dict[str, Any]:
    """The row of ``meta/episodes`` for an episode, without its statistics."""
    found: list[int] = []
    for row in _episode_metas(dataset):
        if row["episode_index"] == index:
            return row
        found.append(row["episode_index"])
    there = f"{min(found)} to {max(found)}" if found else "none"
    raise LeRobotError(
        f"data set '{dataset.path}' has no episode {index}; it has {there} (--episode)"
    )


def _episode_metas(dataset: Dataset) -> Iterator[dict[str, Any]]:
    for file in sorted((dataset.path / "meta" / "episodes").glob("*/*.parquet")):
        names = pq.read_schema(file).names
        columns = [name for name in names if not name.startswith("stats/")]
        yield from pq.read_table(file, columns=columns).to_pylist()


def _tasks(dataset: Dataset) -> dict[int, str]:
    """Texts by task index. The text is a column, or the index that pandas stored beside it."""
    table = pq.read_table(dataset.path / "meta" / "tasks.parquet")
    text = next(name for name in table.column_names if name != "task_index")
    return dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))


def _first_wording(task: str) -> str:
    """DROID joins several people's wordings of one task by bars, and leaves gaps between them."""
    return next((words.strip() for words in task.split(" | ") if words.strip(" |")), "")


def _formatted(pattern: str, place: Mapping[str, int], **more: str) -> str:
    """LeRobot's own files say ``chunk_index``, files in the wild also say ``episode_chunk``."""
    return pattern.format(
        chunk_index=place["chunk"],
        file_index=place["file"],
        episode_chunk=place["chunk"],
        episode_file=place["file"],
        **more,
    )


def _frames_at(video: Path, times_s: np.ndarray, tolerance_s: float) -> Iterator[np.ndarray]:
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            assert stream.time_base is not None
            # Back to the keyframe before the first frame: one file holds many episodes.
            container.seek(int(max(times_s[0], 0) / stream.time_base), stream=stream)
            wanted = iter(times_s.tolist())
            time_s = next(wanted, None)
            for frame in container.decode(stream):
                shown_s = frame.time or 0.0
                if time_s is None or shown_s > time_s + tolerance_s:
                    break
                while time_s is not None and abs(shown_s - time_s) <= tolerance_s:
                    yield frame.to_ndarray(format="rgb24")
                    time_s = next(wanted, None)
    except (av.FFmpegError, IndexError) as error:
        raise _not_decoded(video, error) from error
    if time_s is not None:
        raise _lacks_frame(video, time_s, times_s)


def _not_decoded(video: Path, error: Exception) -> LeRobotError:
    return LeRobotError(
        f"video '{video}' cannot be decoded: {error}; expected what LeRobot wrote, is the "
        "download whole?"
    )


def _lacks_frame(video: Path, time_s: float, times_s: np.ndarray) -> LeRobotError:
    return LeRobotError(
        f"video '{video}' has no frame at {time_s:.3f} s; expected one every frame of the "
        f"episode, {times_s[0]:.3f} to {times_s[-1]:.3f} s"
    )
