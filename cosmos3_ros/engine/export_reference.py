"""What the stock modules of diffusers make of given inputs: what a bundle is compared with.

Everything here goes through diffusers' own forward, scheduler and VAE, in the packed form that its
pipeline uses, and shares no code with the graphs. Arrays are those of
``cosmos3_ros.engine.session``, float32; nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from diffusers.models.transformers import transformer_cosmos3
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import get_3d_mrope_ids_vae_tokens
from torch import Tensor

from cosmos3_ros.engine.export_model import Components
from cosmos3_ros.engine.session import CONDITIONAL, UNCONDITIONAL, Contract

# Of latents [1,C,T,h,w] and of rows [A,64].
Velocity = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Start:
    """What a plan starts from: the noise, the clean rows, which rows are noisy (1, else 0), and how
    far those are held at the clean ones (0 free .. 1)."""

    latents: np.ndarray
    rows: np.ndarray
    clean_rows: np.ndarray
    noisy_rows: np.ndarray
    held_rows: np.ndarray


@torch.no_grad()
def stock_text(components: Components, token_ids: Sequence[int]) -> dict[str, np.ndarray]:
    """``keys`` and ``values`` [L,K,tokens,D] that the generation tower reads of a text.

    Recorded where the stock attention receives them, in a forward with the smallest video: text
    attends to no video.
    """
    config = components.transformer.config
    video = torch.zeros(1, config.latent_channel, 2, *(config.latent_patch_size,) * 2)
    arguments = _packed(components, token_ids, video, grid=(2, 1, 1), fps=None, timestep=0.0)
    count = len(token_ids)
    with _recorded_attention() as calls:
        components.transformer(**arguments, return_dict=False)
    read = [(keys, values) for keys, values, is_causal in calls if not is_causal]
    return {
        name: torch.stack([pair[i][0, :count].transpose(0, 1) for pair in read]).numpy()
        for i, name in enumerate(("keys", "values"))
    }


@torch.no_grad()
def stock_velocity(
    components: Components,
    contract: Contract,
    token_ids: Sequence[int],
    latents: np.ndarray,
    rows: np.ndarray,
    noisy_rows: np.ndarray,
    timestep: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Velocities of latents [1,C,T,h,w] and rows [A,64], zero where a token is clean."""
    arguments = _packed(
        components,
        token_ids,
        torch.from_numpy(latents),
        grid=contract.grid,
        fps=contract.fps,
        timestep=timestep,
    )
    arguments |= _packed_rows(components, contract, arguments, rows, noisy_rows, timestep)
    latent, _, row = components.transformer(**arguments, return_dict=False)
    return latent[0].numpy(), row[0].numpy()


@torch.no_grad()
def stock_image(components: Components, contract: Contract, canvas: np.ndarray) -> np.ndarray:
    """Latent [1,C,1,h,w] of a canvas [H,W,3] uint8, normalised, its padding cut off."""
    vae = components.vae
    pixels = torch.from_numpy(canvas).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    mean, std = _statistics(vae)
    latent = (vae.encode(pixels).latent_dist.mode() - mean) / std
    return latent[..., : contract.latent_height, : contract.latent_width].numpy()


@torch.no_grad()
def stock_frames(components: Components, contract: Contract, latents: np.ndarray) -> np.ndarray:
    """Frames after the observation [4(F-1),H,W,3] uint8 of the first latents [1,C,F,h,w]."""
    mean, std = _statistics(components.vae)
    video = components.vae.decode(torch.from_numpy(latents) * std + mean).sample
    pixels = (video[0].permute(1, 2, 3, 0) / 2 + 0.5).clamp(0, 1) * 255
    return pixels[1:].round().to(torch.uint8).numpy()


def stock_plan(
    components: Components,
    contract: Contract,
    canvas: np.ndarray,
    token_ids: Sequence[int],
    unconditional_ids: Sequence[int],
    start: Start,
) -> tuple[np.ndarray, np.ndarray]:
    """Latents [1,C,T,h,w] and rows [A,64] that a plan ends with."""

    def velocity(branch: str, latents: np.ndarray, rows: np.ndarray, timestep: float) -> Velocity:
        ids = token_ids if branch == CONDITIONAL else unconditional_ids
        given = (latents, rows, start.noisy_rows, timestep)
        return stock_velocity(components, contract, ids, *given)

    latent = stock_image(components, contract, canvas)
    return stock_sampler(components, contract, latent, start, velocity)


def stock_sampler(
    components: Components,
    contract: Contract,
    latent: np.ndarray,
    start: Start,
    velocity: Callable[[str, np.ndarray, np.ndarray, float], Velocity],
) -> tuple[np.ndarray, np.ndarray]:
    """Latents and rows after every step, of velocities by branch, latents, rows and timestep.

    diffusers' own schedulers step them, one for the video and one for the rows, as its pipeline
    does; the pipeline itself knows neither a state row nor a schedule of guidance. Of the sampler's
    table only the number of steps, the guidance and its schedule are read.
    """
    sampler = contract.sampler
    latents, rows = start.latents.copy(), start.rows.copy()
    latents[:, :, :1] = latent
    rows[:, contract.width :] = 0
    rows = np.where(start.noisy_rows == 1, rows, start.clean_rows)
    of_latents, of_rows = (_scheduler(components, sampler.steps) for _ in range(2))
    for step, timestep in enumerate(of_latents.timesteps):
        velocities = velocity(CONDITIONAL, latents, rows, float(timestep))
        if sampler.guided[step]:
            free = velocity(UNCONDITIONAL, latents, rows, float(timestep))
            velocities = (
                free[0] + sampler.guidance * (velocities[0] - free[0]),
                free[1] + sampler.guidance * (velocities[1] - free[1]),
            )
        # A flow that ends at the clean rows is a straight line from the noise.
        straight = start.rows - start.clean_rows
        velocities = (
            velocities[0],
            (1 - start.held_rows) * velocities[1] + start.held_rows * straight,
        )
        # A clean token has no velocity; a row has none beyond the robot's channels.
        velocities[0][:, :, :1] = 0
        velocities[1][:, contract.width :] = 0
        velocities[1][start.noisy_rows[:, 0] == 0] = 0
        latents = _stepped(of_latents, velocities[0], timestep, latents)
        rows = _stepped(of_rows, velocities[1], timestep, rows)
    return latents, rows


