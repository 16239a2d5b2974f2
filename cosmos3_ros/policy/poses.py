"""End-effector poses: what a checkpoint that acts in pose deltas means on a robot.

A pose is a position [m] and a unit quaternion x, y, z, w, in the robot's base frame. A delta is
``backward_framewise``, as cosmos-framework trains it (pose_utils.py): frame i's pose and after it
the delta is frame i + 1's, so a delta is told in the frame of the pose before it. Its rotation is
``rot6d``: the first two columns of a rotation matrix, one after the other (Zhou et al. 2019, "On
the Continuity of Rotation Representations in Neural Networks").
"""

from __future__ import annotations

import numpy as np

# A delta's numbers: translation, then the two columns.
DELTA_WIDTH = 9
POSE_WIDTH = 7


def compose(pose: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """The poses [n, 7] that deltas [n, 9] lead to from ``pose`` [7], one after the other."""
    rotation, position = matrix_of(pose[3:]), pose[:3]
    poses = np.empty((len(deltas), POSE_WIDTH))
    for row, translation, turn in zip(
        poses, deltas[:, :3], rotations_of(deltas[:, 3:]), strict=True
    ):
        position = position + rotation @ translation
        rotation = rotation @ turn
        row[:3], row[3:] = position, quaternion_of(rotation)
    return poses


def deltas_between(poses: np.ndarray) -> np.ndarray:
    """Deltas [n - 1, 9] that lead through poses [n, 7]: the inverse of ``compose``."""
    rotations = np.array([matrix_of(quaternion) for quaternion in poses[:, 3:]])
    back = rotations[:-1].transpose(0, 2, 1)
    moved = np.einsum("nij,nj->ni", back, np.diff(poses[:, :3], axis=0))
    turned = back @ rotations[1:]
    return np.concatenate([moved, turned[:, :, 0], turned[:, :, 1]], axis=1)


def rotations_of(rot6d: np.ndarray) -> np.ndarray:
    """The rotation matrices [n, 3, 3] that are nearest to what a network says [n, 6].

    The third column is the cross product of the two, the whole projected by its singular values.
    """
    first, second = rot6d[:, :3], rot6d[:, 3:]
    left, _, right = np.linalg.svd(np.stack([first, second, np.cross(first, second)], axis=-1))
    left[:, :, -1] *= np.sign(np.linalg.det(left @ right))[:, None]
    return np.asarray(left @ right)


def matrix_of(quaternion: np.ndarray) -> np.ndarray:
    """The rotation matrix [3, 3] of a quaternion x, y, z, w [4] of any length but zero."""
    x, y, z, w = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_of(matrix: np.ndarray) -> np.ndarray:
    """The quaternion x, y, z, w [4], w >= 0, of a rotation matrix [3, 3].

    The eigenvector of the largest eigenvalue of Bar-Itzhack's matrix (2000): no case is singular.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = matrix
    k = np.array(
        [
            [xx - yy - zz, xy + yx, xz + zx, zy - yz],
            [xy + yx, yy - xx - zz, yz + zy, xz - zx],
            [xz + zx, yz + zy, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    quaternion: np.ndarray = np.linalg.eigh(k)[1][:, -1]
    return -quaternion if quaternion[3] < 0 else quaternion
