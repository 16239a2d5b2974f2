"""Rotations as unit quaternions x, y, z, w (ROS's order) and as rotation vectors [rad].

A rotation vector's direction is the axis, its length the angle, at most pi. All functions take any
leading axes. Formulas: J. Solà, "Quaternion kinematics for the error-state Kalman filter", 2017.
"""

from __future__ import annotations

import numpy as np

# Below this half angle [rad] the sine over the angle is 1 to double precision.
_SMALL = 1e-8


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The rotation ``b`` and after it ``a``, both about the same fixed axes [..., 4]."""
    av, aw, bv, bw = a[..., :3], a[..., 3:], b[..., :3], b[..., 3:]
    vector = aw * bv + bw * av + np.cross(av, bv)
    scalar = aw * bw - np.sum(av * bv, -1, keepdims=True)
    return np.concatenate([vector, scalar], -1)


def conjugate(q: np.ndarray) -> np.ndarray:
    """The rotation back [..., 4]."""
    return q * np.array([-1.0, -1.0, -1.0, 1.0])


def to_vector(q: np.ndarray) -> np.ndarray:
    """The rotation vector [..., 3, rad] of a quaternion, the shorter way round."""
    q = np.where(q[..., 3:] < 0, -q, q)
    length = np.linalg.norm(q[..., :3], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(length, q[..., 3:])
    small = length < _SMALL
    return q[..., :3] * np.where(small, 2.0, angle / np.where(small, 1.0, length))


def from_vector(vector: np.ndarray) -> np.ndarray:
    """The quaternion [..., 4] of a rotation vector [..., 3, rad]."""
    half = np.linalg.norm(vector, axis=-1, keepdims=True) / 2
    small = half < _SMALL
    scale = np.where(small, 0.5, np.sin(half) / np.where(small, 1.0, 2 * half))
    return np.concatenate([vector * scale, np.cos(half)], -1)


def normalise(q: np.ndarray) -> np.ndarray:
    """A quaternion of length 1 [..., 4]."""
    unit: np.ndarray = q / np.linalg.norm(q, axis=-1, keepdims=True)
    return unit
