"""The control benchmark: the real nodes, and what the controller says of its own loop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

from cosmos3_ros import bench
from cosmos3_ros.bench_control import CASES


def test_every_case_of_a_rate_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "control.json"
    assert bench.main(["control", "--seconds", "4", "--rate", "50", "--out", str(out)]) == 0
    cells = json.loads(out.read_text())["50"]
    assert tuple(cells) == CASES
    for cell in cells.values():
        assert 100 < cell["periods"] < 600
        assert 0 <= cell["p50_ms"] <= cell["p99_ms"] <= cell["max_ms"]
        assert 0 <= cell["missed"] < cell["periods"]
    assert cells["idle"]["frame_to_command_ms"]["p50"] is None
    # Plans are made and followed while it is measured.
    assert cells["load"]["frame_to_command_ms"]["p99"] > 0
    assert cells["load_fifo"]["scheduling"] in ("granted", "refused")
