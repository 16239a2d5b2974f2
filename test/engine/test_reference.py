"""What a bundle is compared with is what diffusers' own pipeline makes of the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bundles import Exported
from diffusers import Cosmos3OmniPipeline
from diffusers.models.transformers import transformer_cosmos3
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import CosmosActionCondition
from PIL import Image

from cosmos3_ros.engine.export_model import Components, make_components
from cosmos3_ros.engine.export_pipeline import stock_pipeline
from cosmos3_ros.engine.export_reference import (
    Start,
    stock_frames,
    stock_image,
    stock_plan,
    stock_text,
)

INSTRUCTION = "pick up the red cube"


@pytest.fixture(scope="module")
def components(even_grid: Exported) -> Components:
    return make_components(even_grid.recipe, None)


@pytest.fixture(scope="module")
def pipeline(components: Components) -> Cosmos3OmniPipeline:
    return stock_pipeline(components)


@pytest.fixture
def canvas(even_grid: Exported) -> np.ndarray:
    contract = even_grid.bundle.manifest.contract
    shape = (contract.canvas_height, contract.canvas_width, 3)
    return np.random.default_rng(0).integers(0, 255, shape, np.uint8)


@torch.no_grad()
def test_a_stock_plan_is_the_pipelines(
    even_grid: Exported, components: Components, pipeline: Cosmos3OmniPipeline, canvas: np.ndarray
) -> None:
    contract = even_grid.bundle.manifest.contract
    expected = pipeline(
        prompt=INSTRUCTION,
        action=CosmosActionCondition(
            mode="policy",
            chunk_size=contract.chunk,
            domain_name="droid_lerobot",
            resolution_tier=256,
            image=Image.fromarray(canvas),
            view_point=even_grid.embodiment.view_point,
        ),
        fps=contract.fps,
        num_inference_steps=contract.sampler.steps,
        guidance_scale=contract.sampler.guidance,
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
    )
    ids, unconditional = pipeline.tokenize_prompt(
        INSTRUCTION,
        None,
        num_frames=contract.chunk + 1,
        height=contract.canvas_height,
        width=contract.canvas_width,
        fps=contract.fps,
        action_mode="policy",
        action_view_point=even_grid.embodiment.view_point,
    )
    # The pipeline draws the video's noise first and the actions' after it.
    generator = torch.Generator().manual_seed(7)
    start = Start(
        latents=torch.randn(contract.latent_shape, generator=generator).numpy(),
        rows=torch.randn(contract.rows, contract.action_dim, generator=generator).numpy(),
        clean_rows=np.zeros((contract.rows, contract.action_dim), np.float32),
        noisy_rows=np.ones((contract.rows, 1), np.float32),
        held_rows=np.zeros((contract.rows, 1), np.float32),
    )
    latents, rows = stock_plan(components, contract, canvas, ids, unconditional, start)
    assert np.abs(latents - expected.video.numpy()).max() < 1e-4
    found = rows[:, : contract.width]
    assert np.abs(found - expected.action[0].numpy()[:, : contract.width]).max() < 1e-4
    assert not rows[:, contract.width :].any()


@torch.no_grad()
def test_one_frame_encoded_is_the_repeated_clip_encoded(
    even_grid: Exported, components: Components, pipeline: Cosmos3OmniPipeline, canvas: np.ndarray
) -> None:
    contract = even_grid.bundle.manifest.contract
    pixels = torch.from_numpy(canvas).permute(2, 0, 1).float() / 127.5 - 1
    clip = pixels[None, :, None].expand(-1, -1, contract.chunk + 1, -1, -1)
    expected = pipeline._encode_video(clip)[:, :, :1].numpy()
    found = stock_image(components, contract, canvas)
    assert np.abs(found - expected).max() < 1e-5


@torch.no_grad()
def test_frames_are_the_first_of_the_whole_clip_decoded(
    even_grid: Exported, components: Components, pipeline: Cosmos3OmniPipeline
) -> None:
    contract = even_grid.bundle.manifest.contract
    latents = np.random.default_rng(0).standard_normal(contract.latent_shape, np.float32)
    clip = components.vae.decode(torch.from_numpy(latents)).sample
    whole = pipeline.video_processor.postprocess_video(clip, output_type="np")[0]
    found = stock_frames(components, contract, latents[:, :, : contract.frame_latents])
    expected = (whole[1 : 1 + len(found)] * 255).round()
    assert len(found) == 4
    assert np.abs(found - expected).max() <= 1
    assert found.std() > 1


def test_the_stock_attention_is_itself_again_after_a_text_is_read(components: Components) -> None:
    stock = transformer_cosmos3.dispatch_attention_fn
    keys = stock_text(components, [1, 2, 3])["keys"]
    config = components.transformer.config
    assert keys.shape == (
        config.num_hidden_layers,
        config.num_key_value_heads,
        3,
        config.head_dim,
    )
    with pytest.raises(IndexError):
        stock_text(components, [config.vocab_size])
    assert transformer_cosmos3.dispatch_attention_fn is stock
