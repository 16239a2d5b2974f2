"""Synthetic checkpoints: of a recipe's shape, readable as real ones, and finite all the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from bundles import TINY
from diffusers import AutoencoderKLWan, Cosmos3OmniTransformer

from cosmos3_ros.cli import main
from cosmos3_ros.engine.export_checkpoint import INDEX
from cosmos3_ros.engine.export_model import make_components, open_components
from cosmos3_ros.engine.export_reference import stock_text
from cosmos3_ros.engine.export_synthetic import write_checkpoint
from cosmos3_ros.engine.recipe import Recipe, load_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("recipe") / "from_checkpoint.yaml"
    model = {"random_seed": None, "tokenizer": "checkpoint"}
    path.write_text(yaml.safe_dump({"name": path.stem, "extends": str(TINY), "model": model}))
    return load_recipe(path)


@pytest.fixture(scope="module")
def checkpoint(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "checkpoint"
    write_checkpoint(recipe, folder, seed=0, shard_bytes=300_000)
    return folder


def test_an_export_takes_it_for_a_checkpoint(recipe: Recipe, checkpoint: Path) -> None:
    components = open_components(recipe, checkpoint)
    for name in components.transformer_weights.shapes:
        components.transformer_weights.read(name)
    assert components.source == "checkpoint"
    assert components.tokenizer("a b")["input_ids"]


def test_its_tokenizer_is_where_the_recipe_looks_for_it(recipe: Recipe, tmp_path: Path) -> None:
    bare = replace(recipe, model=replace(recipe.model, tokenizer="tokenizer_json"))
    write_checkpoint(bare, tmp_path / "made", seed=0)
    assert open_components(bare, tmp_path / "made").tokenizer("a b")["input_ids"]


def test_diffusers_reads_it_shard_by_shard(checkpoint: Path) -> None:
    index = json.loads((checkpoint / "transformer" / INDEX).read_text())
    shards = sorted((checkpoint / "transformer").glob("*.safetensors"))
    assert len(shards) == len(set(index["weight_map"].values())) > 3
    # A shard is closed when it is full; one tensor may be larger than that.
    assert sorted(shard.stat().st_size for shard in shards)[len(shards) // 2] < 400_000
    for model, part in ((Cosmos3OmniTransformer, "transformer"), (AutoencoderKLWan, "vae")):
        loaded = model.from_pretrained(checkpoint / part, torch_dtype=torch.float32)
        assert all(torch.isfinite(tensor).all() for tensor in loaded.state_dict().values())


def test_every_tensor_is_of_the_size_that_keeps_activations_finite(
    recipe: Recipe, checkpoint: Path
) -> None:
    weights = open_components(recipe, checkpoint).transformer_weights
    linear = weights.read("layers.0.mlp_moe_gen.down_proj.weight").astype(np.float32)
    assert linear.std() == pytest.approx(128**-0.5, rel=0.1)
    norm = weights.read("layers.0.input_layernorm.weight").astype(np.float32)
    assert norm.mean() == pytest.approx(1.0, abs=0.05)
    domain = weights.read("action_proj_out.fc.weight").astype(np.float32)
    assert domain.std() == pytest.approx(64**-0.5, rel=0.1)
    rows = linear[:, :8]
    assert len(np.unique(rows, axis=0)) == len(rows)
    other = weights.read("layers.1.mlp_moe_gen.down_proj.weight").astype(np.float32)
    assert (linear != other).mean() > 0.9
    keys = stock_text(make_components(recipe, checkpoint), list(range(40)))["keys"]
    assert np.isfinite(keys).all() and 0.1 < keys.std() < 10


def test_the_same_seed_writes_the_same_bytes(
    recipe: Recipe, checkpoint: Path, tmp_path: Path
) -> None:
    write_checkpoint(recipe, tmp_path / "same", seed=0, shard_bytes=300_000)
    write_checkpoint(recipe, tmp_path / "other", seed=1, shard_bytes=300_000)
    names = [path.relative_to(checkpoint) for path in checkpoint.rglob("*.safetensors")]
    assert all((tmp_path / "same" / n).read_bytes() == (checkpoint / n).read_bytes() for n in names)
    assert all(
        (tmp_path / "other" / n).read_bytes() != (checkpoint / n).read_bytes() for n in names
    )


def test_the_command_writes_a_new_folder_and_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made"
    assert main(["synthetic-checkpoint", str(TINY), "--out", str(out)]) == 0
    assert "its weights mean nothing" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        "transformer",
        "vae",
        "text_tokenizer",
        "scheduler",
    }
    assert main(["synthetic-checkpoint", str(TINY), "--out", str(out)]) == 1
    assert "made' exists; name a new folder" in capsys.readouterr().err
