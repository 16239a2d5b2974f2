"""The simulated world, without ROS."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cosmos3_ros.policy.embodiment import load_embodiment
from cosmos3_ros.sim.pace import TOLERATED_LAG_S, Pace
from cosmos3_ros.sim.world import (
    CAMERAS,
    CUBE_HALF_EDGE_M,
    CUBES,
    GRIPPER_JOINT,
    GRIPPER_OPEN_M,
    HOME,
    JOINTS,
    STEP_RATE_HZ,
    STEPS_PER_FRAME,
    RenderError,
    World,
)

UP = np.array([0, 0, 1])


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(autouse=True)
def fresh(world: World) -> None:
    world.reset(0)


def command_arm(world: World, joints: np.ndarray) -> None:
    assert world.command(dict(zip(JOINTS, joints.tolist(), strict=True))) == {}


def panda_fingertip(joints: np.ndarray) -> np.ndarray:
    """Forward kinematics from Franka's published table (Craig's convention), flange and tool."""
    a = [0, 0, 0, 0.0825, -0.0825, 0, 0.088]
    d = [0.333, 0, 0.316, 0, 0.384, 0, 0]
    alpha = np.pi / 2 * np.array([0, -1, 1, 1, -1, 1, 1])
    pose = np.eye(4)
    for ai, di, (sa, ca), (st, ct) in zip(
        a,
        d,
        zip(np.sin(alpha), np.cos(alpha), strict=True),
        zip(np.sin(joints), np.cos(joints), strict=True),
        strict=True,
    ):
        pose = pose @ np.array(
            [
                [ct, -st, 0, ai],
                [st * ca, ct * ca, -sa, -di * sa],
                [st * sa, ct * sa, ca, di * ca],
                [0, 0, 0, 1],
            ]
        )
    return (pose @ [0, 0, 0.107 + 0.1034, 1])[:3]


def project(world: World, points: np.ndarray, name: str) -> np.ndarray:
    """Points in the base frame [n, 3, m] to pixels [n, 2] of a camera, x right, y down."""
    camera = world.model.camera(name).id
    seen = (points - world.data.cam_xpos[camera]) @ world.data.cam_xmat[camera].reshape(3, 3)
    # MuJoCo's cameras look along -z with y up.
    x, y, depth = seen[:, 0], -seen[:, 1], -seen[:, 2]
    k = world.intrinsics(name)
    return np.stack([k.focal * x / depth + k.cx, k.focal * y / depth + k.cy], axis=1)


def colour_mask(frame: np.ndarray, cube: int) -> np.ndarray:
    others = np.delete(frame.astype(int), cube, axis=-1).max(axis=-1)
    mask: np.ndarray = frame[..., cube].astype(int) > 1.6 * others + 15
    return mask


def test_the_fingertip_is_where_frankas_kinematics_put_it(world: World) -> None:
    random = np.random.default_rng(1)
    for _ in range(10):
        joints = HOME + random.uniform(-0.5, 0.5, 7)
        world.place_arm(joints)
        np.testing.assert_allclose(world.fingertip, panda_fingertip(joints), atol=1e-9)


def test_the_arm_goes_where_it_is_commanded(world: World) -> None:
    goal = HOME + np.array([0.4, 0.3, -0.2, 0.3, 0.2, 0.4, -0.5])
    command_arm(world, goal)
    assert np.abs(world.positions[:7] - goal).max() > 0.1
    world.step(2 * STEP_RATE_HZ)
    np.testing.assert_allclose(world.positions[:7], goal, atol=0.005)
    np.testing.assert_allclose(world.velocities, 0, atol=0.005)


def test_velocities_are_the_slope_of_the_positions(world: World) -> None:
    command_arm(world, HOME + 0.2)
    world.command({GRIPPER_JOINT: 0.0})
    world.step(10)
    before = world.positions
    world.step()
    slope = (world.positions - before) * STEP_RATE_HZ
    # Two steps of the physics: their mean is near to the last one's.
    np.testing.assert_allclose(slope[:7], world.velocities[:7], rtol=0.08)
    assert slope[7] < -0.05 and world.velocities[7] == pytest.approx(slope[7], rel=0.1)


def test_the_arm_stays_within_its_limits(world: World) -> None:
    body = load_embodiment("pico_panda")
    lower, upper = body.lower[:7], body.upper[:7]
    for limit, away in ((lower, -100.0), (upper, 100.0)):
        world.place_arm(np.clip(limit, lower + 0.3, upper - 0.3))
        command_arm(world, np.full(7, away))
        for _ in range(2 * STEP_RATE_HZ):
            world.step()
            # A position controller arrives with some momentum.
            assert (world.positions[:7] > lower - 0.05).all()
            assert (world.positions[:7] < upper + 0.05).all()
        np.testing.assert_allclose(world.positions[:7], limit, atol=0.01)


def test_a_partial_command_moves_only_the_joints_it_names(world: World) -> None:
    before = world.positions
    world.command({"panda_joint1": before[0] + 0.3, "panda_joint6": before[5] - 0.3})
    world.step(STEP_RATE_HZ)
    moved = np.abs(world.positions - before)
    assert (moved[[0, 5]] > 0.25).all()
    assert (np.delete(moved, [0, 5]) < 0.01).all()


def test_joints_that_do_not_exist_and_positions_that_are_not_finite_are_refused(
    world: World,
) -> None:
    before = world.positions
    refused = world.command({"panda_joint1": float("nan"), "elbow": 1.0, GRIPPER_JOINT: 0.0})
    assert refused == {"panda_joint1": "not_finite", "elbow": "unknown"}
    world.step(STEP_RATE_HZ)
    np.testing.assert_allclose(world.positions[:7], before[:7], atol=0.005)
    assert world.positions[7] < 0.001


def test_the_fingers_close_and_open_together_within_half_a_second(world: World) -> None:
    assert world.positions[7] == GRIPPER_OPEN_M
    for target, reached in ((-1.0, 0.0), (1.0, GRIPPER_OPEN_M)):
        world.command({GRIPPER_JOINT: target})
        world.step(STEP_RATE_HZ // 2)
        left, right = world.data.qpos[7:9]
        assert left == pytest.approx(reached, abs=0.001)
        assert right == pytest.approx(left, abs=0.001)


def approach(world: World, cube: int, above_m: float) -> None:
    """Command the arm, which is over a cube, down to so far above its centre; wait until there."""
    target = world.cubes[cube] + above_m * UP
    joints = world.positions[:7]
    for _ in range(8):
        joints = world.inverse_kinematics(target, joints)
    command_arm(world, joints)
    world.step(STEP_RATE_HZ)


def hover(world: World, cube: int) -> None:
    joints = world.inverse_kinematics(world.cubes[cube] + 0.12 * UP)
    world.place_arm(world.inverse_kinematics(world.cubes[cube] + 0.12 * UP, joints))


@pytest.mark.parametrize("cube", range(3))
def test_closed_fingers_hold_a_cube_and_lift_it_and_open_ones_do_not(
    world: World, cube: int
) -> None:
    for closing, height in ((False, 0.0), (True, 0.12)):
        world.reset(6)
        hover(world, cube)
        rest = world.cubes[cube, 2]
        approach(world, cube, 0.0)
        assert world.cube_distances[cube] < 0.012
        if closing:
            world.command({GRIPPER_JOINT: 0.0})
            world.step(STEP_RATE_HZ // 2)
            assert world.contacts == {CUBES[cube]}
            assert world.positions[7] == pytest.approx(CUBE_HALF_EDGE_M, abs=0.003)
        approach(world, cube, 0.12)
        world.step(2 * STEP_RATE_HZ)
        assert world.cubes[cube, 2] - rest == pytest.approx(height, abs=0.02)
        assert world.contacts == ({CUBES[cube]} if closing else set())


def looks_of(world: World) -> dict[str, np.ndarray]:
    """Everything that an episode may look different by."""
    model = world.model
    return {
        **{f"colour of {name}": model.geom(name).rgba[:3].copy() for name in (*CUBES, "table")},
        "place of the light": model.light_pos[0].copy(),
        "brightness of the light": model.light_diffuse[0].copy(),
        **{f"place of {name}": model.camera(name).pos.copy() for name in CAMERAS},
        **{f"turn of {name}": model.camera(name).quat.copy() for name in CAMERAS},
    }


def test_a_scene_looks_different_in_everything_that_varies_and_a_little(world: World) -> None:
    world.reset(1, 1)
    one = looks_of(world)
    world.reset(1, 2)
    for name, other in looks_of(world).items():
        apart = np.abs(one[name] - other).max()
        assert 1e-4 < apart < (1.0 if name == "place of the light" else 0.35), name
    world.reset(1, 1)
    for name, same in looks_of(world).items():
        np.testing.assert_array_equal(one[name], same, err_msg=name)


def test_practice_begins_beside_a_cube_or_with_closed_fingers_now_and_then(world: World) -> None:
    def beginnings(practice: bool) -> tuple[int, int]:
        low = closed = 0
        for episode in range(60):
            world.reset(3, episode, practice=practice)
            low += world.fingertip[2] < 0.16
            closed += world.positions[7] < GRIPPER_OPEN_M - 1e-6
            assert world.data.ctrl[7] == world.positions[7]
        return low, closed

    assert beginnings(practice=False) == (0, 0)
    low, closed = beginnings(practice=True)
    assert 12 <= low <= 45 and 15 <= closed <= 45


def test_practice_begins_on_a_cube_now_and_then_and_leaves_it_where_it_stands(
    world: World,
) -> None:
    resting = 0
    for episode in range(60):
        world.reset(3, episode, practice=True)
        before, nearest = world.cubes, int(world.cube_distances.argmin())
        world.step(STEPS_PER_FRAME)
        if world.contacts == {CUBES[nearest]}:
            resting += 1
            world.step(STEP_RATE_HZ)
            np.testing.assert_allclose(world.cubes, before, atol=2e-3)
    assert 3 <= resting <= 20


def test_a_start_that_the_arm_does_not_reach_is_drawn_again(world: World) -> None:
    """From these two, inverse kinematics ends with the arm turned over, far from the start."""
    for episode in (2040, 4148):
        world.reset(0, episode, practice=True)
        assert np.abs(world.positions[[2, 4]]).max() < 1.0, world.positions
        assert 0.0 < world.fingertip[2] < 0.4


def test_closed_fingers_stop_at_a_cube_and_touch_it(world: World) -> None:
    hover(world, 0)
    world.command({GRIPPER_JOINT: 0.0})
    world.step(STEP_RATE_HZ // 2)
    assert world.contacts == set()
    approach(world, 0, CUBE_HALF_EDGE_M)
    assert world.contacts == {"red"}
    assert world.fingertip[2] > 2 * CUBE_HALF_EDGE_M


def test_distances_are_measured_from_the_fingertip_to_the_cubes_centres(world: World) -> None:
    for cube, height in enumerate((0.08, 0.12, 0.16)):
        target = world.cubes[cube] + height * UP
        joints = world.inverse_kinematics(target)
        for _ in range(5):
            joints = world.inverse_kinematics(target, joints)
        world.place_arm(joints)
        assert world.cube_distances[cube] == pytest.approx(height, abs=0.005)
        expected = np.linalg.norm(world.cubes - panda_fingertip(joints), axis=1)
        np.testing.assert_allclose(world.cube_distances, expected, atol=1e-9)


@pytest.mark.parametrize("episode", range(5))
def test_the_exterior_camera_sees_every_cube_where_its_intrinsics_say(
    world: World, episode: int
) -> None:
    world.reset(4, episode)
    # Folded back, the arm hides nothing.
    world.place_arm(np.array([0, -1.5, 0, -2.8, 0, 1.571, 0.785]))
    frame = world.frame("exterior")
    for cube in range(3):
        assert_outlined(world, frame, cube, "exterior")


@pytest.mark.parametrize("cube", range(3))
def test_the_wrist_camera_sees_the_cube_below_it_where_its_intrinsics_say(
    world: World, cube: int
) -> None:
    hover(world, cube)
    assert_outlined(world, world.frame("wrist"), cube, "wrist", whole=False)


def assert_outlined(
    world: World, frame: np.ndarray, cube: int, camera: str, whole: bool = True
) -> None:
    """A cube's pixels lie inside the outline of its corners, and fill it where it is ``whole``."""
    signs = np.array(list(itertools.product((-1, 1), repeat=3)))
    turn = world.data.xmat[world.model.body(CUBES[cube]).id].reshape(3, 3)
    corners = world.cubes[cube] + CUBE_HALF_EDGE_M * signs @ turn.T
    outline = project(world, corners, camera)
    mask = colour_mask(frame, cube)
    rows, columns = np.nonzero(mask)
    assert len(rows) > 30, f"{CUBES[cube]} is not seen"
    # A pixel is filled when its centre is inside the outline, give or take the rasteriser's
    # fixed point: principal points that are half a pixel off fail here.
    inside = np.array([columns.min(), rows.min()]) - outline.min(axis=0)
    inside = np.append(inside, outline.max(axis=0) - [columns.max(), rows.max()])
    assert (inside > -0.1).all(), inside
    assert not whole or (inside < 1.1).all(), inside


