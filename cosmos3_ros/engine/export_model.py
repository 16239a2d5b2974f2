"""The parts an export starts from: transformer, VAE, tokenizer and scheduler.

Read from a checkpoint folder in diffusers' layout, or made of random weights at a recipe's shape.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, Cosmos3OmniTransformer, UniPCMultistepScheduler
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cosmos3_ros.engine.bundle import TOKENIZER, file_sha256
from cosmos3_ros.engine.recipe import Recipe, RecipeError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_END, _PAD, _VISION_START = "<|im_end|>", "<|endoftext|>", "<|vision_start|>"
# diffusers' UniPC as the policy uses it; the shift comes from the recipe.
FLOW_SCHEDULER: dict[str, Any] = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "num_train_timesteps": 1000,
    "solver_order": 2,
}
# Written by save_pretrained, and no property of the weights.
_CONFIG_NOISE = ("_class_name", "_diffusers_version", "_name_or_path")


@dataclass(frozen=True)
class Components:
    """The stock modules, in float32 and evaluation mode. ``source_sha256`` hashes the weights."""

    transformer: Cosmos3OmniTransformer
    vae: AutoencoderKLWan
    tokenizer: PreTrainedTokenizerBase
    scheduler: UniPCMultistepScheduler
    native_flow_schedule: bool
    source: str
    source_sha256: str


def make_components(recipe: Recipe, checkpoint: Path | None) -> Components:
    """Components of a recipe. Raises RecipeError where recipe and checkpoint do not fit."""
    if checkpoint is not None:
        return _from_checkpoint(recipe, checkpoint)
    model = recipe.model
    if model.random_seed is None:
        raise RecipeError(
            f"recipe '{recipe.name}' needs weights and has no random_seed; add --checkpoint DIR, "
            "a folder in diffusers' layout with transformer/ and vae/"
        )
    if model.tokenizer != "byte_level":
        raise RecipeError(
            f"recipe '{recipe.name}': tokenizer is '{model.tokenizer}' and there is no "
            "checkpoint; expected 'byte_level', or add --checkpoint DIR"
        )
    return Components(
        transformer=random_transformer(model.transformer, model.random_seed),
        vae=random_vae(model.vae, model.random_seed),
        tokenizer=byte_level_tokenizer(),
        scheduler=_scheduler(recipe, model.scheduler),
        native_flow_schedule=False,
        source=f"random weights, seed {model.random_seed}",
        source_sha256=hashlib.sha256(repr(model).encode()).hexdigest(),
    )


def random_transformer(config: dict[str, Any], seed: int) -> Cosmos3OmniTransformer:
    """A transformer of random weights, scaled so that its velocities stay near unit size."""
    torch.manual_seed(seed)
    transformer = Cosmos3OmniTransformer(**config).eval()
    with torch.no_grad():
        transformer.action_modality_embed.normal_(0, 0.02)
        for head in (transformer.action_proj_in, transformer.action_proj_out):
            head.fc.weight.mul_(head.input_size**-0.5)
            head.bias.weight.mul_(0.02)
    return transformer


def random_vae(config: dict[str, Any], seed: int) -> AutoencoderKLWan:
    """A VAE of random weights."""
    torch.manual_seed(seed)
    return AutoencoderKLWan(**config).eval()


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, no merges, and the special tokens of the chat: any text, offline."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _chatml(
        tokenizer_object=tokenizer, additional_special_tokens=["<|im_start|>", _VISION_START]
    )


def _chatml(**arguments: Any) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(eos_token=_END, pad_token=_PAD, **arguments)
    tokenizer.chat_template = CHATML
    return tokenizer


def _from_checkpoint(recipe: Recipe, folder: Path) -> Components:
    for part in ("transformer", "vae"):
        if not (folder / part / "config.json").is_file():
            raise RecipeError(
                f"checkpoint '{folder}' has no {part}/config.json; expected diffusers' layout "
                "(transformer/, vae/, text_tokenizer/, scheduler/)"
            )
    config = _stored_config(folder / "transformer" / "config.json")
    if not config.get("action_gen"):
        raise RecipeError(
            f"checkpoint '{folder}' has no action head (action_gen is "
            f"{config.get('action_gen')}); expected one that was trained with actions"
        )
    model = recipe.model
    # Before gigabytes are read; what the file leaves to defaults is checked after.
    named = {key: value for key, value in model.transformer.items() if key in config}
    _require_config(recipe, "transformer", named, config)
    load = {"torch_dtype": torch.float32, "local_files_only": True}
    transformer = Cosmos3OmniTransformer.from_pretrained(folder / "transformer", **load).eval()
    vae = AutoencoderKLWan.from_pretrained(folder / "vae", **load).eval()
    _require_config(recipe, "transformer", model.transformer, dict(transformer.config))
    _require_config(recipe, "vae", model.vae, dict(vae.config))
    stored = folder / "scheduler" / "scheduler_config.json"
    scheduler_config = _stored_config(stored) if stored.is_file() else FLOW_SCHEDULER
    _require_config(recipe, "scheduler", model.scheduler, scheduler_config)
    index = folder / "model_index.json"
    return Components(
        transformer=transformer,
        vae=vae,
        tokenizer=_checkpoint_tokenizer(recipe, folder),
        scheduler=_scheduler(recipe, scheduler_config),
        native_flow_schedule=bool(
            index.is_file() and _stored_config(index).get("use_native_flow_schedule", False)
        ),
        source=folder.resolve().name,
        source_sha256=_weights_sha256(folder),
    )


def _checkpoint_tokenizer(recipe: Recipe, folder: Path) -> PreTrainedTokenizerBase:
    kind = recipe.model.tokenizer
    place = folder / ("text_tokenizer" if kind == "checkpoint" else TOKENIZER)
    if kind == "byte_level":
        return byte_level_tokenizer()
    if not place.exists():
        raise RecipeError(
            f"checkpoint '{folder}' has no {place.name}, which tokenizer '{kind}' of recipe "
            f"'{recipe.name}' reads; add it, or set model.tokenizer to what the checkpoint has"
        )
    if kind == "checkpoint":
        return AutoTokenizer.from_pretrained(place)
    return _chatml(tokenizer_file=str(place))


def _scheduler(recipe: Recipe, config: dict[str, Any]) -> UniPCMultistepScheduler:
    settings = {k: v for k, v in config.items() if k not in _CONFIG_NOISE}
    settings = {**FLOW_SCHEDULER, **settings, "flow_shift": recipe.shift}
    return UniPCMultistepScheduler(**settings)


def _stored_config(path: Path) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(path.read_text())
    return {k: v for k, v in stored.items() if k not in _CONFIG_NOISE}


def _require_config(
    recipe: Recipe, part: str, expected: dict[str, Any], found: dict[str, Any]
) -> None:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    wrong = [k for k, v in expected.items() if plain(found.get(k)) != plain(v)]
    if wrong:
        raise RecipeError(
            f"recipe '{recipe.name}' does not fit the checkpoint's {part}: "
            + ", ".join(f"{k} is {found.get(k)!r}, expected {expected[k]!r}" for k in wrong)
        )


def _weights_sha256(folder: Path) -> str:
    """One hash over the hashes of all weight files, by name."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*.safetensors")):
        digest.update(f"{path.parent.name}/{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
