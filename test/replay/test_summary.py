"""The figures of a run, from what was recorded of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from recordings import JOINTS, joint_state, status, string, write_recording

from cosmos3_ros.replay.bags import BagError, BagWriter
from cosmos3_ros.replay.summary import summarise


def test_every_figure_comes_from_the_message_that_knows_it(recording: Path, tmp_path: Path) -> None:
    summary = summarise(recording, tmp_path / "summary.json")
    assert (summary.plans, summary.commands, summary.predicted_frames) == (12, 300, 12)
    # The last status and the last diagnostics count, and only the controller's own entry.
    assert (summary.observations, summary.dropped_observations) == (12, 18)
    assert summary.dropped_by_reason == {"camera_stale": 12, "camera_skew": 6}
    assert (summary.holds, summary.rejected_chunks) == (1, 6)
    assert summary.command_rate_hz == pytest.approx(49.98)
    assert (summary.command_jitter_ms.p50, summary.command_jitter_ms.p99) == (0.012, 1.5)
    # 0.10 to 0.21 s.
    assert summary.plan_latency_ms.p50 == pytest.approx(155)
    assert summary.plan_latency_ms.p99 == pytest.approx(208.9)
    assert (summary.backend, summary.bundle) == ("onnxruntime", "tiny_droid")
    assert summary.fault == ""
    loop = summary.loop
    assert (loop.wake_up_ms.p50, loop.execution_ms.p99) == (0.061, 0.83)
    assert (loop.periods, loop.missed_periods, loop.early_commands) == (300, 2, 12)
    assert loop.frame_to_command_ms.p99 == 17.5
    assert (summary.transitions, summary.saturated) == (9, 3)
    assert summary.holds_by_reason == {"chunk_ended": 1}
    assert summary.seams.count == 11


def test_duration_is_by_stamps_and_pace_by_wall_time(recording: Path, tmp_path: Path) -> None:
    summary = summarise(recording, tmp_path / "summary.json")
    assert summary.duration_s == pytest.approx(6.0)
    assert summary.pace == pytest.approx(2.0)


def test_the_file_says_what_the_summary_says_in_plain_json(recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "summary.json"
    summary = summarise(recording, out)
    # The controller did not know the longest jitter: NaN is no JSON.
    written = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert written == asdict(summary)
    assert written["command_jitter_ms"] == {"p50": 0.012, "p99": 1.5, "max": None}


def test_a_run_in_which_nothing_flowed_is_summed_up_as_such(tmp_path: Path) -> None:
    bag = tmp_path / "quiet.mcap"
    with BagWriter(bag, {"/action_chunk": "cosmos3_ros/msg/ActionChunk"}):
        pass
    summary = summarise(bag, tmp_path / "summary.json")
    assert (summary.plans, summary.commands, summary.holds) == (0, 0, 0)
    assert summary.plan_latency_ms.p50 is summary.pace is summary.command_rate_hz is None


def test_topics_in_a_namespace_and_every_command_interface_count(tmp_path: Path) -> None:
    bag = tmp_path / "named.mcap"
    topics = {
        "/left/joint_command": "sensor_msgs/msg/JointState",
        "/left/position_commands": "std_msgs/msg/String",
        "/left/joint_trajectory": "std_msgs/msg/String",
        "/left/twist_command": "std_msgs/msg/String",
        "/left/hand_pose_command": "std_msgs/msg/String",
        "/left/status": "cosmos3_ros/msg/PolicyStatus",
        "/exit_status": "std_msgs/msg/String",
    }
    with BagWriter(bag, topics) as writer:
        writer.write("/left/joint_command", 1, joint_state(1, JOINTS, [0.0] * 8))
        for other in ("position_commands", "joint_trajectory", "twist_command"):
            writer.write(f"/left/{other}", 2, string("counted, not read"))
        writer.write("/left/hand_pose_command", 2, string("counted, not read"))
        writer.write("/left/status", 3, status(3, 7, {}))
        writer.write("/exit_status", 4, string("not ours"))
    summary = summarise(bag, tmp_path / "summary.json")
    assert (summary.commands, summary.observations) == (5, 7)


def test_a_policy_that_gave_up_is_said(tmp_path: Path) -> None:
    bag = tmp_path / "fault.mcap"
    with BagWriter(bag, {"/status": "cosmos3_ros/msg/PolicyStatus"}) as writer:
        writer.write("/status", 1, status(1, 7, {}, state=3, reason="the engine failed"))
    assert summarise(bag, tmp_path / "summary.json").fault == "the engine failed"


def test_a_recording_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    bag = write_recording(tmp_path / "recording.mcap")
    bag.write_bytes(bag.read_bytes()[:-100])
    with pytest.raises(BagError, match="cut short"):
        summarise(bag, tmp_path / "summary.json")
    assert not (tmp_path / "summary.json").exists()
