"""Episodes without ROS: the trained policy does what it is told, and not what it is not told."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from bundles import Exported

from cosmos3_ros.sim.offline import Conditions, Offline
from cosmos3_ros.sim.scoring import EpisodeResult
from cosmos3_ros.sim.tasks import draw_trials

SEED = 71


def results(pico: Exported, kind: str, count: int, **conditions: object) -> list[EpisodeResult]:
    shuffled = bool(conditions.pop("shuffled", False))
    trials = draw_trials(kind, count, SEED, shuffled=shuffled)
    with Offline(pico.bundle, Conditions(**conditions)) as twin:  # type: ignore[arg-type]
        return list(twin.episodes(trials))


def verdicts(found: list[EpisodeResult]) -> Counter[str]:
    return Counter(result.verdict for result in found)


@pytest.mark.parametrize(("kind", "least"), [("touch", 18), ("any", 17), ("lift", 17)])
def test_the_policy_does_what_it_is_told(pico: Exported, kind: str, least: int) -> None:
    found = results(pico, kind, 20)
    assert verdicts(found)["success"] >= least, verdicts(found)
    for result in found:
        assert (result.time_to_goal_s is not None) == (result.verdict == "success")
        assert result.plans >= 3


def test_it_listens_to_the_instruction(pico: Exported) -> None:
    found = results(pico, "touch", 20, shuffled=True)
    assert verdicts(found)["wrong"] >= 8, verdicts(found)


def test_it_looks_at_the_cameras(pico: Exported) -> None:
    found = results(pico, "touch", 20, black_cameras=True)
    assert verdicts(found)["success"] <= 12, verdicts(found)


def test_added_latency_makes_it_later_and_plan_less(pico: Exported) -> None:
    quick, late = (results(pico, "touch", 8, added_latency_s=s) for s in (0.0, 0.6))
    later = [
        after.time_to_goal_s - before.time_to_goal_s
        for before, after in zip(quick, late, strict=True)
        if before.time_to_goal_s is not None and after.time_to_goal_s is not None
    ]
    assert len(later) >= 5
    # Rows that are past are skipped: the arm catches up with a part of it.
    assert np.mean(later) > 0.2, later
    assert np.sum([r.plans for r in late]) < 0.5 * np.sum([r.plans for r in quick])


def test_an_episode_is_the_same_every_time(pico: Exported) -> None:
    assert results(pico, "any", 3) == results(pico, "any", 3)
