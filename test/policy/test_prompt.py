"""Caption and token ids equal those of diffusers' own prompt builder, character for character."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bundles import Exported
from diffusers import Cosmos3OmniPipeline
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import _ACTION_VIEWPOINT_TEMPLATES
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from cosmos3_ros.engine.export_model import byte_level_tokenizer, make_components
from cosmos3_ros.engine.session import Contract
from cosmos3_ros.policy.embodiment import load_embodiment
from cosmos3_ros.policy.prompt import FRAMING, PromptError, caption, pad_tokens, tokenize

INSTRUCTIONS = ["pick up the red cube", " Stop! ", "Is it there?", "löse die «Schraube»\n", "a."]


def test_framing_sentences_are_those_of_the_model() -> None:
    assert FRAMING == _ACTION_VIEWPOINT_TEMPLATES


@pytest.mark.parametrize("view_point", FRAMING)
@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize(("width", "height"), [(128, 96), (736, 544), (320, 192), (256, 256)])
@pytest.mark.parametrize(("chunk", "fps"), [(16, 15.0), (32, 15.0), (60, 24.0), (1200, 10.0)])
def test_caption_equals_diffusers(
    view_point: str,
    instruction: str,
    width: int,
    height: int,
    chunk: int,
    fps: float,
    tiny: Exported,
) -> None:
    contract = replace(
        tiny.bundle.manifest.contract,
        chunk=chunk,
        fps=fps,
        canvas_width=width,
        canvas_height=height,
    )
    embodiment = replace(tiny.embodiment, view_point=view_point)
    assert caption(instruction, embodiment, contract) == stock(instruction, view_point, contract)


@settings(max_examples=200)
@given(instruction=st.text(min_size=1).filter(lambda text: text.strip()))
def test_any_instruction_makes_the_stock_caption(instruction: str, tiny: Exported) -> None:
    contract = tiny.bundle.manifest.contract
    ours = caption(instruction, tiny.embodiment, contract)
    assert ours == stock(instruction, tiny.embodiment.view_point, contract)


def test_the_training_sentence_of_the_released_policy_follows_its_framing(tiny: Exported) -> None:
    text = caption("go", load_embodiment("droid_joint_pos"), tiny.bundle.manifest.contract)
    assert (
        "This video contains concatenated views from multiple camera perspectives. The top row is "
        "from the wrist-mounted camera. The bottom row contains two horizontally concatenated "
        "third-person perspective views of the scene from opposite sides, with the robot visible."
    ) in text


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_token_ids_equal_the_stock_pipeline(instruction: str, tiny: Exported) -> None:
    contract = tiny.bundle.manifest.contract
    parts = make_components(tiny.recipe, None)
    pipeline = Cosmos3OmniPipeline(
        parts.transformer,
        byte_level_tokenizer(),
        parts.vae,
        parts.scheduler,
        enable_safety_checker=False,
        default_use_system_prompt=False,
    )
    conditional, unconditional = pipeline.tokenize_prompt(
        instruction,
        None,
        num_frames=contract.chunk + 1,
        height=contract.canvas_height,
        width=contract.canvas_width,
        fps=contract.fps,
        action_mode="policy",
        action_view_point=tiny.embodiment.view_point,
    )
    tokenizer = Tokenizer.from_file(str(tiny.bundle.path / "tokenizer.json"))
    text = caption(instruction, tiny.embodiment, contract)
    assert tokenize(text, tokenizer, contract.prompting) == conditional
    assert tokenize("", tokenizer, contract.prompting) == unconditional


@pytest.mark.parametrize("instruction", ["", "  \n"])
def test_an_empty_instruction_is_refused(instruction: str, tiny: Exported) -> None:
    with pytest.raises(PromptError, match="instruction is empty"):
        caption(instruction, tiny.embodiment, tiny.bundle.manifest.contract)


def test_an_instruction_beyond_the_engine_is_refused_with_both_lengths(tiny: Exported) -> None:
    prompting = tiny.bundle.manifest.contract.prompting
    tokenizer = Tokenizer.from_file(str(tiny.bundle.path / "tokenizer.json"))
    with pytest.raises(PromptError, match=r"takes \d+ tokens.*has room for 640"):
        tokenize("x" * 700, tokenizer, prompting)


def test_padding_stands_behind_the_tokens(tiny: Exported) -> None:
    prompting = tiny.bundle.manifest.contract.prompting
    padded = pad_tokens([5, 6, 7], prompting)
    assert padded[:3].tolist() == [5, 6, 7]
    assert set(padded[3:].tolist()) == {prompting.padding_id}


def stock(instruction: str, view_point: str, contract: Contract) -> str:
    built: str = Cosmos3OmniPipeline._build_action_json_prompt(
        instruction,
        view_point=view_point,
        num_frames=contract.chunk + 1,
        fps=contract.fps,
        height=contract.canvas_height,
        width=contract.canvas_width,
    )
    return built
