"""The parts an export starts from: transformer, VAE, tokenizer and scheduler.

Read from a checkpoint folder in diffusers' layout, or made of random weights at a recipe's shape.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLWan, Cosmos3OmniTransformer, UniPCMultistepScheduler
from diffusers.models.transformers.transformer_cosmos3 import Cosmos3VLTextRotaryEmbedding
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cosmos3_ros.engine.bundle import TOKENIZER, file_sha256
from cosmos3_ros.engine.export_checkpoint import (
    CheckpointWeights,
    ModuleWeights,
    WeightSource,
    require_stock,
)
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
# The type of the weights by precision. FP8 and NVFP4 graphs are BF16 around what is quantised.
DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.bfloat16,
    "nvfp4": torch.bfloat16,
}
# Kept in float32 at every precision, as the stock model does.
_FLOAT32 = "time_embedder."
# Written by save_pretrained, and no property of the weights.
_CONFIG_NOISE = ("_class_name", "_diffusers_version", "_name_or_path")
# What cosmos-framework writes: PyTorch's distributed checkpoints, and its own export of them.
_FRAMEWORK_FILES = (".metadata", "*.distcp", "model/.metadata", "checkpoints/iter_*", "model/*.pt")
_FRAMEWORK_TENSORS = ("language_model.", "vae2llm.", "q_proj_moe_gen.")
_CONVERT = "cosmos_framework.scripts.convert_model_to_diffusers"


@dataclass(frozen=True)
class Components:
    """The stock modules, in evaluation mode, and where their weights are.

    The modules are hollow (see ``hollow``) but for those of ``make_components``. ``hash_weights``
    reads them all.
    """

    transformer: Cosmos3OmniTransformer
    vae: AutoencoderKLWan
    transformer_weights: WeightSource
    vae_weights: WeightSource
    tokenizer: PreTrainedTokenizerBase
    scheduler: UniPCMultistepScheduler
    native_flow_schedule: bool
    source: str
    hash_weights: Callable[[], str]

    @cached_property
    def source_sha256(self) -> str:
        return self.hash_weights()


def open_components(recipe: Recipe, checkpoint: Path | None) -> Components:
    """Components of a recipe, hollow, in the types of its precision.

    Raises RecipeError where recipe and checkpoint do not fit.
    """
    dtype = DTYPES[recipe.precision]
    if checkpoint is not None:
        return _from_checkpoint(recipe, checkpoint, dtype)
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
        transformer=hollow(Cosmos3OmniTransformer, model.transformer, dtype),
        vae=hollow(AutoencoderKLWan, model.vae, dtype),
        transformer_weights=ModuleWeights(random_transformer(model.transformer, model.random_seed)),
        vae_weights=ModuleWeights(random_vae(model.vae, model.random_seed)),
        tokenizer=byte_level_tokenizer(),
        scheduler=flow_scheduler(recipe, model.scheduler),
        native_flow_schedule=False,
        source=f"random weights, seed {model.random_seed}",
        hash_weights=lambda: hashlib.sha256(repr(model).encode()).hexdigest(),
    )


def make_components(recipe: Recipe, checkpoint: Path | None) -> Components:
    """Components whose modules hold their weights, in float32: what an export is compared with.

    Takes the memory of the whole model.
    """
    parts = open_components(recipe, checkpoint)
    return replace(
        parts,
        transformer=_filled(parts.transformer, parts.transformer_weights),
        vae=_filled(parts.vae, parts.vae_weights),
    )


def hollow(module_class: Any, config: dict[str, Any], dtype: torch.dtype) -> Any:
    """A stock module of this configuration that has every parameter and takes no memory.

    A parameter is one zero, expanded to its shape. The timestep embedder is float32.
    """
    with torch.device("meta"):
        module = module_class.from_config(config)
    for name, parameter in list(module.named_parameters()):
        kept = torch.float32 if name.startswith(_FLOAT32) else dtype
        _set_parameter(module, name, torch.zeros((), dtype=kept).expand(parameter.shape))
    return _with_rotary(module).eval()


def _filled(hollow_one: Any, weights: WeightSource) -> Any:
    with torch.device("meta"):
        module = type(hollow_one).from_config(hollow_one.config)
    for name, _ in list(module.named_parameters()):
        _set_parameter(module, name, torch.from_numpy(weights.read(name).astype("float32")))
    return _with_rotary(module).eval()


def _set_parameter(module: Any, name: str, tensor: Tensor) -> None:
    owner, _, own_name = name.rpartition(".")
    parameter = nn.Parameter(tensor, requires_grad=False)
    setattr(module.get_submodule(owner), own_name, parameter)


def _with_rotary(module: Any) -> Any:
    """The frequencies are no weights: they are computed when the embedding is made."""
    if isinstance(module, Cosmos3OmniTransformer):
        config = module.config
        module.rotary_emb = Cosmos3VLTextRotaryEmbedding(
            config.head_dim, config.rope_theta, config.rope_axes_dim
        )
    unknown = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    if unknown:
        raise RuntimeError(f"{type(module).__name__} has buffers {unknown}; expected weights alone")
    return module


def stock_module(part: str, module_class: Any, config: dict[str, Any]) -> Any:
    """A stock module of a recipe's configuration. Raises RecipeError for keys it does not know."""
    try:
        return module_class(**config)
    except (TypeError, ValueError, IndexError) as error:
        raise RecipeError(
            f"model.{part}: {error}; expected arguments of diffusers' {module_class.__name__}"
        ) from error


