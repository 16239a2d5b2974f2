"""The recipes of the released policy name its public contract in full."""

from __future__ import annotations

import pytest
import torch
from bundles import ENGINES
from diffusers import AutoencoderKLWan, Cosmos3OmniTransformer, UniPCMultistepScheduler

from cosmos3_ros.engine.export_checkpoint import ModuleWeights
from cosmos3_ros.engine.export_contract import make_contract
from cosmos3_ros.engine.export_model import (
    FLOW_SCHEDULER,
    Components,
    byte_level_tokenizer,
    hollow,
)
from cosmos3_ros.engine.recipe import Recipe, load_recipe
from cosmos3_ros.engine.session import Contract
from cosmos3_ros.export_command import body_of
from cosmos3_ros.policy.embodiment import load_embodiment

RELEASED = ("nano_droid", "nano_droid_bf16", "nano_droid_fp8", "nano_droid_nvfp4")
# Compiling a file takes about three times its weights, and the machine has 24 GB.
LARGEST_FILE_BYTES = 24e9 / 3


@pytest.fixture(scope="module", params=RELEASED)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return load_recipe(ENGINES / f"{request.param}.yaml")


def components_of(recipe: Recipe) -> Components:
    """The shape of the model alone: no weights are made."""
    statistics = {"latents_mean": [0.0] * 48, "latents_std": [1.0] * 48}
    transformer = hollow(Cosmos3OmniTransformer, recipe.model.transformer, torch.bfloat16)
    vae = hollow(AutoencoderKLWan, statistics | recipe.model.vae, torch.bfloat16)
    return Components(
        transformer=transformer,
        vae=vae,
        transformer_weights=ModuleWeights(transformer),
        vae_weights=ModuleWeights(vae),
        tokenizer=byte_level_tokenizer(),
        scheduler=UniPCMultistepScheduler(**FLOW_SCHEDULER, flow_shift=recipe.shift),
        native_flow_schedule=False,
        source="",
        hash_weights=str,
    )


def contract_of(recipe: Recipe) -> Contract:
    return make_contract(recipe, body_of(load_embodiment(recipe.embodiment)), components_of(recipe))


@pytest.fixture(scope="module")
def contract(recipe: Recipe) -> Contract:
    return contract_of(recipe)


def test_the_model_is_nano(recipe: Recipe) -> None:
    model = recipe.model.transformer
    assert (model["num_hidden_layers"], model["hidden_size"], model["intermediate_size"]) == (
        36,
        4096,
        12288,
    )
    assert model["hidden_act"] == "silu"
    heads = (model["num_attention_heads"], model["num_key_value_heads"], model["head_dim"])
    assert heads == (32, 8, 128)
    assert model["qk_norm_for_text"] is True
    assert model["vocab_size"] == 151936
    assert model["rope_theta"] == 5e6
    assert model["rope_axes_dim"] == [24, 20, 20]
    assert model["unified_3d_mrope_temporal_modality_margin"] == 15000
    assert model["timestep_scale"] == 0.001
    assert (model["action_dim"], model["num_embodiment_domains"]) == (64, 32)
    assert (model["latent_channel"], model["latent_patch_size"]) == (48, 2)
    vae = recipe.model.vae
    assert (vae["base_dim"], vae["decoder_base_dim"], vae["z_dim"]) == (160, 256, 48)
    assert recipe.model.vae["scale_factor_spatial"] == 16
    assert recipe.model.vae["scale_factor_temporal"] == 4
    assert recipe.model.tokenizer == "checkpoint"
    assert recipe.model.random_seed is None


def test_the_embodiment_is_eight_joint_channels_of_domain_eight(contract: Contract) -> None:
    embodiment = load_embodiment("droid_joint_pos")
    assert contract.embodiment == embodiment.name
    assert (embodiment.domain, contract.domain_id, contract.width) == ("droid_lerobot", 8, 8)
    assert contract.action_dim == 64
    assert embodiment.channel_units == ("rad",) * 7 + ("1",)
    # Joints are not normalised; the gripper is one minus closedness.
    assert embodiment.scale.tolist() == [1.0] * 7 + [-1.0]
    assert embodiment.offset.tolist() == [0.0] * 7 + [1.0]


