"""How plans follow each other in a recording, measured against plans whose seams are known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import controller_status, encode_chunk, joint_state, pose, twist

from cosmos3_ros.policy.commands import command_space
from cosmos3_ros.policy.embodiment import Channel, Embodiment, load_embodiment
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
    committed_rows: int = 0,
    refused: int = 0,
    robot: Embodiment | None = None,
) -> Seams:
    """Plans (stamp [ns], rows), and a command of the first joint every 20 ms. ``refused``: the id
    of a plan that the controller does not follow."""
    positions = list(positions) or [0.0] * 200
    topics = {
        "/action_chunk": "cosmos3_ros/msg/ActionChunk",
        "/joint_command": "sensor_msgs/msg/JointState",
        "/controller_status": "cosmos3_ros/msg/ControllerStatus",
    }
    with BagWriter(path, topics) as bag:
        written: list[tuple[int, str, bytes]] = []
        log_ns = 0
        for plan_id, (stamp_ns, rows) in enumerate(plans, 1):
            log_ns = max(log_ns, stamp_ns)
            repeated = committed_rows if plan_id > 1 else 0
            message = encode_chunk(
                stamp_ns, plan_id, rows, ROBOT.channels, embodiment, committed_rows=repeated
            )
            if plan_id == refused:
                told = controller_status(stamp_ns, plan_id - 1, plan_id)
                written.append((log_ns + 1, "/controller_status", told))
            written.append((log_ns, "/action_chunk", message))
        for i, position in enumerate(positions):
            stamp_ns = BEGIN_NS + i * PERIOD_NS
            pose = [position, *[0.0] * 7]
            written.append((stamp_ns + 1, "/joint_command", joint_state(stamp_ns, JOINTS, pose)))
        for stamp_ns, topic, message in sorted(written, key=lambda each: each[0]):
            bag.write(topic, stamp_ns, message)
    with open_bag(path) as opened:
        return seams_of(opened, ("/joint_command",), robot)


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
    gap = 0.1 - 2 * 0.5 / RATE_HZ
    assert found.position_s.p50 == pytest.approx(gap / SPEED, rel=1e-2)
    # Across it in a period of the commands, and back at 1 rad/s less than before.
    assert found.velocity.p50 == pytest.approx((gap / 0.02 + 1.0) / SPEED, rel=1e-2)


def test_figures_are_shares_of_the_limits_of_the_robot_that_ran(tmp_path: Path) -> None:
    """Its file has the name of one that ships, or of none that does."""
    slow = replace(ROBOT, channels=tuple(replace(c, velocity=0.5) for c in ROBOT.channels))
    plans = [(BEGIN_NS, ramp(0.0, 0.5)), (BEGIN_NS + 400_000_000, ramp(0.3, -0.5))]
    positions = np.arange(200) * 0.005
    shipped = measured(tmp_path / "a.mcap", plans, positions)
    own = measured(tmp_path / "b.mcap", plans, positions, robot=slow)
    named = measured(tmp_path / "c.mcap", plans, positions, embodiment="mine", robot=slow)
    assert own.position_s.p50 == pytest.approx(shipped.position_s.p50 * SPEED / 0.5, rel=1e-2)
    assert own.command_velocity == pytest.approx(0.25 / 0.5, rel=1e-2)
    assert named == own


def test_rows_that_are_repeated_move_the_seam_to_where_they_end(tmp_path: Path) -> None:
    later = 400_000_000
    goes_on = ramp(0.5 * 0.4, 0.5)
    goes_on[4:, 0] = goes_on[3, 0] - 0.5 * np.arange(1, 12) / RATE_HZ  # and then back
    plans = [(BEGIN_NS, ramp(0.0, 0.5)), (BEGIN_NS + later, goes_on)]
    for committed_rows, change in ((0, 0.0), (4, 1.0 / SPEED)):
        path = tmp_path / f"run{committed_rows}.mcap"
        found = measured(path, plans, committed_rows=committed_rows)
        assert found.position_s.max == pytest.approx(0.0, abs=1e-4)
        assert found.velocity.max == pytest.approx(change, abs=1e-3)


def test_a_plan_that_was_refused_takes_over_from_none(tmp_path: Path) -> None:
    plans = [
        (BEGIN_NS, ramp(0.0, 0.5)),
        (BEGIN_NS + 200_000_000, ramp(0.9, 0.5)),
        (BEGIN_NS + 400_000_000, ramp(0.5 * 0.4, 0.5)),
    ]
    assert measured(tmp_path / "all.mcap", plans).count == 2
    found = measured(tmp_path / "run.mcap", plans, refused=2)
    assert found.count == 1 and found.position_s.max == pytest.approx(0.0, abs=1e-4)


BASE = """
{name: base, domain: pusht, domain_id: 15, action_space: base_velocity, rate_hz: 10.0,
 channels: [{name: linear_x, unit: m/s, lower: -0.5, upper: 0.5, velocity: 1.0, acceleration: 50.0},
            {name: angular_z, unit: rad/s, lower: -1.0, upper: 1.0, velocity: 2.0}]}
