"""Whether a model fits itself, and a data set memory: asked before hours are spent."""

from __future__ import annotations

import math

import numpy as np
import torch
from diffusers import AutoencoderKLWan, Cosmos3OmniTransformer

from cosmos3_ros.engine.compile import available_bytes
from cosmos3_ros.engine.recipe import Recipe, RecipeError
from cosmos3_ros.engine.session import Contract
from cosmos3_ros.training.dataset import Demonstrations
from cosmos3_ros.training.flow import Flow, Texts
from cosmos3_ros.training.runs import TrainingError
from cosmos3_ros.training.settings import TrainingSettings
from cosmos3_ros.training.vae import WholeClip

# Of a number of the latents, in half precision and about twice more while they are normalised.
_LATENT_BYTES = 12


def filmed(held_out: range, settings: TrainingSettings) -> list[int]:
    """Episodes whose canvases the VAE is trained on, spread over those that are trained on."""
    count = min(settings.vae.episodes, held_out.start)
    episodes: list[int] = np.linspace(0, held_out.start - 1, count).astype(int).tolist()
    return episodes


def require_memory(
    shown: Demonstrations,
    held_out: range,
    settings: TrainingSettings,
    contract: Contract,
    *,
    filmed_already: bool,
) -> None:
    """Raises TrainingError where canvases or latents of demonstrations would not fit in memory.

    ``filmed_already``: the VAE is trained, no canvases are held any more.
    """
    episodes = [] if filmed_already else filmed(held_out, settings)
    frames = sum(len(shown.states[episode]) for episode in episodes)
    canvases = frames * contract.canvas_height * contract.canvas_width * 3
    clips = len(shown) * settings.data.clips_per_episode
    latents = clips * math.prod(contract.latent_shape) * _LATENT_BYTES
    for key, value, needed in (
        ("training.vae.episodes", settings.vae.episodes, canvases),
        ("training.data.clips_per_episode", settings.data.clips_per_episode, latents),
    ):
        if needed > (available := available_bytes()):
            raise TrainingError(
                f"{key} is {value}, which takes {needed / 1e9:.1f} GB of memory with this data "
                f"set (an estimate), and {available / 1e9:.1f} GB are free; expected fewer"
            )


def require_fitting_model(
    recipe: Recipe,
    vae: AutoencoderKLWan,
    transformer: Cosmos3OmniTransformer,
    texts: Texts,
    contract: Contract,
) -> None:
    """A clip of nothing through both, before hours are spent. Raises RecipeError."""
    size = (contract.canvas_height, contract.canvas_width)
    clip, flow = WholeClip(vae), Flow(transformer, contract)
    try:
        with torch.no_grad():
            pictures = torch.zeros(1, 3, contract.chunk + 1, *size)
            latents, _ = clip.encode(pictures)
            found = tuple(clip.decode(latents).shape)
            rows = torch.zeros(1, contract.rows, contract.width)
            first = torch.zeros(1, dtype=torch.long)
            flow(texts[first], first, latents, rows, torch.ones_like(rows[..., :1]), first.float())
    except (RuntimeError, ValueError, IndexError) as error:
        raise RecipeError(
            f"recipe '{recipe.name}': model.vae and model.transformer do not fit each other, or "
            f"the canvas: {error}"
        ) from error
    if found != tuple(pictures.shape):
        raise RecipeError(
            f"recipe '{recipe.name}': model.vae makes pictures {found} of {tuple(pictures.shape)}; "
            "expected the same again, see scale_factor_temporal and scale_factor_spatial"
        )
