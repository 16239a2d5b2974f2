"""Rates, their intervals and what they are broken down by."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos3_ros.sim.scoring import EpisodeResult, score, table, wilson

TOUCHED = EpisodeResult(
    kind="touch",
    colour="red",
    wording="touch the {} cube",
    instruction="touch the red cube",
    seed=7,
    episode=0,
    verdict="success",
    time_to_goal_s=1.2,
    min_distance_m=0.03,
    plans=20,
    seam_jumps=(0.01, 0.03),
    refused_chunks={},
    strategies=("blend",),
)


# 95 % Wilson intervals as tabulated elsewhere: 0/120, 119/120, 294/300.
@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(0, 120, 0.0, 0.0310), (119, 120, 0.9543, 0.9985), (294, 300, 0.9571, 0.9908)],
)
def test_the_interval_is_wilsons(count: int, total: int, low: float, high: float) -> None:
    assert wilson(count, total) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_rate(counts: tuple[int, int]) -> None:
    low, high = wilson(*counts)
    rate, rounding = counts[0] / counts[1], 1e-12
    assert 0 <= low <= rate + rounding and rate - rounding <= high <= 1


def test_verdicts_are_counted_by_task_colour_and_wording() -> None:
    wrong = replace(TOUCHED, colour="blue", verdict="wrong", time_to_goal_s=None)
    lifted = replace(TOUCHED, kind="lift", wording="lift the {} cube", verdict="neither")
    scores = score([TOUCHED, TOUCHED, wrong, lifted])
    assert scores["success"]["count"] == 2 and scores["success"]["rate"] == 0.5
    assert scores["by_task"]["touch"]["wrong"]["rate"] == pytest.approx(1 / 3, abs=1e-4)
    assert scores["by_task"]["lift"]["neither"]["rate"] == 1.0
    assert set(scores["by_colour"]) == {"touch red", "touch blue", "lift red"}
    assert scores["by_wording"]["lift the {} cube"]["episodes"] == 1
    assert scores["time_to_goal_s"]["p50"] == 1.2
    assert scores["seam_jump"] == {"p50": 0.02, "p90": 0.03}
    assert scores["min_distance_cm"] == {"p50": 3.0, "p90": 3.0}


def test_the_strategies_in_force_are_named_task_by_task() -> None:
    slow = replace(TOUCHED, kind="lift", strategies=("sync",))
    by_task = score([TOUCHED, slow, replace(slow, strategies=("blend", "sync"))])["by_task"]
    assert by_task["touch"]["strategies_in_force"] == ["blend"]
    assert by_task["lift"]["strategies_in_force"] == ["blend", "sync"]


def test_the_table_has_a_line_a_task_and_one_for_all() -> None:
    text = table(score([TOUCHED, replace(TOUCHED, kind="lift", time_to_goal_s=None)]))
    assert [line.split()[0] for line in text.splitlines()] == ["task", "lift", "touch", "all"]
    assert "100.0%" in text


def test_episodes_that_were_told_another_colour_are_counted_apart() -> None:
    misled = replace(TOUCHED, instruction="touch the blue cube", verdict="wrong")
    scores = score([TOUCHED, misled, misled])
    assert scores["by_told"]["its own"]["success"]["count"] == 1
    assert scores["by_told"]["another"]["wrong"]["count"] == 2
    assert table(scores).splitlines()[-1].endswith("told: 0 of 2 another, 1 of 1 its own")


def test_refused_chunks_are_counted_by_reason_and_shown() -> None:
    refused = [replace(TOUCHED, refused_chunks=of) for of in ({"jump": 2}, {"jump": 1, "late": 1})]
    scores = score([TOUCHED, *refused])
    assert scores["refused_chunks"] == {"jump": 3, "late": 1}
    assert table(scores).splitlines()[-1] == "refused chunks: 3 jump, 1 late"
