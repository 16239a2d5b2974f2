"""The evaluation, run as a user runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bundles import Exported

from cosmos3_ros.engine.bundle import MANIFEST
from cosmos3_ros.processes import ros_environment
from cosmos3_ros.sim.tasks import LIMIT_S


def run_eval(out: Path, *words: object, timeout_s: float = 110) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cosmos3_ros.sim.eval", "--out", out, *words]
    return subprocess.run(
        [str(word) for word in command],
        env=ros_environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def evaluated(out: Path, *words: object) -> dict[str, Any]:
    ended = run_eval(out, *words)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_episodes_through_the_nodes_are_judged(tmp_path: Path, pico: Exported) -> None:
    out = tmp_path / "eval.json"
    found = evaluated(out, "--task", "touch", "--episodes", 6)
    assert found["through"] == "nodes" and found["bundle"] == "pico"
    assert found["episodes"] == 6 and found["by_task"].keys() == {"touch"}
    assert sum(found[verdict]["count"] for verdict in ("success", "wrong", "neither")) == 6
    assert found["success"]["count"] >= 5, found["each"]
    low, high = found["success"]["low"], found["success"]["high"]
    assert 0 <= low <= found["success"]["rate"] <= high <= 1
    for key in ("time_to_goal_s", "plans", "seam_jump", "min_distance_cm"):
        assert 0 <= found[key]["p50"] <= found[key]["p90"]
    assert [result["episode"] for result in found["each"]] == [1, 2, 3, 4, 5, 6]
    assert not out.with_suffix(".partial").exists()


def test_latency_is_added_to_every_plan(tmp_path: Path, pico: Exported) -> None:
    words = ("--task", "touch", "--episodes", 5)
    prompt = evaluated(tmp_path / "prompt.json", *words)
    late = evaluated(tmp_path / "late.json", *words, "--added-latency-ms", 300)
    assert late["added_latency_ms"] == 300
    assert seconds_per_plan(prompt) < 0.2 < 0.3 < seconds_per_plan(late) < 0.7
    assert late["success"]["count"] >= 3, late["each"]


def seconds_per_plan(found: dict[str, Any]) -> float:
    seconds = sum(result["time_to_goal_s"] or LIMIT_S["touch"] for result in found["each"])
    plans = sum(result["plans"] for result in found["each"])
    return float(seconds / plans)


def test_the_twin_writes_the_same_figures(tmp_path: Path, pico: Exported) -> None:
    words = ("--task", "lift", "--episodes", 4, "--held-out", "--offline")
    found = evaluated(tmp_path / "twin.json", *words)
    assert found["through"] == "offline twin" and found["held_out_wordings"]
    assert found["episodes"] == 4


def test_a_bundle_of_another_robot_is_refused_in_one_line(tmp_path: Path, tiny: Exported) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny.bundle.path, other)
    manifest = (other / MANIFEST).read_text()
    (other / MANIFEST).write_text(manifest.replace('"sim_panda"', '"droid_joint_pos"'))
    ended = run_eval(tmp_path / "eval.json", "--bundle", other)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "is for embodiment 'droid_joint_pos'; expected one" in ended.stderr
    assert "panda_joint1" in ended.stderr
    assert not (tmp_path / "eval.json").exists()


def test_a_bundle_of_a_robot_nobody_knows_is_refused_in_one_line(
    tmp_path: Path, odd_grid: Exported
) -> None:
    ended = run_eval(tmp_path / "eval.json", "--bundle", odd_grid.bundle.path)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "embodiment 'odd_grid' is not known" in ended.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--episodes", 0), "expected at least one episode"),
        (("--added-latency-ms", -1), "no negative latency"),
        (("--real-time-factor", 0), "real-time factor"),
        (("--bundle", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(
    tmp_path: Path, words: tuple[object, ...], said: str
) -> None:
    ended = run_eval(tmp_path / "eval.json", *words)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1 and said in ended.stderr
