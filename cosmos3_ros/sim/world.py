"""The simulated arm, table, cubes and camera in MuJoCo, without ROS.

The scene is ``config/scenes/three_cubes.xml``.

Frame of reference: the arm's base, ``panda_link0``: x forward, y left, z up, the table at z = 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import numpy as np

from cosmos3_ros.resources import resource

SCENE = ("config", "scenes", "three_cubes.xml")
JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
GRIPPER_JOINT = "panda_finger_joint1"
GRIPPER_OPEN_M = 0.04
CUBES = ("red", "green", "blue")
CAMERA = "exterior"

STEP_RATE_HZ = 180
STEPS_PER_FRAME = 12

# The Panda's usual ready pose [rad].
HOME = np.array([0, -0.785, 0, -2.356, 0, 1.571, 0.785])

# Where an episode begins [m]: cubes on the table, apart; the fingertip above them.
_CUBE_X, _CUBE_Y = (0.36, 0.62), (-0.24, 0.24)
_CUBE_HALF_EDGE = 0.025
_CUBE_SEPARATION = 0.11
_START_BOX = np.array([[0.34, -0.26, 0.16], [0.60, 0.26, 0.36]])
_START_JOINT_SPREAD = 0.15  # [rad], of the pose that the start's inverse kinematics begins from

# The gripper has no fingers: a value that covers half of its way to the target in each frame.
_GRIPPER_STEP = 1 - 0.5 ** (1 / STEPS_PER_FRAME)

# Damped least squares towards a fingertip position, tool pointing down, the rest drawn to HOME.
_IK_ITERATIONS = 40
_IK_DAMPING = 1e-3
_IK_TILT_GAIN = 0.5
_IK_HOME_GAIN = 0.1
_IK_LARGEST_STEP = 0.2  # [rad]
_IK_LIMIT_MARGIN = 0.05  # [rad]


class RenderError(OSError):
    """The machine cannot render the camera."""


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera [px]; (0, 0) is the centre of the upper left pixel, as in OpenCV and ROS."""

    width: int
    height: int
    focal: float
    cx: float
    cy: float


