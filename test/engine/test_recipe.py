"""Recipes: what ships is readable, what is wrong is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from bundles import ENGINES, TINY

from cosmos3_ros.engine.recipe import GuidanceSchedule, Recipe, RecipeError, load_recipe


@pytest.mark.parametrize("path", sorted(ENGINES.glob("*.yaml")), ids=lambda p: p.stem)
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


def extended(folder: Path, **changes: Any) -> Recipe:
    """Tiny with changes laid over it."""
    path = folder / "over.yaml"
    path.write_text(yaml.safe_dump({"name": "over", "extends": str(TINY)} | changes))
    return load_recipe(path)


def test_a_recipe_that_extends_another_changes_what_it_names_and_nothing_else(
    tmp_path: Path,
) -> None:
    base = load_recipe(TINY)
    model = {"transformer": {"num_hidden_layers": 5}}
    over = extended(tmp_path, sampler={"steps": 2}, model=model)
    assert (over.steps, over.shift, over.guidance) == (2, base.shift, base.guidance)
    assert over.model.transformer == base.model.transformer | {"num_hidden_layers": 5}
    assert over.model.vae == base.model.vae
    assert over.canvas == base.canvas


def test_a_tier_takes_the_place_of_the_canvas_it_extends_and_the_other_way_round(
    tmp_path: Path,
) -> None:
    over = extended(tmp_path, tier=256)
    assert (over.tier, over.canvas) == (256, None)
    again = tmp_path / "again.yaml"
    canvas = {"width": 64, "height": 32}
    again.write_text(yaml.safe_dump({"name": "again", "extends": "over.yaml", "canvas": canvas}))
    assert (load_recipe(again).tier, load_recipe(again).canvas) == (None, (64, 32))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "b", "b": "a"}, r"b.yaml' extends .*a.yaml', which extends it; expected no circle"),
        ({"a": "a"}, r"a.yaml' extends .*a.yaml', which extends it"),
        ({"a": "b"}, r"b.yaml', which .*a.yaml' extends, does not exist"),
    ],
)
def test_circles_and_missing_bases_are_refused(
    files: dict[str, str], message: str, tmp_path: Path
) -> None:
    for name, base in files.items():
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\nextends: {base}.yaml\n")
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("guided", "schedule"),
    [
        ("every", GuidanceSchedule()),
        ({"first": 1}, GuidanceSchedule(first=1)),
        ({"timesteps": [400, 900]}, GuidanceSchedule(timesteps=(400.0, 900.0))),
    ],
)
def test_guidance_has_a_schedule(
    guided: object, schedule: GuidanceSchedule, tmp_path: Path
) -> None:
    assert extended(tmp_path, sampler={"guided": guided}).guided == schedule


def test_layers_per_part_is_one_number_or_one_for_each_graph(tmp_path: Path) -> None:
    assert extended(tmp_path).layers_per_part == {}
    assert extended(tmp_path, layers_per_part=12).layers_per_part == {"text": 12, "denoise": 12}
    assert extended(tmp_path, layers_per_part={"text": 12}).layers_per_part == {"text": 12}
    (tmp_path / "base.yaml").write_text(f"extends: {TINY}\nlayers_per_part: 12\n")
    (tmp_path / "own.yaml").write_text("extends: base.yaml\nlayers_per_part: {denoise: 36}\n")
    assert load_recipe(tmp_path / "own.yaml").layers_per_part == {"text": 12, "denoise": 36}


def test_a_schedule_of_guidance_takes_the_place_of_the_one_it_extends(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(f"extends: {TINY}\nsampler: {{guided: {{first: 1}}}}\n")
    (tmp_path / "own.yaml").write_text(
        "extends: base.yaml\nsampler: {guided: {timesteps: [400, 900]}}\n"
    )
    recipe = load_recipe(tmp_path / "own.yaml")
    assert recipe.guided == GuidanceSchedule(timesteps=(400.0, 900.0))


def test_half_precision_and_less_is_exported_where_attention_is_an_operator(
    tmp_path: Path,
) -> None:
    assert extended(tmp_path, precision="fp32").opset == 18
    assert extended(tmp_path, precision="bf16").opset == 23
    with pytest.raises(RecipeError, match="opset is 18; expected an integer of at least 23"):
        extended(tmp_path, precision="bf16", opset=18)


RANGES = {"attention_in": 4.0, "attention_out": 4.0, "mlp_in": 4.0, "mlp_down": 4.0}


def test_what_is_kept_high_and_the_ranges_are_read(tmp_path: Path) -> None:
    given = {"keep": ["layers.0.*"], "ranges": RANGES}
    recipe = extended(tmp_path, precision="fp8", quantisation=given)
    assert recipe.quantisation.keep == ("layers.0.*",)
    assert recipe.quantisation.ranges == RANGES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": 0}, "fps is 0; expected a number above 0"),
        ({"fps": "fast"}, "fps is 'fast'; expected a number above 0"),
        ({"sampler": {"shift": "five"}}, "sampler.shift is 'five'; expected a number above 0"),
        ({"sampler": {"guidance": float("nan")}}, "sampler.guidance is nan; expected a number ab"),
        ({"sampler": {"guidance": None}}, "sampler.guidance is None; expected a number above 0"),
        ({"frame_latents": 20}, "frame_latents is 20; a chunk of 16 has 5, expected no more"),
        ({"model": {"transformer": [1]}}, "model.transformer is no mapping"),
        (
            {"canvas": {"width": "wide", "height": 96}},
            "canvas.width is 'wide'; expected an integer",
        ),
        ({"sampler": {"guided": "never"}}, "sampler.guided is 'never'; expected 'every', "),
        ({"sampler": {"guided": {"first": -1}}}, "sampler.guided is "),
        ({"sampler": {"guided": {"first": True}}}, "sampler.guided is "),
        ({"sampler": {"guided": {"timesteps": [900, 400]}}}, "sampler.guided is "),
        ({"sampler": {"guided": {"first": 1, "timesteps": [0, 1]}}}, "sampler.guided is "),
        ({"layers_per_part": 0}, "layers_per_part of text is 0; expected an integer of at least 1"),
        ({"layers_per_part": {"image": 1}}, "layers_per_part has unknown keys image"),
        ({"quantisation": {"keep": []}}, "quantisation is given and precision is fp32"),
        (
            {"precision": "fp8", "quantisation": {"keep": "layers.0.*"}},
            r"quantisation.keep is 'layers.0.\*'; expected a list of patterns",
        ),
        (
            {"precision": "fp8", "quantisation": {"ranges": {"mlp_in": 4.0}}},
            "quantisation.ranges lacks attention_in, attention_out, mlp_down",
        ),
        (
            {"precision": "fp8", "quantisation": {"ranges": RANGES | {"mlp_in": 0}}},
            "quantisation.ranges.mlp_in is 0; expected a number above 0",
        ),
    ],
)
def test_bad_values_are_refused_by_key(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        extended(tmp_path, **changes)
