"""A scripted expert that does every task by feedback: what a policy learns from.

It has no memory but the goal it chose: what it does follows from where arm, fingers and cubes are,
so that a policy that sees a picture and the arm's state can do the same.
"""

from __future__ import annotations

import numpy as np

from cosmos3_ros.sim.tasks import Task
from cosmos3_ros.sim.world import CUBE_HALF_EDGE_M, CUBES, GRIPPER_OPEN_M, World

RATE_HZ = 15.0
_SPEED = 0.30  # [m/s]
_CARRY_SPEED = 0.20  # [m/s]
_IK_ITERATIONS = 4

# The fingers reach this far below the fingertip site [m].
_FINGER_REACH = 0.009
# A touch presses this little into the cube's upper face [m].
_PRESS = 0.004
_HOVER = 0.12  # above the goal [m]
# The descent begins when the fingertip is this near to the goal's axis [m], and is complete nearer.
_APPROACH, _ABOVE = 0.07, 0.012
# So near to the cube's centre the fingers close [m].
_GRASPED_NEAR = 0.014
# The fingers stand this near to the cube's sides when they hold it [m].
_GRIP_SLACK = 0.003
_CARRY_HEIGHT = 0.16  # of the fingertip [m]

_OPEN, _CLOSED = 0.0, 1.0


class Expert:
    """``act`` is called at RATE_HZ. ``goal``: the cube it goes to, one of the task's."""

    def __init__(self, world: World, task: Task, goal: str) -> None:
        self._world = world
        self._task = task
        self._goal = goal
        self._joints = world.positions[:7]

    def act(self) -> np.ndarray:
        """Joint targets [7, rad] and closedness (0 open, 1 closed), [8]."""
        cube = self._world.cubes[CUBES.index(self._goal)]
        if self._task.kind == "lift":
            target, closedness, speed = self._lift(cube)
        else:
            above = CUBE_HALF_EDGE_M + _FINGER_REACH - _PRESS
            target, closedness, speed = self._down_on(cube, above), _CLOSED, _SPEED
        tip = self._world.forward_kinematics(self._joints)
        way = target - tip
        length = np.linalg.norm(way)
        step = tip + way * min(1.0, speed / RATE_HZ / max(float(length), 1e-9))
        self._joints = self._world.inverse_kinematics(step, self._joints, _IK_ITERATIONS)
        return np.append(self._joints, closedness)

    def _lift(self, cube: np.ndarray) -> tuple[np.ndarray, float, float]:
        tip, finger_m = self._world.fingertip, self._world.positions[7]
        near = np.linalg.norm(tip - cube) < _GRASPED_NEAR
        holds = near and finger_m < CUBE_HALF_EDGE_M + _GRIP_SLACK
        if holds:
            return np.array([*tip[:2], _CARRY_HEIGHT]), _CLOSED, _CARRY_SPEED
        return self._down_on(cube, 0.0), _CLOSED if near else _OPEN, _SPEED

    def _down_on(self, cube: np.ndarray, above: float) -> np.ndarray:
        """Over the cube, then down to ``above`` its centre [m]."""
        tip = self._world.forward_kinematics(self._joints)
        aside = np.hypot(*(cube[:2] - tip[:2]))
        share = np.clip((aside - _ABOVE) / (_APPROACH - _ABOVE), 0.0, 1.0)
        return np.array([*cube[:2], cube[2] + above + share * _HOVER])


def closedness(finger_m: float) -> float:
    """0 open, 1 closed, of the finger's position [m]."""
    return 1.0 - finger_m / GRIPPER_OPEN_M


def finger_position(closedness: float) -> float:
    """The finger's position [m] at which it is so far closed (0 open, 1 closed)."""
    return GRIPPER_OPEN_M * (1.0 - closedness)
