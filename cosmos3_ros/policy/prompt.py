"""The structured JSON caption that the action model was trained on, and its tokens.

The sentences, the order of the keys and the serialisation are part of the weights' interface: they
equal diffusers' ``Cosmos3OmniPipeline`` character for character, and a test keeps them so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from cosmos3_ros.engine.session import Contract, Prompting
from cosmos3_ros.policy.embodiment import Embodiment

FRAMING = {
    "ego_view": "This video is captured from a first-person perspective looking at the scene.",
    "third_person_view": (
        "This video is captured from a third-person perspective looking towards the agent "
        "from the front."
    ),
    "wrist_view": "This video is captured from a wrist-mounted camera.",
    "concat_view": "This video contains concatenated views from multiple camera perspectives.",
}
ASPECT_RATIOS = ((1, 1), (4, 3), (3, 4), (16, 9), (9, 16))


class PromptError(ValueError):
    """An instruction cannot become a prompt of this bundle."""


def caption(instruction: str, embodiment: Embodiment, contract: Contract) -> str:
    """JSON caption of an instruction. Raises PromptError for an empty instruction."""
    description = instruction.strip()
    if not description:
        raise PromptError("instruction is empty; expected a sentence that says what to do")
    if not description.endswith((".", "!", "?")):
        description += "."
    framing = FRAMING[embodiment.view_point]
    if embodiment.view_detail:
        framing += " " + embodiment.view_detail
    seconds = (contract.chunk + 1) / contract.fps
    minutes, rest = divmod(round(seconds), 60)
    ratio = contract.canvas_width / contract.canvas_height
    width, height = min(ASPECT_RATIOS, key=lambda wh: abs(wh[0] / wh[1] - ratio))
    return json.dumps(
        {
            "cinematography": {"framing": framing},
            "actions": [{"time": f"0:00-{minutes}:{rest:02d}", "description": description}],
            "duration": f"{int(seconds)}s",
            "fps": float(contract.fps),
            "resolution": {"H": contract.canvas_height, "W": contract.canvas_width},
            "aspect_ratio": f"{width},{height}",
        }
    )


def tokenize(text: str, tokenizer: Tokenizer, prompting: Prompting) -> list[int]:
    """Token ids of a text in the chat template, closed by end-of-sequence and vision-start.

    Raises PromptError where the engine's fixed text length is too short for them.
    """
    chat = prompting.prefix + text + prompting.suffix
    ids: Sequence[int] = tokenizer.encode(chat, add_special_tokens=False).ids
    ids = [*ids, prompting.end_of_sequence_id, prompting.start_of_generation_id]
    if len(ids) > prompting.text_tokens:
        raise PromptError(
            f"instruction takes {len(ids)} tokens with its caption, the engine has room for "
            f"{prompting.text_tokens}; shorten it, or export the bundle with more 'text_tokens'"
        )
    return list(ids)


def pad_tokens(ids: Sequence[int], prompting: Prompting) -> np.ndarray:
    """Token ids padded at their end to the engine's text length, [text_tokens] int64.

    The text is causal, so padding never reaches a real token.
    """
    padded = np.full(prompting.text_tokens, prompting.padding_id, np.int64)
    padded[: len(ids)] = ids
    return padded
