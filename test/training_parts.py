"""A training small enough for a test: its recipe, and data sets of the simulated arm's kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from bundles import ENGINES

from cosmos3_ros.engine.recipe import Recipe, load_recipe
from cosmos3_ros.policy.embodiment import Embodiment, load_embodiment
from cosmos3_ros.training.dataset_writer import Layout, Recording, finish, write_file

PICO_PANDA: Embodiment = load_embodiment("pico_panda")
TASKS = ("touch the red cube", "lift the blue block", "put it away, please")
FRAMES = 22
# The files of rows of a data set of these, and its tasks.
FIRST, SECOND = (f"data/chunk-000/file-00{i}.parquet" for i in (0, 1))
TASKS_FILE = "meta/tasks.parquet"


def small_recipe(folder: Path, **changes: Any) -> Recipe:
    """Pico's recipe with hardly any pixels, weights and steps. ``changes`` are laid over
    ``training``."""
    recipe = yaml.safe_load((ENGINES / "pico.yaml").read_text())
    recipe |= {"name": "small", "canvas": {"width": 96, "height": 48}}
    recipe["model"]["transformer"] |= {
        "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 2,
    }  # fmt: skip
    recipe["model"]["vae"] |= {"base_dim": 4, "decoder_base_dim": 4, "dim_mult": [1, 1, 1, 1]}
    training = recipe["training"]
    training["data"] |= {"episodes": 4, "held_out": 1, "clips_per_episode": 2}
    training["vae"] |= {"episodes": 3, "short_steps": 2, "long_steps": 1, "decoder_steps": 1}
    training["policy"] |= {"steps": 4, "batch": 4, "captions": 2}
    for section, values in changes.items():
        training[section] = training[section] | values if isinstance(values, dict) else values
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return load_recipe(path)


def recording(seed: int, instruction: str, frames: int = FRAMES) -> Recording:
    """A dark square that wanders over each camera, and joints that wander as slowly."""
    random = np.random.default_rng(seed)
    pictures = {}
    for view in PICO_PANDA.cameras:
        place = random.integers(0, 40, 2)
        shown = np.full((frames, view.height, view.width, 3), 180, np.uint8)
        for i, frame in enumerate(shown):
            row, column = place + i
            frame[row : row + 12, column : column + 12] = (20, 40 * (seed % 5), 90)
        pictures[view.name] = list(shown)
    motion = np.cumsum(random.normal(0, 0.02, (frames + 1, 8)), 0) + PICO_PANDA.offset
    return Recording(pictures, motion[:-1], motion[1:], instruction)


def layout(**changes: Any) -> Layout:
    assert PICO_PANDA.gripper is not None
    channels = (*PICO_PANDA.joints, PICO_PANDA.gripper.joint)
    cameras = {view.name: (view.width, view.height) for view in PICO_PANDA.cameras}
    given = {"robot": "pico_panda", "fps": 15, "cameras": cameras, "channels": channels}
    return Layout(**(given | {"tasks": TASKS} | changes))


def write_demonstrations(path: Path, episodes: int = 4, **changes: Any) -> Path:
    """A data set in two files. ``changes`` are those of its layout."""
    made = layout(**changes)
    recordings = [recording(i, made.tasks[i % len(made.tasks)]) for i in range(episodes)]
    half = -(-episodes // 2)
    for index, part in enumerate((recordings[:half], recordings[half:])):
        write_file(path, made, index, part)
    finish(path, made, 2)
    return path


def trained(folder: Path, **changes: Any) -> Path:
    """A folder with a recipe, a data set and a finished run on it. ``changes``: of the recipe."""
    from cosmos3_ros.training.run import train

    recipe, data = small_recipe(folder, **changes), folder / "data"
    if not data.is_dir():
        write_demonstrations(data)
    # With one thread every run of a recipe is the same, bit for bit.
    train(recipe, PICO_PANDA, folder / "run", dataset=data, compiled=False, threads=1)
    return folder


def edited(path: Path, change: Callable[[pa.Table], pa.Table], file: str) -> Path:
    """A data set with another table in one of its files."""
    target = path / file
    pq.write_table(change(pq.read_table(target)), target)
    return path


def replaced(column: str, values: Callable[[list[Any]], list[Any]]) -> Callable[..., pa.Table]:
    """A change for ``edited``: another column in place of this one."""

    def change(table: pa.Table) -> pa.Table:
        index = table.column_names.index(column)
        return table.set_column(index, column, pa.array(values(table[column].to_pylist())))

    return change


def truncate(video: Path) -> None:
    """What a download that was broken off leaves."""
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])


def index_first(video: Path) -> None:
    """The same video, its index before its frames: cut short, it still opens."""
    remux(video, lambda _: True, movflags="faststart")


def without_frame(video: Path, index: int) -> None:
    """The same video without one of its frames; those after it stay where they are."""
    remux(video, lambda i: i != index)


def remux(video: Path, kept: Callable[[int], bool], **options: str) -> None:
    remuxed = video.with_name("remuxed.mp4")
    with av.open(str(video)) as source, av.open(str(remuxed), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for index, packet in enumerate(source.demux(source.streams.video[0])):
            if packet.dts is not None and kept(index):
                packet.stream = stream
                target.mux(packet)
    remuxed.rename(video)


def point(video: Path) -> None:
    """What a checkout without Git LFS has in place of a file."""
    video.write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    )
