"""From plans and measurements to one command at a time: track, hold, or stay stopped.

No ROS and no clock of its own: every call says what both clocks show. For any sequence of calls
every command is finite and inside the limits, or on the way back from where the robot was measured
a little outside them, and none follows a chunk that a watchdog gave up.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from cosmos3_ros.control.admission import (
    Following,
    beyond_range,
    require_fitting,
    require_in_time,
    require_reachable,
)
from cosmos3_ros.control.belief import Belief, leaps
from cosmos3_ros.control.chunk import NS_PER_S, Chunk, ChunkRefused, Refusal
from cosmos3_ros.control.clock import Clock
from cosmos3_ros.control.commanded import Commanded
from cosmos3_ros.control.limits import ROUNDING, Limits, Motion
from cosmos3_ros.control.outlook import Outlook, Steps
from cosmos3_ros.control.schedule import CrossFade, Path, Schedule
from cosmos3_ros.control.watchdog import (
    Cause,
    Moment,
    Reason,
    Signs,
    Timeouts,
    cause_to_hold,
)

# The longest time one step of the limits may stand for: after a stall of the process or of the
# clock the arm sets off from rest, it does not catch up in one leap.
MAX_STEP_S = 0.1
# From so far outside its position limits, as a share of their range, a robot moves back by itself.
_AT_THE_LIMIT = 0.01
# A measurement farther from the command than the arm travels in this time at its velocity limit is
# not of an arm that lags behind, but of one that somebody else has moved, or keeps from moving.
_ELSEWHERE_S = 0.1
# A command that goes back to an arm that is blocked is there when it is as near as this, else what
# an arm sags would have it sink.
_THERE_S = 0.02


class State(StrEnum):
    WAITING = "waiting"  # nothing can be commanded: no measurement yet
    TRACKING = "tracking"
    HOLDING = "holding"
    STOPPED = "stopped"  # as holding, until it is told to resume


class NotReady(ValueError):
    """The arm stays stopped: something a chunk needs is missing."""


@dataclass(frozen=True)
class Command:
    """``positions`` [width] in channel units, to be published now. ``wanted`` [width]: what they
    are on their way to inside the limits; a gripper is on its way to what it was told last, while
    the arm is held, too. ``began``: the chunk that is followed from this command
    on, None where it is the one before, or none. ``anew``: what was forecast before does not hold
    any more."""

    positions: np.ndarray
    wanted: np.ndarray
    state: State
    began: Chunk | None = None
    anew: bool = False


@dataclass(frozen=True)
class Transition:
    """A state that was entered, and why. ``plan_id``: of the chunk in force, 0 without."""

    state: State
    cause: Cause | None
    plan_id: int


@dataclass
class Counts:
    """Since the controller was made. ``causes``: of what ended tracking. ``saturated``: commands
    that a limit changed."""

    transitions: int = 0
    holds: int = 0
    saturated: int = 0
    causes: Counter[Reason] = field(default_factory=Counter)


class Controller:
    """What the arm is told at each tick of a control loop.

    ``state`` and ``cause`` (None while tracking) say what it does. ``clock``: the node's.
    """

    def __init__(
        self,
        limits: Limits,
        following: Following,
        timeouts: Timeouts,
        *,
        simulated_time: bool = False,
    ) -> None:
        """``simulated_time``: the node's clock runs at a pace of its own, and the robot with it."""
        self.clock = Clock(timeouts.clock_jump_s, simulated=simulated_time)
        self._limits, self._following, self._timeouts = limits, following, timeouts
        self._steps = Steps(limits, following)
        self.state = State.WAITING
        self.cause: Cause | None = Cause(Reason.NO_JOINTS, "no joint states have arrived")
        self.counts = Counts(transitions=1)
        self._transitions = [Transition(self.state, self.cause, 0)]
        self._ticked: Moment | None = None  # when the last command was given
        self._motion: Motion | None = None  # the last command
        self._commanded = Commanded(timeouts.joint_s)
        self._measured: np.ndarray | None = None
        self._measured_ns: int | None = None  # None: older than a jump of the clock
        self._stamp_ns = 0  # of the last measurement, as it was given
        self._found_ns = 0  # steady; when that came
        self._pending: Chunk | None = None  # accepted, taken over at the next tick
        self._chunk: Chunk | None = None  # in force
        self._path: Path | None = None
        self._accepted_ns = 0  # steady
        self._observed_ns = 0  # what the chunk in force is of; where the arm waited, its start
        self._planner: int | None = None
        self._planner_ns: int | None = None  # steady; None: none is alive
        self._planner_lacks = ""
        self._ended: int | None = None  # a planner that has said that it ends
        self._kept: np.ndarray | None = None  # the last target
        self._told: Outlook | None = None  # the last that was asked for
        self._instruction: str | None = None
        self._newest_plan_id = 0
        self._anew = False
        self._outside: Cause | None = None  # the last measurement was outside the limits
        self._astray: Cause | None = None  # it was far from the command of its time
        self._given_up: Cause | None = None  # why the last chunk was given up
        self._belief = Belief(limits, self._follows_commands)
        self._blocked = False  # since a chunk was given up for it, until the command is at the arm
        self._yielding = False  # the command goes back to where the arm is
        self._unknown_ns = 0  # until then: what it did in a pause
        self._jumped: Cause | None = None
        self._stopped: Cause | None = None

    @property
    def plan_id(self) -> int:
        """Of the chunk in force, or that is from the next tick on; 0 without one."""
        chunk = self._pending or self._chunk
        return 0 if chunk is None else chunk.plan_id

    @property
    def planner(self) -> int | None:
        """Whose chunks are followed; None: the next one's."""
        return self._planner

    @property
    def is_at_rest(self) -> bool:
        """Whether the last command does not move, or there was none."""
        if self._motion is None:
            return True
        rest, position = self._following.rest, self._motion.position
        away = ~np.isnan(rest) & (np.abs(position - rest) > ROUNDING)
        return not (np.any(self._motion.velocity) or np.any(away))

    @property
    def has_followed(self) -> bool:
        """Whether a chunk was, since the beginning or since a simulator put the robot elsewhere."""
        return self._kept is not None

    @property
    def to_rest_s(self) -> float:
        """How long it takes at most to come to rest from the last command."""
        limits, rest = self._limits, self._following.rest
        if self._motion is None:
            return 0.0
        away = np.nan_to_num(np.abs(self._motion.position - rest))
        return limits.braking_s + float(np.max(limits.space.of_step(away) / limits.velocity))

    def take_transitions(self) -> list[Transition]:
        """What has happened since the last call, in order."""
        taken, self._transitions = self._transitions, []
        return taken

    def measure(self, positions: np.ndarray, stamp_ns: int, moment: Moment) -> None:
        """Take measured channel positions [width] of ``stamp_ns``.

        Ignored: what is not finite or no rotation, and what was measured before a jump of the
        clock. Held are a robot far outside its limits, and one that is farther than a chunk may
        begin from where it was told to be.
        """
        if not self._limits.space.holds(positions) or self.predates_jump(stamp_ns, moment):
            return
        since_jump, before = self._measured_ns is None, self._measured
        self._outside = self._found_outside(positions)
        if self._outside is not None:
            return
        # A gripper that is more than open is open.
        within = self._limits.clamp(positions)
        self._measured = np.where(self._following.held, within, positions)
        newer = self._measured_ns is None or stamp_ns > self._stamp_ns
        if newer or stamp_ns < self._stamp_ns:
            # A stamp ahead of the clock would keep a dead source alive for longer than the timeout.
            self._stamp_ns, self._measured_ns = stamp_ns, min(stamp_ns, moment.now_ns)
        assert self._measured_ns is not None
        self._astray = self._found_astray(self._measured_ns)
        passed_s = (moment.steady_ns - self._found_ns) / NS_PER_S
        put_elsewhere = np.any(leaps(self._limits, before, self._measured, passed_s))
        if newer:  # and not the same joints again, with another gripper
            self._found_ns = moment.steady_ns
            self._belief.measure(self._measured, passed_s, near=self._astray is None)
        if since_jump and put_elsewhere and self.clock.set_back_ns is not None:
            # By a simulator, which has put its gripper elsewhere, too: all begins from there.
            self._set_off_from(self._measured)
            self._kept = None
        elif since_jump and self._is_elsewhere:
            self._set_off_from(self._at_measured())

    def predates_jump(self, stamp_ns: int, moment: Moment) -> bool:
        """Whether what has this stamp was sent before the clock jumped, and arrived after it: the
        arm may be elsewhere now. Never again once something was measured since."""
        self._watch_clock(moment)
        waits = self._measured_ns is None and self._jumped is not None
        return waits and self.clock.is_far_from(stamp_ns, moment.now_ns)

    def hear(self, planner: int, steady_ns: int, *, alive: bool = True, lacks: str = "") -> None:
        """A sign of life of a planner; not ``alive``: it has ended, another may be followed.
        ``lacks``: what it cannot plan without."""
        if self._planner is None and alive:
            self._follow_planner(planner)
        if planner == self._planner:
            self._planner_ns, self._planner_lacks = steady_ns, lacks
            if not alive:
                self._ended, self._planner, self._planner_ns = planner, None, None

    def instruct(self, instruction: str) -> None:
        """The instruction in force: chunks of another one are refused from now on. An empty one
        ends what is followed; by another one it is, until the first chunk of that."""
        if instruction.strip():
            if self._given_up is not None and self._given_up.reason is Reason.NO_CHUNK:
                self._given_up = None
        else:
            self._forget_chunks()
            if not self._blocked:
                ended = "the instruction was ended by an empty one"
                self._given_up = Cause(Reason.NO_CHUNK, ended)
        self._instruction = instruction

    def stop(self, text: str) -> None:
        """Hold from the next tick on, until ``resume``."""
        self._stopped = self._stopped or Cause(Reason.STOPPED, text)
        self._forget_chunks()

    def resume(self, moment: Moment) -> None:
        """Follow chunks again, the next that comes, from where the arm is now.

        Raises NotReady while an input is missing, or the robot is outside its limits.
        """
        self._watch_clock(moment)
        if self._stopped is None:
            return
        # As if a chunk had just come.
        signs = replace(
            self._signs(end_ns=moment.now_ns, observed_ns=moment.now_ns),
            accepted_ns=moment.steady_ns,
        )
        cause = self._cause_not_to_move or cause_to_hold(signs, self._timeouts, moment)
        if cause is not None:
            raise NotReady(str(cause))
        if self._planner_lacks:
            raise NotReady(f"the planner says: {self._planner_lacks}")
        self._stopped = None
        if (elsewhere := self._elsewhere(moment)) is not None:
            self._set_off_from(elsewhere)

    def accept(self, chunk: Chunk, moment: Moment) -> None:
        """Let a chunk replace the present one from the next tick on.

        Raises ChunkRefused for one that is of another planner or instruction, of another width, out
        of order, late, early, out of range or too far away, and while nothing is known of where the
        robot is; the present one continues. An arm that was moved while it was held sets off from
        where it is.
        """
        self._watch_clock(moment)
        require_fitting(chunk, self._limits, self._instruction)
        self._require_planner(chunk, moment)
        require_in_time(
            chunk, self._newest_plan_id, moment.now_ns, self._timeouts, self.clock.most_ahead_ns
        )
        elsewhere = self._elsewhere(moment)
        here = self._here if elsewhere is None else elsewhere
        if here is None or self._measured_ns is None:
            raise ChunkRefused(
                Refusal.NO_JOINTS,
                "it is not known where the robot is; expected joint states, or its pose, before a "
                "chunk",
            )
        require_reachable(chunk, here, moment.now_ns, self._limits, self._following)
        if elsewhere is not None:
            self._set_off_from(elsewhere)
        self._newest_plan_id = chunk.plan_id
        self._planner_ns = self._accepted_ns = moment.steady_ns
        if self._stopped is None:
            self._pending = chunk

    def tick(self, moment: Moment) -> Command | None:
        """The command for now; None while WAITING."""
        self._watch_clock(moment)
        if self._measured is None:
            self._enter(self._cause(moment))
            return None
        if self._motion is None:
            self._motion, self._anew = self._limits.at_rest(self._measured), True
        previous = self._ticked or moment
        passed_s = self.clock.passed_s(previous, moment)
        paused = self._has_paused(previous, moment, passed_s)
        if paused:
            self._motion = self._after_pause(previous, passed_s)
            if self._told is not None:  # nothing is known of its way, to compare it with
                self._astray, self._unknown_ns = None, moment.now_ns
                self._commanded.forget()
        began = self._pending
        if began is not None:
            # From the last command at its own time, so that a moving arm does not pause.
            anew_from_here = paused or self.clock.jumped(previous, moment)
            begin_ns = moment.now_ns if anew_from_here else previous.now_ns
            self._take_over(began, begin_ns, moment.now_ns)
            self._pending = None
        cause, before = self._cause(moment), self.state
        if cause is None and before is not State.TRACKING and began is None:
            cause = self._cause_not_to_go_on(moment)
        if cause is not None and cause is self._astray and self._chunk is not None:
            self._given_up, self._blocked = cause, True
            self._forget_chunks()
        self._enter(cause)
        anew = self._anew or began is not None or self.state is not before or paused
        self._anew = False
        self._ticked = moment
        dt_s = min(passed_s, MAX_STEP_S)
        if paused and self._told is not None:
            dt_s = 0.0  # it is there already
        if self._path is None or self.state is not State.TRACKING:
            yielded, self._yielding = self._yielding, self._yields(moment)
            self._motion = self._step_while_held(dt_s)
            self._commanded.add(moment.now_ns, self._motion.position)
            position, anew = self._motion.position, anew or yielded or self._yielding
            wanted = position
            if self._kept is not None:
                wanted = np.where(self._following.held, self._limits.clamp(self._kept), position)
            return Command(position, wanted, self.state, None, anew)
        self._yielding = False
        target = self._path.at(moment.now_ns)
        wanted = self._kept = self._steps.where_held(self._kept, target.position)
        self._motion = self._limits.step(wanted, target.velocity, self._motion, dt_s)
        self._commanded.add(moment.now_ns, self._motion.position)
        apart = np.abs(self._limits.space.difference(wanted, self._motion.position))
        self.counts.saturated += bool(np.any(apart > ROUNDING))
        return Command(self._motion.position, self._limits.clamp(wanted), self.state, began, anew)

    def outlook(self, moment: Moment) -> Outlook:
        """What is to come after the command of ``moment`` if nothing else does.

        Whoever asks tells it to the robot, which then goes on by it whatever becomes of the loop.
        """
        assert self._motion is not None, "asked before the first command"
        path = self._path if self.state is State.TRACKING else None
        self._told = Outlook(self._steps, moment.now_ns, self._motion, path, self._kept)
        return self._told

    def _has_paused(self, previous: Moment, moment: Moment, passed_s: float) -> bool:
        """Whether the control loop has, for longer than a step of the limits may take."""
        overran_ns = moment.steady_ns - previous.steady_ns - self._timeouts.overrun_s * NS_PER_S
        late = overran_ns > 0 and not self.clock.simulated
        return late or passed_s > MAX_STEP_S

    def _after_pause(self, previous: Moment, passed_s: float) -> Motion:
        """Where the arm is, that has reached the last command and rests there, or has gone on by
        what it was told was to come."""
        assert self._motion is not None
        if self._told is None:
            return self._limits.at_rest(self._motion.position)
        told_s = (previous.now_ns - self._told.now_ns) / NS_PER_S
        return self._told.after(told_s + passed_s)

    def _require_planner(self, chunk: Chunk, moment: Moment) -> None:
        """One planner at a time: another is followed when the one before is silent or has ended."""
        if chunk.planner == self._ended:
            raise ChunkRefused(
                Refusal.ANOTHER_PLANNER,
                f"from planner {chunk.planner:#x}, which has said that it ends; expected no more "
                "of it",
            )
        if self._planner is not None and chunk.planner != self._planner:
            silent_s = (moment.steady_ns - (self._planner_ns or 0)) / NS_PER_S
            if silent_s <= self._timeouts.planner_s:
                raise ChunkRefused(
                    Refusal.ANOTHER_PLANNER,
                    f"from planner {chunk.planner:#x}, {self._planner:#x} was heard {silent_s:.1f} "
                    "s ago; expected one planner at a time: end the other policy node",
                )
        if chunk.planner != self._planner:
            self._follow_planner(chunk.planner)

    def _take_over(self, chunk: Chunk, begin_ns: int, now_ns: int) -> None:
        """``begin_ns``: the time of the last command."""
        assert self._motion is not None
        space, held = self._limits.space, self._following.held
        new: Path = Schedule(chunk, begin_ns, self._motion.position, space, held)
        old = None if self._path is None else self._path.settled(now_ns)
        if old is not None and self.state is State.TRACKING:
            blend_s = min(self._following.blend_s, (old.end_ns - now_ns) / NS_PER_S)
            if blend_s > 0:
                new = CrossFade(old, new, now_ns, blend_s, space, held)
        self._chunk, self._path = chunk, new
        self._jumped, self._given_up, self._blocked = None, None, False
        # What was seen stays true of an arm that stands still until its plan starts.
        self._observed_ns = min(chunk.start_ns, now_ns)

    def _cause(self, moment: Moment) -> Cause | None:
        if self._stopped is not None:
            return self._stopped
        if self._cause_not_to_move is not None:
            return self._cause_not_to_move
        if self._chunk is None:
            return self._jumped or self._given_up or Cause(Reason.NO_CHUNK, "no chunk has arrived")
        signs = self._signs(self._chunk.end_ns, self._observed_ns)
        return cause_to_hold(signs, self._timeouts, moment) or self._astray

    @property
    def _cause_not_to_move(self) -> Cause | None:
        """Whatever is planned: where the robot is not known, or it may not be."""
        if self._outside is None and self._measured is None:
            return Cause(Reason.NO_JOINTS, "no joint states have arrived")
        return self._outside

    def _cause_not_to_go_on(self, moment: Moment) -> Cause | None:
        """After a hold a chunk is gone on with where the arm is near it still, else given up."""
        assert self._path is not None and self._motion is not None
        target, here = self._path.at(moment.now_ns).position, self._motion.position
        if not np.any(self._following.beyond_jump(target, here, self._limits.space)):
            return None
        self._forget_chunks()
        return self._cause(moment)

    def _step_while_held(self, dt_s: float) -> Motion:
        """To rest, or back to where an arm is that is blocked, lest it presses on."""
        assert self._motion is not None and self._measured is not None
        if not self._yielding:
            return self._steps.towards_rest(self._motion, dt_s)
        here = np.where(self._follows_commands, self._measured, self._motion.position)
        return self._limits.step(here, np.zeros_like(self._motion.velocity), self._motion, dt_s)

    def _yields(self, moment: Moment) -> bool:
        """Since an arm that was following has been found to be blocked, until the command is where
        it is; by fresh joint states alone, of what may be the arm."""
        if self._motion is None or not self._is_fresh(moment):
            return False
        # Found while the command still comes to rest, it was blocked before.
        coming_to_rest = not self.is_at_rest or self._commanded.has_changed
        self._blocked |= self._astray is not None and coming_to_rest
        if not self._blocked or self._outside or not self._belief.holds:
            return False
        self._blocked = self._astray is not None or self._is_off(self._motion.position, _THERE_S)
        return self._blocked

    def _is_fresh(self, moment: Moment) -> bool:
        """Whether the robot was measured lately, and not before it did what is not known."""
        if self._measured_ns is None or self._measured_ns < self._unknown_ns:
            return False
        return moment.now_ns - self._measured_ns <= self._timeouts.joint_s * NS_PER_S

    def _signs(self, end_ns: int, observed_ns: int) -> Signs:
        return Signs(
            measured_ns=self._measured_ns,
            observed_ns=observed_ns,
            end_ns=end_ns,
            planner_ns=self._planner_ns,
            accepted_ns=self._accepted_ns,
            ticked_ns=None if self._ticked is None else self._ticked.steady_ns,
        )

    def _enter(self, cause: Cause | None) -> None:
        state = State.TRACKING if cause is None else State.HOLDING
        state = State.WAITING if self._measured is None else state
        state = State.STOPPED if self._stopped is not None else state
        if self.state is State.TRACKING and cause is not None:
            self.counts.holds += cause.reason is not Reason.STOPPED
            self.counts.causes[cause.reason] += 1
        before = self.cause and self.cause.reason
        if state is not self.state or (cause and cause.reason) != before:
            self.counts.transitions += 1
            self._transitions.append(Transition(state, cause, self.plan_id))
        self.state, self.cause = state, cause

    def _follow_planner(self, planner: int) -> None:
        self._planner, self._ended, self._planner_lacks = planner, None, ""
        self._newest_plan_id = 0
        # A sign of life of this one says nothing of what another one planned.
        self._forget_chunks()

    def _forget_chunks(self) -> None:
        self._chunk = self._path = self._pending = None

    @property
    def _here(self) -> np.ndarray | None:
        """Where the next command sets out from [width]: the last one, or what is measured."""
        return self._measured if self._motion is None else self._motion.position

    @property
    def _follows_commands(self) -> np.ndarray:
        """Channels that are measured where they are commanded [width]: not a gripper, which may
        hold something, and not a velocity."""
        return ~self._following.held & np.isnan(self._following.rest)

    def _found_outside(self, positions: np.ndarray) -> Cause | None:
        limits = self._limits
        outside = beyond_range(positions, limits, self._following, _AT_THE_LIMIT)
        if not np.any(outside):
            return None
        channel = int(np.argmax(outside))
        return Cause(
            Reason.OUTSIDE_LIMITS,
            f"the robot is at {positions[channel]:.4g} in channel {channel}; expected "
            f"{limits.lower[channel]:g} to {limits.upper[channel]:g}: move it there by other means",
        )

    def _is_off(self, commanded: np.ndarray, travel_s: float) -> bool:
        """Whether the arm was measured farther from a command than it travels in that time."""
        speed, space = self._limits.velocity, self._limits.space
        near = np.where(np.isfinite(speed), travel_s * speed, 0.0)
        if self._measured is None:
            return True
        apart = np.abs(space.difference(self._measured, commanded))
        return bool(np.any((apart > near) & space.of_step(self._follows_commands)))

    def _found_astray(self, measured_ns: int) -> Cause | None:
        """While a chunk is followed: an arm that is blocked would let the command run away."""
        commanded = self._commanded.at(measured_ns)
        known = measured_ns >= self._unknown_ns and not self._following.open_loop
        if commanded is None or self._measured is None or not known:
            return None
        space, following = self._limits.space, self._following
        beyond = following.beyond_jump(self._measured, commanded, space)
        beyond &= space.of_step(self._follows_commands)
        if not np.any(beyond):
            return None
        part = int(np.argmax(beyond))
        apart = abs(space.difference(self._measured, commanded)[part])
        return Cause(
            Reason.NOT_FOLLOWING,
            f"the robot does not follow: it is {apart:.4g} from where it was told to be in channel "
            f"{part}; expected at most {following.jump[part]:g}",
        )

    def _elsewhere(self, moment: Moment) -> np.ndarray | None:
        """Where an arm that is held sets off from before it goes on [width], for it was moved, or
        has stayed behind; None: from its command.

        Only by what was measured since the command rests, or goes back to the arm: before, the arm
        was on its way there.
        """
        rests = self.is_at_rest and not self._commanded.has_changed
        idle = self.state is not State.TRACKING and self._stopped is None
        if not idle or not self._is_fresh(moment) or not (rests or self._yielding):
            return None
        return self._at_measured() if self._is_elsewhere else None

    @property
    def _is_elsewhere(self) -> bool:
        motion = self._motion
        return motion is not None and (
            self._yielding or self._is_off(motion.position, _ELSEWHERE_S)
        )

    def _at_measured(self) -> np.ndarray:
        """The command, its channels that are measured where they are commanded where they are."""
        assert self._motion is not None and self._measured is not None
        return np.where(self._follows_commands, self._measured, self._motion.position)

    def _set_off_from(self, position: np.ndarray) -> None:
        self._motion, self._anew, self._astray = self._limits.at_rest(position), True, None
        self._yielding, self._blocked, self._told = False, False, None
        self._commanded.forget()

    def _watch_clock(self, moment: Moment) -> None:
        """Notice a jump of the clock before anything is done with its time."""
        leap_ns = self.clock.show(moment)
        if leap_ns is None:
            return
        # Times of before say nothing any more.
        leap_s = leap_ns / NS_PER_S
        self._jumped = Cause(Reason.CLOCK_JUMPED, f"the clock jumped by {leap_s:.3f} s")
        if self._told is not None and self._ticked is not None:
            # Where the loop paused, too, the arm has gone on by what it was told.
            paused_s = (moment.steady_ns - self._ticked.steady_ns) / NS_PER_S
            if paused_s > MAX_STEP_S:
                self._motion = self._after_pause(self._ticked, paused_s)
        self._forget_chunks()
        self._anew, self._told = True, None
        self._newest_plan_id = 0
        self._measured_ns = self._astray = None
        self._unknown_ns = 0
        self._commanded.forget()
