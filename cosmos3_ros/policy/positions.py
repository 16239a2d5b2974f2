"""Multimodal rotary positions of the generation tokens, computed on the host in float32.

Text takes the positions 0 .. U-1 on all three axes. Video and action share the temporal offset
U + margin, their spatial positions start at 0 again. Every operation here mirrors the order and
the type of diffusers' ``get_3d_mrope_ids_vae_tokens``: at positions of 15000 a float32 has a
resolution of 0.001, and another order gives other angles.
"""

from __future__ import annotations

import numpy as np

from cosmos3_ros.engine.session import Contract, Rope


def _grid_positions(
    frames: int,
    height: int,
    width: int,
    offset: int,
    rope: Rope,
    fps: float,
    compression: int,
    base_compression: int,
    start_frame: int,
) -> np.ndarray:
    index = np.arange(frames)
    if rope.modulate_fps and frames > 1:
        tokens_per_second = np.float32(fps / compression)
        base_per_second = np.float32(rope.base_fps / base_compression)
        moved = index.astype(np.float32) + np.float32(start_frame)
        time = moved / tokens_per_second * base_per_second + np.float32(offset)
    else:
        time = (index + offset + start_frame).astype(np.float32)
    spatial = 0 if rope.reset_spatial else offset
    grid = np.empty((3, frames, height, width), np.float32)
    grid[0] = time[:, None, None]
    grid[1] = (np.arange(height) + spatial)[None, :, None]
    grid[2] = (np.arange(width) + spatial)[None, None, :]
    return grid.reshape(3, -1)


def positions(text_length: int, contract: Contract) -> np.ndarray:
    """Time, height and width of every generation token, [3, tokens] float32.

    ``text_length`` counts real tokens, without padding. Action row i sits at frame i + 1 of the
    action grid; a state row in front of it sits at frame 0, the observation.
    """
    rope = contract.rope
    offset = text_length + rope.temporal_margin
    compression = contract.temporal_compression
    video = _grid_positions(
        *contract.grid, offset, rope, contract.fps, compression, compression, start_frame=0
    )
    first = 0 if contract.state_row else 1
    action = _grid_positions(
        contract.rows, 1, 1, offset, rope, contract.fps, 1, compression, start_frame=first
    )
    return np.concatenate([video, action], axis=1)


def rotary_tables(position: np.ndarray, rope: Rope) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of positions [3, n], interleaved over the axes: two [n, D] float32."""
    frequency = np.array(rope.inverse_frequency, np.float32)
    angles = position.astype(np.float32)[:, :, None] * frequency  # [3, n, D/2]
    mixed = angles[0].copy()
    for axis in (1, 2):
        columns = slice(axis, rope.axes_dim[axis] * 3, 3)
        mixed[:, columns] = angles[axis][:, columns]
    table = np.concatenate([mixed, mixed], axis=-1)
    return np.cos(table), np.sin(table)
