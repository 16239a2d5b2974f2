"""Conducts episodes over topics: gives the instruction, resets the scene, sees what happens."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time
from std_msgs.msg import String
from std_srvs.srv import Trigger

from cosmos3_ros.control.chunk import NS_PER_S, Chunk, Refusal
from cosmos3_ros.control.seams import seam
from cosmos3_ros.control.space import Space
from cosmos3_ros.msg import ActionChunk, PolicyStatus, SimState
from cosmos3_ros.nodes.chunks import chunk_from_message
from cosmos3_ros.policy.commands import command_space
from cosmos3_ros.policy.embodiment import Embodiment
from cosmos3_ros.processes import Child, Children
from cosmos3_ros.sim.scoring import EpisodeResult, Passed, result_of
from cosmos3_ros.sim.tasks import Judge, Trial
from cosmos3_ros.sim.team import CONTROL_RATE_HZ, Team

# Wall time in which a message that is due has to come, longer where simulated time is slower.
PATIENCE_S = 30.0
# How often the processes are looked at.
_CHECK_PERIOD_S = 1.0
# The controller node's entry in diagnostics.
_CONTROLLER_ENTRY = "cosmos3_controller: commands"


class Examiner(Node):
    """``conduct`` runs one episode, and ``passed`` grows with it.

    ``real_time_factor``: the simulator's. ``patience_s``: how long it waits for what is due.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        children: Children,
        team: Team,
        real_time_factor: float,
        passed: Passed,
        patience_s: float = PATIENCE_S,
    ) -> None:
        use_sim_time = Parameter("use_sim_time", value=True)
        super().__init__("cosmos3_examiner", parameter_overrides=[use_sim_time])
        self._embodiment, self._children, self._team = embodiment, children, team
        self._passed = passed
        # A faster one does not make the nodes start or plan any faster.
        self._stretch = 1 / min(1.0, real_time_factor)
        self._patience_s = patience_s
        self._space = command_space(embodiment)
        self._judge: Judge | None = None
        self._trial: Trial | None = None
        self._told, self._fault = "", ""
        # In force when plans come, as the policy node said last: now, and in the episode.
        self._strategies_now, self._strategies = set[str](), set[str]()
        self._plans = 0
        self._seam_jumps: list[float] = []
        # When the episode's states were: simulated, and on the steady clock [s].
        self._times: list[tuple[float, float]] = []
        # Chunks since activation, by reason.
        self._refused_by_policy: Counter[str] = Counter()
        self._refused_by_controller: Counter[str] = Counter()
        self._followed: Chunk | None = None

        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._instruction = self.create_publisher(String, "instruction", latched)
        self._reset = self.create_client(Trigger, "sim/reset")
        self.create_subscription(SimState, "sim/state", self._see, 50)
        self.create_subscription(PolicyStatus, "status", self._hear, latched)
        self.create_subscription(ActionChunk, "action_chunk", self._follow, 10)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._count, 10)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)

    def conduct(self, trial: Trial) -> EpisodeResult:
        """One episode. Raises ProcessFailed when a node fails or falls silent.

        Nodes report what they refused once a second: the last of it counts in the next episode.
        """
        self._judge = self._trial = None
        self._told = ""
        self._instruction.publish(String(data=trial.instruction))
        # The old scene goes on until plans are made of the new instruction.
        self._until(lambda: self._told == trial.instruction, "planned by the new instruction")
        # A request to a service that is not matched yet is lost.
        sim = self._team.sim
        self._until(self._reset.service_is_ready, "offered to reset the scene", by=sim)
        self._plans, self._followed = 0, None
        self._seam_jumps, self._times = [], []
        self._strategies = set(self._strategies_now)
        refused_before = self._refused_chunks
        self._trial, self._judge = trial, Judge(trial.task)
        answer = self._reset.call_async(Trigger.Request())
        # An answer may be lost where the simulator has not found this client yet.
        self._until(lambda: answer.done() or bool(self._times), "reset the scene", by=sim)
        judge = self._judge
        limit_s = 20 * trial.task.limit_s
        self._until(lambda: judge.verdict is not None, "brought the episode to its end", limit_s)
        (began_s, began_steady_s), (ended_s, ended_steady_s) = self._times[0], self._times[-1]
        self._passed.simulated_s += ended_s - began_s
        self._passed.steady_s += ended_steady_s - began_steady_s
        refused = self._refused_chunks - refused_before
        return result_of(trial, judge, self._plans, self._seam_jumps, refused, self._strategies)

    @property
    def _refused_chunks(self) -> Counter[str]:
        return self._refused_by_policy + self._refused_by_controller

    def _until(
        self,
        done: Callable[[], bool],
        what: str,
        timeout_s: float | None = None,
        *,
        by: Child | None = None,
    ) -> None:
        """Spin until ``done``. Raises ProcessFailed after ``timeout_s`` at real time, if not the
        usual patience: ``by``, if not the policy node, "has not" done ``what``."""
        timeout_s = (timeout_s or self._patience_s) * self._stretch
        end = time.monotonic() + timeout_s
        check = 0.0
        while not done():
            self._executor.spin_once(0.1)
            if (now := time.monotonic()) > check:
                self._children.check()
                check = now + _CHECK_PERIOD_S
            if self._fault:
                raise self._team.policy.failure(f"is in fault: {self._fault}")
            if now > end:
                late = by or self._team.policy
                raise late.failure(f"has not {what} within {timeout_s:g} s")

    def _see(self, message: SimState) -> None:
        trial, judge = self._trial, self._judge
        if trial is None or judge is None or message.episode != trial.episode:
            return
        seconds = Time.from_msg(message.header.stamp).nanoseconds / NS_PER_S
        centres = np.array([[c.x, c.y, c.z] for c in message.centres])
        self._times.append((seconds, time.monotonic()))
        judge.see(seconds, frozenset(message.touched), centres, np.array(message.distances))

    def _hear(self, status: PolicyStatus) -> None:
        self._fault = status.reason if status.state == PolicyStatus.STATE_FAULT else ""
        # How slow plans are is not known before there is one.
        self._strategies_now = {status.strategy} if status.plans else set()
        self._strategies |= self._strategies_now
        counts = map(int, status.rejected_chunk_counts)
        self._refused_by_policy = Counter(
            dict(zip(status.rejected_chunk_reasons, counts, strict=True))
        )

    def _count(self, message: DiagnosticArray) -> None:
        for entry in message.status:
            if entry.name == _CONTROLLER_ENTRY:
                values = {pair.key: pair.value for pair in entry.values}
                self._refused_by_controller = Counter(
                    {str(reason): int(values[f"rejected_{reason}"]) for reason in Refusal}
                )

    def _follow(self, message: ActionChunk) -> None:
        """What the controller hears, too."""
        self._told = message.instruction
        chunk = chunk_from_message(message, self._space)
        now_ns = self.get_clock().now().nanoseconds
        # Of the scene before a reset.
        if not self._times or chunk.stamp_ns > now_ns:
            return
        self._plans += 1
        if self._followed is not None and self._followed.stamp_ns < chunk.stamp_ns:
            space = self._space
            found = seam(
                self._followed,
                chunk,
                now_ns,
                round(NS_PER_S / CONTROL_RATE_HZ),
                space.velocity,
                Space(space.width, space.quaternions),
                ~np.isnan(space.hysteresis),
            )
            self._seam_jumps.append(found.position_s)
        self._followed = chunk
