"""Rotary positions equal diffusers' own, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bundles import Exported
from diffusers.models.transformers.transformer_cosmos3 import Cosmos3VLTextRotaryEmbedding
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import get_3d_mrope_ids_vae_tokens

from cosmos3_ros.engine.session import Contract, Rope
from cosmos3_ros.policy.positions import positions, rotary_tables


def stock_positions(length: int, contract: Contract) -> torch.Tensor:
    fps = contract.fps if contract.rope.modulate_fps else None
    offset, reset = length + 15000, contract.rope.reset_spatial
    video, _ = get_3d_mrope_ids_vae_tokens(*contract.grid, offset, reset, fps=fps)
    rows, _ = get_3d_mrope_ids_vae_tokens(
        contract.rows,
        1,
        1,
        offset,
        reset,
        fps=fps,
        temporal_compression_factor=1,
        base_temporal_compression_factor=4,
        start_frame_offset=0 if contract.state_row else 1,
    )
    return torch.cat([video.float(), rows.float()], 1)


@pytest.mark.parametrize("length", [1, 23, 400, 511])
@pytest.mark.parametrize("state_row", [True, False])
@pytest.mark.parametrize(("modulate", "reset"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("fps", [5.0, 15.0, 24.0])
def test_positions_equal_diffusers(
    length: int, state_row: bool, modulate: bool, reset: bool, fps: float, tiny: Exported
) -> None:
    contract = tiny.bundle.manifest.contract
    rope = replace(contract.rope, modulate_fps=modulate, reset_spatial=reset)
    contract = replace(contract, rope=rope, state_row=state_row, fps=fps, latent_width=7)
    assert (positions(length, contract) == stock_positions(length, contract).numpy()).all()


@pytest.mark.parametrize(
    ("head_dim", "theta", "axes"),
    [(128, 5e6, (24, 20, 20)), (16, 5e6, (4, 2, 2)), (32, 100.0, (6, 5, 5))],
)
def test_rotary_tables_equal_diffusers(
    head_dim: int, theta: float, axes: tuple[int, int, int], tiny: Exported
) -> None:
    position = positions(300, tiny.bundle.manifest.contract)
    stock = Cosmos3VLTextRotaryEmbedding(head_dim, theta, axes)
    rope = Rope(tuple(stock.inv_freq.tolist()), axes, 24.0, True, 15000, True)
    expected = stock(torch.from_numpy(position).unsqueeze(1), torch.device("cpu"), torch.float32)
    for ours, theirs in zip(rotary_tables(position, rope), expected, strict=True):
        assert np.abs(ours - theirs[0].numpy()).max() < 2e-6


def test_the_state_row_stands_at_the_observation_and_row_one_a_frame_later(tiny: Exported) -> None:
    contract = tiny.bundle.manifest.contract
    frames, height, width = contract.grid
    time = positions(100, contract)[0]
    rows = time[frames * height * width :]
    assert rows[0] == time[0] == 15100
    assert rows[4] == pytest.approx(time[height * width], abs=2e-3)
