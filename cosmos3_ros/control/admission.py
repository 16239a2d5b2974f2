"""Which chunks are followed: each requirement is a function that refuses by name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cosmos3_ros.control.chunk import NS_PER_S, Chunk, ChunkRefused, Refusal
from cosmos3_ros.control.limits import Limits
from cosmos3_ros.control.schedule import Schedule
from cosmos3_ros.control.space import Space
from cosmos3_ros.control.watchdog import Timeouts

# A gripper's row says open or closed: beyond its range by less than this share, it still does.
_HELD_TOLERANCE = 0.5


@dataclass(frozen=True)
class Following:
    """How chunks are followed.

    ``hysteresis`` [width]: of channels that keep a row's value until the next, as a gripper's, and
    then change only by more than this; NaN of channels that move between rows. ``jump``
    [step_width]: how far from the present command a chunk may begin, in channel units.
    ``rest`` [width]: what channels are commanded at rest, NaN of those that stay as they are.
    ``range_tolerance``: how far outside the position limits a row may be before the chunk is
    refused, as a share of their range; of channels that keep a row's value at least half of it.
    ``blend_s``: a chunk that replaces another one fades in for so long; 0: it takes over at once.
    ``open_loop``: commands move nothing, a robot that is elsewhere is no reason to hold.
    """

    hysteresis: np.ndarray
    jump: np.ndarray
    rest: np.ndarray
    range_tolerance: float = 0.05
    blend_s: float = 0.0
    open_loop: bool = False

    @property
    def held(self) -> np.ndarray:
        """Which channels keep a row's value until the next, [width]."""
        return ~np.isnan(self.hysteresis)

    def beyond_jump(self, target: np.ndarray, here: np.ndarray, space: Space) -> np.ndarray:
        """In which parts of a step [step_width] ``target`` is farther from ``here`` than a chunk
        may begin."""
        apart = np.abs(space.difference(target, here))
        return (apart > self.jump) & ~space.of_step(self.held)


def beyond_range(
    values: np.ndarray, limits: Limits, following: Following, tolerance: float
) -> np.ndarray:
    """Which of ``values`` [..., width] are outside the position limits by more than ``tolerance``,
    a share of their range; of channels that keep a row's value at least half of it."""
    share = np.where(following.held, max(tolerance, _HELD_TOLERANCE), tolerance)
    room = share * (limits.upper - limits.lower)
    room = np.where(np.isfinite(room), room, 0.0)
    outside: np.ndarray = (values < limits.lower - room) | (values > limits.upper + room)
    return outside


def require_fitting(chunk: Chunk, limits: Limits, instruction: str | None) -> None:
    """Rows of commands, made of the instruction in force; None: any. Raises ChunkRefused."""
    width = len(limits.lower)
    if chunk.rows.shape[1] != width:
        raise ChunkRefused(Refusal.WRONG_WIDTH, f"{chunk.rows.shape[1]} channels; expected {width}")
    good = limits.space.holds(chunk.rows)
    if not good.all():
        raise ChunkRefused(
            Refusal.MALFORMED,
            f"row {np.argmin(good)} holds a quaternion that is no rotation; expected one of length "
            "1",
        )
    if instruction is not None and chunk.instruction != instruction:
        raise ChunkRefused(
            Refusal.WRONG_INSTRUCTION,
            f"planned by '{chunk.instruction}'; expected '{instruction}', the one in force",
        )


def require_in_time(
    chunk: Chunk, newest_plan_id: int, now_ns: int, timeouts: Timeouts, most_ahead_ns: float
) -> None:
    """A new chunk of a recent observation that is not over yet, its stamp at most
    ``most_ahead_ns`` ahead of the clock. Raises ChunkRefused."""
    if chunk.plan_id == newest_plan_id:
        raise ChunkRefused(Refusal.DUPLICATE, f"plan {chunk.plan_id} came before")
    if chunk.plan_id < newest_plan_id:
        raise ChunkRefused(
            Refusal.OUT_OF_ORDER,
            f"plan {chunk.plan_id} came after plan {newest_plan_id}; expected ids that count up",
        )
    if chunk.end_ns < now_ns:
        raise ChunkRefused(
            Refusal.STALE,
            f"its last row was due {(now_ns - chunk.end_ns) / NS_PER_S:.3f} s ago; expected a plan "
            "that is faster than its horizon, and clocks that agree",
        )
    age_s = (now_ns - chunk.stamp_ns) / NS_PER_S
    if age_s > timeouts.observation_s:
        raise ChunkRefused(
            Refusal.STALE,
            f"it was planned from what is {age_s:.3f} s old; expected at most "
            f"{timeouts.observation_s:g} s",
        )
    if chunk.stamp_ns - now_ns > most_ahead_ns:
        raise ChunkRefused(
            Refusal.FUTURE,
            f"its stamp is {-age_s:.3f} s ahead of the clock; expected clocks that agree, "
            "use_sim_time alike in all nodes, and a plan made since the clock went back, if it did",
        )


def require_reachable(
    chunk: Chunk, here: np.ndarray, now_ns: int, limits: Limits, following: Following
) -> None:
    """Rows inside the position limits, or nearly, that begin near ``here`` [width].

    Begins: where it says the robot should be now, and before its first row is due, that row.
    Raises ChunkRefused.
    """
    outside = beyond_range(chunk.rows, limits, following, following.range_tolerance)
    if np.any(outside):
        row, channel = np.argwhere(outside)[0]
        raise ChunkRefused(
            Refusal.OUT_OF_RANGE,
            f"{outside.sum()} values, the first {chunk.rows[row, channel]:.4g} in row {row}, "
            f"channel {channel}; expected {limits.lower[channel]:g} to {limits.upper[channel]:g}",
        )
    space = limits.space
    begin = chunk.rows[0]
    if now_ns > chunk.due_ns(0):
        begin = Schedule(chunk, now_ns, here, space, following.held).at(now_ns).position
    beyond = following.beyond_jump(begin, here, space)
    if np.any(beyond):
        part = int(np.argmax(beyond))
        apart = abs(space.difference(begin, here)[part])
        raise ChunkRefused(
            Refusal.JUMP,
            f"it begins {apart:.4g} from the present command in channel {part}; expected at most "
            f"{following.jump[part]:g}",
        )
