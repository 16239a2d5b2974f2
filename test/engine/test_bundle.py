"""A bundle is loaded whole and unchanged, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from bundles import Exported

from cosmos3_ros.engine.backends import BackendError, open_backend
from cosmos3_ros.engine.bundle import BundleError, load_bundle, manifest_text
from cosmos3_ros.engine.session import GRAPHS


@pytest.fixture
def copy(tiny: Exported, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.bundle.path, tmp_path / "bundle"))


def test_a_bundle_says_what_it_is(tiny: Exported) -> None:
    manifest = tiny.bundle.manifest
    assert manifest.name == "tiny"
    assert manifest.source == "random weights, seed 0"
    assert set(manifest.graphs) == set(GRAPHS)
    graphs = {part.file for spec in manifest.graphs.values() for part in spec.parts}
    assert graphs == {f"{graph}.onnx" for graph in GRAPHS}
    assert graphs | {"tokenizer.json"} <= set(manifest.files)
    assert len(manifest.forwards) == manifest.contract.sampler.forwards == 8
    assert [branch for _, _, branch in manifest.forwards[:2]] == ["conditional", "unconditional"]
    assert manifest.quantisation is None and manifest.warnings == ()
    assert len(tiny.bundle.sha256) == 64


def test_loading_gives_back_the_very_contract_that_was_written(copy: Path, tiny: Exported) -> None:
    assert load_bundle(copy) == load_bundle(copy)
    assert load_bundle(copy).manifest == tiny.bundle.manifest
    hash(load_bundle(copy).manifest.contract)


@pytest.mark.parametrize("name", ["text.onnx", "denoise.onnx", "tokenizer.json"])
def test_a_changed_byte_is_refused_by_file(name: str, copy: Path) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} has SHA-256 .* the manifest says"):
        load_bundle(copy)


def test_a_missing_file_is_refused_by_name(copy: Path) -> None:
    (copy / "image.onnx").unlink()
    with pytest.raises(BundleError, match=r"lacks image.onnx, which its manifest names"):
        load_bundle(copy)


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no manifest.json; expected a folder written by"):
        load_bundle(tmp_path)


def test_another_format_version_is_refused(copy: Path) -> None:
    edit(copy, format_version=99)
    with pytest.raises(BundleError, match="has format version 99, this runtime reads 4"):
        load_bundle(copy)


def test_a_manifest_without_a_graph_is_refused(copy: Path) -> None:
    data = json.loads((copy / "manifest.json").read_text())
    del data["graphs"]["frame"]
    (copy / "manifest.json").write_text(manifest_text(data))
    with pytest.raises(BundleError, match=r"manifest.json is incomplete .*frame"):
        load_bundle(copy)


def test_a_manifest_in_which_one_number_was_changed_is_refused(copy: Path) -> None:
    """No file's hash finds it, and every plan would be another."""
    data = json.loads((copy / "manifest.json").read_text())
    data["contract"]["sampler"]["velocity"][0][0] += 0.1
    (copy / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match=r"what manifest.json says has SHA-256 .* was changed"):
        load_bundle(copy)


def test_a_manifest_that_is_no_json_is_refused(copy: Path) -> None:
    (copy / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="is not JSON"):
        load_bundle(copy)


def test_an_unknown_backend_is_refused(tiny: Exported) -> None:
    with pytest.raises(BackendError, match="backend 'cuda' is not known; expected one of onnx"):
        open_backend(tiny.bundle, "cuda", 1)


def test_a_graph_that_differs_from_its_manifest_is_refused(copy: Path) -> None:
    data = json.loads((copy / "manifest.json").read_text())
    data["graphs"]["image"]["parts"][0]["inputs"]["canvas"]["shape"] = [96, 129, 3]
    (copy / "manifest.json").write_text(manifest_text(data))
    with pytest.raises(BundleError, match=r"image.onnx has .*128.* manifest says .*129"):
        open_backend(load_bundle(copy), "onnxruntime", 1)


def edit(bundle: Path, **changes: object) -> None:
    data = json.loads((bundle / "manifest.json").read_text()) | changes
    (bundle / "manifest.json").write_text(manifest_text(data))
