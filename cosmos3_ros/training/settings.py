"""How a policy is trained: the ``training`` section of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from cosmos3_ros.engine.recipe import Recipe, RecipeError


@dataclass(frozen=True)
class DataSettings:
    """``episodes``: how many demonstrations are made where no data set is given.

    ``held_out``: the last so many episodes are kept from training and judge it.
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
    decoder alone, while the latents stay as they are. ``episodes``: how many it sees.
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

    ``caption_dropout``: share of the clips that are shown no instruction, for guidance.
    ``prefix_share``: share whose first rows, a random number of them, are clean, as committed rows
    are (training-time real-time chunking). ``pure_noise_share``: share whose other rows and frames
    begin as nothing but noise. ``state_noise``: deviation added to the state row, in the model's
    units. ``action_weight``: of the rows' loss beside the video's.
    """

    steps: int
    batch: int
    captions: int
    learning_rate: float
    caption_dropout: float
    prefix_share: float
    pure_noise_share: float
    state_noise: float
    action_weight: float


@dataclass(frozen=True)
class TrainingSettings:
    """``vocabulary``: size of the tokenizer that is trained on the data set's captions."""

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
        seed=int(given["seed"]),
        vocabulary=int(given["vocabulary"]),
        data=_section(recipe, DataSettings, "data", given["data"]),
        vae=_section(recipe, VaeSettings, "vae", given["vae"]),
        policy=_section(recipe, PolicySettings, "policy", given["policy"]),
    )


def _section(recipe: Recipe, kind: type[_Section], name: str, given: Any) -> _Section:
    _require_keys(recipe, f"training.{name}", given, [f.name for f in fields(kind)])
    for field in fields(kind):
        value = given[field.name]
        whole = str(field.type) == "int"
        good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not good or value < 0:
            raise RecipeError(
                f"recipe '{recipe.name}': training.{name}.{field.name} is {value!r}; expected "
                f"{'a whole number' if whole else 'a number'} of at least 0"
            )
    return kind(**given)


def _require_keys(recipe: Recipe, where: str, given: Any, expected: list[str]) -> None:
    keys = list(given) if isinstance(given, Mapping) else []
    if sorted(keys) != sorted(expected):
        raise RecipeError(
            f"recipe '{recipe.name}': {where} has {', '.join(map(str, keys)) or 'nothing'}; "
            f"expected {', '.join(expected)}"
        )
