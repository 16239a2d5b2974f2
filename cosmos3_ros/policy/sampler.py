"""The sampler as a table: one weighted sum a step, the same on every backend.

UniPC on a fixed schedule is linear in the start noise and in the velocities,
``x_k = start_k * x_0 + sum_j velocity_kj * v_j``; the export reads the coefficients off diffusers'
own scheduler, and the runtime needs no scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cosmos3_ros.engine.session import Sampler


def advance(
    sampler: Sampler, step: int, start: np.ndarray, velocities: Sequence[np.ndarray]
) -> np.ndarray:
    """The sample after ``step`` (0-based), from the start noise and the velocities so far.

    ``start`` and every velocity have one shape, float32; so has the result.
    """
    sample = np.float32(sampler.start[step]) * start
    for weight, velocity in zip(sampler.velocity[step], velocities, strict=True):
        sample += np.float32(weight) * velocity
    return sample