def _packed(
    components: Components,
    token_ids: Sequence[int],
    video: Tensor,
    grid: tuple[int, int, int],
    fps: float | None,
    timestep: float,
) -> dict[str, Any]:
    """Arguments of the stock forward for text and video, of which frame 0 is clean."""
    length, (frames, height, width) = len(token_ids), grid
    count, frame = frames * height * width, height * width
    index = torch.arange(length, length + count)
    position = _positions(
        components, grid, length, fps, components.vae.config.scale_factor_temporal, 0
    )
    return {
        "input_ids": torch.tensor(list(token_ids)),
        "text_indexes": torch.arange(length),
        "position_ids": torch.cat([torch.arange(length).float().expand(3, -1), position], 1),
        "und_len": length,
        "sequence_length": length + count,
        "vision_tokens": [video],
        "vision_token_shapes": [grid],
        "vision_sequence_indexes": index,
        "vision_mse_loss_indexes": index[frame:],
        "vision_timesteps": torch.full((count - frame,), timestep),
        "vision_noisy_frame_indexes": [torch.arange(1, frames)],
    }


def _packed_rows(
    components: Components,
    contract: Contract,
    packed: dict[str, Any],
    rows: np.ndarray,
    noisy_rows: np.ndarray,
    timestep: float,
) -> dict[str, Any]:
    """Arguments that put action rows behind text and video."""
    length, begin = packed["und_len"], packed["sequence_length"]
    index = torch.arange(begin, begin + contract.rows)
    noisy = torch.from_numpy(np.flatnonzero(noisy_rows))
    # A state row stands at frame 0, where the pipeline's first row stands at frame 1.
    first = 0 if contract.state_row else 1
    position = _positions(components, (contract.rows, 1, 1), length, contract.fps, 1, first)
    return {
        "position_ids": torch.cat([packed["position_ids"], position], 1),
        "sequence_length": begin + contract.rows,
        "action_tokens": [torch.from_numpy(rows)],
        "action_token_shapes": [(contract.rows, 1, 1)],
        "action_sequence_indexes": index,
        "action_mse_loss_indexes": index[noisy],
        "action_timesteps": torch.full((len(noisy),), timestep),
        "action_noisy_frame_indexes": [noisy],
        "action_domain_ids": [torch.tensor([contract.domain_id])],
    }


def _positions(
    components: Components,
    grid: tuple[int, int, int],
    text_length: int,
    fps: float | None,
    compression: int,
    first_frame: int,
) -> Tensor:
    config = components.transformer.config
    position, _ = get_3d_mrope_ids_vae_tokens(
        *grid,
        text_length + config.unified_3d_mrope_temporal_modality_margin,
        reset_spatial_indices=config.unified_3d_mrope_reset_spatial_ids,
        fps=fps if config.enable_fps_modulation else None,
        base_fps=float(config.base_fps),
        temporal_compression_factor=compression,
        base_temporal_compression_factor=components.vae.config.scale_factor_temporal,
        start_frame_offset=first_frame,
    )
    return position.float()


def _scheduler(components: Components, steps: int) -> UniPCMultistepScheduler:
    scheduler = deepcopy(components.scheduler)
    if components.native_flow_schedule:
        last = 1.0 - 1.0 / scheduler.config.num_train_timesteps
        scheduler.set_timesteps(steps, sigmas=np.linspace(last, 0.0, steps + 1)[:-1])
    else:
        scheduler.set_timesteps(steps)
    return scheduler


def _stepped(
    scheduler: UniPCMultistepScheduler, velocity: np.ndarray, timestep: Tensor, sample: np.ndarray
) -> np.ndarray:
    taken = torch.from_numpy(velocity), timestep, torch.from_numpy(sample)
    stepped: np.ndarray = scheduler.step(*taken, return_dict=False)[0].numpy()
    return stepped


def _statistics(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    return mean.view(shape), std.view(shape)


@contextmanager
def _recorded_attention() -> Iterator[list[tuple[Tensor, Tensor, bool]]]:
    """Keys, values and causality of every attention that the stock transformer computes."""
    calls: list[tuple[Tensor, Tensor, bool]] = []
    stock = transformer_cosmos3.dispatch_attention_fn

    def recording(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        calls.append((key, value, bool(options["is_causal"])))
        return stock(query, key, value, **options)

    transformer_cosmos3.dispatch_attention_fn = recording
    try:
        yield calls
    finally:
        transformer_cosmos3.dispatch_attention_fn = stock