def random_transformer(config: dict[str, Any], seed: int) -> Cosmos3OmniTransformer:
    """A transformer of random weights, scaled so that its velocities stay near unit size."""
    torch.manual_seed(seed)
    transformer = stock_module("transformer", Cosmos3OmniTransformer, config).eval()
    with torch.no_grad():
        transformer.action_modality_embed.normal_(0, 0.02)
        for head in (transformer.action_proj_in, transformer.action_proj_out):
            head.fc.weight.mul_(head.input_size**-0.5)
            head.bias.weight.mul_(0.02)
    return transformer


def random_vae(config: dict[str, Any], seed: int) -> AutoencoderKLWan:
    """A VAE of random weights."""
    torch.manual_seed(seed)
    return stock_module("vae", AutoencoderKLWan, config).eval()


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, no merges, and the special tokens of the chat: any text, offline."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return chatml(
        tokenizer_object=tokenizer, additional_special_tokens=["<|im_start|>", _VISION_START]
    )


def chatml(**arguments: Any) -> PreTrainedTokenizerFast:
    """A bare tokenizer (``tokenizer_object`` or ``tokenizer_file``) with the ChatML template."""
    tokenizer = PreTrainedTokenizerFast(eos_token=_END, pad_token=_PAD, **arguments)
    tokenizer.chat_template = CHATML
    return tokenizer


def _from_checkpoint(recipe: Recipe, folder: Path, dtype: torch.dtype) -> Components:
    _require_layout(folder)
    config = _stored_config(folder / "transformer" / "config.json")
    if not config.get("action_gen"):
        raise RecipeError(
            f"checkpoint '{folder}' has no action head (action_gen is "
            f"{config.get('action_gen')}); expected one that was trained with actions"
        )
    model = recipe.model
    vae_config = _stored_config(folder / "vae" / "config.json")
    transformer = hollow(Cosmos3OmniTransformer, config, dtype)
    vae = hollow(AutoencoderKLWan, vae_config, dtype)
    _require_config(recipe, "transformer", model.transformer, dict(transformer.config))
    _require_config(recipe, "vae", model.vae, dict(vae.config))
    stored = folder / "scheduler" / "scheduler_config.json"
    scheduler_config = _stored_config(stored) if stored.is_file() else FLOW_SCHEDULER
    _require_config(recipe, "scheduler", model.scheduler, scheduler_config)
    transformer_weights = _stock_weights(folder / "transformer", transformer)
    vae_weights = _stock_weights(folder / "vae", vae)
    index = folder / "model_index.json"
    return Components(
        transformer=transformer,
        vae=vae,
        transformer_weights=transformer_weights,
        vae_weights=vae_weights,
        tokenizer=_checkpoint_tokenizer(recipe, folder),
        scheduler=flow_scheduler(recipe, scheduler_config),
        native_flow_schedule=bool(
            index.is_file() and _stored_config(index).get("use_native_flow_schedule", False)
        ),
        source=folder.resolve().name,
        hash_weights=lambda: _files_sha256([*transformer_weights.files, *vae_weights.files]),
    )


def _require_layout(folder: Path) -> None:
    found = [path for pattern in _FRAMEWORK_FILES for path in folder.glob(pattern)]
    if not found and _is_framework_config(folder / "config.json"):
        found = [folder / "config.json"]
    missing = [p for p in ("transformer", "vae") if not (folder / p / "config.json").is_file()]
    if missing and found:
        raise _framework_layout(folder, str(found[0].relative_to(folder)))
    if missing:
        raise RecipeError(
            f"checkpoint '{folder}' has no {missing[0]}/config.json; expected diffusers' layout "
            "(transformer/, vae/, text_tokenizer/, scheduler/)"
        )


def _is_framework_config(path: Path) -> bool:
    """The framework's export keeps a whole training configuration under ``model``."""
    return path.is_file() and isinstance(json.loads(path.read_text()).get("model"), dict)


def _framework_layout(folder: Path, found: str) -> RecipeError:
    return RecipeError(
        f"checkpoint '{folder}' is in cosmos-framework's layout ({found}); expected diffusers': "
        f"convert it with 'python -m {_CONVERT} --checkpoint-path {folder} -o OUT' (a training "
        "checkpoint goes through cosmos_framework.scripts.export_model before)"
    )


def _stock_weights(folder: Path, module: Any) -> CheckpointWeights:
    weights = CheckpointWeights(folder)
    stock = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    foreign = [
        name
        for name in weights.tensors
        if name not in stock and any(mark in name for mark in _FRAMEWORK_TENSORS)
    ]
    if foreign:
        raise _framework_layout(folder.parent, f"tensor '{foreign[0]}'")
    require_stock(weights, stock)
    return weights


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
    return chatml(tokenizer_file=str(place))


def flow_scheduler(recipe: Recipe, config: dict[str, Any]) -> UniPCMultistepScheduler:
    """diffusers' UniPC with a stored configuration and the recipe's shift."""
    settings = {k: v for k, v in config.items() if k not in _CONFIG_NOISE}
    settings = {**FLOW_SCHEDULER, **settings, "flow_shift": recipe.shift}
    try:
        return UniPCMultistepScheduler(**settings)
    except TypeError as error:
        raise RecipeError(
            f"scheduler of recipe '{recipe.name}' or its checkpoint: {error}; expected keys of "
            f"UniPCMultistepScheduler in diffusers {diffusers.__version__}"
        ) from error


def _stored_config(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text())
        assert isinstance(stored, dict)
    except (ValueError, AssertionError) as error:
        raise RecipeError(
            f"checkpoint: {path.parent.name}/{path.name} is no JSON object ({error}); copy it again"
        ) from error
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


def _files_sha256(files: list[Path]) -> str:
    """One hash over the hashes of the weight files, by name."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.parent.name}/{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
