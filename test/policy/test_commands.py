"""What a chunk commands, of what a checkpoint says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cosmos3_ros.policy.commands import command_space
from cosmos3_ros.policy.embodiment import Channel, EmbodimentError, load_embodiment

IDENTITY = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
HERE = [0.5, 0.1, 0.6, 0.0, 0.0, 0.0, 1.0]
NO_POSES = np.zeros((0, 7))


def test_joints_are_commanded_as_they_are_planned() -> None:
    robot = load_embodiment("sim_panda")
    space = command_space(robot)
    rows = np.arange(24.0).reshape(3, 8)
    assert (space.commands(rows, NO_POSES) == rows).all()
    assert space.names == robot.channel_names and space.quaternions == ()
    assert (space.velocity == robot.velocity).all()
    assert np.isnan(space.rest).all()
    assert space.hysteresis[7] == 0.1 and np.isnan(space.hysteresis[:7]).all()


def test_pose_deltas_become_poses_and_other_channels_stay() -> None:
    robot = load_embodiment("droid_lerobot")
    space = command_space(robot)
    assert space.names[:7] == (
        "position_x", "position_y", "position_z",
        "orientation_x", "orientation_y", "orientation_z", "orientation_w",
    )  # fmt: skip
    assert space.names[7:] == ("gripper",)
    assert space.units == ("m", "m", "m", "1", "1", "1", "1", "1")
    rows = np.array([[0.01, 0, 0, *IDENTITY, 0.2], [0.01, 0, 0, *IDENTITY, 0.3]])
    commands = space.commands(rows, np.array([HERE]))
    assert commands == pytest.approx(np.array([[0.51, *HERE[1:], 0.2], [0.52, *HERE[1:], 0.3]]))
    assert space.model_rows(commands, np.array([HERE])) == pytest.approx(rows)
    assert space.quaternions == (3,)


def test_two_arms_are_composed_each_from_its_own_pose() -> None:
    space = command_space(load_embodiment("robomind_franka_dual"))
    assert space.quaternions == (3, 11) and space.width == 16 and len(space.velocity) == 14
    there = [0.0, -0.4, 0.3, 0.0, 0.0, np.sqrt(0.5), np.sqrt(0.5)]
    row = np.array([[0.1, 0, 0, *IDENTITY, 1.0] * 2])
    commands = space.commands(row, np.array([HERE, there]))
    assert commands[0, :3] == pytest.approx([0.6, 0.1, 0.6])
    # Turned by a quarter about z, forward is the base's y.
    assert commands[0, 8:11] == pytest.approx([0.0, -0.3, 0.3])
    assert commands[0, [7, 15]].tolist() == [1.0, 1.0]


def test_limits_of_a_pose_are_of_the_pose_and_of_its_turn(tmp_path: Path) -> None:
    file = tmp_path / "arm.yaml"
    file.write_text(
        "name: arm\ndomain: umi\ndomain_id: 6\naction_space: pose_delta\nchannels:\n"
        "  - {block: pose, lower: [0.2, -0.5, 0.0], upper: [0.8, 0.5, 0.9], velocity: 0.5,\n"
        "     acceleration: 2.0, jump: 0.1,\n"
        "     turn_velocity: 1.5, turn_acceleration: 6.0, turn_jump: 0.6}\n"
        "  - {block: grasp}\n"
    )
    space = command_space(load_embodiment(file))
    assert space.lower[:3].tolist() == [0.2, -0.5, 0.0]
    assert space.upper[3:7].tolist() == [np.inf] * 4
    assert space.velocity.tolist() == [0.5] * 3 + [1.5] * 3 + [np.inf]
    assert space.acceleration.tolist() == [2.0] * 3 + [6.0] * 3 + [np.inf]
    assert space.jump.tolist() == [0.1] * 3 + [0.6] * 3 + [np.inf]


def test_a_base_rests_at_no_velocity() -> None:
    base = replace(
        load_embodiment("pusht"),
        action_space="base_velocity",
        channels=(Channel("linear_x", "m/s"), Channel("angular_z", "rad/s")),
    )
    assert command_space(base).rest.tolist() == [0.0, 0.0]


def test_actions_that_are_no_commands_are_refused() -> None:
    with pytest.raises(EmbodimentError, match="has action space 'opaque'; expected joint_position"):
        command_space(load_embodiment("galbot"))
    with pytest.raises(EmbodimentError, match="a pose delta without rotation_"):
        command_space(load_embodiment("libero_7"))
