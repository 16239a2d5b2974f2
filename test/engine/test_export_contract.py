"""The numbers of a bundle, and robots that a model cannot serve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bundles import Exported

from cosmos3_ros.engine.export import export
from cosmos3_ros.engine.export_contract import make_sampler
from cosmos3_ros.engine.export_model import open_components
from cosmos3_ros.engine.recipe import GuidanceSchedule, RecipeError
from cosmos3_ros.export_command import body_of


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"domain_id": 32}, r"has domain 32; the model knows 0..31"),
        ({"width": 65}, "has 65 channels, the model's action head 64"),
        ({"picture_width": 0}, "give it cameras and a canvas"),
        ({"rate_hz": None}, "has no fps and embodiment 'sim_panda' no rate_hz"),
    ],
)
def test_a_robot_that_the_model_cannot_serve_is_refused(
    body: dict[str, object], message: str, tiny: Exported, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        export(tiny.recipe, replace(body_of(tiny.embodiment), **body), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("guidance", "schedule", "guided"),
    [
        (3.0, None, (True, True, True, True)),
        (1.0, None, (False, False, False, False)),
        (1.0, GuidanceSchedule(first=2), (False, False, False, False)),
        (3.0, GuidanceSchedule(first=1), (True, False, False, False)),
        (3.0, GuidanceSchedule(timesteps=(900.0, 960.0)), (False, True, False, False)),
    ],
)
def test_guidance_follows_its_schedule(
    guidance: float, schedule: GuidanceSchedule | None, guided: tuple[bool, ...], tiny: Exported
) -> None:
    scheduler = open_components(tiny.recipe, None).scheduler
    sampler = make_sampler(scheduler, 4, 5.0, guidance, guided=schedule)
    assert sampler.guided == guided
    assert sampler.forwards == 4 + sum(guided)
