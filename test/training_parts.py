"""A training small enough for a test: its recipe, and data sets of the simulated arm's kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from bundles import ENGINES

from cosmos3_ros.engine.recipe import Recipe, load_recipe
from cosmos3_ros.policy.embodiment import Embodiment, load_embodiment
from cosmos3_ros.training.dataset_writer import Layout, Recording, finish, write_file

PICO_PANDA: Embodiment = load_embodiment("pico_panda")
TASKS = ("touch the red cube", "lift the blue block", "put it away, please")
FRAMES = 22


def small_recipe(folder: Path, **changes: Any) -> Recipe:
    """Pico's recipe with hardly any weights and steps. ``changes`` are laid over ``training``."""
    recipe = yaml.safe_load((ENGINES / "pico.yaml").read_text())
    recipe["name"] = "small"
    recipe["model"]["transformer"] |= {
        "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2,
        "num_key_value_heads": 1, "num_hidden_layers": 2,
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
