"""The sampler's table equals diffusers' scheduler on anything that is not linear."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler

from cosmos3_ros.engine.export import make_sampler
from cosmos3_ros.engine.export_model import FLOW_SCHEDULER
from cosmos3_ros.policy.sampler import advance


@pytest.mark.parametrize(("steps", "shift"), [(1, 5.0), (2, 5.0), (4, 5.0), (30, 10.0)])
def test_the_table_reproduces_unipc(steps: int, shift: float) -> None:
    scheduler = UniPCMultistepScheduler(**FLOW_SCHEDULER, flow_shift=1.0)
    sampler = make_sampler(scheduler, steps, shift, guidance=1.0)
    stock = UniPCMultistepScheduler(**FLOW_SCHEDULER, flow_shift=shift)
    stock.set_timesteps(steps)
    assert sampler.timesteps == tuple(stock.timesteps.tolist())

    start = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    expected, ours, velocities = torch.from_numpy(start)[None], start, []
    for step, timestep in enumerate(stock.timesteps):
        velocity = np.tanh(ours * 3) + np.float32(timestep / 1e4)
        velocities.append(velocity)
        ours = advance(sampler, step, start, velocities)
        stepped = stock.step(torch.from_numpy(velocity)[None], timestep, expected)
        expected = stepped.prev_sample
        assert np.abs(ours - expected[0].numpy()).max() < 2e-5
    assert np.abs(ours - start).max() > 0.1


def test_the_schedulers_own_state_is_not_touched() -> None:
    scheduler = UniPCMultistepScheduler(**FLOW_SCHEDULER, flow_shift=2.0)
    make_sampler(scheduler, 4, 5.0, 1.0)
    assert scheduler.config.flow_shift == 2.0
    assert scheduler.step_index is None
