"""Bundles the tests stand on: exported for real, once for each state of the exporting sources."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from cosmos3_ros.engine.bundle import Bundle, load_bundle
from cosmos3_ros.engine.recipe import Recipe, load_recipe
from cosmos3_ros.policy.embodiment import Embodiment, load_embodiment

ROOT = Path(__file__).resolve().parent.parent
# What a bundle depends on, of the modules in engine/.
EXPORTING = (
    "bundle.py",
    "export.py",
    "export_checkpoint.py",
    "export_contract.py",
    "export_graphs.py",
    "export_model.py",
    "export_onnx.py",
    "quantise.py",
    "recipe.py",
    "session.py",
)
OTHER_EXPORT_TIMEOUT_S = 100.0
CACHE = ROOT / "build" / "test-bundles"
ENGINES = ROOT / "engines"
TINY = ENGINES / "tiny.yaml"
PICO_PANDA = ROOT / "config" / "embodiments" / "pico_panda.yaml"
SIM_PANDA = ROOT / "config" / "embodiments" / "sim_panda.yaml"


@dataclass(frozen=True)
class Exported:
    """A bundle with the recipe and the embodiment file it was made from."""

    bundle: Bundle
    recipe: Recipe
    embodiment: Embodiment
    embodiment_path: Path


def exported(recipe_path: Path, embodiment_path: Path, checkpoint: Path | None = None) -> Exported:
    """Export a recipe, or load what an earlier run made of the same sources."""
    recipe, embodiment = load_recipe(recipe_path), load_embodiment(embodiment_path)
    digest = hashlib.sha256(repr(recipe).encode() + embodiment_path.read_bytes())
    engine = ROOT / "cosmos3_ros" / "engine"
    sources = sorted(path for pattern in EXPORTING for path in engine.glob(pattern))
    weights = sorted(checkpoint.rglob("*.*")) if checkpoint else []
    for source in (*sources, *weights):
        digest.update(source.read_bytes())
    out = CACHE / f"{recipe.name}-{digest.hexdigest()[:16]}"
    deadline = time.monotonic() + OTHER_EXPORT_TIMEOUT_S
    while not (out / "manifest.json").is_file():
        from cosmos3_ros.engine.export import export
        from cosmos3_ros.engine.export_folder import FolderError
        from cosmos3_ros.export_command import body_of

        try:
            export(recipe, body_of(embodiment), out, checkpoint)
        except FolderError:  # another run of the tests is at it
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)
    bundle = load_bundle(out)
    return Exported(bundle, recipe, embodiment, embodiment_path)


def write_variant(folder: Path, name: str, width: int, height: int, **changes: object) -> Exported:
    """Export tiny for base Nano's DROID contract (no state row, ten channels) on the 256 tier.

    ``width`` x ``height`` is the picture of its one camera [px].
    """
    folder.mkdir(parents=True, exist_ok=True)
    embodiment = yaml.safe_load(
        (ROOT / "config" / "embodiments" / "droid_lerobot.yaml").read_text()
    )
    channels = load_embodiment("droid_lerobot").channel_names
    embodiment |= {
        "name": name,
        "rate_hz": 15.0,
        "quantiles": {channel: [-1.0, 1.0] for channel in channels},
        "cameras": [{"name": "front", "x": 0, "y": 0, "width": width, "height": height}],
        "canvas": {"width": width, "height": height},
    }
    recipe = yaml.safe_load(TINY.read_text())
    del recipe["canvas"]
    recipe |= {"name": name, "embodiment": name, "tier": 256, **changes}
    (folder / "embodiment.yaml").write_text(yaml.safe_dump(embodiment, sort_keys=False))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return exported(folder / "recipe.yaml", folder / "embodiment.yaml")


def shipped(name: str) -> Exported:
    """The bundle of a recipe in ``engines/`` that drives the simulated arm."""
    return exported(ENGINES / f"{name}.yaml", SIM_PANDA)


@pytest.fixture(scope="session")
def pico() -> Exported:
    """The trained policy that ships."""
    embodiment = PICO_PANDA
    recipe, bundle = load_recipe(ENGINES / "pico.yaml"), load_bundle(ENGINES / "pico")
    return Exported(bundle, recipe, load_embodiment(embodiment), embodiment)


@pytest.fixture(scope="session")
def tiny() -> Exported:
    """The bundle of ``engines/tiny.yaml``."""
    return shipped("tiny")


@pytest.fixture(scope="session")
def tiny_bf16() -> Exported:
    """The bundle of ``engines/tiny_bf16.yaml``."""
    return shipped("tiny_bf16")


@pytest.fixture(scope="session")
def tiny_fp8() -> Exported:
    """The bundle of ``engines/tiny_fp8.yaml``: its ranges are declared."""
    return shipped("tiny_fp8")


@pytest.fixture(scope="session")
def tiny_nvfp4() -> Exported:
    """The bundle of ``engines/tiny_nvfp4.yaml``: its ranges are declared."""
    return shipped("tiny_nvfp4")


@pytest.fixture(scope="session")
def tiny_in_parts(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Tiny with a part for each of its two layers of text and denoise."""
    path = tmp_path_factory.mktemp("parts") / "tiny_in_parts.yaml"
    recipe = {"name": "tiny_in_parts", "extends": str(TINY), "layers_per_part": 1}
    path.write_text(yaml.safe_dump(recipe))
    return exported(path, SIM_PANDA)


@pytest.fixture(scope="session")
def even_grid(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A bundle whose latents are whole patches (16 x 20), with no padding on the canvas."""
    return write_variant(tmp_path_factory.mktemp("even"), "even_grid", 320, 256)


@pytest.fixture(scope="session")
def odd_grid(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A bundle whose latents are no whole patches (15 x 19), on a padded canvas."""
    return write_variant(tmp_path_factory.mktemp("odd"), "odd_grid", 304, 240)
