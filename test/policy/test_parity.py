"""A plan equals diffusers' own pipeline in policy mode, on the same weights and the same noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bundles import Exported
from tokenizers import Tokenizer

from cosmos3_ros.engine.backends import open_backend
from cosmos3_ros.engine.export_contract import make_sampler
from cosmos3_ros.engine.export_model import Components, make_components
from cosmos3_ros.engine.export_pipeline import stock_pipeline, stock_policy
from cosmos3_ros.engine.export_reference import Start, stock_plan, stock_velocity
from cosmos3_ros.engine.parts import run_graph
from cosmos3_ros.engine.session import TEXT_PADDING_BIAS
from cosmos3_ros.policy.embodiment import load_embodiment
from cosmos3_ros.policy.plan import Noise, Observation, Policy, draw_noise, soft_mask
from cosmos3_ros.policy.positions import positions, rotary_tables
from cosmos3_ros.policy.prompt import caption, pad_tokens, tokenize

TOLERANCE = 1e-4
INSTRUCTION = "pick up the red cube"


def components_of(exported: Exported) -> Components:
    return make_components(exported.recipe, None)


def policy_of(exported: Exported, **sampler: float) -> Policy:
    contract = exported.bundle.manifest.contract
    if sampler:
        table = make_sampler(
            components_of(exported).scheduler, shift=contract.sampler.shift, **sampler
        )
        contract = replace(contract, sampler=table)
    engine = open_backend(exported.bundle, "onnxruntime", 2)
    tokenizer = Tokenizer.from_file(str(exported.bundle.path / "tokenizer.json"))
    return Policy(contract, load_embodiment(exported.embodiment_path), engine, tokenizer)


def prompt_feeds(exported: Exported, ids: list[int]) -> dict[str, np.ndarray]:
    """What the denoise graph takes of a prompt."""
    contract, graphs = exported.bundle.manifest.contract, exported.bundle.manifest.graphs
    prompting = contract.prompting
    engine = open_backend(exported.bundle, "onnxruntime", 2)
    read = run_graph(engine, graphs, "text", {"token_ids": pad_tokens(ids, prompting)})
    bias = np.zeros(prompting.text_tokens, np.float32)
    bias[len(ids) :] = TEXT_PADDING_BIAS
    cos, sin = rotary_tables(positions(len(ids), contract), contract.rope)
    return {**read, "text_bias": bias, "cos": cos, "sin": sin}


def picture(width: int, height: int) -> np.ndarray:
    """A picture with edges and gradients [height, width, 3], so that the padding has content."""
    rng = np.random.default_rng(3)
    ramp = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    noise = rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
    return (np.kron(noise, np.ones((16, 16, 1), np.uint8)) // 2 + ramp // 2).astype(np.uint8)


@pytest.mark.parametrize("steps", [2, 4])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("grid", ["even_grid", "odd_grid"])
@torch.no_grad()
def test_a_plan_equals_the_stock_pipeline(
    grid: str, guidance: float, steps: int, request: pytest.FixtureRequest
) -> None:
    exported: Exported = request.getfixturevalue(grid)
    policy = policy_of(exported, steps=steps, guidance=guidance)
    contract, view = policy.contract, policy.embodiment.cameras[0]
    image = picture(view.width, view.height)

    run = stock_policy(
        components_of(exported), contract, 256, "droid_lerobot", policy.embodiment.view_point
    )
    video, action = run(INSTRUCTION, image, 7, False)
    # The pipeline draws the video's noise first and the actions' after it.
    generator = torch.Generator().manual_seed(7)
    noise = Noise(
        torch.randn(contract.latent_shape, generator=generator).numpy(),
        torch.randn(contract.rows, contract.action_dim, generator=generator).numpy(),
    )
    plan = policy.plan(
        Observation({view.name: image}, np.zeros(contract.width)),
        policy.prefill(INSTRUCTION),
        noise,
    )

    rows = policy.embodiment.to_model(plan.rows)
    assert plan.latents.shape == video.shape
    assert np.abs(rows - action).max() < TOLERANCE
    assert np.abs(plan.latents - video).max() < TOLERANCE
    assert np.abs(plan.latents[:, :, 1:] - noise.latents[:, :, 1:]).max() > 0.01


@pytest.mark.parametrize("committed_rows", [0, 5])
@torch.no_grad()
def test_state_row_and_committed_rows_equal_the_stock_transformer(
    tiny: Exported, committed_rows: int
) -> None:
    policy = policy_of(tiny)
    components = components_of(tiny)
    contract = policy.contract
    clean = 1 + committed_rows
    noise = draw_noise(contract, np.random.default_rng(1))
    timestep = 700.0
    text = caption(INSTRUCTION, policy.embodiment, contract)
    tokenizer = Tokenizer.from_file(str(tiny.bundle.path / "tokenizer.json"))
    ids = tokenize(text, tokenizer, contract.prompting)
    noisy = np.ones((contract.rows, 1), np.float32)
    noisy[:clean] = 0
    feeds = prompt_feeds(tiny, ids) | {
        "latents": noise.latents,
        "rows": noise.rows,
        "noisy_rows": noisy,
        "timestep": np.array([timestep], np.float32),
        "domain_id": np.array([contract.domain_id]),
    }
    engine = open_backend(tiny.bundle, "onnxruntime", 2)
    out = run_graph(engine, tiny.bundle.manifest.graphs, "denoise", feeds)
    ours = out["latent_velocity"], out["row_velocity"]

    latent_velocity, row_velocity = stock_velocity(
        components, contract, ids, noise.latents, noise.rows, noisy, timestep
    )
    assert np.abs(ours[0] - latent_velocity).max() < TOLERANCE
    assert np.abs(ours[1] - row_velocity).max() < TOLERANCE
    assert np.abs(ours[1][clean:]).max() > 0.01


@torch.no_grad()
def test_a_plan_with_held_rows_equals_diffusers_steps_held_at_them(tiny: Exported) -> None:
    policy = policy_of(tiny)
    components, contract = components_of(tiny), replace(policy.contract, prefix="held")
    policy.contract = contract
    robot, view = policy.embodiment, policy.embodiment.cameras[0]
    image = picture(view.width, view.height)
    noise = draw_noise(contract, np.random.default_rng(4))
    before = robot.offset + np.linspace(0, 0.3, 9)[:, None]
    state = robot.offset + 0.02
    plan = policy.plan(
        Observation({view.name: image}, state),
        policy.prefill(INSTRUCTION),
        noise,
        before[:4],
        before[4:],
    )

    clean, noisy, held = (np.zeros((contract.rows, n), np.float32) for n in (64, 1, 1))
    clean[:10, : contract.width] = robot.to_model(np.vstack([state, before]))
    noisy[1:], held[1:10, 0] = 1, soft_mask(4, 9)
    ids = [
        tokenize(text, Tokenizer.from_file(str(tiny.bundle.path / "tokenizer.json")),
                 contract.prompting)
        for text in (caption(INSTRUCTION, robot, contract), "")
    ]  # fmt: skip
    start = Start(noise.latents, noise.rows, clean, noisy, held)
    latents, rows = stock_plan(components, contract, image, *ids, start)
    # Rows that are held wholly come back as they went in.
    ours = robot.to_model(plan.rows)[4:]
    assert np.abs(ours - rows[5:, : contract.width]).max() < TOLERANCE
    assert np.abs(plan.latents - latents).max() < TOLERANCE


@torch.no_grad()
def test_predicted_frames_are_the_first_of_the_whole_clip_decoded(tiny: Exported) -> None:
    policy = policy_of(tiny)
    contract, view = policy.contract, policy.embodiment.cameras[0]
    observation = Observation({view.name: picture(128, 96)}, policy.embodiment.offset)
    noise = draw_noise(contract, np.random.default_rng(2))
    plan = policy.plan(observation, policy.prefill(INSTRUCTION), noise)
    frames = policy.predict_frames(plan)

    components = components_of(tiny)
    pipeline = stock_pipeline(components)
    clip = components.vae.decode(torch.from_numpy(plan.latents)).sample
    stock = pipeline.video_processor.postprocess_video(clip, output_type="np")[0]
    whole = (stock * 255).round().astype(np.uint8)
    assert frames.shape == (4, 96, 128, 3)
    difference = np.abs(frames.astype(int) - whole[1:5])
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    assert frames.std() > 1
