"""What an engine runs for a prompt, a plan and its frames: calls that never change, and constants.

UniPC on a fixed schedule is linear in the start noise and in the velocities,
``x_k = start_k * x_0 + sum_j velocity_kj * v_j``: the export reads the coefficients off diffusers'
own scheduler, and one graph advances the sampler wherever its buffers are.
"""

from __future__ import annotations

import numpy as np

from cosmos3_ros.engine.session import CONDITIONAL, UNCONDITIONAL, Call, Contract, Program

PLAN, FRAMES = "plan", "frames"
START = "start"
# Never written, so always zero.
NO_HISTORY, NO_VELOCITY = "zero_history", "zero_velocity"


def prefill(branch: str) -> str:
    """The program that reads a branch's prompt."""
    return f"prefill.{branch}"


def programs(contract: Contract) -> dict[str, Program]:
    """Every program of a policy, by name."""
    branches = (CONDITIONAL, UNCONDITIONAL) if any(contract.sampler.guided) else (CONDITIONAL,)
    return {
        PLAN: _plan(contract),
        FRAMES: [Call("frame", {"latents": "first_latents"}, {"frames": "frames"})],
        **{prefill(branch): [_read(branch)] for branch in branches},
    }


def constants(contract: Contract) -> dict[str, np.ndarray]:
    """What is written once: the sampler's table, the guidance and the domain."""
    sampler = contract.sampler
    written = {
        "domain_id": np.array([contract.domain_id], np.int64),
        "guidance": np.array([sampler.guidance], np.float32),
        f"place.{START}": np.zeros(contract.history, np.float32),
        f"coefficients.{START}": np.eye(1, 1 + contract.history, dtype=np.float32)[0],
    }
    for step in range(sampler.steps):
        coefficients = np.zeros(1 + contract.history, np.float32)
        coefficients[: step + 2] = (sampler.start[step], *sampler.velocity[step])
        written[f"timestep.{step}"] = np.array([sampler.timesteps[step]], np.float32)
        written[f"place.{step}"] = np.eye(contract.history, dtype=np.float32)[step]
        written[f"coefficients.{step}"] = coefficients
    return written


def _read(branch: str) -> Call:
    outputs = {"keys": f"{branch}.keys", "values": f"{branch}.values"}
    return Call("text", {"token_ids": f"{branch}.token_ids"}, outputs)


def _plan(contract: Contract) -> list[Call]:
    """One picture encoded, then the sampler's steps: a velocity or two, and the sum."""
    calls = [
        Call("image", {"canvas": "canvas"}, {"latent": "clean_latent"}),
        _advance(START, (), NO_HISTORY, "history.0"),
    ]
    for step in range(contract.sampler.steps):
        branches = contract.sampler.branches(step)
        calls += [_forward(branch, step) for branch in branches]
        # Two buffers in turn: the graph never writes what it reads.
        old, new = f"history.{step % 2}", f"history.{(step + 1) % 2}"
        calls.append(_advance(str(step), branches, old, new))
    return calls


def _forward(branch: str, step: int) -> Call:
    shared = ("latents", "rows", "noisy_rows", "domain_id")
    own = ("keys", "values", "cos", "sin", "text_bias")
    return Call(
        "denoise",
        {
            **{name: name for name in shared},
            **{name: f"{branch}.{name}" for name in own},
            "timestep": f"timestep.{step}",
        },
        {
            "latent_velocity": f"{branch}.velocity.latent",
            "row_velocity": f"{branch}.velocity.row",
        },
    )


def _advance(step: str, branches: tuple[str, ...], old: str, new: str) -> Call:
    """The sample after a step. Without an unconditional velocity guidance has no effect."""
    velocities = [f"{branch}.velocity" for branch in branches] or [NO_VELOCITY]
    conditional, unconditional = velocities[0], velocities[-1]
    names = (
        "start_latents",
        "start_rows",
        "guidance",
        "clean_latent",
        "clean_rows",
        "noisy_rows",
        "held_rows",
    )
    return Call(
        "step",
        {
            **{name: name for name in names},
            "latent_history": f"{old}.latent",
            "row_history": f"{old}.row",
            "conditional_latent": f"{conditional}.latent",
            "conditional_row": f"{conditional}.row",
            "unconditional_latent": f"{unconditional}.latent",
            "unconditional_row": f"{unconditional}.row",
            "place": f"place.{step}",
            "coefficients": f"coefficients.{step}",
        },
        {
            "latents": "latents",
            "rows": "rows",
            "next_latent_history": f"{new}.latent",
            "next_row_history": f"{new}.row",
        },
    )
