"""Recipes (``engines/*.yaml``): which checkpoint, canvas, chunk, steps, precision make a bundle.

A recipe may say ``extends: other.yaml``, a file beside it: it is read first, and what the recipe
says itself is laid over it, key by key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

PRECISIONS = ("fp32", "bf16", "fp16", "fp8", "nvfp4")
QUANTISED = ("fp8", "nvfp4")
TOKENIZERS = ("checkpoint", "tokenizer_json", "byte_level")
# How committed rows enter a plan: as clean rows, or by holding the denoising at them.
PREFIXES = ("clean", "held")
TIERS = (256, 480, 704, 720)
# What a bundle keeps of the recipe that it was made of.
RECIPE = "recipe.yaml"
# Graphs that may be cut into parts by their layers.
CUT_GRAPHS = ("text", "denoise")
# Kinds of quantised layers by what they read: normed hidden states, mixed values, normed hidden
# states again, gated ones.
RANGES = ("attention_in", "attention_out", "mlp_in", "mlp_down")

_FIRST_OPSET = 18
# Attention is an operator from here on, and FP4 a type.
_HALF_OPSET = 23


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
class GuidanceSchedule:
    """At which steps the velocity is guided: every one where both values are None.

    ``first``: the first so many steps. ``timesteps``: those whose timestep lies in [low, high].
    """

    first: int | None = None
    timesteps: tuple[float, float] | None = None

    def guides(self, step: int, timestep: float) -> bool:
        if self.first is not None:
            return step < self.first
        if self.timesteps is not None:
            low, high = self.timesteps
            return low <= timestep <= high
        return True


@dataclass(frozen=True)
class QuantisationRecipe:
    """What is quantised in fp8 and nvfp4.

    ``keep``: patterns (fnmatch) over the names of the transformer's parameters; what matches one
    stays in BF16. ``ranges``: the largest absolute activation by kind of layer (RANGES), for an
    export that is not calibrated; empty where the recipe declares none.
    """

    keep: tuple[str, ...] = ()
    ranges: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """One bundle. ``canvas`` is (width, height) in pixels, or None to take the tier's bin.

    ``layers_per_part``: by graph (CUT_GRAPHS), how many layers one ONNX file holds; a graph that
    is not named is one file.
    """

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
    guided: GuidanceSchedule
    text_tokens: int
    frame_latents: int
    prefix: str
    layers_per_part: Mapping[str, int]
    quantisation: QuantisationRecipe
    model: ModelRecipe
    training: Mapping[str, Any] = field(default_factory=dict)


_REQUIRED = ("name", "embodiment", "chunk", "sampler", "text_tokens", "model")
_OPTIONAL = (
    "extends",
    "description",
    "precision",
    "opset",
    "fps",
    "tier",
    "canvas",
    "frame_latents",
    "prefix",
    "layers_per_part",
    "quantisation",
    "training",
)


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe. Raises RecipeError naming the file, the key, what was found and expected."""
    path = Path(path)
    data = _read(path, ())
    _keys(path, "the top level", data, _REQUIRED, _OPTIONAL)
    sampler, model, canvas = data["sampler"], data["model"], data.get("canvas")
    _keys(path, "sampler", sampler, ("steps", "shift", "guidance"), ("guided",))
    _keys(path, "model", model, ("tokenizer",), ("random_seed", "transformer", "vae", "scheduler"))
    if canvas is not None:
        _keys(path, "canvas", canvas, ("width", "height"))
        for key, value in canvas.items():
            _at_least(path, f"canvas.{key}", value, 1)
    for key in ("transformer", "vae", "scheduler"):
        if not isinstance(model.get(key) or {}, dict):
            raise RecipeError(f"recipe '{path}': model.{key} is no mapping; expected one")
    if (canvas is None) == (data.get("tier") is None):
        raise RecipeError(f"recipe '{path}': expected exactly one of 'canvas' and 'tier'")
    if data.get("tier") is not None:
        _choice(path, "tier", data["tier"], TIERS)
    precision = _choice(path, "precision", data.get("precision", "fp32"), PRECISIONS)
    least_opset = _FIRST_OPSET if precision == "fp32" else _HALF_OPSET
    opset = data.get("opset", least_opset)
    for key, value, least in (
        ("chunk", data["chunk"], 4),
        ("sampler.steps", sampler["steps"], 1),
        ("text_tokens", data["text_tokens"], 16),
        ("frame_latents", data.get("frame_latents", 2), 2),
        ("opset", opset, least_opset),
    ):
        _at_least(path, key, value, least)
    for key, value in (
        ("fps", 1 if data.get("fps") is None else data["fps"]),
        ("sampler.shift", sampler["shift"]),
        ("sampler.guidance", sampler["guidance"]),
    ):
        if not _is_number(value) or not 0 < value < float("inf"):
            raise RecipeError(f"recipe '{path}': {key} is {value!r}; expected a number above 0")
    if data["chunk"] % 4:
        raise RecipeError(
            f"recipe '{path}': chunk is {data['chunk']}; expected a multiple of 4, the frames "
            "that one latent spans"
        )
    latents = data["chunk"] // 4 + 1
    if data.get("frame_latents", 2) > latents:
        raise RecipeError(
            f"recipe '{path}': frame_latents is {data['frame_latents']}; a chunk of "
            f"{data['chunk']} has {latents}, expected no more"
        )
    return Recipe(
        name=str(data["name"]),
        description=str(data.get("description", "")).strip(),
        embodiment=str(data["embodiment"]),
        precision=precision,
        opset=opset,
        chunk=data["chunk"],
        fps=None if data.get("fps") is None else float(data["fps"]),
        tier=data.get("tier"),
        canvas=None if canvas is None else (int(canvas["width"]), int(canvas["height"])),
        steps=sampler["steps"],
        shift=float(sampler["shift"]),
        guidance=float(sampler["guidance"]),
        guided=_guided(path, sampler.get("guided", "every")),
        text_tokens=data["text_tokens"],
        frame_latents=data.get("frame_latents", 2),
        prefix=_choice(path, "prefix", data.get("prefix", "held"), PREFIXES),
        layers_per_part=_layers_per_part(path, data.get("layers_per_part")),
        quantisation=_quantisation(path, precision, data.get("quantisation")),
        model=ModelRecipe(
            random_seed=model.get("random_seed"),
            tokenizer=_choice(path, "model.tokenizer", model["tokenizer"], TOKENIZERS),
            transformer=model.get("transformer") or {},
            vae=model.get("vae") or {},
            scheduler=model.get("scheduler") or {},
        ),
        training=data.get("training") or {},
    )


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as one file that ``load_recipe`` reads back, whatever it extended."""
    model, guided, quantisation = recipe.model, recipe.guided, recipe.quantisation
    schedule: Any = "every"
    if guided.first is not None:
        schedule = {"first": guided.first}
    elif guided.timesteps is not None:
        schedule = {"timesteps": list(guided.timesteps)}
    width, height = recipe.canvas or (None, None)
    optional = {
        "fps": recipe.fps,
        "tier": recipe.tier,
        "canvas": recipe.canvas and {"width": width, "height": height},
        "layers_per_part": dict(recipe.layers_per_part),
        "quantisation": recipe.precision in QUANTISED
        and {"keep": list(quantisation.keep), "ranges": dict(quantisation.ranges)},
        "training": dict(recipe.training),
    }
    data = {
        "name": recipe.name,
        "description": recipe.description,
        "embodiment": recipe.embodiment,
        "precision": recipe.precision,
        "opset": recipe.opset,
        "chunk": recipe.chunk,
        "sampler": {
            "steps": recipe.steps,
            "shift": recipe.shift,
            "guidance": recipe.guidance,
            "guided": schedule,
        },
        "text_tokens": recipe.text_tokens,
        "frame_latents": recipe.frame_latents,
        "prefix": recipe.prefix,
        **{key: value for key, value in optional.items() if value},
        "model": {key: value for key, value in asdict(model).items() if value is not None},
    }
    path.write_text(yaml.safe_dump(data, sort_keys=False))


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """A recipe's keys over those of the recipe it extends. ``above``: those that extend it."""
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        who = f", which '{above[-1]}' extends," if above else ""
        raise RecipeError(f"recipe '{path}'{who} does not exist; expected a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe '{path}' is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"recipe '{path}': the top level is {data!r}; expected a mapping")
    if _is_whole(data.get("layers_per_part")):
        data["layers_per_part"] = dict.fromkeys(CUT_GRAPHS, data["layers_per_part"])
    if "extends" not in data:
        return data
    base = path.parent / str(data["extends"])
    if base.resolve() in [p.resolve() for p in (*above, path)]:
        raise RecipeError(f"recipe '{path}' extends '{base}', which extends it; expected no circle")
    # A recipe has one of the two; the base's other one is not meant.
    own_size = {"tier", "canvas"} & data.keys()
    inherited = _read(base, (*above, path))
    kept = {k: v for k, v in inherited.items() if not (own_size and k in ("tier", "canvas"))}
    return _merged(kept, data)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` key by key; a schedule of guidance is one thing."""
    parts = [k for k in over if k != "guided"]
    both = [k for k in parts if isinstance(base.get(k), dict) and isinstance(over[k], dict)]
    return base | over | {key: _merged(base[key], over[key]) for key in both}


def _guided(path: Path, value: Any) -> GuidanceSchedule:
    expected = "expected 'every', {first: steps} or {timesteps: [low, high]}"
    if value == "every":
        return GuidanceSchedule()
    if isinstance(value, dict) and len(value) == 1:
        first, timesteps = value.get("first"), value.get("timesteps")
        if first is not None and _is_whole(first) and first >= 0:
            return GuidanceSchedule(first=first)
        if isinstance(timesteps, list) and len(timesteps) == 2 and all(map(_is_number, timesteps)):
            low, high = map(float, timesteps)
            if low <= high:
                return GuidanceSchedule(timesteps=(low, high))
    raise RecipeError(f"recipe '{path}': sampler.guided is {value!r}; {expected}")


def _layers_per_part(path: Path, value: Any) -> dict[str, int]:
    if value is None:
        return {}
    _keys(path, "layers_per_part", value, (), CUT_GRAPHS)
    for graph, count in value.items():
        _at_least(path, f"layers_per_part of {graph}", count, 1)
    return dict(value)


def _quantisation(path: Path, precision: str, value: Any) -> QuantisationRecipe:
    if value is None:
        return QuantisationRecipe()
    if precision not in QUANTISED:
        raise RecipeError(
            f"recipe '{path}': quantisation is given and precision is {precision}; expected "
            f"precision {' or '.join(QUANTISED)}, or no quantisation"
        )
    _keys(path, "quantisation", value, (), ("keep", "ranges"))
    keep, ranges = value.get("keep") or [], value.get("ranges") or {}
    if not isinstance(keep, list) or not all(isinstance(pattern, str) for pattern in keep):
        raise RecipeError(
            f"recipe '{path}': quantisation.keep is {keep!r}; expected a list of patterns"
        )
    if ranges:
        _keys(path, "quantisation.ranges", ranges, RANGES)
    for kind, largest in ranges.items():
        if not _is_number(largest) or not 0 < largest < float("inf"):
            raise RecipeError(
                f"recipe '{path}': quantisation.ranges.{kind} is {largest!r}; expected a number "
                "above 0, the largest absolute activation"
            )
    return QuantisationRecipe(tuple(keep), {kind: float(ranges[kind]) for kind in ranges})


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _at_least(path: Path, key: str, value: Any, least: int) -> None:
    if not _is_whole(value) or value < least:
        raise RecipeError(
            f"recipe '{path}': {key} is {value!r}; expected an integer of at least {least}"
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
