"""Exports: whole or not at all, and refused where recipe, checkpoint and robot do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from bundles import ROOT, TINY, Exported, exported

from cosmos3_ros.engine.backends import open_backend
from cosmos3_ros.engine.bundle import BundleError, load_bundle
from cosmos3_ros.engine.export import export
from cosmos3_ros.engine.export_model import make_components
from cosmos3_ros.engine.recipe import RecipeError, load_recipe
from cosmos3_ros.export_command import body_of
from cosmos3_ros.policy.embodiment import load_embodiment


class Interrupted(Exception):
    """Stands for whatever ends an export half way."""


def changed_recipe(folder: Path, **changes: object) -> Path:
    recipe = yaml.safe_load(TINY.read_text())
    recipe |= changes
    path = folder / f"{recipe['name']}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model written to disk in diffusers' layout."""
    folder = tmp_path_factory.mktemp("checkpoint")
    parts = make_components(load_recipe(TINY), None)
    parts.transformer.save_pretrained(folder / "transformer")
    parts.vae.save_pretrained(folder / "vae")
    parts.scheduler.save_pretrained(folder / "scheduler")
    parts.tokenizer.save_pretrained(folder / "text_tokenizer")
    return folder


def from_checkpoint(folder: Path, **changes: object) -> Path:
    model = yaml.safe_load(TINY.read_text())["model"] | {"tokenizer": "checkpoint"}
    del model["random_seed"]
    return changed_recipe(folder, **({"name": "kept", "model": model} | changes))


def test_a_checkpoint_gives_the_bundle_its_weights_would(
    checkpoint: Path, tiny: Exported, tmp_path: Path
) -> None:
    recipe = load_recipe(from_checkpoint(tmp_path))
    bundle = export(recipe, body_of(tiny.embodiment), tmp_path / "kept", checkpoint)
    assert bundle.manifest.source == checkpoint.name
    assert bundle.manifest.contract == tiny.bundle.manifest.contract
    ids = {"token_ids": np.arange(640) % 256}
    ours = open_backend(bundle, "onnxruntime", 2)["text"].run(ids)
    expected = open_backend(tiny.bundle, "onnxruntime", 2)["text"].run(ids)
    assert np.abs(ours["keys"] - expected["keys"]).max() < 1e-6


def test_an_interrupted_export_leaves_nothing_and_keeps_the_earlier_bundle(
    tiny: Exported, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    for file in tiny.bundle.path.iterdir():
        (out / file.name).write_bytes(file.read_bytes())

    def stop_at_image(step: str) -> None:
        if step == "image":
            raise Interrupted

    with pytest.raises(Interrupted):
        export(tiny.recipe, body_of(tiny.embodiment), out, progress=stop_at_image)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert load_bundle(out).sha256 == tiny.bundle.sha256


def test_a_folder_that_is_no_bundle_is_not_replaced(tiny: Exported, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RecipeError, match="exists and is no bundle"):
        export(tiny.recipe, body_of(tiny.embodiment), tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_a_recipe_of_the_released_model_asks_for_its_checkpoint(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "engines" / "nano_droid.yaml")
    body = body_of(load_embodiment(recipe.embodiment))
    with pytest.raises(RecipeError, match=r"'nano_droid' needs weights.*add --checkpoint DIR"):
        export(recipe, body, tmp_path / "nano")


def test_a_checkpoint_of_another_size_is_refused_by_value(checkpoint: Path, tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "engines" / "nano_droid.yaml")
    body = body_of(load_embodiment(recipe.embodiment))
    with pytest.raises(RecipeError, match="hidden_size is 64, expected 4096"):
        export(recipe, body, tmp_path / "nano", checkpoint)


def test_a_folder_without_a_transformer_is_no_checkpoint(tiny: Exported, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no transformer/config.json; expected diffusers"):
        export(tiny.recipe, body_of(tiny.embodiment), tmp_path / "out", tmp_path)


def test_a_checkpoint_without_action_head_is_refused(
    checkpoint: Path, tiny: Exported, tmp_path: Path
) -> None:
    folder = tmp_path / "videoonly"
    for part in ("transformer", "vae"):
        (folder / part).mkdir(parents=True)
        config = json.loads((checkpoint / part / "config.json").read_text())
        (folder / part / "config.json").write_text(json.dumps(config | {"action_gen": False}))
    with pytest.raises(RecipeError, match="has no action head"):
        export(tiny.recipe, body_of(tiny.embodiment), tmp_path / "out", folder)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"domain_id": 32}, r"has domain 32; the model knows 0..31"),
        ({"width": 65}, "has 65 channels, the model's action head 64"),
        ({"picture_width": 0}, "give it cameras and a canvas"),
        ({"rate_hz": None}, "has no fps and embodiment 'sim_panda' no rate_hz"),
    ],
)
def test_a_robot_that_the_model_cannot_serve_is_refused(
    body: dict[str, object], message: str, tiny: Exported, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        export(tiny.recipe, replace(body_of(tiny.embodiment), **body), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_bf16_graphs_are_made_and_refused_by_a_cpu_that_cannot_run_them(tmp_path: Path) -> None:
    path = changed_recipe(tmp_path, name="tiny_bf16", precision="bf16")
    made = exported(path, ROOT / "config" / "embodiments" / "sim_panda.yaml")
    assert made.bundle.manifest.graphs["text"].outputs["keys"].type == "bfloat16"
    assert made.bundle.manifest.graphs["denoise"].inputs["latents"].type == "float32"
    with pytest.raises(BundleError, match="cannot run the text graph in bf16 on this CPU"):
        open_backend(made.bundle, "onnxruntime", 1)
