"""How plans follow each other through the real nodes, measured on what was recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

from bundles import Exported

from cosmos3_ros.processes import ros_environment
from cosmos3_ros.replay.bags import open_bag
from cosmos3_ros.replay.seams import ACTION_CHUNK, CONTROLLER_STATUS, Seams
from cosmos3_ros.replay.summary import summarise

# A model that takes a quarter of a second: four rows of a chunk of sixteen.
LATENCY_MS = 200


def run(program: str, *words: object) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", f"cosmos3_ros.sim.{program}", *map(str, words)],
        env=ros_environment(),
        capture_output=True,
        text=True,
        timeout=330,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def recorded(folder: Path, strategy: str, seconds: float) -> dict[str, Any]:
    """The summary of a demo whose plans follow each other so."""
    late = ("--strategy", strategy, "--added-latency-ms", LATENCY_MS, "--plan-rate", 0)
    run("demo", "--out", folder, "--seconds", seconds, *late)
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def stamp_s(message: Any) -> float:
    return float(message.header.stamp.sec + message.header.stamp.nanosec / 1e9)


def touching(folder: Path, strategy: str) -> Seams:
    """The seams of a recording of arms on their way to a cube, at half the pace of real time."""
    folder.mkdir()
    late = ("--strategy", strategy, "--added-latency-ms", LATENCY_MS, "--plan-rate", 0)
    slow = ("--episodes", 5, "--real-time-factor", 0.5)
    bag = folder / "run.mcap"
    run("eval", "--task", "touch", "--out", folder / "eval.json", "--record", bag, *slow, *late)
    return summarise(bag, folder / "summary.json").seams


def test_no_command_leaves_the_limits(tmp_path: Path, pico: Exported) -> None:
    for strategy in ("blend", "prefix"):
        seams = recorded(tmp_path / strategy, strategy, 6)["seams"]
        assert seams["count"] > 0, strategy
        assert seams["command_position"] <= 1.0, strategy
        # Stamps are whole nanoseconds.
        assert 0.05 < seams["command_velocity"] <= 1.001, strategy
        assert 0.05 < seams["command_acceleration"] <= 1.001, strategy


def test_a_prefix_cuts_the_jump_of_an_unblended_switch_to_less_than_a_third(
    tmp_path: Path, pico: Exported
) -> None:
    # What is measured is the plans themselves, before the controller blends one into the other.
    blend, prefix = (touching(tmp_path / s, s) for s in ("blend", "prefix"))
    assert min(blend.count, prefix.count) > 12
    for unblended, told in (
        (blend.position_s, prefix.position_s),
        (blend.velocity, prefix.velocity),
    ):
        assert unblended.p50 is not None and told.p50 is not None
        assert 3 * told.p50 < unblended.p50, (blend, prefix)


def test_in_sync_each_plan_begins_where_the_last_one_came_to_rest(
    tmp_path: Path, pico: Exported
) -> None:
    summary = recorded(tmp_path / "sync", "sync", 14)
    with open_bag(tmp_path / "sync" / "output.mcap") as bag:
        chunks = [message.decoded() for message in bag.messages(bag.typed(ACTION_CHUNK))]
        said = [message.decoded() for message in bag.messages(bag.typed(CONTROLLER_STATUS))]
    stamps_s = np.array([stamp_s(chunk) for chunk in chunks])
    # Longer than a chunk of 16 rows at 15 Hz. None is waited for before the controller is there,
    # nor where it came to rest early: it is stopped before the planner, and may have had no time.
    waited = np.diff(stamps_s) > 17 / 15
    early = [stamp_s(s) for s in said if s.reason not in ("following", "chunk_ended")]
    # The next may begin with a picture of before that.
    plans = zip(stamps_s, stamps_s[1:] + 0.2, strict=False)
    followed = np.array([not any(began <= at <= ended for at in early) for began, ended in plans])
    first = waited.argmax()
    assert waited.sum() >= 5 and (waited | ~followed)[first:].all(), (stamps_s, early)
    assert summary["holds"] >= waited.sum() - 1
    assert summary["holds_by_reason"].keys() <= {
        "chunk_ended",
        "overrun",
        "stopped",
        "joints_stale",
    }
