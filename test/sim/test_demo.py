"""The demo, run as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import pytest
import rclpy
from another_robot import REFUSAL, bundle_of_another_robot
from builtin_interfaces.msg import Time
from bundles import Exported
from child_pids import child_pids
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from cosmos3_ros.msg import ActionChunk
from cosmos3_ros.replay.bags import open_bag
from cosmos3_ros.sim.demo import SCRIPT, SECONDS, Director

KEYS = {
    "plans", "commands", "command_rate_hz", "command_jitter_ms", "plan_latency_ms",
    "predicted_frames", "observations", "dropped_observations", "holds", "rejected_chunks",
    "backend", "bundle",
}  # fmt: skip


def start_demo(out: Path, **options: object) -> subprocess.Popen[str]:
    options = {"--out": out} | {f"--{name}": value for name, value in options.items()}
    words = [str(word) for option in options.items() for word in option]
    return subprocess.Popen(
        [sys.executable, "-m", "cosmos3_ros.sim.demo", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_demo_makes_commands_flow_and_writes_what_came_of_it(
    tmp_path: Path, tiny: Exported
) -> None:
    process = start_demo(
        tmp_path / "demo", bundle=tiny.bundle.path, seconds=5, instruction="push the cube"
    )
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary.keys() >= KEYS
    assert summary["plans"] >= 5
    assert summary["commands"] >= 200
    assert summary["instruction"] == "push the cube"
    assert summary["bundle"] == "tiny"
    picture = matplotlib.image.imread(tmp_path / "demo" / "report.png")
    assert picture.shape[1] > 800 and picture.std() > 0.05
    assert "push the cube" in stdout and "report.png" in stdout
    logs = {path.stem for path in (tmp_path / "demo" / "logs").glob("*.log")}
    assert logs >= {"sim_node", "policy_node", "controller_node", "recorder_node", "bringup"}


def test_the_arm_goes_where_it_is_told_and_elsewhere_when_told_otherwise(tmp_path: Path) -> None:
    process = start_demo(tmp_path / "demo")
    stdout, stderr = process.communicate(timeout=330)
    assert process.returncode == 0, stderr
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["bundle"] == "pico" and summary["duration_s"] > 0.8 * SECONDS
    outcomes = summary["outcomes"]
    assert [outcome["instruction"] for outcome in outcomes] == [line.instruction for line in SCRIPT]
    first, overtaken, second, third = (outcome["touched"] for outcome in outcomes)
    assert (first, second) == ("red", "blue"), outcomes
    # The second instruction is replaced while the arm is on its way; it may graze what it leaves.
    assert overtaken in ("", "red"), outcomes
    assert third == outcomes[-1]["lifted"] == "green"
    assert "touched blue after" in stdout
    with open_bag(tmp_path / "demo" / "output.mcap") as bag:
        planned_ns = next(bag.messages(bag.named("action_chunk"))).log_ns
        told_ns = [message.log_ns for message in bag.messages(bag.named("instruction"))]
        frames_ns = {message.stamp_ns for message in bag.messages(bag.named("predicted_frame"))}
        starts = [message.decoded().start for message in bag.messages(bag.named("action_chunk"))]
    # Four frames at 15 Hz are as many as pico decodes.
    predicted_ns = {start.sec * 10**9 + start.nanosec + round(4e9 / 15) for start in starts}
    assert frames_ns and frames_ns <= predicted_ns
    # The script's time begins with the first plan, however long the nodes took to get there.
    for line, at_ns in zip(SCRIPT[1:], told_ns[1:], strict=True):
        assert (at_ns - planned_ns) / 1e9 > line.at_s - 1.0


@pytest.mark.parametrize("planned", [True, False])
def test_the_script_begins_with_the_first_plan_or_when_there_is_none_for_long(
    ros_domain_id: int, planned: bool
) -> None:
    rclpy.init(domain_id=ros_domain_id)
    director = Director(SCRIPT)

    def left_after(seconds: float) -> int:
        director._tick(CameraInfo(header=Header(stamp=Time(sec=int(100 + seconds)))))
        return len(director._script)

    try:
        # The first line is said before anything comes.
        assert [left_after(s) for s in (0, 9)] == [3, 3]
        if planned:
            director._plan(ActionChunk())
        begin_s = 9 if planned else 11
        assert [left_after(begin_s + s) for s in (0, 2, 3, 4, 7)] == [3, 3, 2, 1, 0]
    finally:
        director.destroy_node()
        rclpy.shutdown()


def test_a_process_that_dies_ends_the_demo_at_once_with_its_log(
    tmp_path: Path, tiny: Exported
) -> None:
    process = start_demo(tmp_path / "demo", bundle=tiny.bundle.path, seconds=100)
    log = tmp_path / "demo" / "logs" / "policy_node.log"
    deadline = time.monotonic() + 60
    while not (log.is_file() and "instruction" in log.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    pids = child_pids(process.pid)
    os.kill(pids["policy_node"], signal.SIGKILL)
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "policy_node ended early with exit code -9" in stderr
    assert "warm-up plan" in stderr
    assert not [pid for pid in pids.values() if Path(f"/proc/{pid}").exists()]


def test_a_bundle_that_is_none_ends_the_demo_with_its_name(tmp_path: Path) -> None:
    process = start_demo(tmp_path / "demo", bundle=tmp_path / "nothing", seconds=5)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 1
    assert "demo failed: bundle" in stderr and "nothing' has no manifest.json" in stderr
    assert "Traceback" not in stderr


def test_a_bundle_of_another_robot_is_refused_before_anything_starts(
    tmp_path: Path, tiny: Exported
) -> None:
    other = bundle_of_another_robot(tiny, tmp_path)
    process = start_demo(tmp_path / "demo", bundle=other, seconds=5)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 1
    assert len(stderr.splitlines()) == 1 and f"demo failed: {REFUSAL}" in stderr
    assert not (tmp_path / "demo" / "logs").exists()


def test_a_bundle_that_no_cpu_runs_is_refused_before_anything_starts(
    tmp_path: Path, tiny_bf16: Exported
) -> None:
    process = start_demo(tmp_path / "demo", bundle=tiny_bf16.bundle.path, seconds=5)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 1
    assert len(stderr.splitlines()) == 1 and stderr.startswith("demo failed: bundle '"), stderr
    assert "in bf16 on this CPU" in stderr and "'cosmos3 twin'" in stderr
    assert not (tmp_path / "demo" / "logs").exists()
