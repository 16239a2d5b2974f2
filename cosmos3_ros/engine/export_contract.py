"""The numbers of a bundle, read off diffusers' own parts: shapes, positions, prompt, sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from diffusers.configuration_utils import FrozenDict
from diffusers.models.transformers.transformer_cosmos3 import Cosmos3VLTextRotaryEmbedding
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import _ACTION_RESOLUTION_BINS
from diffusers.video_processor import VideoProcessor
from transformers import PreTrainedTokenizerBase

from cosmos3_ros.engine.export_model import Components
from cosmos3_ros.engine.recipe import GuidanceSchedule, Recipe, RecipeError
from cosmos3_ros.engine.session import Contract, Prompting, Rope, Sampler

_MARK = "\x00caption\x00"


@dataclass(frozen=True)
class Body:
    """What an export needs of an embodiment; sizes are pixels of the composed picture."""

    name: str
    meaning: Mapping[str, str]
    domain_id: int
    width: int
    state_row: bool
    rate_hz: float | None
    picture_width: int
    picture_height: int


def make_contract(recipe: Recipe, body: Body, components: Components) -> Contract:
    """The numbers of a bundle. Raises RecipeError where recipe, body and model do not fit."""
    config, vae = components.transformer.config, components.vae.config
    fps = recipe.fps or body.rate_hz
    if fps is None:
        raise RecipeError(
            f"recipe '{recipe.name}' has no fps and embodiment '{body.name}' no rate_hz; add one"
        )
    if body.width > config.action_dim:
        raise RecipeError(
            f"embodiment '{body.name}' has {body.width} channels, the model's action head "
            f"{config.action_dim}; expected no more"
        )
    if not 0 <= body.domain_id < config.num_embodiment_domains:
        raise RecipeError(
            f"embodiment '{body.name}' has domain {body.domain_id}; the model knows "
            f"0..{config.num_embodiment_domains - 1}"
        )
    if body.picture_width < vae.scale_factor_spatial or (
        body.picture_height < vae.scale_factor_spatial
    ):
        raise RecipeError(
            f"embodiment '{body.name}' has a {body.picture_width}x{body.picture_height} picture; "
            "give it cameras and a canvas before exporting for it"
        )
    canvas_height, canvas_width = _canvas(recipe, body, vae.scale_factor_spatial)
    scale = min(canvas_width / body.picture_width, canvas_height / body.picture_height, 1.0)
    content_height = max(1, int(scale * body.picture_height + 0.5))
    content_width = max(1, int(scale * body.picture_width + 0.5))
    return Contract(
        embodiment=body.name,
        meaning=dict(body.meaning),
        domain_id=body.domain_id,
        width=body.width,
        action_dim=config.action_dim,
        chunk=recipe.chunk,
        state_row=body.state_row,
        fps=fps,
        canvas_height=canvas_height,
        canvas_width=canvas_width,
        content_height=content_height,
        content_width=content_width,
        latent_channels=vae.z_dim,
        latent_frames=recipe.chunk // vae.scale_factor_temporal + 1,
        latent_height=max(content_height // vae.scale_factor_spatial, 1),
        latent_width=max(content_width // vae.scale_factor_spatial, 1),
        patch=config.latent_patch_size,
        temporal_compression=vae.scale_factor_temporal,
        frame_latents=recipe.frame_latents,
        history=recipe.steps,
        prefix=recipe.prefix,
        rope=Rope(
            inverse_frequency=_inverse_frequency(config),
            axes_dim=tuple(config.rope_axes_dim),
            base_fps=float(config.base_fps),
            modulate_fps=bool(config.enable_fps_modulation),
            temporal_margin=int(config.unified_3d_mrope_temporal_modality_margin),
            reset_spatial=bool(config.unified_3d_mrope_reset_spatial_ids),
        ),
        prompting=make_prompting(components.tokenizer, recipe.text_tokens),
        sampler=make_sampler(
            components.scheduler,
            recipe.steps,
            recipe.shift,
            recipe.guidance,
            components.native_flow_schedule,
            recipe.guided,
        ),
    )


def _inverse_frequency(config: FrozenDict) -> tuple[float, ...]:
    """The stock module's own buffer: numpy's power differs from torch's in the last bit."""
    stock = Cosmos3VLTextRotaryEmbedding(config.head_dim, config.rope_theta, config.rope_axes_dim)
    return tuple(stock.inv_freq.tolist())


