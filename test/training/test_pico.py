"""The policy that ships is what its recipe says, and small."""

from __future__ import annotations

import math

import yaml
from bundles import ENGINES, Exported
from safetensors import safe_open

from cosmos3_ros.engine.recipe import load_recipe
from cosmos3_ros.training.settings import training_settings

CHECKPOINT = ENGINES / "pico_checkpoint"


def test_it_was_exported_by_the_recipe_that_trains_it(pico: Exported) -> None:
    kept = load_recipe(pico.bundle.path / "recipe.yaml")
    assert kept == load_recipe(ENGINES / "pico.yaml")
    contract = pico.bundle.manifest.contract
    assert (contract.chunk, contract.sampler.steps) == (kept.chunk, kept.steps)
    assert (
        training_settings(kept).seed
        == yaml.safe_load((CHECKPOINT / "training.json").read_text())["seed"]
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