def test_a_seed_makes_one_scene_and_one_picture(world: World) -> None:
    def episode(seed: int, number: int) -> list[np.ndarray]:
        world.reset(seed, number)
        start = [world.cubes, world.positions, *map(world.frame, CAMERAS)]
        command_arm(world, HOME)
        world.step(60)
        return [*start, world.positions, *map(world.frame, CAMERAS)]

    first = episode(8, 3)
    others = [episode(8, 4), episode(9, 3)]
    for one, same in zip(first, episode(8, 3), strict=True):
        np.testing.assert_array_equal(one, same)
    for other in others:
        assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_scenes_have_cubes_apart_on_the_table_and_the_fingertip_above(world: World) -> None:
    for episode in range(50):
        world.reset(2, episode)
        x, y, z = world.cubes.T
        assert (x > 0.38).all() and (x < 0.62).all() and (abs(y) < 0.22).all()
        assert (abs(z - CUBE_HALF_EDGE_M) < 1e-9).all()
        apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(world.cubes, 2)]
        assert min(apart) > 0.12
        assert 0.12 < world.fingertip[2] < 0.40
        assert world.cube_distances.min() > 0.08
        np.testing.assert_array_equal(world.velocities, 0)


def test_the_world_is_the_robot_of_its_embodiment(world: World) -> None:
    body = load_embodiment("pico_panda")
    assert body.joints == JOINTS
    np.testing.assert_array_equal(world.model.actuator_ctrlrange[:7, 0], body.lower[:7])
    np.testing.assert_array_equal(world.model.actuator_ctrlrange[:7, 1], body.upper[:7])
    assert body.gripper is not None
    assert (body.gripper.joint, body.gripper.open, body.gripper.closed) == (
        GRIPPER_JOINT,
        GRIPPER_OPEN_M,
        0.0,
    )
    assert body.rate_hz == STEP_RATE_HZ / STEPS_PER_FRAME
    assert world.model.opt.timestep == pytest.approx(1 / STEP_RATE_HZ / 2, rel=1e-5)
    assert {view.name: (view.width, view.height) for view in body.cameras} == CAMERAS
    for name, (width, height) in CAMERAS.items():
        assert world.frame(name).shape == (height, width, 3)
        intrinsics = world.intrinsics(name)
        assert (intrinsics.width, intrinsics.height) == (width, height)


def test_a_world_that_does_not_render_says_so() -> None:
    with pytest.raises(RenderError, match="made with render=False"):
        World(render=False).frame("wrist")


class ManualClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_pace_waits_until_simulated_time_is_due() -> None:
    clock = ManualClock()
    pace = Pace(2.0, clock)
    assert pace.wait_s(1.0) == pytest.approx(0.5)
    clock.now += 0.6
    assert pace.wait_s(1.0) == pytest.approx(-0.1)
    assert pace.slips == 0


def test_a_pace_gives_up_and_counts_what_it_cannot_catch_up() -> None:
    clock = ManualClock()
    pace = Pace(1.0, clock)
    lag = TOLERATED_LAG_S + 0.75
    clock.now += 1.0 + lag
    assert pace.wait_s(1.0) == 0
    assert (pace.slips, pace.lost_s) == (1, pytest.approx(lag))
    assert pace.wait_s(1.1) == pytest.approx(0.1)


def test_a_pace_of_zero_never_waits() -> None:
    pace = Pace(0.0, ManualClock())
    assert pace.wait_s(1000.0) == 0
    assert pace.slips == 0
