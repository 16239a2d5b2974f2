"""The ``cosmos3`` command: help, exit codes, and errors in one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bundles import ROOT, Exported

from cosmos3_ros.cli import COMMANDS, main
from cosmos3_ros.engine.backends import open_backend
from cosmos3_ros.engine.bundle import BundleError, load_bundle


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"cosmos3 {command}" in capsys.readouterr().out


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    output = capsys.readouterr().out
    assert all(command in output for command in COMMANDS)


def test_verify_prints_a_table_and_ends_with_zero(
    tiny: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tiny.bundle.path)]) == 0
    output = capsys.readouterr().out
    assert "random weights, seed 0" in output
    assert "16 rows x 8, all finite" in output
    assert "4 of 128x96 px" in output


def test_verify_of_a_changed_bundle_ends_with_one_line_and_one(
    tiny: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(tiny.bundle.path, tmp_path / "bundle"))
    with (bundle / "frame.onnx").open("ab") as file:
        file.write(b"\0")
    assert main(["verify", str(bundle)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "frame.onnx has SHA-256" in error


def test_export_refuses_a_bad_recipe_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text((ROOT / "engines" / "tiny.yaml").read_text() + "colour: red\n")
    assert main(["export", str(recipe), "--out", str(tmp_path / "b")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "unknown keys colour" in error
    assert not (tmp_path / "b").exists()


def test_an_unknown_command_is_refused_with_the_known_ones() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "cosmos3_ros.cli", "fly"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "bag-from-lerobot" in result.stderr


def test_a_missing_argument_is_refused_in_one_line_with_exit_code_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["export", "recipe.yaml"])
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--out" in error


def test_twin_writes_a_bundle_that_a_cpu_runs(
    tiny_fp8: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BundleError):
        open_backend(tiny_fp8.bundle, "onnxruntime", 1)
    assert main(["twin", str(tiny_fp8.bundle.path), "--out", str(tmp_path / "twin")]) == 0
    assert "the float32 twin of 'tiny_fp8' in fp8" in capsys.readouterr().out
    twin = load_bundle(tmp_path / "twin")
    open_backend(twin, "onnxruntime", 1).close()
    assert "float32 twin of 'tiny_fp8'" in twin.manifest.warnings[-1]
    assert main(["verify", str(twin.path)]) == 1
    assert "verify the bundle it is the twin of" in capsys.readouterr().err


def test_a_twin_does_not_take_the_place_of_what_it_is_of(
    tiny_fp8: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(tiny_fp8.bundle.path, tmp_path / "bundle"))
    assert main(["twin", str(bundle), "--out", str(tmp_path / "." / "bundle")]) == 1
    assert "itself; expected another folder" in capsys.readouterr().err
    assert load_bundle(bundle).manifest.precision == "fp8"


def test_twin_of_what_a_cpu_runs_already_is_refused(
    tiny: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["twin", str(tiny.bundle.path), "--out", str(tmp_path / "twin")]) == 1
    assert "is fp32 already" in capsys.readouterr().err
    assert not (tmp_path / "twin").exists()
