"""Episodes without ROS: the trained policy does what it is told, and not what it is not told."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from another_robot import REFUSAL, bundle_of_another_robot
from bundles import Exported

from cosmos3_ros.engine.bundle import load_bundle
from cosmos3_ros.sim.expert import RATE_HZ
from cosmos3_ros.sim.offline import Conditions, Offline
from cosmos3_ros.sim.scoring import EpisodeResult
from cosmos3_ros.sim.tasks import LIMIT_S, draw_trials
from cosmos3_ros.sim.team import AnotherRobot

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


def test_added_latency_passes_between_plans(pico: Exported) -> None:
    """How much later the arm gets there is the policy's: it hesitates less between fewer plans."""
    for added_s, frames in ((0.0, 1), (0.3, 6)):
        found = results(pico, "touch", 8, added_latency_s=added_s)
        assert verdicts(found)["success"] >= 5
        for result in found:
            seconds = result.time_to_goal_s or LIMIT_S["touch"]
            planned = seconds * RATE_HZ / result.plans
            # The last one is still under way.
            assert frames * (1 - 1 / result.plans) - 1e-6 <= planned <= frames + 1e-6, result


def test_an_episode_is_the_same_every_time(pico: Exported) -> None:
    assert results(pico, "any", 3) == results(pico, "any", 3)


def test_a_bundle_of_another_robot_is_refused(tmp_path: Path, tiny: Exported) -> None:
    other = load_bundle(bundle_of_another_robot(tiny, tmp_path))
    with pytest.raises(AnotherRobot, match=REFUSAL):
        Offline(other, Conditions())
