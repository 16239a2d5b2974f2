"""How plans follow each other in a recording, measured against plans whose seams are known."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import encode_chunk, joint_state

from cosmos3_ros.policy.embodiment import load_embodiment
from cosmos3_ros.replay.bags import BagWriter, open_bag
from cosmos3_ros.replay.seams import Seams, seams_of

ROBOT = load_embodiment("pico_panda")
JOINTS = [*ROBOT.joints, "panda_finger_joint1"]
RATE_HZ, PERIOD_NS = 15.0, 20_000_000
BEGIN_NS = 1_000_000_000
SPEED = float(ROBOT.velocity[0])


def ramp(begin: float, speed: float, rows: int = 15, **channels: float) -> np.ndarray:
    """The first joint from ``begin`` at ``speed``, rows of what is due 1 / 15 s after another."""
    plan = np.zeros((rows, ROBOT.width))
    plan[:, 0] = begin + speed * np.arange(1, rows + 1) / RATE_HZ
    for name, value in channels.items():
        plan[:, [channel.name for channel in ROBOT.channels].index(name)] = value
    return plan


def measured(
    path: Path,
    plans: Iterable[tuple[int, np.ndarray]],
    positions: Iterable[float] = (),
    embodiment: str = ROBOT.name,
) -> Seams:
    """Plans (stamp [ns], rows), and a command of the first joint every 20 ms."""
    positions = list(positions) or [0.0] * 200
    topics = {
        "/action_chunk": "cosmos3_ros/msg/ActionChunk",
        "/joint_command": "sensor_msgs/msg/JointState",
    }
    with BagWriter(path, topics) as bag:
        written: list[tuple[int, str, bytes]] = []
        log_ns = 0
        for plan_id, (stamp_ns, rows) in enumerate(plans, 1):
            log_ns = max(log_ns, stamp_ns)
            message = encode_chunk(stamp_ns, plan_id, rows, ROBOT.channels, embodiment)
            written.append((log_ns, "/action_chunk", message))
        for i, position in enumerate(positions):
            stamp_ns = BEGIN_NS + i * PERIOD_NS
            pose = [position, *[0.0] * 7]
            written.append((stamp_ns + 1, "/joint_command", joint_state(stamp_ns, JOINTS, pose)))
        for stamp_ns, topic, message in sorted(written, key=lambda each: each[0]):
            bag.write(topic, stamp_ns, message)
    with open_bag(path) as opened:
        return seams_of(opened, ("/joint_command",))


def test_a_plan_that_goes_on_as_the_one_before_has_a_seam_of_nothing(tmp_path: Path) -> None:
    later = 400_000_000
    plans = [(BEGIN_NS, ramp(0.0, 0.5)), (BEGIN_NS + later, ramp(0.5 * 0.4, 0.5))]
    found = measured(tmp_path / "run.mcap", plans)
    assert found.count == 1
    # Due times are whole nanoseconds.
    assert found.position_s.max == pytest.approx(0.0, abs=1e-4)
    assert found.velocity.max == pytest.approx(0.0, abs=1e-4)


def test_the_jump_between_plans_is_measured_in_units_of_the_limits(tmp_path: Path) -> None:
    later = 400_000_000
    plans = [(BEGIN_NS, ramp(0.0, 0.5)), (BEGIN_NS + later, ramp(0.5 * 0.4 + 0.1, -0.5))]
    found = measured(tmp_path / "run.mcap", plans)
    assert found.count == 1
    # When the new plan's first row is due, the old one is 0.5 / 15 rad beyond 0.2, and the new one
    # is 0.1 rad ahead of that and as much back as the other went on.
    assert found.velocity.p50 == pytest.approx(1.0 / SPEED, rel=1e-3)
    assert found.position_s.p50 == pytest.approx((0.1 - 2 * 0.5 / RATE_HZ) / SPEED, rel=1e-2)


def test_a_gripper_that_closes_is_no_jump(tmp_path: Path) -> None:
    later = 400_000_000
    plans = [
        (BEGIN_NS, ramp(0.0, 0.5, gripper=0.0)),
        (BEGIN_NS + later, ramp(0.5 * 0.4, 0.5, gripper=1.0)),
    ]
    assert measured(tmp_path / "run.mcap", plans).position_s.max == pytest.approx(0.0, abs=1e-4)


def test_what_was_commanded_is_measured_in_shares_of_the_limits(tmp_path: Path) -> None:
    plans = [(BEGIN_NS, ramp(0.0, 0.5))]
    at_rest, moving = [0.3] * 10, [0.3 + 0.01 * i for i in range(1, 20)]
    found = measured(tmp_path / "run.mcap", plans, at_rest + moving)
    assert found.command_velocity == pytest.approx(0.01 / 0.02 / SPEED, rel=1e-3)
    hardest = 0.01 / 0.02 / 0.02 / float(ROBOT.acceleration[0])
    assert found.command_acceleration == pytest.approx(hardest, rel=1e-3)


def test_after_the_clock_jumped_back_there_is_no_seam(tmp_path: Path) -> None:
    plans = [(BEGIN_NS + 900_000_000, ramp(0.0, 0.5)), (BEGIN_NS + 800_000_000, ramp(0.5, 0.5))]
    assert measured(tmp_path / "run.mcap", plans).count == 0


def test_plans_of_a_robot_nobody_knows_have_no_figures(tmp_path: Path) -> None:
    plans: list[tuple[int, Any]] = [(BEGIN_NS, ramp(0.0, 0.5)), (BEGIN_NS + 1, ramp(0.0, 0.5))]
    found = measured(tmp_path / "run.mcap", plans, embodiment="nobodys")
    assert (found.count, found.position_s.p50, found.command_velocity) == (0, None, None)
