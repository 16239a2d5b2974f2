"""Episodes without ROS: the trained policy does what it is told, and not what it is not told."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from another_robot import REFUSAL, bundle_of_another_robot
from bundles import Exported

from cosmos3_ros.control.overlap import Strategy
from cosmos3_ros.control.seams import Seam, seam
from cosmos3_ros.engine.bundle import load_bundle
from cosmos3_ros.sim import offline
from cosmos3_ros.sim.offline import Conditions, Offline
from cosmos3_ros.sim.scoring import EpisodeResult
from cosmos3_ros.sim.tasks import LIMIT_S, WRONG, draw_trials
from cosmos3_ros.sim.team import AnotherRobot
from cosmos3_ros.sim.world import STEP_RATE_HZ, STEPS_PER_FRAME

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
    assert verdicts(found)["success"] <= 3, verdicts(found)


def test_the_next_plan_begins_when_one_is_there_with_the_newest_picture(pico: Exported) -> None:
    """Plans of 60 ms wait for their pictures, slower ones begin between two of them."""
    for added_s, first, every in ((0.0, 23, STEPS_PER_FRAME), (0.02, 27, 15), (0.3, 77, 65)):
        found = results(pico, "touch", 4, added_latency_s=added_s)
        whole = [result for result in found if result.verdict != WRONG]
        assert len(whole) >= 2
        for result in whole:
            seconds = result.time_to_goal_s or LIMIT_S["touch"]
            steps = round(seconds * STEP_RATE_HZ)
            assert result.plans == 1 + (steps - 1 - first) // every, (added_s, result)


def test_plans_are_no_more_than_asked_for_and_the_first_comes_at_once(pico: Exported) -> None:
    for result in results(pico, "touch", 4, plan_rate_hz=2.0):
        seconds = result.time_to_goal_s or LIMIT_S["touch"]
        # A plan takes 60 ms and begins with the picture that is there, up to a frame old.
        assert (seconds - 0.2) / 0.5667 <= result.plans <= 1 + seconds / 0.5


def test_a_prefix_cuts_the_jump_of_an_unblended_switch_to_less_than_a_third(
    pico: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    seams: list[Seam] = []

    def noted(*switch: Any) -> Seam:
        seams.append(seam(*switch))
        return seams[-1]

    monkeypatch.setattr(offline, "seam", noted)
    jumps = {}
    for strategy in (Strategy.BLEND, Strategy.PREFIX):
        seams.clear()
        results(pico, "touch", 12, strategy=strategy, added_latency_s=0.2)
        assert len(seams) > 30
        jumps[strategy] = np.median([(s.position_s, s.velocity) for s in seams], axis=0)
    assert (3 * jumps[Strategy.PREFIX] < jumps[Strategy.BLEND]).all(), jumps


def test_an_episode_is_the_same_every_time(pico: Exported) -> None:
    assert results(pico, "any", 3) == results(pico, "any", 3)


def test_a_bundle_of_another_robot_is_refused(tmp_path: Path, tiny: Exported) -> None:
    other = load_bundle(bundle_of_another_robot(tiny, tmp_path))
    with pytest.raises(AnotherRobot, match=REFUSAL):
        Offline(other, Conditions())
