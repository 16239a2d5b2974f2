"""Recipes: what ships is readable, what is wrong is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import ROOT, TINY

from cosmos3_ros.engine.recipe import RecipeError, load_recipe


@pytest.mark.parametrize("path", sorted((ROOT / "engines").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_loads_under_its_own_name(path: Path) -> None:
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("chunk: 16", "chunks: 16"), "unknown keys chunks; expected name"),
        (("chunk: 16", ""), "the top level lacks chunk"),
        (("chunk: 16", "chunk: 15"), "chunk is 15; expected a multiple of 4"),
        (("chunk: 16", "chunk: many"), "chunk is 'many'; expected an integer"),
        (("steps: 4", "steps: 0"), "sampler.steps is 0; expected an integer of at least 1"),
        (("guidance: 3.0", "guide: 3.0"), "sampler has unknown keys guide"),
        (("precision: fp32", "precision: int3"), "precision is 'int3'; expected one of fp32"),
        (("canvas:", "tier: 480\ncanvas:"), "exactly one of 'canvas' and 'tier'"),
        (("canvas: {width: 128, height: 96}", "tier: 300"), "tier is 300; expected one of 256"),
        (("tokenizer: byte_level", "tokenizer: words"), "model.tokenizer is 'words'"),
        (("  vae:", "  sound: 1\n  vae:"), "model has unknown keys sound"),
        (("name: tiny", "name: [tiny"), "is not YAML"),
    ],
)
def test_a_bad_recipe_is_refused_with_what_was_found_and_expected(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    text = TINY.read_text()
    assert change[0] in text
    path = tmp_path / "bad.yaml"
    path.write_text(text.replace(change[0], change[1], 1))
    with pytest.raises(RecipeError, match=message) as refusal:
        load_recipe(path)
    assert str(path) in str(refusal.value)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nothing.yaml' does not exist"):
        load_recipe(tmp_path / "nothing.yaml")