class World:
    """One arm and three cubes; seeded and deterministic.

    ``model`` and ``data`` are MuJoCo's, to read from. A world that renders belongs to one thread.
    """

    def __init__(self, *, render: bool = True) -> None:
        self.model = mujoco.MjModel.from_xml_path(str(resource(*SCENE)))
        self.data = mujoco.MjData(self.model)
        self._scratch = mujoco.MjData(self.model)
        self._tip = self.model.site("fingertip").id
        self._lower, self._upper = self.model.actuator_ctrlrange.T
        self._renderer = self._make_renderer() if render else None
        self.reset(0)

    def reset(self, seed: int, episode: int = 0) -> None:
        """Begin the ``episode``-th scene of ``seed``: place the cubes, put the arm at its start."""
        random = np.random.default_rng((seed, episode))
        mujoco.mj_resetData(self.model, self.data)
        self.data.mocap_pos[:] = _place_cubes(random)
        start = random.uniform(*_START_BOX)
        guess = HOME + random.uniform(-_START_JOINT_SPREAD, _START_JOINT_SPREAD, len(JOINTS))
        self.place_arm(self.inverse_kinematics(start, guess))

    def place_arm(self, joints: np.ndarray) -> None:
        """Put the arm at rest at ``joints`` [7, rad], gripper open, holding there."""
        self.data.qpos[:] = joints
        self.data.qvel[:] = 0
        self.data.ctrl[:] = joints
        self._finger = self._finger_target = GRIPPER_OPEN_M
        mujoco.mj_forward(self.model, self.data)

    def command(self, positions: Mapping[str, float]) -> dict[str, str]:
        """Set target positions by joint name [rad; gripper m]; joints not named keep theirs.

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
                self._finger_target = min(max(position, 0.0), GRIPPER_OPEN_M)
            else:
                joint = JOINTS.index(name)
                self.data.ctrl[joint] = np.clip(position, self._lower[joint], self._upper[joint])
        return refused

    def step(self, steps: int = 1) -> None:
        """Advance the physics by ``steps`` / STEP_RATE_HZ seconds."""
        mujoco.mj_step(self.model, self.data, steps)
        for _ in range(steps):
            self._finger += _GRIPPER_STEP * (self._finger_target - self._finger)

    @property
    def positions(self) -> np.ndarray:
        """Positions of JOINTS [rad] and then of GRIPPER_JOINT [m], [8]."""
        return np.append(self.data.qpos, self._finger)

    @property
    def velocities(self) -> np.ndarray:
        """Velocities of JOINTS [rad/s] and then of GRIPPER_JOINT [m/s], [8]."""
        finger = STEP_RATE_HZ * _GRIPPER_STEP * (self._finger_target - self._finger)
        return np.append(self.data.qvel, finger)

    @property
    def cubes(self) -> np.ndarray:
        """Centres of the red, green and blue cube in the base frame [3, 3, m]."""
        return self.data.mocap_pos.copy()

    @property
    def fingertip(self) -> np.ndarray:
        """The fingertip in the base frame [3, m], as of the newest step's beginning."""
        return self.data.site_xpos[self._tip].copy()

    @property
    def cube_distances(self) -> np.ndarray:
        """From the fingertip to the centre of the red, green and blue cube [3, m]."""
        return np.linalg.norm(self.cubes - self.fingertip, axis=1)

    def frame(self) -> np.ndarray:
        """What the exterior camera sees, rgb8 [height, width, 3]; a new array.

        Shows the arm at the beginning of the newest step, as the training pictures do.
        """
        if self._renderer is None:
            raise RenderError("this world was made with render=False; make it with render=True")
        self._renderer.update_scene(self.data, CAMERA)
        return self._renderer.render()

    @property
    def intrinsics(self) -> Intrinsics:
        """The exterior camera's, from its vertical field of view."""
        view = self.model.vis.global_
        half_angle = math.radians(self.model.camera(CAMERA).fovy[0]) / 2
        return Intrinsics(
            width=view.offwidth,
            height=view.offheight,
            focal=view.offheight / 2 / math.tan(half_angle),
            cx=(view.offwidth - 1) / 2,
            cy=(view.offheight - 1) / 2,
        )

    def inverse_kinematics(self, target: np.ndarray, guess: np.ndarray = HOME) -> np.ndarray:
        """Joints [7, rad] that bring the fingertip near ``target`` [3, m], the tool down."""
        joints = guess
        for _ in range(_IK_ITERATIONS):
            joints = self._towards(joints, target)
        return joints

    def _towards(self, joints: np.ndarray, target: np.ndarray) -> np.ndarray:
        data = self._scratch
        data.qpos[:] = joints
        mujoco.mj_kinematics(self.model, data)
        mujoco.mj_comPos(self.model, data)
        jacobian = np.zeros((6, len(JOINTS)))
        mujoco.mj_jacSite(self.model, data, jacobian[:3], jacobian[3:], self._tip)
        tool_axis = data.site_xmat[self._tip].reshape(3, 3)[:, 2]
        tilt = np.cross(tool_axis, (0, 0, -1))
        error = np.concatenate([target - data.site_xpos[self._tip], _IK_TILT_GAIN * tilt])
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + _IK_DAMPING * np.eye(6))
        idle = np.eye(len(JOINTS)) - inverse @ jacobian
        change = inverse @ error + idle @ (_IK_HOME_GAIN * (HOME - joints))
        return np.clip(
            joints + np.clip(change, -_IK_LARGEST_STEP, _IK_LARGEST_STEP),
            self._lower + _IK_LIMIT_MARGIN,
            self._upper - _IK_LIMIT_MARGIN,
        )

    def _make_renderer(self) -> mujoco.Renderer:
        view = self.model.vis.global_
        try:
            renderer = mujoco.Renderer(self.model, view.offheight, view.offwidth)
        # PyOpenGL raises whatever its platform module stumbles over.
        except Exception as error:
            raise RenderError(
                f"the camera cannot be rendered ({error}); expected OpenGL without a display: "
                "install libegl1 and libgl1-mesa-dri, or set MUJOCO_GL to osmesa or glfw"
            ) from error
        flags = mujoco.mjtRndFlag
        for flag in (flags.mjRND_SHADOW, flags.mjRND_REFLECTION, flags.mjRND_SKYBOX):
            renderer.scene.flags[flag] = 0
        return renderer


def _place_cubes(random: np.random.Generator) -> np.ndarray:
    """Centres of the cubes [3, 3, m]: uniform on a part of the table, and apart."""
    while True:
        x, y = random.uniform(*_CUBE_X, 3), random.uniform(*_CUBE_Y, 3)
        gaps = np.hypot(x - np.roll(x, 1), y - np.roll(y, 1))
        if gaps.min() > _CUBE_SEPARATION:
            return np.stack([x, y, np.full(3, _CUBE_HALF_EDGE)], axis=1)
