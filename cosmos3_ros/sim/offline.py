"""Episodes without ROS: the world, the policy and the controller in one loop of simulated time.

The twin of an evaluation through the nodes, for speed: the same policy and the same controller,
called as the nodes call them. A plan takes LATENCY_S of simulated time, however long it takes to
compute; the next one begins with the first picture after that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from cosmos3_ros.control.chunk import NS_PER_S, Chunk
from cosmos3_ros.control.controller import Controller, Timeouts
from cosmos3_ros.control.limits import Limits
from cosmos3_ros.engine.backends import open_backend
from cosmos3_ros.engine.bundle import TOKENIZER, Bundle
from cosmos3_ros.policy.embodiment import Embodiment, load_embodiment
from cosmos3_ros.policy.plan import Observation, Policy, Prompt, draw_noise
from cosmos3_ros.sim.scoring import EpisodeResult, result_of, seam_jump
from cosmos3_ros.sim.tasks import Judge, Trial
from cosmos3_ros.sim.world import STEP_RATE_HZ, STEPS_PER_FRAME, World

# 60 Hz: the multiple of the physics that is nearest to the controller node's 50 Hz.
STEPS_PER_COMMAND = 3
# As the controller node's defaults.
TIMEOUTS = Timeouts(joint_timeout_s=0.25, hold_grace_s=0.1, clock_jump_s=1.0)
# From a picture's stamp to the chunk's arrival, as was seen through the nodes.
LATENCY_S = 0.06
# A clock at zero is one that has not started.
START_NS = NS_PER_S


@dataclass(frozen=True)
class Conditions:
    """``added_latency_s``: on top of LATENCY_S. ``black_cameras``: the policy sees nothing.

    ``plan_period_s``: a plan begins no sooner than this after the one before it.
    """

    added_latency_s: float = 0.0
    plan_period_s: float = 0.0
    black_cameras: bool = False


class Offline:
    """Runs episodes one after another; a context, for the engine is closed at its end.

    ``seed``: of the sampler's noise.
    """

    def __init__(
        self, bundle: Bundle, conditions: Conditions, *, threads: int = 1, seed: int = 0
    ) -> None:
        self._engine = open_backend(bundle, "onnxruntime", threads)
        contract = bundle.manifest.contract
        tokenizer = Tokenizer.from_file(str(bundle.path / TOKENIZER))
        embodiment = load_embodiment(contract.embodiment)
        self._policy = Policy(contract, embodiment, self._engine, tokenizer)
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
        return result_of(trial, judge, run.plans, run.seam_jumps)


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
        self._world, self._policy, self._prompt = world, policy, prompt
        self._conditions, self._rng = conditions, rng
        robot = policy.embodiment
        self._controller = Controller(Limits(robot.lower, robot.upper, robot.velocity), TIMEOUTS)
        self._steps = 0
        self._coming: tuple[int, Chunk] | None = None  # when it arrives, and what
        self._followed: Chunk | None = None
        self._next_plan_ns = 0

    @property
    def seconds(self) -> float:
        """Simulated, since the episode began."""
        return self._steps / STEP_RATE_HZ

    def advance(self) -> frozenset[str]:
        """To the next camera picture; the cubes that were touched meanwhile."""
        touched: frozenset[str] = frozenset()
        for _ in range(STEPS_PER_FRAME):
            now_ns = START_NS + self._steps * NS_PER_S // STEP_RATE_HZ
            if self._steps % STEPS_PER_FRAME == 0:
                self._plan(now_ns)
            self._deliver(now_ns)
            if self._steps % STEPS_PER_COMMAND == 0:
                self._command(now_ns)
            self._world.step()
            self._steps += 1
            touched |= self._world.contacts
        return touched

    def _plan(self, now_ns: int) -> None:
        if self._coming is not None or now_ns < self._next_plan_ns:
            return
        conditions, policy = self._conditions, self._policy
        pictures = {view.name: self._world.frame(view.name) for view in policy.embodiment.cameras}
        if conditions.black_cameras:
            pictures = {name: np.zeros_like(picture) for name, picture in pictures.items()}
        seen = Observation(pictures, channels_of(self._world, policy.embodiment))
        plan = policy.plan(seen, self._prompt, draw_noise(policy.contract, self._rng))
        self.plans += 1
        chunk = Chunk(self.plans, now_ns, policy.contract.fps, plan.rows)
        latency_s = LATENCY_S + conditions.added_latency_s
        self._coming = now_ns + round(latency_s * NS_PER_S), chunk
        self._next_plan_ns = now_ns + round(conditions.plan_period_s * NS_PER_S)

    def _deliver(self, now_ns: int) -> None:
        if self._coming is None or now_ns < self._coming[0]:
            return
        chunk = self._coming[1]
        self._coming = None
        if self._followed is not None:
            speed = self._policy.embodiment.velocity
            self.seam_jumps.append(seam_jump(self._followed, chunk, now_ns, speed))
        self._followed = chunk
        self._controller.accept(chunk, now_ns)

    def _command(self, now_ns: int) -> None:
        robot = self._policy.embodiment
        self._controller.measure(channels_of(self._world, robot), now_ns, now_ns)
        command = self._controller.tick(now_ns)
        if command is not None:
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
