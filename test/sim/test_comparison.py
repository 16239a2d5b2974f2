"""Two evaluations agree where they are of the same and come to the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cosmos3_ros.sim.comparison import (
    CONDITIONS,
    Evaluation,
    EvaluationError,
    Success,
    comparison,
    load_evaluation,
)

TOUCH = Success(50, rate=0.96, low=0.865, high=0.989, strategies_in_force=("blend",))
NODES = Evaluation("pico", "nodes", dict.fromkeys(CONDITIONS, 0), {"touch": TOUCH})


def verdict(here: Evaluation) -> str:
    """Of the only task, beside NODES."""
    *_, line = comparison(here, NODES).splitlines()
    return line.split("%  ")[-1]


@pytest.mark.parametrize(
    ("rate", "agree"), [(0.86, "no"), (0.865, "yes"), (0.9, "yes"), (0.989, "yes"), (1.0, "no")]
)
def test_they_agree_where_the_rate_is_inside_the_others_interval(rate: float, agree: str) -> None:
    twin = replace(NODES, through="offline twin", success={"touch": replace(TOUCH, rate=rate)})
    assert verdict(twin) == agree


@pytest.mark.parametrize("name", CONDITIONS)
def test_what_was_evaluated_otherwise_is_not_compared(name: str) -> None:
    other = replace(NODES, conditions={**NODES.conditions, name: 7})
    assert verdict(other) == f"not comparable: {name} 0 there, 7 here"


def test_a_lagging_simulation_is_not_compared() -> None:
    lagged = replace(NODES, pace=0.79, real_time_factor=1.0)
    twin = replace(NODES, through="offline twin")
    for here, there, side in ((twin, lagged, "there"), (lagged, twin, "here")):
        *_, line = comparison(here, there).splitlines()
        assert line.endswith(f"not comparable: pace 0.79 of 1 {side}")
    *_, line = comparison(twin, replace(lagged, pace=0.41, real_time_factor=0.5)).splitlines()
    assert line.endswith("yes")


def test_other_scenes_are_not_compared() -> None:
    fewer = replace(NODES, success={"touch": replace(TOUCH, episodes=20)})
    assert verdict(fewer) == "not comparable: episodes 50 there, 20 here"


def test_plans_that_followed_each_other_otherwise_are_not_compared() -> None:
    slow = replace(NODES, success={"touch": replace(TOUCH, strategies_in_force=("blend", "sync"))})
    assert verdict(slow) == "not comparable: strategies_in_force blend there, blend and sync here"


def test_the_others_rate_and_interval_stand_beside_each_task() -> None:
    lift = replace(TOUCH, rate=0.8, low=0.67, high=0.888)
    text = comparison(replace(NODES, success={"lift": lift, "touch": TOUCH}), NODES)
    title, _, of_lift, of_touch = text.splitlines()
    assert title == "beside 'pico' through nodes:"
    assert of_lift.split() == ["lift", "80.0%", "-", "-", "not", "there"]
    assert of_touch.split() == ["touch", "96.0%", "96.0%", "86.5%", "..", "98.9%", "yes"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"bundle": "pico"}', "no JSON"])
def test_what_is_no_evaluation_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(EvaluationError, match="other.json' is no evaluation") as refused:
        load_evaluation(path)
    assert "\n" not in str(refused.value)
