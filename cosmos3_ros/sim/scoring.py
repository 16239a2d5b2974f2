"""What many episodes amount to: rates with their intervals, times and distances."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cosmos3_ros.sim.tasks import NEITHER, SUCCESS, WRONG, Judge, Trial

# Two-sided 95 % of the normal distribution.
_Z = 1.959964


@dataclass
class Passed:
    """Time that has passed in episodes: simulated, and on the steady clock [s]."""

    simulated_s: float = 0.0
    steady_s: float = 0.0

    @property
    def pace(self) -> float | None:
        """Simulated seconds a second; None before anything has passed."""
        return self.simulated_s / self.steady_s if self.steady_s > 0 else None


@dataclass(frozen=True)
class EpisodeResult:
    """How one episode ended.

    ``instruction`` is what the policy was told, ``kind`` and ``colour`` what it is judged by.
    ``seam_jumps``: for each plan that replaced another, the time [s] in which the channel that
    jumped most could travel its jump at its velocity limit. ``min_distance_m``: the nearest that
    the fingertip came to the centre of a goal. ``refused_chunks``: plans that were not followed, by
    reason. ``strategies``: those in force, in which plans followed each other.
    """

    kind: str
    colour: str
    wording: str
    instruction: str
    seed: int
    episode: int
    verdict: str
    time_to_goal_s: float | None
    min_distance_m: float
    plans: int
    seam_jumps: tuple[float, ...]
    refused_chunks: Mapping[str, int]
    strategies: tuple[str, ...]


def result_of(
    trial: Trial,
    judge: Judge,
    plans: int,
    seam_jumps: Sequence[float],
    refused_chunks: Mapping[str, int],
    strategies: Iterable[str],
) -> EpisodeResult:
    """The result of an episode that is decided."""
    assert judge.verdict is not None, "the episode is not over"
    task = trial.task
    return EpisodeResult(
        kind=task.kind,
        colour=task.colour,
        wording=task.wording,
        instruction=trial.instruction,
        seed=trial.seed,
        episode=trial.episode,
        verdict=judge.verdict,
        time_to_goal_s=judge.time_to_goal_s,
        min_distance_m=judge.min_distance_m,
        plans=plans,
        seam_jumps=tuple(seam_jumps),
        refused_chunks={str(reason): count for reason, count in refused_chunks.items()},
        strategies=tuple(sorted(map(str, strategies))),
    )


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a rate, ``count`` of at least one (Wilson 1927)."""
    rate, square = count / total, _Z * _Z
    centre = rate + square / (2 * total)
    half = _Z * math.sqrt(rate * (1 - rate) / total + square / (4 * total * total))
    scale = 1 + square / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def score(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """The figures of at least one episode: of all, and by task, colour, wording and what was told,
    the colour it is judged by or another one."""
    return {
        **_figures(results),
        "by_task": _by(results, lambda result: result.kind),
        "by_colour": _by(results, lambda result: f"{result.kind} {result.colour}"),
        "by_wording": _by(results, lambda result: result.wording),
        "by_told": _by(results, _told),
    }


def _told(result: EpisodeResult) -> str:
    return "its own" if result.colour in result.instruction.split() else "another"


def _by(
    results: Sequence[EpisodeResult], key: Callable[[EpisodeResult], str]
) -> dict[str, dict[str, Any]]:
    names = sorted({key(result) for result in results})
    return {name: _figures([r for r in results if key(r) == name]) for name in names}


def _figures(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    total = len(results)
    rates = {}
    for verdict in (SUCCESS, WRONG, NEITHER):
        count = sum(result.verdict == verdict for result in results)
        low, high = wilson(count, total)
        rates[verdict] = {
            "rate": round(count / total, 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "count": count,
        }
    refused: Counter[str] = Counter()
    for result in results:
        refused.update(result.refused_chunks)
    times = [r.time_to_goal_s for r in results if r.time_to_goal_s is not None]
    return {
        "episodes": total,
        **rates,
        "time_to_goal_s": _spread(times, 3),
        "plans": _spread([r.plans for r in results], 1),
        "seam_jump": _spread([jump for r in results for jump in r.seam_jumps], 4),
        "min_distance_cm": _spread([100 * r.min_distance_m for r in results], 2),
        "refused_chunks": dict(refused),
        "strategies_in_force": sorted({name for r in results for name in r.strategies}),
    }


def _spread(values: Iterable[float], digits: int) -> dict[str, float | None]:
    """The median and the 90th percentile; None of nothing."""
    array = np.array(list(values), np.float64)
    if not array.size:
        return {"p50": None, "p90": None}
    p50, p90 = np.percentile(array, (50, 90))
    return {"p50": round(float(p50), digits), "p90": round(float(p90), digits)}


def table(scores: dict[str, Any]) -> str:
    """The figures as text, one line a task, and one for colours that were told and are not judged
    by and for refused chunks where there were any."""
    lines = [
        f"{'task':10}{'episodes':>9}{'success':>9}{'95 %':>18}{'wrong':>8}{'neither':>9}"
        f"{'time [s]':>10}{'nearest [cm]':>14}"
    ]
    for name, row in {**scores["by_task"], "all": scores}.items():
        success, time_s = row["success"], row["time_to_goal_s"]["p50"]
        interval = f"{success['low']:.1%} .. {success['high']:.1%}"
        lines.append(
            f"{name:10}{row['episodes']:>9}{success['rate']:>9.1%}{interval:>18}"
            f"{row['wrong']['rate']:>8.1%}{row['neither']['rate']:>9.1%}"
            f"{'-' if time_s is None else format(time_s, '.2f'):>10}"
            f"{row['min_distance_cm']['p50']:>14.2f}"
        )
    if (told := scores["by_told"]).keys() != {"its own"}:
        rows = (f"{row['success']['count']} of {row['episodes']} {n}" for n, row in told.items())
        lines.append(f"success by the colour that was told: {', '.join(rows)}")
    if refused := scores["refused_chunks"]:
        lines.append(f"refused chunks: {', '.join(f'{n} {r}' for r, n in sorted(refused.items()))}")
    return "\n".join(lines)
