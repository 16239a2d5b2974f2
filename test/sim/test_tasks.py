"""What the arm is asked to do, and when it has done it."""

from __future__ import annotations

import itertools
from itertools import chain

import numpy as np
import pytest

from cosmos3_ros.replay import outcomes
from cosmos3_ros.sim import tasks
from cosmos3_ros.sim.tasks import (
    COLOURS,
    HELD_OUT_WORDINGS,
    KINDS,
    LIFTED_M,
    WORDINGS,
    Judge,
    Task,
    draw_task,
    draw_trials,
)

FAR = np.array([0.3, 0.3, 0.3])
ON_TABLE = np.array([[0.4, 0.0, 0.024], [0.5, 0.0, 0.024], [0.6, 0.0, 0.024]])


def task(kind: str, colour: str) -> Task:
    return Task(kind, colour, WORDINGS[kind][0])


def seen(judge: Judge, now_s: float, *touched: str, raised: dict[str, float] | None = None) -> str:
    cubes = ON_TABLE.copy()
    for colour, height in (raised or {}).items():
        cubes[COLOURS.index(colour), 2] += height
    judge.see(now_s, frozenset(touched), cubes, FAR)
    return judge.verdict or ""


def test_there_are_ten_wordings_a_kind_and_others_that_are_held_out() -> None:
    trained, kept = (list(chain(*said.values())) for said in (WORDINGS, HELD_OUT_WORDINGS))
    for kind in KINDS:
        assert len(WORDINGS[kind]) >= 10 and len(HELD_OUT_WORDINGS[kind]) >= 3
    assert len({*trained, *kept}) == len(trained) + len(kept)
    assert all(wording.count("{}") == 1 for wording in (*trained, *kept))


def test_held_out_wordings_are_made_of_words_that_are_known() -> None:
    known = {word for wording in chain(*WORDINGS.values()) for word in wording.split()}
    for wording in chain(*HELD_OUT_WORDINGS.values()):
        assert set(wording.split()) <= known, wording


def test_trials_are_the_same_every_time_and_use_all_colours_and_wordings() -> None:
    for kind in KINDS:
        trials = draw_trials(kind, 300, seed=4)
        assert trials == draw_trials(kind, 300, seed=4)
        assert trials[:50] == draw_trials(kind, 50, seed=4)
        assert [trial.episode for trial in trials] == list(range(1, 301))
        assert {t.task.colour for t in trials} == set(COLOURS)
        assert {t.task.wording for t in trials} == set(WORDINGS[kind])
        assert all(t.instruction == t.task.instruction and t.task.kind == kind for t in trials)


def test_held_out_trials_are_in_no_wording_of_the_training() -> None:
    for trial in draw_trials("touch", 50, seed=4, held_out=True):
        assert trial.task.wording in HELD_OUT_WORDINGS["touch"]


def test_shuffled_trials_are_told_another_ones_instruction_a_third_of_them_the_right_colour() -> (
    None
):
    plain, shuffled = (draw_trials("touch", 600, seed=4, shuffled=s) for s in (False, True))
    assert [t.task for t in plain] == [t.task for t in shuffled]
    assert sorted(t.instruction for t in plain) == sorted(t.instruction for t in shuffled)
    right = np.mean([t.task.colour in t.instruction for t in shuffled])
    assert 0.25 < right < 0.42


@pytest.mark.parametrize("count", [2, 3, 50])
def test_no_shuffled_trial_is_told_its_own_instruction(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    words = map(str, itertools.count())
    # Each trial in words of its own, or two may happen to be told the same.
    monkeypatch.setattr(tasks, "draw_task", lambda *_, **__: Task("touch", "red", next(words)))
    for seed in range(5):
        trials = draw_trials("touch", count, seed, shuffled=True)
        own = [trial.task.instruction for trial in trials]
        told = [trial.instruction for trial in trials]
        assert sorted(told) == sorted(own)
        assert all(a != b for a, b in zip(told, own, strict=True))


def test_one_trial_cannot_be_shuffled() -> None:
    with pytest.raises(ValueError, match="^1 episode with shuffled instructions"):
        draw_trials("touch", 1, seed=4, shuffled=True)


def test_tasks_are_drawn_of_the_kinds_that_are_asked_for() -> None:
    random = np.random.default_rng(0)
    assert {draw_task(random).kind for _ in range(50)} == set(KINDS)
    assert {draw_task(random, ["lift"]).kind for _ in range(20)} == {"lift"}


@pytest.mark.parametrize(
    ("kind", "touched", "verdict"),
    [
        ("touch", ["red"], "success"),
        ("touch", ["blue"], "wrong"),
        ("touch", ["red", "blue"], "wrong"),
        ("any", ["red"], "wrong"),
        ("any", ["green"], "success"),
        ("any", ["blue"], "success"),
        ("any", ["blue", "green"], "success"),
        ("lift", ["red"], ""),
        ("lift", ["blue"], ""),
    ],
)
def test_the_first_touch_decides(kind: str, touched: list[str], verdict: str) -> None:
    judge = Judge(task(kind, "red"))
    assert seen(judge, 0.5) == ""
    assert seen(judge, 1.5, *touched) == verdict
    assert judge.time_to_goal_s == (1.5 if verdict == "success" else None)
    if verdict:
        assert seen(judge, 2.0, "green") == verdict, "nothing counts after it"


def test_a_lift_is_ten_centimetres_in_the_fingers() -> None:
    judge = Judge(task("lift", "green"))
    assert seen(judge, 0.0) == ""
    assert seen(judge, 1.0, "green", raised={"green": LIFTED_M - 0.01}) == ""
    assert seen(judge, 1.1, raised={"green": LIFTED_M + 0.01}) == "", "thrown is not lifted"
    assert seen(judge, 1.2, "green", raised={"green": LIFTED_M + 0.01}) == "success"
    assert judge.time_to_goal_s == 1.2


def test_a_report_calls_lifted_what_is_judged_so() -> None:
    assert outcomes.LIFTED_M == LIFTED_M


def test_another_cube_in_the_air_is_the_wrong_one() -> None:
    judge = Judge(task("lift", "green"))
    assert seen(judge, 0.0) == ""
    assert seen(judge, 1.0, "red", raised={"red": 0.06}) == "wrong"


@pytest.mark.parametrize("kind", KINDS)
def test_an_episode_ends_when_its_time_is_over(kind: str) -> None:
    judge = Judge(task(kind, "red"))
    limit_s = judge.task.limit_s
    assert seen(judge, limit_s - 0.01) == ""
    assert seen(judge, limit_s) == "neither"


def test_the_nearest_distance_is_to_a_goal() -> None:
    judge = Judge(task("any", "red"))
    judge.see(0.1, frozenset(), ON_TABLE, np.array([0.01, 0.2, 0.3]))
    judge.see(0.2, frozenset(), ON_TABLE, np.array([0.3, 0.4, 0.15]))
    judge.see(0.3, frozenset(), ON_TABLE, np.array([0.3, 0.4, 0.5]))
    assert judge.min_distance_m == 0.15
