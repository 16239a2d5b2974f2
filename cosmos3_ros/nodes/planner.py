"""The planning thread: newest observation in, one chunk out, as often as the engine is free."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from cosmos3_ros.control.chunk import NS_PER_S, Chunk
from cosmos3_ros.control.overlap import Committed, Heard, Overlap
from cosmos3_ros.nodes.images import ImageError
from cosmos3_ros.nodes.observer import Observer, Refusal
from cosmos3_ros.nodes.worker import Worker
from cosmos3_ros.policy.commands import CommandSpace
from cosmos3_ros.policy.plan import Plan, PlanError, Policy, Prompt, draw_noise
from cosmos3_ros.policy.prompt import PromptError

LATENCIES_KEPT = 200
_LOOK_PERIOD_S = 0.05


@dataclass(frozen=True)
class StampedPlan:
    """A plan, and the chunk that the controller gets of it."""

    chunk: Chunk
    plan: Plan


@dataclass(frozen=True)
class PlannerStatus:
    """``fault``: why planning has ended for good. ``waiting``: why there is no plan right now.

    ``prompted``: the instruction is one the policy can follow. ``picture_ns``: stamp of the newest
    picture, ``last_stamp_ns``: of the last that was planned from. ``strategy``: the one in force.
    ``degraded``: why that is not the one asked for.
    """

    instruction: str
    prompted: bool
    fault: str
    waiting: str
    plans: int
    observations: int
    picture_ns: int | None
    last_stamp_ns: int | None
    latencies_s: tuple[float, ...]
    rejected_observations: dict[str, int]
    rejected_chunks: dict[str, int]
    strategy: str
    degraded: str


class Planner(Worker):
    """Runs the policy off the executor's thread. A plan under way when it is stopped is dropped.

    ``publish`` is called on the planning thread with each plan, ``refuse`` with each refusal (the
    word it is counted under, and the sentence), ``fail`` with what ended planning for good.
    ``now_ns`` is the node's clock. ``planner``: the number that its chunks are under.
    """

    def __init__(
        self,
        planner: int,
        policy: Policy,
        commands: CommandSpace,
        observer: Observer,
        overlap: Overlap,
        now_ns: Callable[[], int],
        publish: Callable[[StampedPlan], None],
        refuse: Callable[[str, str], None],
        fail: Callable[[str], None],
        seed: int,
        plan_rate_hz: float,
        added_latency_s: float,
        state_ahead: bool,
    ) -> None:
        """``plan_rate_hz``: at most so many plans a second of the node's clock, but at once by
        another instruction or when the clock has jumped; 0: as soon as the engine is free.
        ``added_latency_s``: each plan takes so much longer than it does. ``state_ahead``: plan from
        where the arm will be when the plan arrives, not from where it is.

        ``seed``: of the noise; negative: another noise each run.
        """
        super().__init__("planner")
        self._id = planner
        self._policy, self._commands = policy, commands
        self._observer, self._overlap = observer, overlap
        self._now_ns, self._publish = now_ns, publish
        self._refuse, self._fail = refuse, fail
        self._rng = np.random.default_rng(seed if seed >= 0 else None)
        self._period_ns = round(NS_PER_S / plan_rate_hz) if plan_rate_hz > 0 else 0
        self._added_latency_s, self._state_ahead = added_latency_s, state_ahead
        self._instruction: str | None = None
        self._prompted_for: str | None = None
        self._prompt: Prompt | None = None
        self._tried: int | None = None
        self._last_stamp: int | None = None
        self._jumps = 0  # of the clock: what began before one is of another time
        self._due_ns = 0  # no plan before this, by the node's clock
        self._free_ns = 0  # when the engine had done its last work, by the node's clock
        self._engine_s = 0.0  # how long that took
        self._fault, self._waiting = "", "no instruction has arrived"
        self._plans = self._observations = 0
        self._latencies: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._rejected_observations: Counter[str] = Counter()
        self._rejected_chunks: Counter[str] = Counter()

    def update(self, change: Callable[[Observer], None], wake: bool = False) -> None:
        """Apply a message to the observer, under the lock; ``wake``: it may complete one."""
        with self.changed:
            change(self._observer)
            if wake:
                self.changed.notify_all()

    def forget(self) -> None:
        """The clock jumped: what was observed before it counts no longer."""
        with self.changed:
            self._observer.clear()
            self._overlap.forget()
            self._tried = self._last_stamp = None
            self._due_ns = self._free_ns = 0
            self._jumps += 1
            self.changed.notify_all()

    def hear(self, heard: Heard) -> None:
        """What the controller says of the chunks it got."""
        with self.changed:
            self._overlap.hear(heard)

    def instruct(self, instruction: str) -> None:
        """A new instruction. An empty one is refused, and ends planning until the next."""
        with self.changed:
            self._instruction = instruction
            if instruction != self._prompted_for:
                self._prompt = self._prompted_for = None
                self._waiting = "the instruction is being read"
            self.changed.notify_all()

    def status(self) -> PlannerStatus:
        with self.changed:
            return PlannerStatus(
                instruction=self._instruction or "",
                prompted=self._prompt is not None,
                fault=self._fault,
                waiting=self._waiting,
                plans=self._plans,
                observations=self._observations,
                picture_ns=self._observer.progress(),
                last_stamp_ns=self._last_stamp,
                latencies_s=tuple(self._latencies),
                rejected_observations=dict(self._rejected_observations),
                rejected_chunks=dict(self._rejected_chunks),
                strategy=self._overlap.strategy,
                degraded=self._overlap.degraded,
            )

    def work(self) -> None:
        try:
            while self._wait_for_work():
                if self._instruction is not None and self._instruction != self._prompted_for:
                    self._prefill(self._instruction)
                else:
                    self._plan()
        except Exception as error:  # the engine failed: say so, and leave the arm to the controller
            with self.changed:
                self._fault = f"{type(error).__name__}: {error}"
            self._fail(f"planning has ended: {self._fault}; deactivate and activate the node again")

    def _wait_for_work(self) -> bool:
        """Wait for another instruction or, once there is a prompt and a plan due, a picture."""
        with self.changed:
            while not self.stopping:
                if self._instruction != self._prompted_for:
                    return True
                progress = self._observer.progress()
                rest_s: float | None = None
                if self._prompt is not None and progress not in (None, self._tried):
                    rest_s = (self._due_ns - self._now_ns()) / NS_PER_S
                    if rest_s <= 0:
                        return True
                    # Simulated time may pass faster; the next picture wakes this, too.
                    rest_s = min(rest_s, _LOOK_PERIOD_S)
                self.changed.wait(rest_s)
        return False

    def _prefill(self, instruction: str) -> None:
        """Text is prefilled when the instruction changes, not each plan."""
        try:
            prompt = self._policy.prefill(instruction)
        except PromptError as error:
            prompt = None
            self._reject(self._rejected_observations, "instruction", str(error))
        with self.changed:
            self._prompt, self._prompted_for = prompt, instruction
            self._due_ns = 0
            if prompt is not None:
                self._waiting = "no observation has arrived"

    def _plan(self) -> None:
        started = time.monotonic()
        with self.changed:
            prompt = self._prompt
            if prompt is None:
                return  # another instruction came meanwhile
            self._tried, jumps = self._observer.progress(), self._jumps
            started_ns = self._now_ns()
            observer = self._observer.snapshot()
        try:
            stamped = observer.observe(self._now_ns())
        except (Refusal, ImageError) as error:
            self._reject(self._rejected_observations, error.reason, str(error))
            return
        with self.changed:
            overlap = self._overlap
            if self._jumps != jumps or not overlap.may_begin(stamped.stamp_ns):
                return
            self._observations += 1
            self._last_stamp = stamped.stamp_ns
            self._due_ns = started_ns + self._period_ns
            overlap.begin(stamped.stamp_ns)
            committed = overlap.committed(stamped.stamp_ns)
            ahead = overlap.arrival(stamped.stamp_ns) if self._state_ahead else None
        contract, observation = self._policy.contract, stamped.observation
        if ahead is not None:
            observation = replace(observation, state=ahead.state)
        poses = observation.poses
        known = self._in_model_rows(committed, poses)
        # While it waited, the engine worked on the plan before for no longer than it took.
        waited_s = max(self._free_ns - stamped.stamp_ns, 0) / NS_PER_S
        waited_s = min(waited_s, self._engine_s)
        try:
            noise = draw_noise(contract, self._rng)
            plan = self._policy.plan(observation, prompt, noise, *known)
        except PlanError as error:
            self._reject(self._rejected_chunks, "not_finite", str(error))
            return
        self.rest_until(time.monotonic() + self._added_latency_s, lambda: self._jumps == jumps)
        self._engine_s = plan.engine_s + self._added_latency_s
        latency_s = time.monotonic() - started
        now_ns = self._free_ns = self._now_ns()
        with self.changed:
            if self._jumps != jumps or now_ns < started_ns:
                return  # the clock jumped back meanwhile: the plan is of another time
            start_ns = overlap.arrived(stamped.stamp_ns, now_ns)
        if ahead is not None:
            start_ns = max(start_ns, ahead.at_ns)
        age_s = (now_ns - start_ns) / NS_PER_S
        if age_s > contract.chunk / contract.fps:
            self._reject(
                self._rejected_chunks,
                "late",
                f"plan is {age_s:.3f} s behind its observation, its {contract.chunk} rows span "
                f"{contract.chunk / contract.fps:.3f} s; use fewer steps or a faster engine",
            )
            return
        with self.changed:
            # Ended, another instruction, or a jump of the clock: the plan is of another time.
            if self.stopping or self._prompt is not prompt or self._jumps != jumps:
                return
            self._plans += 1
            self._latencies.append(latency_s)
            self._waiting = ""
            chunk = Chunk(
                plan_id=self._plans,
                stamp_ns=stamped.stamp_ns,
                rate_hz=contract.fps,
                rows=self._commands.commands(plan.rows, poses),
                start_ns=start_ns,
                planner=self._id,
                instruction=prompt.instruction,
                committed_rows=plan.committed_rows,
                latency_s=latency_s,
                engine_s=waited_s + self._engine_s,
            )
            overlap.published(chunk)
        self._publish(StampedPlan(chunk, plan))

    def _in_model_rows(
        self, committed: Committed | None, poses: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Committed rows and their continuation as rows of the plan, from ``poses`` on."""
        if committed is None:
            return None, None
        commands = np.concatenate([committed.rows, committed.continuation])
        rows = self._commands.model_rows(commands, poses)
        count = len(committed.rows)
        return rows[:count], rows[count:]

    def _reject(self, counter: Counter[str], reason: str, message: str) -> None:
        with self.changed:
            counter[reason] += 1
            self._waiting = message
        self._refuse(reason, message)
