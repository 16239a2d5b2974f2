"""What the arm is asked to do, in which words, and when it has done it.

Three kinds: ``touch`` the named cube, ``lift`` it, and ``any``: touch a cube that is not of the
named colour, of which there are two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COLOURS = ("red", "green", "blue")
KINDS = ("touch", "lift", "any")

# Wordings that a policy is trained on; {} is the colour.
WORDINGS = {
    "touch": (
        "touch the {} cube",
        "touch the {} block",
        "move the gripper to the {} cube",
        "move the gripper to the {} block",
        "reach for the {} cube",
        "reach for the {} block",
        "go to the {} cube",
        "put the fingers on the {} cube",
        "put the fingers on the {} block",
        "tap the {} cube",
        "tap the {} block",
        "point at the {} cube and touch it",
    ),
    "lift": (
        "lift the {} cube",
        "lift the {} block",
        "pick up the {} cube",
        "pick up the {} block",
        "raise the {} cube",
        "grab the {} cube and lift it",
        "grasp the {} block and raise it",
        "take the {} cube off the table",
        "take the {} block off the table",
        "pick the {} cube up from the table",
        "lift up the {} block",
        "hold the {} cube in the air",
    ),
    "any": (
        "touch a cube that is not {}",
        "touch a block that is not {}",
        "touch any cube that is not {}",
        "touch any cube but the {} one",
        "touch any block but the {} one",
        "go to a cube that is not {}",
        "reach for a cube that is not {}",
        "reach for any block that is not {}",
        "move the gripper to a cube that is not {}",
        "tap a cube that is not {}",
        "tap any block but the {} one",
        "put the fingers on a cube that is not {}",
    ),
}
# Kept from training, to see whether words or sentences were learnt.
HELD_OUT_WORDINGS = {
    "touch": ("reach the {} cube", "go to the {} block", "move to the {} cube and touch it"),
    "lift": ("raise the {} block", "grab the {} block and lift it", "pick the {} block up"),
    "any": ("tap a block that is not {}", "go to any cube but the {} one", "touch not the {} cube"),
}

# Time in which an episode has to be over [s].
LIMIT_S = {"touch": 6.0, "lift": 10.0, "any": 6.0}
# A cube so far above where it began is lifted [m].
LIFTED_M = 0.10
# Another cube so far above where it began was taken in its place [m].
TAKEN_M = 0.05

_TASK_STREAM = 1

SUCCESS, WRONG, NEITHER = "success", "wrong", "neither"


@dataclass(frozen=True)
class Task:
    """``colour``: the named one. ``goals``: the cubes of which any one will do."""

    kind: str
    colour: str
    wording: str

    @property
    def instruction(self) -> str:
        return self.wording.format(self.colour)

    @property
    def goals(self) -> tuple[str, ...]:
        if self.kind == "any":
            return tuple(colour for colour in COLOURS if colour != self.colour)
        return (self.colour,)

    @property
    def limit_s(self) -> float:
        return LIMIT_S[self.kind]


def draw_task(
    random: np.random.Generator, kinds: Sequence[str] = KINDS, *, held_out: bool = False
) -> Task:
    """A task of one of the kinds, its colour and wording drawn uniformly."""
    kind = kinds[int(random.integers(len(kinds)))]
    wordings = (HELD_OUT_WORDINGS if held_out else WORDINGS)[kind]
    return Task(
        kind=kind,
        colour=COLOURS[random.integers(len(COLOURS))],
        wording=wordings[int(random.integers(len(wordings)))],
    )


@dataclass(frozen=True)
class Trial:
    """One episode to come: its scene, what it is judged by, and what the policy is told."""

    seed: int
    episode: int
    task: Task
    instruction: str


def draw_trials(
    kind: str, count: int, seed: int, *, held_out: bool = False, shuffled: bool = False
) -> list[Trial]:
    """Tasks of one kind in the scenes 1 .. ``count`` of ``seed``, always the same.

    ``held_out``: in wordings that no policy is trained on. ``shuffled``: the policy is told the
    instruction of another trial, drawn from all of them. Raises ValueError where there is none.
    """
    if shuffled and count < 2:
        raise ValueError(
            f"{count} episode with shuffled instructions: there is no other one to take them from; "
            "expected at least 2"
        )
    # Apart from the scenes', which are drawn from (seed, episode).
    random = np.random.default_rng((seed, KINDS.index(kind), _TASK_STREAM))
    tasks = [draw_task(random, [kind], held_out=held_out) for _ in range(count)]
    told = list(tasks)
    if shuffled:
        order = random.permutation(count)
        # Round the circle that the order is, or some would be told their own.
        for trial, other in zip(order, np.roll(order, 1), strict=True):
            told[trial] = tasks[other]
    return [
        Trial(seed, episode, task, said.instruction)
        for episode, (task, said) in enumerate(zip(tasks, told, strict=True), 1)
    ]


class Judge:
    """Sees an episode and says how it ended.

    touch, any: the first cube that a finger touches decides. lift: the named cube LIFTED_M above
    where it began while a finger touches it; another one TAKEN_M above is the wrong one.
    ``min_distance_m``: the nearest that the fingertip came to the centre of a goal.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.verdict: str | None = None
        self.time_to_goal_s: float | None = None
        self.min_distance_m = float("inf")
        self._rest_m: np.ndarray | None = None

    def see(
        self, now_s: float, touched: frozenset[str], cubes: np.ndarray, distances: np.ndarray
    ) -> None:
        """The state ``now_s`` after the episode's beginning; nothing counts after the verdict.

        ``touched``: cubes that a finger touches, or has since the last call. ``cubes``: centres
        [3, 3, m] in the order of COLOURS. ``distances``: from the fingertip to them [3, m].
        """
        if self.verdict is not None:
            return
        rise_m = cubes[:, 2] - self._remembered(cubes[:, 2])
        goals = [COLOURS.index(colour) for colour in self.task.goals]
        self.min_distance_m = min(self.min_distance_m, float(distances[goals].min()))
        self.verdict = self._of_lift(rise_m, touched) if self._lifts else self._of_touch(touched)
        if self.verdict == SUCCESS:
            self.time_to_goal_s = now_s
        if self.verdict is None and now_s >= self.task.limit_s:
            self.verdict = NEITHER

    @property
    def _lifts(self) -> bool:
        return self.task.kind == "lift"

    def _remembered(self, heights: np.ndarray) -> np.ndarray:
        if self._rest_m is None:
            self._rest_m = heights.copy()
        return self._rest_m

    def _of_touch(self, touched: frozenset[str]) -> str | None:
        if not touched:
            return None
        # Two at once: no finger is that wide, but a gripper around nothing might be.
        return SUCCESS if touched <= set(self.task.goals) else WRONG

    def _of_lift(self, rise_m: np.ndarray, touched: frozenset[str]) -> str | None:
        goal = COLOURS.index(self.task.colour)
        if rise_m[goal] >= LIFTED_M and self.task.colour in touched:
            return SUCCESS
        return WRONG if np.delete(rise_m, goal).max() >= TAKEN_M else None