"""
HAND = """
{name: hand, domain: fractal, domain_id: 20, action_space: pose_delta, rate_hz: 10.0,
 channels: [{block: pose, prefix: left_, lower: [-1, -1, 0], upper: [1, 1, 1], velocity: 0.5,
             acceleration: 5.0, turn_velocity: 2.0, turn_acceleration: 20.0}]}
"""


def commanded(
    folder: Path, robot: str, topic: str, kind: str, told: list[bytes], gap: float = 0.0
) -> Seams:
    """Seams of two plans that stand still, ``gap`` apart, and of commands every 20 ms."""
    file = folder / "robot.yaml"
    file.write_text(robot)
    embodiment = load_embodiment(file)
    space = command_space(embodiment)
    rows = np.zeros((10, space.width))
    for first in space.quaternions:
        rows[:, first + 3] = 1.0
    channels = [Channel(n, u) for n, u in zip(space.names, space.units, strict=True)]
    topics = {"/action_chunk": "cosmos3_ros/msg/ActionChunk", topic: kind}
    path = folder / "run.mcap"
    with BagWriter(path, topics) as bag:
        for plan_id, stamp_ns in enumerate((BEGIN_NS, BEGIN_NS + 2 * PERIOD_NS), 1):
            chunk = encode_chunk(stamp_ns, plan_id, rows, channels, str(file))
            bag.write("/action_chunk", stamp_ns, chunk)
            rows[:, 0] += gap
        for i, message in enumerate(told):
            bag.write(topic, BEGIN_NS + i * PERIOD_NS + 1, message)
    with open_bag(path) as opened:
        return seams_of(opened, (topic,))


def test_velocities_of_a_base_are_measured_as_commands_are(tmp_path: Path) -> None:
    told = [
        twist(BEGIN_NS + i * PERIOD_NS, x, 0.5) for i, x in enumerate((0.0, 0.0, 0.01, 0.02, 0.02))
    ]
    kind = "geometry_msgs/msg/TwistStamped"
    found = commanded(tmp_path, BASE, "/twist_command", kind, told)
    assert found.count == 1
    assert found.command_position == pytest.approx(0.5), "of 1 rad/s"
    assert found.command_velocity == pytest.approx(0.01 / 0.02 / 1.0, rel=1e-3)


def test_commands_that_share_a_stamp_have_seams_all_the_same(tmp_path: Path) -> None:
    told = [twist(BEGIN_NS + (2 + i // 2 * 2) * PERIOD_NS, 0.0, 0.5) for i in range(10)]
    kind = "geometry_msgs/msg/TwistStamped"
    assert commanded(tmp_path, BASE, "/twist_command", kind, told).count == 1


def test_a_clock_that_restarts_does_not_make_the_control_period_any_shorter(
    tmp_path: Path,
) -> None:
    once = [BEGIN_NS + i * PERIOD_NS for i in range(6)]
    again = [stamp_ns + PERIOD_NS // 2 for stamp_ns in once]
    kind = "geometry_msgs/msg/TwistStamped"
    for stamps_ns in (once, once + again):
        told = [twist(stamp_ns, 0.0, 0.5) for stamp_ns in stamps_ns]
        found = commanded(tmp_path, BASE, "/twist_command", kind, told, gap=0.01)
        assert found.velocity.p50 == pytest.approx(0.01 / 0.02 / 1.0, rel=1e-3)


def test_poses_are_measured_by_how_far_they_turn(tmp_path: Path) -> None:
    turns = [0.0, 0.0, 0.02, 0.04, 0.04]
    told = [
        pose(BEGIN_NS + i * PERIOD_NS, (0.25, 0.0, 0.5), (0, 0, np.sin(turn / 2), np.cos(turn / 2)))
        for i, turn in enumerate(turns)
    ]
    kind = "geometry_msgs/msg/PoseStamped"
    found = commanded(tmp_path, HAND, "/left_pose_command", kind, told)
    assert found.command_position == pytest.approx(0.25)
    assert found.command_velocity == pytest.approx(0.02 / 0.02 / 2.0, rel=1e-3)
    assert found.command_acceleration == pytest.approx(1.0 / 0.02 / 20.0, rel=1e-3)


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
    reach = max(
        abs(2 * at - upper - lower) / (upper - lower)
        for at, lower, upper in zip(
            (moving[-1], *[0.0] * 6), ROBOT.lower[:7], ROBOT.upper[:7], strict=True
        )
    )
    assert found.command_position == pytest.approx(reach, rel=1e-3)
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
