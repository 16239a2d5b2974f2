"""The simulated arm with fingers, a table and three loose cubes in MuJoCo, seen by two cameras.

No ROS. The scene is ``config/scenes/tabletop.xml``.

Frame of reference: the arm's base, ``panda_link0``: x forward, y left, z up, the table at z = 0.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import numpy as np

from cosmos3_ros.resources import resource

SCENE = ("config", "scenes", "tabletop.xml")
JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
GRIPPER_JOINT = "panda_finger_joint1"
GRIPPER_OPEN_M = 0.04
CUBES = ("red", "green", "blue")
CUBE_HALF_EDGE_M = 0.024
# Width and height of each camera's picture [px].
CAMERAS = {"exterior": (128, 96), "wrist": (64, 96)}

STEP_RATE_HZ = 180
STEPS_PER_FRAME = 12
# The physics goes in smaller steps than anything is published in, or a grip does not hold.
_PHYSICS_PER_STEP = 2

# The Panda's usual ready pose [rad].
HOME = np.array([0, -0.785, 0, -2.356, 0, 1.571, 0.785])

# Where an episode begins [m]: cubes on the table, apart; the fingertip above them.
_CUBE_X, _CUBE_Y = (0.38, 0.62), (-0.22, 0.22)
_CUBE_SEPARATION = 0.12
_CUBE_YAW = 0.2  # [rad], either way
_START_BOX = np.array([[0.36, -0.24, 0.18], [0.60, 0.24, 0.34]])
_START_JOINT_SPREAD = 0.1  # [rad], of the pose that the start's inverse kinematics begins from
# Inverse kinematics that ends farther from the start than this has not found a way there.
_START_TOLERANCE_M = 0.02
# Practice begins lower and beside a cube as often as not, now and then with closed fingers, as
# after a grip that missed, or on a cube, as after a touch: what a policy gets wrong it has seen.
_PRACTICE_SHARE = 0.4
_PRACTICE_CLOSED_SHARE = 0.3
_PRACTICE_REACH = np.array([[-0.07, -0.07, 0.035], [0.07, 0.07, 0.15]])
_PRACTICE_RESTING_SHARE = 0.4  # of those beside a cube
_PRACTICE_RESTING = np.array([[-0.012, -0.012, 0.030], [0.012, 0.012, 0.034]])

# How much an episode's looks differ from the scene file's.
_HUE, _SHADE = 0.02, 0.15
_LIGHT_SHIFT_M, _LIGHT_GAIN = 0.5, 0.2
_EXTERIOR_SHIFT_M, _EXTERIOR_TURN = 0.015, 0.015  # [m], [rad]
_WRIST_SHIFT_M, _WRIST_TURN = 0.003, 0.02

# Damped least squares towards a fingertip pose, the rest drawn to HOME.
_IK_ITERATIONS = 60
_IK_DAMPING = 1e-3
_IK_TURN_GAIN = 0.5
_IK_HOME_GAIN = 0.1
_IK_LARGEST_STEP = 0.2  # [rad]
_IK_LIMIT_MARGIN = 0.05  # [rad]
# The tool points down and its fingers open along y: columns are the hand's axes.
_TOOL_DOWN = np.diag([1.0, -1.0, -1.0])

_ARM = slice(0, 7)
_FINGER = 7


class RenderError(OSError):
    """The machine cannot render the cameras."""


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera [px]; (0, 0) is the centre of the upper left pixel, as in OpenCV and ROS."""

    width: int
    height: int
    focal: float
    cx: float
    cy: float


@dataclass(frozen=True)
class _Looks:
    """What an episode changes of the model, as the scene file has it."""

    geom_rgba: np.ndarray
    light_pos: np.ndarray
    light_diffuse: np.ndarray
    cam_pos: np.ndarray
    cam_quat: np.ndarray


