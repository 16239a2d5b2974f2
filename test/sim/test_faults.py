"""The fault run, as a user runs it: real processes, and figures that can be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

from cosmos3_ros.policy.embodiment import load_embodiment
from cosmos3_ros.processes import ros_environment
from cosmos3_ros.sim.faults import FAULTS, Row, largest_step, table
from cosmos3_ros.sim.saboteur import Commanded
from cosmos3_ros.sim.team import CONTROL_RATE_HZ

ROBOT = load_embodiment("pico_panda")
START_S = 1000.0
PERIOD_S = 1 / CONTROL_RATE_HZ


def suffered(tmp_path: Path, *faults: str) -> dict[str, dict[str, Any]]:
    out = tmp_path / "faults.json"
    words = [word for fault in faults for word in ("--fault", fault)]
    ended = subprocess.run(
        [sys.executable, "-m", "cosmos3_ros.sim.faults", "--out", str(out), *words],
        env=ros_environment(),
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = json.loads(out.read_text())
    assert [row["fault"] for row in rows] == list(faults)
    return {row["fault"]: row for row in rows}


@pytest.mark.timeout(180)
def test_a_policy_that_dies_or_stalls_ends_in_a_hold_and_the_arm_moves_again(
    tmp_path: Path,
) -> None:
    rows = suffered(tmp_path, "policy killed", "policy stopped for 3 s")
    for row in rows.values():
        assert 0 < row["time_to_hold_ms"] <= row["bound_ms"]
        assert row["recovered"] and row["ok"] and 0 < row["largest_step"] <= 1.01
    assert "chunk" in rows["policy killed"]["log"]


@pytest.mark.timeout(180)
def test_a_clock_that_jumps_and_chunks_of_nan_end_in_a_hold(tmp_path: Path) -> None:
    rows = suffered(tmp_path, "clock 10 s back", "NaN in chunks")
    assert rows["clock 10 s back"]["time_to_hold_ms"] < 1e3 * PERIOD_S + 150
    assert "not finite" in rows["NaN in chunks"]["log"]


def test_every_fault_of_the_readme_has_a_name_of_its_own() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names) >= 15
    assert all(fault.bound_ms is None or fault.bound_ms > 0 for fault in FAULTS)


def commands(*positions: float, late_s: float = 0.0) -> list[Commanded]:
    """Of the first joint, one a period; the last ``late_s`` later than that."""
    at_s = [i * PERIOD_S for i in range(len(positions))]
    at_s[-1] += late_s
    return [
        Commanded(at, START_S + at, np.array([position, *[0.0] * 7]))
        for at, position in zip(at_s, positions, strict=True)
    ]


def test_the_largest_step_is_a_share_of_what_the_limit_allows() -> None:
    allowed = float(ROBOT.velocity[0]) * PERIOD_S
    assert largest_step(commands(0.0, 0.5 * allowed, allowed), ROBOT) == pytest.approx(0.5)
    assert largest_step(commands(0.0, 1.5 * allowed), ROBOT) == pytest.approx(1.5)
    # Over two periods twice as much is allowed.
    assert largest_step(commands(0.0, allowed, late_s=PERIOD_S), ROBOT) == pytest.approx(0.5)
    # The stamp of a command from before the clock jumped says nothing.
    before = replace(commands(0.0)[0], stamp_s=START_S + 10)
    after = commands(0.0, 0.5 * allowed)[1]
    assert largest_step([before, after], ROBOT) == pytest.approx(0.5)


def test_the_table_shows_what_is_not_as_it_should_be() -> None:
    late = Row("policy killed", 2500.0, 1316.7, 0.2, False, False, "holding: the chunk has ended")
    (_, line) = table([late]).splitlines()
    assert "2500" in line and "NO" in line and "the chunk has ended" in line
