"""Whether two evaluations agree, as those of the offline twin and of the nodes should."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What both have to have in common, as evaluations name it.
CONDITIONS = (
    "seed",
    "plan_rate_hz",
    "added_latency_ms",
    "strategy",
    "state_ahead",
    "shuffled_instructions",
    "black_cameras",
    "held_out_wordings",
)


# Plans and added latency pass in real time: in a simulation slower than it was asked to be they are
# shorter. A busy machine is late now and then.
LEAST_SHARE_OF_PACE = 0.8


class EvaluationError(ValueError):
    """A file is no evaluation, or cannot become one."""


@dataclass(frozen=True)
class Success:
    """Its rate in so many episodes, the rate's 95 % interval, and how plans followed each other."""

    episodes: int
    rate: float
    low: float
    high: float
    strategies_in_force: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """``success`` by task, under ``conditions`` by name.

    ``pace`` and ``real_time_factor``: simulated seconds a second, as they were and as they were
    asked for; None of the twin.
    """

    bundle: str
    through: str
    conditions: Mapping[str, object]
    success: Mapping[str, Success]
    pace: float | None = None
    real_time_factor: float | None = None

    @property
    def lagged(self) -> bool:
        """The simulation fell behind the pace that was asked for."""
        if self.pace is None or self.real_time_factor is None:
            return False
        return self.pace < LEAST_SHARE_OF_PACE * self.real_time_factor


def load_evaluation(path: Path) -> Evaluation:
    """Read what ``./run eval`` wrote. Raises EvaluationError for anything else."""
    try:
        return evaluation_of(json.loads(path.read_text()))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EvaluationError(
            f"'{path}' is no evaluation ({error!r}); expected a JSON file that './run eval' wrote"
        ) from error


def evaluation_of(content: Mapping[str, Any]) -> Evaluation:
    """The part of an evaluation's JSON that is compared."""
    return Evaluation(
        bundle=str(content["bundle"]),
        through=str(content["through"]),
        conditions={name: content[name] for name in CONDITIONS},
        success={
            task: Success(
                row["episodes"],
                **{key: row["success"][key] for key in ("rate", "low", "high")},
                strategies_in_force=tuple(row["strategies_in_force"]),
            )
            for task, row in content["by_task"].items()
        },
        pace=content["pace"],
        real_time_factor=content["real_time_factor"],
    )


def comparison(here: Evaluation, there: Evaluation) -> str:
    """Both as text, one line a task: they agree where the rate here is inside the interval there,
    of the same scenes under the same conditions."""
    lines = [
        f"beside '{there.bundle}' through {there.through}:",
        f"{'task':10}{'success':>9}{'there':>9}{'95 %':>18}  agree",
    ]
    for task, ours in here.success.items():
        if (theirs := there.success.get(task)) is None:
            lines.append(f"{task:10}{ours.rate:>9.1%}{'-':>9}{'-':>18}  not there")
            continue
        interval = f"{theirs.low:.1%} .. {theirs.high:.1%}"
        lines.append(
            f"{task:10}{ours.rate:>9.1%}{theirs.rate:>9.1%}{interval:>18}  "
            f"{_verdict(here, there, task)}"
        )
    return "\n".join(lines)


def _verdict(here: Evaluation, there: Evaluation, task: str) -> str:
    ours, theirs = here.success[task], there.success[task]
    pairs = {
        "episodes": (ours.episodes, theirs.episodes),
        "strategies_in_force": tuple(" and ".join(s.strategies_in_force) for s in (ours, theirs)),
        **{name: (here.conditions[name], there.conditions[name]) for name in CONDITIONS},
    }
    other = [f"{name} {b} there, {a} here" for name, (a, b) in pairs.items() if a != b]
    other += [
        f"pace {evaluation.pace:g} of {evaluation.real_time_factor:g} {where}"
        for where, evaluation in (("there", there), ("here", here))
        if evaluation.lagged
    ]
    if other:
        return f"not comparable: {'; '.join(other)}"
    return "yes" if theirs.low <= ours.rate <= theirs.high else "no"