def test_rows_are_a_state_row_and_thirty_two_at_fifteen_a_second(contract: Contract) -> None:
    assert (contract.chunk, contract.rows, contract.state_row) == (32, 33, True)
    assert contract.fps == 15.0
    assert contract.chunk / contract.fps == pytest.approx(2.133, abs=1e-3)


def test_the_sampler_is_four_steps_shift_five_guidance_three(contract: Contract) -> None:
    sampler = contract.sampler
    assert (sampler.steps, sampler.shift, sampler.guidance) == (4, 5.0, 3.0)
    assert len(sampler.timesteps) == 4
    assert (sampler.guided, sampler.forwards) == ((True,) * 4, 8)
    assert FLOW_SCHEDULER["prediction_type"] == "flow_prediction"
    assert FLOW_SCHEDULER["solver_order"] == 2


def test_the_canvas_is_640x540_on_736x544(contract: Contract) -> None:
    embodiment = load_embodiment("droid_joint_pos")
    cells = {v.name: (v.x, v.y, v.width, v.height) for v in embodiment.cameras}
    assert cells == {
        "wrist": (0, 0, 640, 360),
        "exterior_1": (0, 360, 320, 180),
        "exterior_2": (320, 360, 320, 180),
    }
    assert (contract.canvas_width, contract.canvas_height) == (736, 544)
    assert (contract.content_width, contract.content_height) == (640, 540)
    assert (contract.latent_width, contract.latent_height) == (40, 33)
    assert contract.grid == (9, 17, 20)


def test_a_forward_has_3093_tokens(contract: Contract) -> None:
    assert contract.tokens == 9 * 340 + 33 == 3093


def test_the_view_point_is_concat_view(contract: Contract) -> None:
    embodiment = load_embodiment(contract.embodiment)
    assert embodiment.view_point == "concat_view"
    assert embodiment.view_detail == (
        "The top row is from the wrist-mounted camera. The bottom row contains two horizontally "
        "concatenated third-person perspective views of the scene from opposite sides, with the "
        "robot visible."
    )


def test_the_precision_is_what_the_name_says(recipe: Recipe) -> None:
    assert recipe.precision == (recipe.name.removeprefix("nano_droid").strip("_") or "bf16")
    assert recipe.opset == 23


@pytest.mark.parametrize("name", [*RELEASED, "nano_256_fp8"])
def test_every_file_is_small_enough_to_compile_on_24_gigabytes(name: str) -> None:
    recipe = load_recipe(ENGINES / f"{name}.yaml")
    model = recipe.model.transformer
    width, heads = model["hidden_size"], model["num_attention_heads"]
    projections = 2 * (heads + model["num_key_value_heads"]) * model["head_dim"]
    tower = width * (projections + 3 * model["intermediate_size"])
    embedding = 2 * width * model["vocab_size"]
    bytes_each = {"bf16": 2.0, "fp8": 1.0, "nvfp4": 0.5625}[recipe.precision]
    text_layers = recipe.layers_per_part["text"]
    denoise_layers = recipe.layers_per_part["denoise"]
    assert embedding + 2.0 * text_layers * tower < LARGEST_FILE_BYTES
    assert bytes_each * denoise_layers * tower < LARGEST_FILE_BYTES


def test_the_small_tier_is_unguided_and_short() -> None:
    recipe = load_recipe(ENGINES / "nano_256_fp8.yaml")
    contract = contract_of(recipe)
    assert (recipe.precision, recipe.tier, contract.chunk) == ("fp8", 256, 16)
    assert (contract.sampler.steps, contract.sampler.forwards) == (4, 4)
    assert recipe.model.transformer == load_recipe(ENGINES / "nano_droid.yaml").model.transformer
