"""The benchmark from checkpoint to engine runs the real commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cosmos3_ros import bench, bench_engine


def test_a_tiny_checkpoint_becomes_a_bundle_and_engines_which_are_measured_and_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not in this environment")
    out = tmp_path / "bench_engine.json"
    earlier = {"seconds": 1.0, "peak_bytes": 1, "bytes": 1}
    kept = {"checkpoint": earlier, "fp8": {"export": earlier, "compile": {}}}
    out.write_text(json.dumps({"tiny": kept, "mid": kept}))
    words = ["engine", "--shape", "tiny", "--precision", "nvfp4", "--out", str(out)]
    assert bench.main(words) == 0
    assert list(tmp_path.iterdir()) == [out]
    written = json.loads(out.read_text())
    found = written["tiny"]
    assert written["mid"] == kept and found["fp8"] == kept["fp8"]
    engines = {f"{graph}.engine" for graph in ("text", "image", "denoise", "step", "frame")}
    assert found["nvfp4"]["compile"].keys() == engines
    for measured in (found["checkpoint"], found["nvfp4"]["export"]):
        assert (
            measured["seconds"] > 0.5 and measured["peak_bytes"] > 1e8 and measured["bytes"] > 1e5
        )
    printed = capsys.readouterr().out
    assert printed.count("| tiny | nvfp4 | compile ") == 5
    assert "| mid |" not in printed and "| fp8 |" not in printed, "measured another time"


def test_a_step_that_fails_ends_the_benchmark_with_what_it_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(bench_engine.StepFailed, match=r"exit code 1: .*nothing' has no manifest"):
        bench_engine.step("verify", tmp_path / "nothing")
