"""Before a training: what it depends on, and what is refused of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cosmos3_ros.engine.recipe import Recipe, RecipeError
from cosmos3_ros.engine.session import Contract
from cosmos3_ros.policy.embodiment import Embodiment, load_embodiment
from cosmos3_ros.replay.episode import load_dataset
from cosmos3_ros.sim.expert import RATE_HZ
from cosmos3_ros.sim.world import CAMERAS
from cosmos3_ros.training.dataset import files_of, joint_names, meta_sha256
from cosmos3_ros.training.episodes import EMBODIMENT, SHORTEST
from cosmos3_ros.training.runs import TrainingError, write_json
from cosmos3_ros.training.settings import TrainingSettings

_RUN = "run.json"
# Of a run that is not the one wanted, so many differences are named.
_NAMED = 4
# What no training looks at, of an embodiment and of its channels.
_NOT_TRAINED_ON = ("description", "base_frame")
_LIMITS = ("lower", "upper", "velocity", "acceleration", "jump")


def require_trainable(recipe: Recipe, embodiment: Embodiment) -> None:
    """Raises RecipeError where there is no model, EmbodimentError for rows that cannot be read."""
    model = recipe.model
    if model.random_seed is not None or not model.transformer or not model.vae:
        raise RecipeError(
            f"recipe '{recipe.name}' names no model to train; expected model.transformer and "
            "model.vae, and no random_seed"
        )
    if model.tokenizer != "tokenizer_json":
        raise RecipeError(
            f"recipe '{recipe.name}' has model.tokenizer {model.tokenizer}; a training makes one "
            "of its own, expected tokenizer_json"
        )
    joint_names(embodiment)
    embodiment.require_normalisation()


def require_no_padding(recipe: Recipe, contract: Contract) -> None:
    """The latents of padding are no part of a clip's: raises RecipeError where there are any."""
    canvas = (contract.canvas_width, contract.canvas_height)
    content = (contract.content_width, contract.content_height)
    if content != canvas:
        raise RecipeError(
            f"recipe '{recipe.name}' has a canvas of {canvas[0]}x{canvas[1]}, of which embodiment "
            f"'{contract.embodiment}' fills {content[0]}x{content[1]}; expected canvases of one "
            "shape, in multiples of 16"
        )


def require_simulated_arm(embodiment: Embodiment, contract: Contract) -> None:
    """Raises TrainingError where the simulated arm's demonstrations will not fit."""
    arm = load_embodiment(EMBODIMENT)
    if joint_names(embodiment) != joint_names(arm):
        raise TrainingError(
            f"embodiment '{embodiment.name}' is another robot than the simulated arm, whose "
            "demonstrations are made where no data set is given; name one with --dataset"
        )
    made = "where no data set is given the simulated arm's demonstrations are made,"
    unseen = [view.name for view in embodiment.cameras if view.name not in CAMERAS]
    if unseen:
        raise TrainingError(
            f"embodiment '{embodiment.name}' has a camera '{unseen[0]}'; {made} whose cameras are "
            f"{', '.join(CAMERAS)}; take these, or name a data set with --dataset"
        )
    if abs(contract.fps - RATE_HZ) > 1e-6:
        raise TrainingError(
            f"the rate is {contract.fps:g} frames a second; {made} at {RATE_HZ:g}: set that as the "
            "recipe's fps, or name a data set with --dataset"
        )
    if contract.chunk >= SHORTEST:
        raise TrainingError(
            f"chunk is {contract.chunk}; {made} the shortest of {SHORTEST} frames: expected less, "
            "or name a data set with --dataset"
        )


def require_compiler() -> None:
    """What torch.compile will look for. Raises TrainingError where it is not there."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise TrainingError(
            f"torch.compile needs a C++ compiler, and '{compiler}' is not there; install g++, or "
            "train with --no-compile, which takes longer"
        )


def run_of(
    recipe: Recipe, embodiment: Embodiment, settings: TrainingSettings, dataset: Path | None
) -> dict[str, Any]:
    """Everything that a training depends on: a run goes on where nothing of it differs.

    Raises LeRobotError for what is no data set.
    """
    return {
        "recipe": recipe.name,
        "dataset": None if dataset is None else str(load_dataset(dataset).path.resolve()),
        "dataset_meta_sha256": None if dataset is None else meta_sha256(dataset),
        "dataset_files": {} if dataset is None else files_of(dataset),
        "training": asdict(settings),
        "model": asdict(recipe.model),
        "chunk": recipe.chunk,
        "fps": recipe.fps or embodiment.rate_hz,
        "tier": recipe.tier,
        "canvas": recipe.canvas,
        "shift": recipe.shift,
        "text_tokens": recipe.text_tokens,
        "embodiment": _trained_on(embodiment),
    }


def _trained_on(embodiment: Embodiment) -> dict[str, Any]:
    kept = {key: v for key, v in asdict(embodiment).items() if key not in _NOT_TRAINED_ON}
    kept["channels"] = [
        {key: v for key, v in channel.items() if key not in _LIMITS} for channel in kept["channels"]
    ]
    if kept["gripper"]:
        del kept["gripper"]["hysteresis"]
    return kept


def require_same_run(out: Path, run: Mapping[str, Any]) -> None:
    """Raises TrainingError where a folder holds something else than this run or a part of it.

    ``run``: everything that the run depends on, as ``write_run`` keeps it.
    """
    file = out / _RUN
    if not file.is_file():
        if out.exists() and any(out.iterdir()):
            raise TrainingError(f"'{out}' is not empty and no run; name another folder")
        return
    try:
        found = dict(_leaves(json.loads(file.read_text())))
    except ValueError as error:
        raise TrainingError(
            f"'{file}' is no JSON ({error}), so it cannot be told which run this is; name another "
            "folder, or remove this one"
        ) from error
    wanted = dict(_leaves(run))
    differing = [
        f"{key} is {found.get(key, 'missing')}, expected {wanted.get(key, 'none')}"
        for key in {**wanted, **found}
        if key not in found or key not in wanted or found[key] != wanted[key]
    ]
    if differing:
        more = len(differing) - _NAMED
        raise TrainingError(
            f"'{out}' holds another run: {'; '.join(differing[:_NAMED])}"
            f"{f'; and {more} more' if more > 0 else ''}; name another folder, or remove it"
        )


def write_run(out: Path, run: Mapping[str, Any]) -> None:
    """Mark a folder as this run's."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / _RUN, run)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What stands in nested mappings and lists, each under its dotted name."""
    if isinstance(value, Mapping):
        parts: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    else:
        yield name, value
        return
    for key, part in parts:
        yield from _leaves(part, f"{name}.{key}" if name else str(key))
