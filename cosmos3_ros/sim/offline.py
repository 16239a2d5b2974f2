"""Episodes without ROS: the world, the policy and the controller in one loop of simulated time.

The twin of an evaluation through the nodes, for speed: the same policy and the same controller,
called as the nodes call them. A plan takes LATENCY_S of simulated time, however long it takes to
compute; the next one begins as soon as it may, with the newest picture that no plan has had.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from cosmos3_ros.control.admission import Following
from cosmos3_ros.control.chunk import NS_PER_S, Chunk, ChunkRefused
from cosmos3_ros.control.controller import Controller, State
from cosmos3_ros.control.limits import Limits
from cosmos3_ros.control.overlap import Heard, Overlap, Strategy
from cosmos3_ros.control.seams import seam
from cosmos3_ros.control.space import Space
from cosmos3_ros.control.watchdog import Moment, Timeouts
from cosmos3_ros.engine.backends import open_backend
from cosmos3_ros.engine.bundle import TOKENIZER, Bundle
from cosmos3_ros.policy.embodiment import Embodiment
from cosmos3_ros.policy.plan import Observation, Plan, Policy, Prompt, draw_noise
from cosmos3_ros.sim.scoring import EpisodeResult, result_of
from cosmos3_ros.sim.tasks import Judge, Trial
from cosmos3_ros.sim.team import require_arm
from cosmos3_ros.sim.world import STEP_RATE_HZ, STEPS_PER_FRAME, World

# 60 Hz: the multiple of the physics that is nearest to the controller node's 50 Hz.
STEPS_PER_COMMAND = 3
COMMAND_NS = STEPS_PER_COMMAND * NS_PER_S // STEP_RATE_HZ
FRAME_NS = STEPS_PER_FRAME * NS_PER_S // STEP_RATE_HZ
# As the controller node's defaults.
TIMEOUTS = Timeouts()
BLEND_S = 0.2
# From a picture's stamp to the chunk's arrival, as was seen through the nodes.
LATENCY_S = 0.06
# A clock at zero is one that has not started.
START_NS = NS_PER_S


@dataclass(frozen=True)
class Conditions:
    """``added_latency_s``: on top of LATENCY_S. ``black_cameras``: the policy sees nothing.

    ``plan_rate_hz``, ``strategy`` and ``state_ahead``: as the policy node's parameters.
    """

    plan_rate_hz: float = 0.0
    added_latency_s: float = 0.0
    strategy: Strategy = Strategy.BLEND
    state_ahead: bool = False
    black_cameras: bool = False


class Offline:
    """Runs episodes one after another; a context, for the engine is closed at its end.

    ``seed``: of the sampler's noise. Raises AnotherRobot for a bundle of one.
    """

    def __init__(
        self, bundle: Bundle, conditions: Conditions, *, threads: int = 1, seed: int = 0
    ) -> None:
        embodiment = require_arm(bundle)
        self._engine = open_backend(bundle, "onnxruntime", threads)
        tokenizer = Tokenizer.from_file(str(bundle.path / TOKENIZER))
        self._policy = Policy(bundle.manifest.contract, embodiment, self._engine, tokenizer)
        self._world = World()
        self._conditions = conditions
        self._rng = np.random.default_rng(seed)
        self._prompt: Prompt | None = None

    def __enter__(self) -> Offline:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def episodes(self, trials: Iterable[Trial]) -> Iterator[EpisodeResult]:
        """The results of trials, one by one."""
        for trial in trials:
            yield self._episode(trial)

    def _episode(self, trial: Trial) -> EpisodeResult:
        if self._prompt is None or self._prompt.instruction != trial.instruction:
            self._prompt = self._policy.prefill(trial.instruction)
        self._world.reset(trial.seed, trial.episode)
        judge = Judge(trial.task)
        run = _Run(self._world, self._policy, self._prompt, self._conditions, self._rng)
        while judge.verdict is None:
            touched = run.advance()
            world = self._world
            judge.see(run.seconds, touched, world.cubes, world.cube_distances)
        return result_of(
            trial, judge, run.plans, run.seam_jumps, run.refused_chunks, run.strategies
        )


@dataclass(frozen=True)
class _Seen:
    """Pictures by camera, and channels [width] of the same moment."""

    stamp_ns: int
    pictures: dict[str, np.ndarray]
    state: np.ndarray


class _Run:
    """One episode's clock, planner and controller."""

    def __init__(
        self,
        world: World,
        policy: Policy,
        prompt: Prompt,
        conditions: Conditions,
        rng: np.random.Generator,
    ) -> None:
        self.plans = 0
        self.seam_jumps: list[float] = []
        self.refused_chunks: Counter[str] = Counter()
        self.strategies: set[Strategy] = set()
        self._world, self._policy, self._prompt = world, policy, prompt
        self._conditions, self._rng = conditions, rng
        robot = policy.embodiment
        limits = Limits(
            Space(robot.width), robot.lower, robot.upper, robot.velocity, robot.acceleration
        )
        following = Following(
            robot.hysteresis, robot.jump, np.full(robot.width, np.nan), blend_s=BLEND_S
        )
        contract = policy.contract
        period_s = 1 / conditions.plan_rate_hz if conditions.plan_rate_hz > 0 else 0.0
        self._period_ns = round(period_s * NS_PER_S)
        self._overlap = Overlap(
            conditions.strategy,
            contract.chunk,
            contract.fps,
            limits.space,
            following.held,
            period_s,
        )
        self._motion = robot.velocity, limits.space, following.held
        self._controller = Controller(limits, following, TIMEOUTS)
        self._steps = 0
        self._seen: _Seen | None = None  # the newest, until a plan is made of it
        self._coming: tuple[int, Plan, int] | None = None  # when it arrives, what, and its stamp
        self._due_ns = 0  # no plan before this
        self._starts_ns = 0  # not before this does the plan under way
        self._heard = 0  # the newest plan that has come to the controller
        self._followed: Chunk | None = None

    @property
    def seconds(self) -> float:
        """Simulated, since the episode began."""
        return self._steps / STEP_RATE_HZ

    def advance(self) -> frozenset[str]:
        """To the next camera picture; the cubes that were touched meanwhile."""
        touched: frozenset[str] = frozenset()
        for _ in range(STEPS_PER_FRAME):
            now_ns = START_NS + self._steps * NS_PER_S // STEP_RATE_HZ
            # The nodes see the scene first a frame after it was set up.
            if self._steps and self._steps % STEPS_PER_FRAME == 0:
                self._see(now_ns)
            self._deliver(now_ns)
            self._plan(now_ns)
            if self._steps % STEPS_PER_COMMAND == 0:
                self._command(now_ns)
            self._world.step()
            self._steps += 1
            touched |= self._world.contacts
        return touched

    def _see(self, now_ns: int) -> None:
        """Render what the next plan is made of; nothing where another picture comes before it."""
        free_ns = max(self._due_ns, now_ns if self._coming is None else self._coming[0])
        if free_ns >= now_ns + FRAME_NS or not self._overlap.may_begin(now_ns):
            return
        robot = self._policy.embodiment
        pictures = {view.name: self._world.frame(view.name) for view in robot.cameras}
        if self._conditions.black_cameras:
            pictures = {name: np.zeros_like(picture) for name, picture in pictures.items()}
        self._seen = _Seen(now_ns, pictures, channels_of(self._world, robot))

    def _plan(self, now_ns: int) -> None:
        seen = self._seen
        if self._coming is not None or seen is None or now_ns < self._due_ns:
            return
        if not self._overlap.may_begin(seen.stamp_ns):
            return
        self._seen, self._due_ns = None, now_ns + self._period_ns
        self._overlap.begin(seen.stamp_ns)
        conditions, policy = self._conditions, self._policy
        ahead = self._overlap.arrival(seen.stamp_ns) if conditions.state_ahead else None
        state = seen.state if ahead is None else ahead.state
        self._starts_ns = 0 if ahead is None else ahead.at_ns
        noise = draw_noise(policy.contract, self._rng)
        committed = self._overlap.committed(seen.stamp_ns)
        known = (committed.rows, committed.continuation) if committed else (None, None)
        plan = policy.plan(Observation(seen.pictures, state), self._prompt, noise, *known)
        latency_s = LATENCY_S + conditions.added_latency_s
        self._coming = now_ns + round(latency_s * NS_PER_S), plan, seen.stamp_ns

    def _deliver(self, now_ns: int) -> None:
        if self._coming is None or now_ns < self._coming[0]:
            return
        _, plan, stamp_ns = self._coming
        self._coming = None
        start_ns = max(self._overlap.arrived(stamp_ns, now_ns), self._starts_ns)
        self.strategies.add(self._overlap.strategy)
        chunk = Chunk(
            self.plans + 1,
            stamp_ns,
            self._policy.contract.fps,
            plan.rows,
            start_ns,
            committed_rows=plan.committed_rows,
        )
        if chunk.end_ns < now_ns:
            self.refused_chunks["late"] += 1
            return
        self.plans += 1
        self._overlap.published(chunk)
        self._heard = chunk.plan_id
        if self._followed is not None:
            speed, space, held = self._motion
            self.seam_jumps.append(
                seam(self._followed, chunk, now_ns, COMMAND_NS, speed, space, held).position_s
            )
        self._followed = chunk
        try:
            self._controller.accept(chunk, Moment(now_ns, now_ns))
        except ChunkRefused as refused:
            self.refused_chunks[refused.reason] += 1

    def _command(self, now_ns: int) -> None:
        robot = self._policy.embodiment
        moment = Moment(now_ns, now_ns)
        self._controller.measure(channels_of(self._world, robot), now_ns, moment)
        command = self._controller.tick(moment)
        if command is None:
            return
        tracked = self._controller.plan_id if command.state is State.TRACKING else 0
        self._overlap.hear(Heard(tracked, self._heard))
        self._world.command(joints_of(command.positions, robot))


def channels_of(world: World, robot: Embodiment) -> np.ndarray:
    """What the world's joints measure, as the robot's channels [width]."""
    channels = world.positions.copy()
    if robot.gripper is not None:
        channels[-1] = robot.gripper.closedness(float(channels[-1]))
    return channels


def joints_of(channels: np.ndarray, robot: Embodiment) -> dict[str, float]:
    """Channels [width] as positions by joint name [rad; gripper m]."""
    named = dict(zip(robot.joints, channels.tolist(), strict=False))
    if robot.gripper is not None:
        named[robot.gripper.joint] = robot.gripper.joint_position(float(channels[-1]))
    return named
