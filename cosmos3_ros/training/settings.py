"""How a policy is trained: the ``training`` section of a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from cosmos3_ros.engine.recipe import Recipe, RecipeError
from cosmos3_ros.training.captions import SMALLEST_VOCABULARY

# Keys of numbers that make no sense at 0, and of shares of the whole.
_AT_LEAST_ONE = ("episodes", "held_out", "clips_per_episode", "batch", "captions")
_SHARES = (
    "caption_dropout",
    "prefix_share",
    "pure_noise_share",
    "committed_pure_noise_share",
)


@dataclass(frozen=True)
class DataSettings:
    """``episodes``: how many demonstrations are made where no data set is given.

    ``held_out``: the last so many episodes are kept from training and judge it: fewer than there
    are, of those that are longer than a chunk.
    ``clips_per_episode``: chunks cut from each episode, spread over it.
    """

    episodes: int
    held_out: int
    clips_per_episode: int


@dataclass(frozen=True)
class VaeSettings:
    """``short_steps`` on clips of 5 and 9 frames, then ``long_steps`` on whole chunks.

    The causal memory of the VAE is only as long as the clips it was trained on: without the second
    stage, colours drift towards the end of a chunk. ``decoder_steps``: more whole chunks for the
    decoder alone, while the latents stay as they are. ``episodes``: how many it sees, spread over
    those that are trained on; all of them where there are fewer. ``..._learning_rate``: the largest
    of a stage, after its warm-up; it falls by a cosine from there.
    """

    episodes: int
    short_steps: int
    long_steps: int
    decoder_steps: int
    short_learning_rate: float
    long_learning_rate: float
    decoder_learning_rate: float

    @property
    def stages(self) -> tuple[tuple[float, int], ...]:
        """Learning rate and steps of each stage."""
        return (
            (self.short_learning_rate, self.short_steps),
            (self.long_learning_rate, self.long_steps),
            (self.decoder_learning_rate, self.decoder_steps),
        )


@dataclass(frozen=True)
class PolicySettings:
    """``batch`` clips a step, of at most ``captions`` different instructions.

    ``steps``: how many; each changes the weights once. ``learning_rate``: the largest, after the
    warm-up; it falls in a straight line from there.
    ``caption_dropout``: share of the clips that are shown no instruction, for guidance.
    ``prefix_share``: share whose first rows, a random number of them, are clean, as committed rows
    are (training-time real-time chunking). ``pure_noise_share``: share of the clips without
    committed rows that begin as nothing but noise; ``committed_pure_noise_share``: share of those
    with committed rows whose other rows and frames do. ``state_noise``: deviation added to the
    state row, in the model's units. ``action_weight``: of the rows' loss beside the video's.
    """

    steps: int
    batch: int
    captions: int
    learning_rate: float
    caption_dropout: float
    prefix_share: float
    pure_noise_share: float
    committed_pure_noise_share: float
    state_noise: float
    action_weight: float


@dataclass(frozen=True)
class TrainingSettings:
    """``seed``: of the first weights, of what is drawn in every step, and of the scenes of the
    demonstrations that are made.

    ``vocabulary``: size of the tokenizer that is trained on the data set's captions; at most the
    model's own ``vocab_size``.
    """

    seed: int
    vocabulary: int
    data: DataSettings
    vae: VaeSettings
    policy: PolicySettings


_Section = TypeVar("_Section", DataSettings, VaeSettings, PolicySettings)


def training_settings(recipe: Recipe) -> TrainingSettings:
    """The settings of a recipe. Raises RecipeError where it has none, or others than these."""
    given = recipe.training
    if not given:
        raise RecipeError(
            f"recipe '{recipe.name}' says nothing about training; expected a section 'training', "
            "as in engines/pico.yaml"
        )
    _require_keys(recipe, "training", given, [f.name for f in fields(TrainingSettings)])
    return TrainingSettings(
        seed=_whole(recipe, "training.seed", given["seed"], 0),
        vocabulary=_vocabulary(recipe, given["vocabulary"]),
        data=_section(recipe, DataSettings, "data", given["data"]),
        vae=_section(recipe, VaeSettings, "vae", given["vae"]),
        policy=_section(recipe, PolicySettings, "policy", given["policy"]),
    )


def _section(recipe: Recipe, kind: type[_Section], name: str, given: Any) -> _Section:
    _require_keys(recipe, f"training.{name}", given, [f.name for f in fields(kind)])
    for field in fields(kind):
        key, value = f"training.{name}.{field.name}", given[field.name]
        if str(field.type) == "int":
            _whole(recipe, key, value, int(field.name in _AT_LEAST_ONE))
        else:
            _require_number(recipe, key, value, 1.0 if field.name in _SHARES else math.inf)
    return kind(**given)


def _vocabulary(recipe: Recipe, value: Any) -> int:
    vocabulary = _whole(recipe, "training.vocabulary", value, SMALLEST_VOCABULARY)
    room = recipe.model.transformer.get("vocab_size", math.inf)
    if vocabulary > room:
        raise RecipeError(
            f"recipe '{recipe.name}': training.vocabulary is {vocabulary}; expected at most "
            f"{room}, the model.transformer.vocab_size"
        )
    return vocabulary


def _whole(recipe: Recipe, key: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RecipeError(
            f"recipe '{recipe.name}': {key} is {value!r}; expected a whole number of at least "
            f"{least}"
        )
    return value


def _require_number(recipe: Recipe, key: str, value: Any, most: float) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 <= value <= most or math.isinf(value):
        expected = "a number of at least 0" if math.isinf(most) else f"a number from 0 to {most:g}"
        raise RecipeError(f"recipe '{recipe.name}': {key} is {value!r}; expected {expected}")


def _require_keys(recipe: Recipe, where: str, given: Any, expected: list[str]) -> None:
    keys = list(given) if isinstance(given, Mapping) else []
    if sorted(keys) != sorted(expected):
        raise RecipeError(
            f"recipe '{recipe.name}': {where} has {', '.join(map(str, keys)) or 'nothing'}; "
            f"expected {', '.join(expected)}"
        )
