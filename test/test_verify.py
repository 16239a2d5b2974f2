"""``cosmos3 verify``: what is whole passes, what computes something else is told by graph."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import ENGINES, SIM_PANDA, Exported, exported

from cosmos3_ros import verify_command
from cosmos3_ros.cli import main
from cosmos3_ros.engine.bundle import MANIFEST, file_sha256, manifest_text
from cosmos3_ros.engine.export_model import make_components, open_components
from cosmos3_ros.engine.recipe import RECIPE, load_recipe, save_recipe

OUTPUTS = (
    "text keys",
    "text values",
    "image latent",
    "denoise latent_velocity",
    "denoise row_velocity",
    "step latents",
    "step rows",
    "frame frames",
    "plan latents",
    "plan actions",
)


def verify(made: Exported, *arguments: str, bundle: Path | None = None) -> int:
    return main(["verify", str(bundle or made.bundle.path), *arguments])


def verdicts(output: str) -> dict[str, str]:
    """The table's last column by its first two."""
    rows = re.findall(r"^(\w+) +(\w+) +\S+ +\S+ +\S+  (ok|MISS)$", output, re.MULTILINE)
    return {f"{graph} {name}": verdict for graph, name, verdict in rows}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8", "nvfp4"])
def test_a_bundle_equals_the_stock_modules_in_every_precision(
    precision: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "tiny" if precision == "fp32" else f"tiny_{precision}"
    assert verify(request.getfixturevalue(name)) == 0
    output = capsys.readouterr().out
    assert verdicts(output) == dict.fromkeys(OUTPUTS, "ok")
    assert ("float32 twin" in output) == (precision != "fp32")
    assert "allowed" in output


def test_the_policy_that_ships_is_made_of_the_checkpoint_beside_it(
    pico: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(pico, "--checkpoint", str(ENGINES / "pico_checkpoint")) == 0
    assert verdicts(capsys.readouterr().out) == dict.fromkeys(OUTPUTS, "ok")


def test_a_bundle_in_parts_equals_the_stock_modules(
    tiny_in_parts: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(tiny_in_parts) == 0
    assert verdicts(capsys.readouterr().out) == dict.fromkeys(OUTPUTS, "ok")


@pytest.mark.parametrize(
    ("graph", "missed"),
    [
        ("denoise", {"denoise latent_velocity", "denoise row_velocity", "plan latents"}),
        ("text", {"text keys", "text values"}),
    ],
)
def test_a_bundle_of_other_weights_is_missed_by_graph_and_the_table_is_still_there(
    graph: str,
    missed: set[str],
    tiny: Exported,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = Path(shutil.copytree(tiny.bundle.path, tmp_path / "bundle"))
    data = np.fromfile(bundle / f"{graph}.onnx.data", np.float32)
    data *= 1 + 0.01 * np.random.default_rng(0).standard_normal(data.shape).astype(np.float32)
    data.tofile(bundle / f"{graph}.onnx.data")
    rehash(bundle, f"{graph}.onnx.data")
    assert verify(tiny, bundle=bundle) == 1
    output = capsys.readouterr().out
    found = verdicts(output)
    assert found.keys() == set(OUTPUTS)
    assert missed <= {name for name, verdict in found.items() if verdict == "MISS"}
    assert found["image latent"] == "ok"
    assert "parity missed by" in output


def test_another_sampler_is_missed_by_the_step_graph_alone(
    tiny: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(tiny.bundle.path, tmp_path / "bundle"))
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["contract"]["sampler"]["velocity"][2][1] += 0.01
    (bundle / MANIFEST).write_text(manifest_text(manifest))
    assert verify(tiny, bundle=bundle) == 1
    found = verdicts(capsys.readouterr().out)
    missed = {name for name, verdict in found.items() if verdict == "MISS"}
    assert {"step latents", "step rows"} <= missed
    assert not any(name.startswith(("text", "image", "denoise", "frame")) for name in missed)


def test_everything_in_fp4_is_a_miss_on_random_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "all_fp4.yaml"
    recipe.write_text(
        f"name: all_fp4\nextends: {ENGINES / 'tiny_nvfp4.yaml'}\nquantisation: {{keep: []}}\n"
    )
    assert verify(exported(recipe, SIM_PANDA)) == 1
    found = verdicts(capsys.readouterr().out)
    assert found["denoise latent_velocity"] == "MISS"
    assert found["text keys"] == "ok"


def test_a_bundle_of_unknown_weights_plans_and_says_that_parity_was_not_checked(
    tiny: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(tiny.bundle.path, tmp_path / "bundle"))
    forget_recipe(bundle)
    assert verify(tiny, bundle=bundle) == 0
    output = capsys.readouterr().out
    assert "16 rows x 8, all finite" in output
    assert "parity   not checked: give --checkpoint DIR" in output


def test_a_bundle_of_a_checkpoint_is_compared_where_the_checkpoint_is_given(
    tiny: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, checkpoint = tmp_path / "bundle", tmp_path / "checkpoint"
    shutil.copytree(tiny.bundle.path, bundle)
    parts = make_components(tiny.recipe, None)
    for name in ("transformer", "vae", "scheduler"):
        getattr(parts, name).save_pretrained(checkpoint / name)
    # The same weights, as if they had been exported from this folder.
    recipe = replace(tiny.recipe, model=replace(tiny.recipe.model, random_seed=None))
    save_recipe(recipe, bundle / RECIPE)
    rehash(bundle, RECIPE, source_sha256=open_components(recipe, checkpoint).source_sha256)
    assert verify(tiny, bundle=bundle) == 0
    assert "parity   not checked: give --checkpoint DIR" in capsys.readouterr().out
    assert verify(tiny, "--checkpoint", str(checkpoint), bundle=bundle) == 0
    assert verdicts(capsys.readouterr().out) == dict.fromkeys(OUTPUTS, "ok")


def test_a_recipe_of_other_weights_is_refused(
    tiny: Exported, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "other.yaml"
    recipe.write_text(f"name: other\nextends: {ENGINES / 'tiny.yaml'}\nmodel: {{random_seed: 1}}\n")
    assert verify(tiny, "--recipe", str(recipe)) == 1
    assert "give the checkpoint and the recipe it was made from" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tiny", "tiny_bf16"])
def test_a_machine_without_the_memory_is_told_the_figures(
    name: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(verify_command, "available_bytes", lambda: 1e9)
    assert verify(request.getfixturevalue(name)) == 1
    error = capsys.readouterr().err
    assert re.search(r"takes at least 1\.5 GB of memory, and this machine has 1\.0 GB free", error)


@pytest.mark.parametrize("guided", ["every", "{first: 2}", "{timesteps: [0, 900]}"])
@pytest.mark.parametrize("path", sorted(ENGINES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_is_kept_in_one_file_whatever_it_extends(
    path: Path, guided: str, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text(f"extends: {path}\nsampler: {{guided: {guided}}}\n")
    recipe = load_recipe(tmp_path / "own.yaml")
    save_recipe(recipe, tmp_path / RECIPE)
    assert load_recipe(tmp_path / RECIPE) == recipe
    assert "extends" not in (tmp_path / RECIPE).read_text()


def rehash(bundle: Path, name: str, **changes: str) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text()) | changes
    manifest["files"][name] = file_sha256(bundle / name)
    (bundle / MANIFEST).write_text(manifest_text(manifest))


def forget_recipe(bundle: Path) -> None:
    (bundle / RECIPE).unlink()
    manifest = json.loads((bundle / MANIFEST).read_text())
    del manifest["files"][RECIPE]
    (bundle / MANIFEST).write_text(manifest_text(manifest))
