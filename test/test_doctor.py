"""The doctor finds what works, says what to install for what does not, and when that is fatal."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bundles import Exported

from cosmos3_ros import doctor
from cosmos3_ros.doctor import Check, Finding, attempt, examine_dds_profile, find_gpu, report
from cosmos3_ros.engine.bundle import load_bundle
from cosmos3_ros.engine.engine_key import (
    EngineRecord,
    engine_path,
    make_key,
    record_path,
    write_record,
)
from cosmos3_ros.engine.tensorrt_library import Target, import_library
from cosmos3_ros.resources import resource

MISSING = Check("part", "import no_such_module_anywhere", "pip install part")


def write_profile(path: Path, segment_bytes: int) -> Path:
    text = resource("config", "fastdds_shm.xml").read_text()
    path.write_text(text.replace("33554432", str(segment_bytes)))
    return path


def test_everything_that_the_robot_needs_works_here() -> None:
    """In the environment that ./run makes; the program's own exit code and words."""
    pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")
    done = subprocess.run(
        [sys.executable, "-m", "cosmos3_ros.cli", "doctor"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for check in doctor.CHECKS:
        if check.needed:
            assert f"works  {check.name}" in done.stdout


def test_what_is_not_installed_is_none_where_it_is_optional() -> None:
    finding = attempt(MISSING)
    assert (finding.works, finding.found) == (None, "not installed")
    assert "-> pip install part" in report([finding])


def test_what_is_not_installed_fails_where_it_is_needed() -> None:
    finding = attempt(Check(MISSING.name, MISSING.code, MISSING.remedy, needed=True))
    assert finding.works is False
    assert finding.needed


def test_a_driver_that_is_not_there_is_none_and_said() -> None:
    code = "import sys; sys.exit('no driver; the library is there')"
    finding = attempt(Check("part", code, "buy one", absent="no driver"))
    assert (finding.works, finding.found) == (None, "no driver; the library is there")
    assert attempt(Check("part", code, "buy one")).works is False


def test_what_compiles_and_runs_engines_is_said_for_this_machine() -> None:
    checks = {check.name: check for check in doctor.CHECKS}
    rtx, cuda = attempt(checks["TensorRT-RTX"]), attempt(checks["CUDA"])
    assert rtx.works and "compiles engines for compute capability 12.0" in rtx.found
    if shutil.which("nvidia-smi") is None:
        assert cuda.works is None and cuda.found.startswith("no CUDA driver; cuda-bindings 13")
    else:
        assert cuda.works and "driver for CUDA" in cuda.found


def test_library_that_breaks_is_told_from_one_that_is_absent() -> None:
    finding = attempt(Check("part", "raise RuntimeError('no such device')", "buy one"))
    assert (finding.works, finding.found) == (False, "RuntimeError: no such device")


def test_library_that_crashes_is_a_finding_and_no_crash() -> None:
    finding = attempt(Check("part", "import os; os.abort()", "replace it"))
    assert (finding.works, finding.found) == (False, "ended with code -6")


@pytest.mark.parametrize("needed", [True, False])
def test_exit_code_is_one_only_for_what_is_needed(
    needed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [Finding("part", False, "broken", "mend it", needed)]
    monkeypatch.setattr(doctor, "examine", lambda bundle: broken)
    assert doctor.main(argparse.Namespace(bundle=None)) == int(needed)
    assert ("needed and not working: part" in capsys.readouterr().out) == needed


def test_shipped_dds_profile_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(doctor.PROFILE_VARIABLE, str(resource("config", "fastdds_shm.xml")))
    finding = examine_dds_profile()
    assert finding.works, finding.found
    assert "segments of 32 MB" in finding.found


def test_dds_profile_that_is_not_set_says_how_to_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(doctor.PROFILE_VARIABLE)
    finding = examine_dds_profile()
    assert finding.works is False
    assert finding.remedy.startswith(f"export {doctor.PROFILE_VARIABLE}=")


def test_dds_profile_with_a_small_segment_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = write_profile(tmp_path / "small.xml", 524288)
    monkeypatch.setenv(doctor.PROFILE_VARIABLE, str(profile))
    finding = examine_dds_profile()
    assert finding.works is False
    assert "shared-memory segment of 524288 bytes" in finding.found


def test_dds_profile_that_is_no_xml_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.xml").write_text("<dds>")
    monkeypatch.setenv(doctor.PROFILE_VARIABLE, str(tmp_path / "broken.xml"))
    assert examine_dds_profile().works is False


def test_gpu_is_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA RTX 5090, 580.10, 12.0, 32607 MiB'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpu() == Finding("GPU", True, "NVIDIA RTX 5090, 580.10, 12.0, 32607 MiB")
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert find_gpu().works is False
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(doctor, "SMI_TIMEOUT_S", 0.2)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert (find_gpu().works, find_gpu().found) == (False, "nvidia-smi: no end after 0.2 s")
    monkeypatch.setenv("PATH", str(tmp_path))
    program.unlink()
    assert find_gpu().works is None


def test_bundle_is_opened_and_a_changed_byte_is_found(tiny: Exported, tmp_path: Path) -> None:
    check = Check("bundle", doctor.BUNDLE_CODE, "export it again", needed=True)
    good = attempt(check, str(tiny.bundle.path))
    assert good.works, good.found
    assert "5 graphs open" in good.found
    copy = shutil.copytree(tiny.bundle.path, tmp_path / "copy")
    with (copy / "denoise.onnx").open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    bad = attempt(check, str(copy))
    assert bad.works is False
    assert "denoise.onnx" in bad.found


def test_a_bundle_that_no_cpu_runs_is_judged_by_its_engines(
    tiny_fp8: Exported, tmp_path: Path
) -> None:
    bundle = load_bundle(shutil.copytree(tiny_fp8.bundle.path, tmp_path / "copy"))
    check = Check("bundle", doctor.BUNDLE_CODE, "compile it", needed=True)
    none = attempt(check, str(bundle.path))
    assert none.works is False
    assert "5 of 5 graphs have no engine; no CPU runs fp8" in none.found
    target = Target("tensorrt_rtx", str(import_library("tensorrt_rtx").__version__), "12.0")
    for spec in bundle.manifest.graphs.values():
        for part in spec.parts:
            content = part.file.encode()
            engine_path(bundle, part).write_bytes(content)
            key, sha256 = make_key(bundle, part, target), hashlib.sha256(content).hexdigest()
            record = EngineRecord(key, sha256, len(content), 1.0, 1)
            write_record(record_path(bundle, part), record)
    good = attempt(check, str(bundle.path))
    assert good.works and "5 engines fit, for 12.0, tensorrt_rtx" in good.found, good.found
    engine_path(bundle, part).write_bytes(b"another")
    bad = attempt(check, str(bundle.path))
    assert bad.works is False and "its key says" in bad.found
