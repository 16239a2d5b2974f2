"""The policy that ships is what its recipe says, and small."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from bundles import ENGINES, Exported
from safetensors import safe_open

from cosmos3_ros.engine.recipe import load_recipe
from cosmos3_ros.training.settings import training_settings

CHECKPOINT = ENGINES / "pico_checkpoint"


def test_it_was_exported_by_the_recipe_that_trains_it(pico: Exported) -> None:
    kept, recipe = (
        load_recipe(p) for p in (pico.bundle.path / "recipe.yaml", ENGINES / "pico.yaml")
    )
    assert kept == replace(recipe, training=kept.training)
    assert kept.training == facts()["training"]
    assert training_settings(kept) == training_settings(recipe)
    contract = pico.bundle.manifest.contract
    assert (contract.chunk, contract.sampler.steps) == (kept.chunk, kept.steps)


def test_it_is_of_one_training_from_nothing_in_at_most_three_hours_on_two_cores() -> None:
    found = facts()
    minutes = [found[f"{s}_minutes"] for s in ("demonstrations", "vae", "latents", "policy")]
    assert min(minutes) > 0
    assert sum(minutes) == pytest.approx(found["minutes"], abs=0.3)
    assert found["minutes"] <= 180
    assert found["cores"] == found["threads"] == 2
    settings = training_settings(load_recipe(ENGINES / "pico.yaml"))
    assert (found["episodes"], found["held_out_episodes"]) == (
        settings.data.episodes,
        settings.data.held_out,
    )


def test_it_has_at_most_12_million_weights_and_40_megabytes(pico: Exported) -> None:
    weights = 0
    for part in ("transformer", "vae"):
        file = CHECKPOINT / part / "diffusion_pytorch_model.safetensors"
        with safe_open(file, "pt") as tensors:
            names = tensors.keys()
            weights += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    assert 1_000_000 < weights <= 12_000_000
    assert sum(path.stat().st_size for path in pico.bundle.path.iterdir()) <= 40_000_000


def facts() -> dict[str, Any]:
    """What its training said at its end."""
    return dict(json.loads((CHECKPOINT / "training.json").read_text()))
