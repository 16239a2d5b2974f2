"""How plans follow each other through the real nodes, measured on what was recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

from bundles import Exported

from cosmos3_ros.processes import ros_environment

# A model that takes a quarter of a second: four rows of a chunk of sixteen.
LATENCY_MS = 200


def recorded(folder: Path, strategy: str) -> dict[str, Any]:
    """The summary of a demo whose plans follow each other so."""
    words = ["--strategy", strategy, "--added-latency-ms", LATENCY_MS, "--seconds", 9]
    ended = subprocess.run(
        [sys.executable, "-m", "cosmos3_ros.sim.demo", "--out", str(folder), *map(str, words)],
        env=ros_environment(),
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


@pytest.mark.timeout(240)
def test_no_command_leaves_the_limits_and_a_prefix_takes_most_of_the_jump(
    tmp_path: Path, pico: Exported
) -> None:
    runs = {s: recorded(tmp_path / s, s)["seams"] for s in ("blend", "prefix")}
    for strategy, seams in runs.items():
        assert seams["count"] > 10, strategy
        assert seams["command_position"] <= 1.0, strategy
        # Stamps are whole nanoseconds.
        assert 0.05 < seams["command_velocity"] <= 1.001, strategy
        assert 0.05 < seams["command_acceleration"] <= 1.001, strategy
    # What is measured is the plans themselves, before the controller blends one into the other.
    assert 3 * runs["prefix"]["velocity"]["p50"] < runs["blend"]["velocity"]["p50"]


@pytest.mark.timeout(120)
def test_in_sync_each_plan_begins_where_the_last_one_came_to_rest(
    tmp_path: Path, pico: Exported
) -> None:
    summary = recorded(tmp_path / "sync", "sync")
    # A chunk of 16 rows at 15 Hz and the plan: hardly more than a plan in 1.3 s.
    assert 4 <= summary["plans"] <= 9
    assert summary["holds"] >= summary["plans"] - 2
    assert summary["holds_by_reason"].keys() <= {"chunk_ended", "overrun", "stopped"}