class World:
    """One arm and three cubes; seeded and deterministic.

    ``model`` and ``data`` are MuJoCo's, to read from. A world that renders belongs to one thread.
    """

    def __init__(self, *, render: bool = True) -> None:
        self.model = mujoco.MjModel.from_xml_path(str(resource(*SCENE)))
        self.data = mujoco.MjData(self.model)
        self._scratch = mujoco.MjData(self.model)
        self._tip = self.model.site("fingertip").id
        self._lower, self._upper = self.model.actuator_ctrlrange[_ARM].T
        self._cubes = [self.model.body(name).id for name in CUBES]
        self._cube_of_geom = {self.model.geom(name).id: name for name in CUBES}
        self._fingers = [self.model.geom(f"{side}_finger").id for side in ("left", "right")]
        self._looks = _Looks(
            **{name: getattr(self.model, name).copy() for name in _Looks.__dataclass_fields__}
        )
        self._renderers = self._make_renderers() if render else {}
        self.reset(0)

    def reset(self, seed: int, episode: int = 0, *, practice: bool = False) -> None:
        """Begin the ``episode``-th scene of ``seed``: place the cubes, the arm and the light.

        ``practice``: the arm may begin low beside a cube, or with closed fingers.
        """
        random = np.random.default_rng((seed, episode))
        mujoco.mj_resetData(self.model, self.data)
        self._place_cubes(random)
        self.place_arm(*self._draw_start(random, practice))
        # Last, so that other looks leave the placements as they are.
        self._vary_looks(random)

    def place_arm(self, joints: np.ndarray, finger_m: float = GRIPPER_OPEN_M) -> None:
        """Put the arm at rest at ``joints`` [7, rad] and both fingers, holding there."""
        self.data.qpos[_ARM] = joints
        self.data.qpos[_FINGER : _FINGER + 2] = finger_m
        self.data.qvel[: _FINGER + 2] = 0
        self.data.ctrl[_ARM] = joints
        self.data.ctrl[_FINGER] = finger_m
        mujoco.mj_forward(self.model, self.data)

    def command(self, positions: Mapping[str, float]) -> dict[str, str]:
        """Set target positions by joint name [rad; finger m]; joints not named keep theirs.

        Targets are clipped to the joints' limits. Returns the names that were not followed and
        why: "unknown" or "not_finite".
        """
        refused = {}
        for name, position in positions.items():
            if name not in (*JOINTS, GRIPPER_JOINT):
                refused[name] = "unknown"
            elif not math.isfinite(position):
                refused[name] = "not_finite"
            elif name == GRIPPER_JOINT:
                self.data.ctrl[_FINGER] = min(max(position, 0.0), GRIPPER_OPEN_M)
            else:
                joint = JOINTS.index(name)
                self.data.ctrl[joint] = np.clip(position, self._lower[joint], self._upper[joint])
        return refused

    def step(self, steps: int = 1) -> None:
        """Advance the physics by ``steps`` / STEP_RATE_HZ seconds."""
        mujoco.mj_step(self.model, self.data, steps * _PHYSICS_PER_STEP)

    @property
    def positions(self) -> np.ndarray:
        """Positions of JOINTS [rad] and then of GRIPPER_JOINT [m], [8]."""
        return self.data.qpos[: _FINGER + 1].copy()

    @property
    def velocities(self) -> np.ndarray:
        """Velocities of JOINTS [rad/s] and then of GRIPPER_JOINT [m/s], [8]."""
        return self.data.qvel[: _FINGER + 1].copy()

    @property
    def cubes(self) -> np.ndarray:
        """Centres of the red, green and blue cube in the base frame [3, 3, m]."""
        return self.data.xpos[self._cubes].copy()

    @property
    def fingertip(self) -> np.ndarray:
        """The point between the fingertips in the base frame [3, m]."""
        return self.data.site_xpos[self._tip].copy()

    @property
    def cube_distances(self) -> np.ndarray:
        """From the fingertip to the centre of the red, green and blue cube [3, m]."""
        return np.linalg.norm(self.cubes - self.fingertip, axis=1)

    @property
    def contacts(self) -> frozenset[str]:
        """The cubes that a finger touches now."""
        geoms = self.data.contact.geom
        by_finger = np.isin(geoms, self._fingers).any(1)
        touched = geoms[by_finger].ravel().tolist()
        return frozenset(self._cube_of_geom[geom] for geom in touched if geom in self._cube_of_geom)

    def frame(self, camera: str) -> np.ndarray:
        """What a camera of CAMERAS sees, rgb8 [height, width, 3]; a new array."""
        if not self._renderers:
            raise RenderError("this world was made with render=False; make it with render=True")
        renderer = self._renderers[camera]
        renderer.update_scene(self.data, camera)
        return renderer.render()

    def intrinsics(self, camera: str) -> Intrinsics:
        """A camera's, from its vertical field of view."""
        width, height = CAMERAS[camera]
        half_angle = math.radians(self.model.camera(camera).fovy[0]) / 2
        return Intrinsics(
            width=width,
            height=height,
            focal=height / 2 / math.tan(half_angle),
            cx=(width - 1) / 2,
            cy=(height - 1) / 2,
        )

    def inverse_kinematics(
        self, target: np.ndarray, guess: np.ndarray = HOME, iterations: int = _IK_ITERATIONS
    ) -> np.ndarray:
        """Joints [7, rad] that bring the fingertip near ``target`` [3, m], the tool down."""
        joints = guess
        for _ in range(iterations):
            joints = self._towards(joints, target)
        return joints

    def forward_kinematics(self, joints: np.ndarray) -> np.ndarray:
        """The fingertip [3, m] of ``joints`` [7, rad]."""
        self._solve(joints)
        return self._scratch.site_xpos[self._tip].copy()

    def _solve(self, joints: np.ndarray) -> None:
        self._scratch.qpos[_ARM] = joints
        mujoco.mj_kinematics(self.model, self._scratch)
        mujoco.mj_comPos(self.model, self._scratch)

    def _towards(self, joints: np.ndarray, target: np.ndarray) -> np.ndarray:
        self._solve(joints)
        data = self._scratch
        jacobian = np.zeros((6, self.model.nv))
        mujoco.mj_jacSite(self.model, data, jacobian[:3], jacobian[3:], self._tip)
        jacobian = jacobian[:, _ARM]
        axes = data.site_xmat[self._tip].reshape(3, 3)
        turn = np.cross(axes, _TOOL_DOWN, axis=0).sum(1) / 2
        error = np.concatenate([target - data.site_xpos[self._tip], _IK_TURN_GAIN * turn])
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + _IK_DAMPING * np.eye(6))
        idle = np.eye(len(JOINTS)) - inverse @ jacobian
        change = inverse @ error + idle @ (_IK_HOME_GAIN * (HOME - joints))
        return np.clip(
            joints + np.clip(change, -_IK_LARGEST_STEP, _IK_LARGEST_STEP),
            self._lower + _IK_LIMIT_MARGIN,
            self._upper - _IK_LIMIT_MARGIN,
        )

    def _place_cubes(self, random: np.random.Generator) -> None:
        """Uniform on a part of the table, apart, turned a little."""
        while True:
            x, y = random.uniform(*_CUBE_X, 3), random.uniform(*_CUBE_Y, 3)
            gaps = np.hypot(x - np.roll(x, 1), y - np.roll(y, 1))
            if gaps.min() > _CUBE_SEPARATION:
                break
        yaw = random.uniform(-_CUBE_YAW, _CUBE_YAW, 3)
        for i, name in enumerate(CUBES):
            turned = (np.cos(yaw[i] / 2), 0, 0, np.sin(yaw[i] / 2))
            first = self.model.joint(self.model.body(name).jntadr[0]).qposadr[0]
            self.data.qpos[first : first + 7] = (x[i], y[i], CUBE_HALF_EDGE_M, *turned)
        mujoco.mj_forward(self.model, self.data)

    def _draw_start(self, random: np.random.Generator, practice: bool) -> tuple[np.ndarray, float]:
        """Joints [7, rad] and fingers [m] to begin with, the fingertip where it was meant to be."""
        while True:
            start = random.uniform(*_START_BOX)
            finger_m = GRIPPER_OPEN_M
            if practice:
                start, finger_m = self._draw_practice(random, start)
            guess = HOME + random.uniform(-_START_JOINT_SPREAD, _START_JOINT_SPREAD, len(JOINTS))
            joints = self.inverse_kinematics(start, guess)
            if np.linalg.norm(self.forward_kinematics(joints) - start) < _START_TOLERANCE_M:
                return joints, finger_m

    def _draw_practice(
        self, random: np.random.Generator, start: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """Another fingertip [3, m] in place of ``start`` now and then, and fingers [m]."""
        if random.uniform() < _PRACTICE_SHARE:
            cube = self.cubes[random.integers(len(CUBES))]
            if random.uniform() < _PRACTICE_RESTING_SHARE:
                return cube + random.uniform(*_PRACTICE_RESTING), 0.0
            start = cube + random.uniform(*_PRACTICE_REACH)
        if random.uniform() < _PRACTICE_CLOSED_SHARE:
            return start, random.uniform(0.0, GRIPPER_OPEN_M)
        return start, GRIPPER_OPEN_M

    def _vary_looks(self, random: np.random.Generator) -> None:
        """Light, colours and the cameras' poses, a little off what the scene file says."""
        model, looks = self.model, self._looks
        for name in (*CUBES, "table"):
            geom = model.geom(name).id
            model.geom_rgba[geom, :3] = _tinted(looks.geom_rgba[geom, :3], random)
        shift = random.uniform(-_LIGHT_SHIFT_M, _LIGHT_SHIFT_M, 3)
        model.light_pos[0] = looks.light_pos[0] + shift
        model.light_diffuse[0] = looks.light_diffuse[0] * (
            1 + random.uniform(-_LIGHT_GAIN, _LIGHT_GAIN)
        )
        for name, shift_m, turn in (
            ("exterior", _EXTERIOR_SHIFT_M, _EXTERIOR_TURN),
            ("wrist", _WRIST_SHIFT_M, _WRIST_TURN),
        ):
            camera = model.camera(name).id
            model.cam_pos[camera] = looks.cam_pos[camera] + random.uniform(-shift_m, shift_m, 3)
            small = np.concatenate([[1.0], random.uniform(-turn, turn, 3) / 2])
            quaternion = model.cam_quat[camera]
            mujoco.mju_mulQuat(quaternion, looks.cam_quat[camera], small)
            mujoco.mju_normalize4(quaternion)
        mujoco.mj_forward(model, self.data)

    def _make_renderers(self) -> dict[str, mujoco.Renderer]:
        renderers = {}
        flags = mujoco.mjtRndFlag
        for camera, (width, height) in CAMERAS.items():
            try:
                renderer = mujoco.Renderer(self.model, height, width)
            # PyOpenGL raises whatever its platform module stumbles over.
            except Exception as error:
                raise RenderError(
                    f"camera '{camera}' cannot be rendered ({error}); expected OpenGL without a "
                    "display: install libegl1 and libgl1-mesa-dri, or set MUJOCO_GL to osmesa or "
                    "glfw"
                ) from error
            for flag in (flags.mjRND_SHADOW, flags.mjRND_REFLECTION, flags.mjRND_SKYBOX):
                renderer.scene.flags[flag] = 0
            renderers[camera] = renderer
        return renderers


def _tinted(rgb: np.ndarray, random: np.random.Generator) -> tuple[float, float, float]:
    """A colour near another one: its hue and its brightness moved a little."""
    hue, saturation, value = colorsys.rgb_to_hsv(*rgb.tolist())
    hue = (hue + random.uniform(-_HUE, _HUE)) % 1.0
    value = min(1.0, value * (1 + random.uniform(-_SHADE, _SHADE)))
    return colorsys.hsv_to_rgb(hue, saturation, value)