def make_prompting(tokenizer: PreTrainedTokenizerBase, text_tokens: int) -> Prompting:
    """The tokenizer's chat template, rendered around a caption once and for all.

    Raises RecipeError where the template changes the text it is given.
    """

    def render(content: str) -> str:
        conversation = [{"role": "user", "content": content}]
        rendered: str = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True
        )
        return rendered

    prefix, mark, suffix = render(_MARK).partition(_MARK)
    for probe in ("", '{"fps": 15.0} Touch it!'):
        if not mark or render(probe) != prefix + probe + suffix:
            raise RecipeError(
                "the tokenizer's chat template changes the text it is given; expected one that "
                "puts a fixed text before and after it"
            )
    padding = tokenizer.pad_token_id
    return Prompting(
        prefix=prefix,
        suffix=suffix,
        end_of_sequence_id=tokenizer.eos_token_id,
        start_of_generation_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        padding_id=tokenizer.eos_token_id if padding is None else padding,
        text_tokens=text_tokens,
    )


def make_sampler(
    scheduler: UniPCMultistepScheduler,
    steps: int,
    shift: float,
    guidance: float,
    native_flow_schedule: bool = False,
    guided: GuidanceSchedule | None = None,
) -> Sampler:
    """Read the sampler's table off a diffusers scheduler by feeding it unit vectors.

    The scheduler's configuration is used with ``shift``; its state is not touched. ``guided``: at
    which steps (None: every one). A guidance of 1 is none, at no step.
    """
    own = UniPCMultistepScheduler.from_config(scheduler.config, flow_shift=shift)
    if native_flow_schedule:
        last = 1.0 - 1.0 / own.config.num_train_timesteps
        own.set_timesteps(steps, sigmas=np.linspace(last, 0.0, steps + 1)[:-1])
    else:
        own.set_timesteps(steps)
    basis = torch.eye(1 + steps, dtype=torch.float64)
    sample, table = basis[:1], []
    for index, timestep in enumerate(own.timesteps):
        velocity = basis[1 + index : 2 + index]
        sample = own.step(velocity, timestep, sample, return_dict=False)[0]
        table.append(sample[0].tolist())
    timesteps = tuple(float(t) for t in own.timesteps)
    schedule = guided or GuidanceSchedule()
    return Sampler(
        steps=steps,
        shift=shift,
        guidance=guidance,
        guided=tuple(guidance != 1.0 and schedule.guides(k, t) for k, t in enumerate(timesteps)),
        timesteps=timesteps,
        start=tuple(row[0] for row in table),
        velocity=tuple(tuple(row[1 : 2 + k]) for k, row in enumerate(table)),
    )


def _canvas(recipe: Recipe, body: Body, multiple: int) -> tuple[int, int]:
    """Padded canvas (height, width) [px]: the recipe's own, or the tier's bin of nearest aspect."""
    if recipe.canvas is not None:
        width, height = recipe.canvas
        if width % multiple or height % multiple or min(width, height) <= 0:
            raise RecipeError(
                f"recipe '{recipe.name}': canvas is {width}x{height}; expected positive multiples "
                f"of {multiple}"
            )
        return height, width
    bins = _ACTION_RESOLUTION_BINS[str(recipe.tier)]
    height, width = VideoProcessor.classify_height_width_bin(
        body.picture_height, body.picture_width, ratios=bins
    )
    return int(height), int(width)
