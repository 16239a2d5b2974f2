"""The recipe of the released policy names its public contract in full."""

from __future__ import annotations

import pytest
import torch
import yaml
from bundles import ROOT
from diffusers import AutoencoderKLWan, Cosmos3OmniTransformer, UniPCMultistepScheduler

from cosmos3_ros.engine.export import make_contract
from cosmos3_ros.engine.export_model import (
    FLOW_SCHEDULER,
    Components,
    byte_level_tokenizer,
)
from cosmos3_ros.engine.recipe import Recipe, load_recipe
from cosmos3_ros.engine.session import Contract
from cosmos3_ros.export_command import body_of
from cosmos3_ros.policy.embodiment import load_embodiment


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(ROOT / "engines" / "nano_droid.yaml")


@pytest.fixture(scope="module")
def contract(recipe: Recipe) -> Contract:
    """The contract of the recipe, from the shape of the model alone: no weights are made."""
    tiny_vae = yaml.safe_load((ROOT / "engines" / "tiny.yaml").read_text())["model"]["vae"]
    with torch.device("meta"):
        transformer = Cosmos3OmniTransformer(**recipe.model.transformer)
        vae = AutoencoderKLWan(**(tiny_vae | recipe.model.vae))
    components = Components(
        transformer=transformer,
        vae=vae,
        tokenizer=byte_level_tokenizer(),
        scheduler=UniPCMultistepScheduler(**FLOW_SCHEDULER, flow_shift=recipe.shift),
        native_flow_schedule=False,
        source="",
        source_sha256="",
    )
    return make_contract(recipe, body_of(load_embodiment(recipe.embodiment)), components)


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
