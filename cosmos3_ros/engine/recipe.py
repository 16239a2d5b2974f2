"""Recipes (``engines/*.yaml``): which checkpoint, canvas, chunk and steps make a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PRECISIONS = ("fp32", "bf16")
TOKENIZERS = ("checkpoint", "tokenizer_json", "byte_level")
TIERS = (256, 480, 704, 720)


class RecipeError(ValueError):
    """A recipe is missing, malformed, or does not fit its checkpoint."""


@dataclass(frozen=True)
class ModelRecipe:
    """Where the weights come from.

    ``random_seed``: make random weights of the configurations below; otherwise a checkpoint is
    needed, and every value named in ``transformer``, ``vae`` and ``scheduler`` must equal the
    checkpoint's own.
    ``tokenizer``: ``checkpoint`` (its text_tokenizer folder), ``tokenizer_json`` (a bare
    tokenizer.json with the ChatML template) or ``byte_level`` (made offline, a token a byte).
    """

    random_seed: int | None
    tokenizer: str
    transformer: dict[str, Any]
    vae: dict[str, Any]
    scheduler: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """One bundle. ``canvas`` is (width, height) in pixels, or None to take the tier's bin."""

    name: str
    description: str
    embodiment: str
    precision: str
    opset: int
    chunk: int
    fps: float | None
    tier: int | None
    canvas: tuple[int, int] | None
    steps: int
    shift: float
    guidance: float
    text_tokens: int
    frame_latents: int
    model: ModelRecipe


_REQUIRED = ("name", "embodiment", "chunk", "sampler", "text_tokens", "model")
_OPTIONAL = ("description", "precision", "opset", "fps", "tier", "canvas", "frame_latents")


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe. Raises RecipeError naming the file, the key, what was found and expected."""
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise RecipeError(f"recipe '{path}' does not exist; expected a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe '{path}' is not YAML: {error}") from error
    _keys(path, "the top level", data, _REQUIRED, _OPTIONAL)
    sampler, model, canvas = data["sampler"], data["model"], data.get("canvas")
    _keys(path, "sampler", sampler, ("steps", "shift", "guidance"))
    _keys(path, "model", model, ("tokenizer",), ("random_seed", "transformer", "vae", "scheduler"))
    if canvas is not None:
        _keys(path, "canvas", canvas, ("width", "height"))
    if (canvas is None) == (data.get("tier") is None):
        raise RecipeError(f"recipe '{path}': expected exactly one of 'canvas' and 'tier'")
    if "tier" in data:
        _choice(path, "tier", data["tier"], TIERS)
    for key, value, least in (
        ("chunk", data["chunk"], 4),
        ("sampler.steps", sampler["steps"], 1),
        ("text_tokens", data["text_tokens"], 16),
        ("frame_latents", data.get("frame_latents", 2), 2),
        ("opset", data.get("opset", 18), 18),
    ):
        if not isinstance(value, int) or value < least:
            raise RecipeError(
                f"recipe '{path}': {key} is {value!r}; expected an integer of at least {least}"
            )
    if data["chunk"] % 4:
        raise RecipeError(
            f"recipe '{path}': chunk is {data['chunk']}; expected a multiple of 4, the frames "
            "that one latent spans"
        )
    return Recipe(
        name=str(data["name"]),
        description=str(data.get("description", "")).strip(),
        embodiment=str(data["embodiment"]),
        precision=_choice(path, "precision", data.get("precision", "fp32"), PRECISIONS),
        opset=data.get("opset", 18),
        chunk=data["chunk"],
        fps=None if data.get("fps") is None else float(data["fps"]),
        tier=data.get("tier"),
        canvas=None if canvas is None else (int(canvas["width"]), int(canvas["height"])),
        steps=sampler["steps"],
        shift=float(sampler["shift"]),
        guidance=float(sampler["guidance"]),
        text_tokens=data["text_tokens"],
        frame_latents=data.get("frame_latents", 2),
        model=ModelRecipe(
            random_seed=model.get("random_seed"),
            tokenizer=_choice(path, "model.tokenizer", model["tokenizer"], TOKENIZERS),
            transformer=model.get("transformer") or {},
            vae=model.get("vae") or {},
            scheduler=model.get("scheduler") or {},
        ),
    )


def _keys(
    path: Path, where: str, data: Any, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
    if not isinstance(data, dict):
        raise RecipeError(f"recipe '{path}': {where} is {data!r}; expected a mapping")
    missing = [key for key in required if key not in data]
    unknown = [key for key in data if key not in required + optional]
    if unknown:
        raise RecipeError(
            f"recipe '{path}': {where} has unknown keys {', '.join(map(str, unknown))}; expected "
            f"{', '.join(required + optional)}"
        )
    if missing:
        raise RecipeError(f"recipe '{path}': {where} lacks {', '.join(missing)}")


def _choice(path: Path, key: str, value: Any, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        raise RecipeError(
            f"recipe '{path}': {key} is {value!r}; expected one of {', '.join(map(str, choices))}"
        )
    return value
