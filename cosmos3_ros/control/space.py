"""The space commands live in: channels that are added up, and quaternions, which are not.

A command [width] moves by a step [step_width]: of each plain channel a difference, of each
quaternion a rotation vector about the base frame's axes [rad]. Velocities are steps a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cosmos3_ros.control import rotation

# So far from 1 the length of a quaternion may be by rounding.
_UNIT = 1e-3


@dataclass(frozen=True)
class Space:
    """``width`` channels; ``quaternions``: where each of them begins, in ascending order."""

    width: int
    quaternions: tuple[int, ...] = ()

    @property
    def step_width(self) -> int:
        return self.width - len(self.quaternions)

    def holds(self, commands: np.ndarray) -> np.ndarray:
        """Which of ``commands`` [..., width] are any: finite, each quaternion of length 1."""
        good = np.isfinite(commands).all(-1)
        for first in self.quaternions:
            length = np.linalg.norm(commands[..., first : first + 4], axis=-1)
            good &= np.abs(length - 1) < _UNIT
        return good

    def difference(self, end: np.ndarray, begin: np.ndarray) -> np.ndarray:
        """The step [..., step_width] that leads from ``begin`` to ``end`` [..., width]."""
        if not self.quaternions:
            return end - begin
        parts, at = [], 0
        for first in self.quaternions:
            four = slice(first, first + 4)
            turn = rotation.multiply(end[..., four], rotation.conjugate(begin[..., four]))
            parts += [end[..., at:first] - begin[..., at:first], rotation.to_vector(turn)]
            at = first + 4
        return np.concatenate([*parts, end[..., at:] - begin[..., at:]], -1)

    def add(self, begin: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Where a step [..., step_width] leads to from ``begin`` [..., width]."""
        if not self.quaternions:
            return begin + step
        parts, at, step_at = [], 0, 0
        for first in self.quaternions:
            count = first - at
            plain = slice(step_at, step_at + count)
            turn = step[..., step_at + count : step_at + count + 3]
            turned = rotation.multiply(rotation.from_vector(turn), begin[..., first : first + 4])
            parts += [begin[..., at:first] + step[..., plain], rotation.normalise(turned)]
            at, step_at = first + 4, step_at + count + 3
        return np.concatenate([*parts, begin[..., at:] + step[..., step_at:]], -1)

    def of_step(self, values: np.ndarray) -> np.ndarray:
        """Values of each channel [width] as values of each part of a step [step_width].

        Those of a quaternion's x, y and z stand for the rotation vector's.
        """
        return np.delete(values, [first + 3 for first in self.quaternions])
