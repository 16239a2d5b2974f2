"""What came of each instruction of a run in a simulator, which says what is touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cosmos3_ros.replay.bags import Bag
from cosmos3_ros.replay.clock import NodeClock
from cosmos3_ros.replay.seams import ACTION_CHUNK

SIM_STATE = "cosmos3_ros/msg/SimState"
# A cube so far above where it was is lifted [m].
LIFTED_M = 0.10
# A cube that was not touched for so long was let go [s]: fingers that leave it may still graze it.
_LET_GO_S = 0.5


@dataclass(frozen=True)
class Outcome:
    """``said_s``: when, in seconds of the nodes' clock from the run's start.

    ``touched``: the first cube that was touched after it and not before, empty for none, and how
    long after [s]; ``lifted``: the first that then was LIFTED_M higher.
    """

    instruction: str
    said_s: float
    touched: str = ""
    touched_after_s: float | None = None
    lifted: str = ""
    lifted_after_s: float | None = None


def describe(outcome: Outcome) -> str:
    """One line for a person."""
    came = []
    if outcome.touched_after_s is not None:
        came.append(f"touched {outcome.touched} after {outcome.touched_after_s:.1f} s")
    if outcome.lifted_after_s is not None:
        came.append(f"lifted {outcome.lifted} after {outcome.lifted_after_s:.1f} s")
    return f"“{outcome.instruction}”: {', '.join(came) or 'nothing was touched'}"


def outcomes_of(bag: Bag) -> list[Outcome]:
    """One for each instruction, in their order; none where no simulator said anything."""
    states = list(bag.messages(bag.typed(SIM_STATE)))
    if not states:
        return []
    clock = NodeClock(bag, bag.named("joint_states"))
    seen = [(clock.seconds(m.stamp_ns), m.decoded()) for m in states]
    said = list(_instructions(bag, clock))
    ends_s = [*(said_s for said_s, _ in said[1:]), float("inf")]
    outcomes = []
    for (said_s, instruction), end_s in zip(said, ends_s, strict=True):
        before = [(t, state) for t, state in seen if said_s - _LET_GO_S < t <= said_s]
        after = [(time_s, state) for time_s, state in seen if said_s < time_s <= end_s]
        outcome = Outcome(instruction, said_s)
        outcomes.append(_seen(outcome, before, after))
    return outcomes


def _instructions(bag: Bag, clock: NodeClock) -> Iterator[tuple[float, str]]:
    """When each was said, and what; what was said before the run, at its start.

    A recorder may hear late of whoever says it: what was planned by it was seen after it was said.
    """
    planned = [(m, m.decoded().instruction) for m in bag.messages(bag.typed(ACTION_CHUNK))]
    before_ns = 0
    for message in bag.messages(bag.named("instruction")):
        instruction = str(message.decoded().data)
        said_s = float(clock.arrived(np.array([message.log_ns]))[0])
        plans = (m for m, of in planned if of == instruction and m.log_ns > before_ns)
        if plan := next(plans, None):
            said_s = min(said_s, clock.seconds(plan.stamp_ns))
        before_ns = message.log_ns
        yield max(said_s, 0.0), instruction


def _seen(
    outcome: Outcome, before: list[tuple[float, Any]], after: list[tuple[float, Any]]
) -> Outcome:
    # When a cube that was touched before was touched last.
    held = {cube: time_s for time_s, state in before for cube in state.touched}
    rest = _heights(after[0][1]) if after else {}
    for time_s, state in after:
        # A cube that was being touched counts again once it was let go.
        held = {cube: last_s for cube, last_s in held.items() if time_s - last_s <= _LET_GO_S}
        held |= {cube: time_s for cube in state.touched if cube in held}
        new = sorted(set(state.touched) - held.keys())
        if new and not outcome.touched:
            outcome = replace(outcome, touched=new[0], touched_after_s=time_s - outcome.said_s)
        lifted = [cube for cube, z in _heights(state).items() if z - rest[cube] >= LIFTED_M]
        if lifted and not outcome.lifted:
            outcome = replace(outcome, lifted=lifted[0], lifted_after_s=time_s - outcome.said_s)
    return outcome


def _heights(state: Any) -> dict[str, float]:
    """Of the cubes' centres by name [m]."""
    return {cube: p.z for cube, p in zip(state.cubes, state.centres, strict=True)}
