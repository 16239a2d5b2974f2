"""The sampler's table, advanced by the step graph, equals diffusers' scheduler."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bundles import Exported
from diffusers import UniPCMultistepScheduler

from cosmos3_ros.engine.backends import open_backend
from cosmos3_ros.engine.export_contract import make_sampler
from cosmos3_ros.engine.export_model import FLOW_SCHEDULER
from cosmos3_ros.engine.parts import run_graph
from cosmos3_ros.policy.program import START, constants


@pytest.mark.parametrize(("steps", "shift"), [(1, 5.0), (2, 5.0), (3, 10.0), (4, 5.0)])
def test_the_step_graph_reproduces_unipc_on_velocities_that_are_not_linear(
    steps: int, shift: float, tiny: Exported
) -> None:
    scheduler = UniPCMultistepScheduler(**FLOW_SCHEDULER, flow_shift=1.0)
    sampler = make_sampler(scheduler, steps, shift, guidance=3.0)
    stock = UniPCMultistepScheduler(**FLOW_SCHEDULER, flow_shift=shift)
    stock.set_timesteps(steps)
    assert sampler.timesteps == tuple(stock.timesteps.tolist())

    contract = replace(tiny.bundle.manifest.contract, sampler=sampler)
    table = constants(contract)
    engine = open_backend(tiny.bundle, "onnxruntime", 1)
    rng = np.random.default_rng(0)
    latent, row = contract.latent_shape, (contract.rows, contract.action_dim)
    clean = rng.standard_normal((*latent[:2], 1, *latent[3:])).astype(np.float32)
    noisy = np.ones((contract.rows, 1), np.float32)
    noisy[0] = 0
    feeds = {
        "start_latents": rng.standard_normal(latent, np.float32),
        "start_rows": rng.standard_normal(row, np.float32),
        "clean_latent": clean,
        "clean_rows": rng.standard_normal(row, np.float32),
        "noisy_rows": noisy,
        "held_rows": np.zeros_like(noisy),
        "guidance": table["guidance"],
        "latent_history": np.zeros((contract.history, *latent[1:]), np.float32),
        "row_history": np.zeros((contract.history, *row), np.float32),
    }

    def advance(step: object, **velocities: np.ndarray) -> dict[str, np.ndarray]:
        own = {name: table[f"{name}.{step}"] for name in ("place", "coefficients")}
        out = run_graph(engine, tiny.bundle.manifest.graphs, "step", feeds | own | velocities)
        feeds["latent_history"] = out["next_latent_history"]
        feeds["row_history"] = out["next_row_history"]
        return out

    names = ("conditional_latent", "unconditional_latent", "conditional_row", "unconditional_row")
    zero = {name: np.zeros(latent if "latent" in name else row, np.float32) for name in names}
    out = advance(START, **zero)
    width = contract.width
    assert (out["latents"][:, :, 1:] == feeds["start_latents"][:, :, 1:]).all()
    expected = {
        "latents": torch.from_numpy(feeds["start_latents"]),
        "rows": torch.from_numpy(feeds["start_rows"]),
    }
    schedulers = {}
    for kind in expected:
        schedulers[kind] = UniPCMultistepScheduler.from_config(stock.config)
        schedulers[kind].set_timesteps(steps)
    for step, timestep in enumerate(stock.timesteps):
        velocities = {}
        for kind, name in (("latents", "latent"), ("rows", "row")):
            free = np.tanh(expected[kind].numpy() * 3) + np.float32(timestep / 1e4)
            bound = np.cos(expected[kind].numpy())
            velocities |= {f"conditional_{name}": bound, f"unconditional_{name}": free}
            guided = torch.from_numpy(free + np.float32(3) * (bound - free))
            stepped = schedulers[kind].step(guided, timestep, expected[kind])
            expected[kind] = stepped.prev_sample
        out = advance(step, **velocities)
        scale = max(float(value.abs().max()) for value in expected.values())
        ours, stock_latents = out["latents"][:, :, 1:], expected["latents"][:, :, 1:].numpy()
        assert np.abs(ours - stock_latents).max() < 2e-6 * scale * (1 + step)
        rows = expected["rows"][1:, :width].numpy()
        assert np.abs(out["rows"][1:, :width] - rows).max() < 2e-6 * scale * (1 + step)
    assert (out["latents"][:, :, :1] == clean).all()
    assert (out["rows"][0, :width] == feeds["clean_rows"][0, :width]).all()
    assert (out["rows"][:, width:] == 0).all()


def test_the_schedulers_own_state_is_not_touched() -> None:
    scheduler = UniPCMultistepScheduler(**FLOW_SCHEDULER, flow_shift=2.0)
    make_sampler(scheduler, 4, 5.0, 1.0)
    assert scheduler.config.flow_shift == 2.0
    assert scheduler.step_index is None
