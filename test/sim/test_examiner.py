"""The examiner notices a policy that fails, and what the nodes refuse."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

import rclpy
from geometry_msgs.msg import Point
from rclpy.clock import Clock, ClockType
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_srvs.srv import Trigger

from cosmos3_ros.control.chunk import NS_PER_S, Chunk, Refusal
from cosmos3_ros.msg import ActionChunk, PolicyStatus, SimState
from cosmos3_ros.nodes.chunks import message_from_chunk
from cosmos3_ros.policy.commands import command_space
from cosmos3_ros.policy.embodiment import load_embodiment
from cosmos3_ros.processes import Children, ProcessFailed, ros_environment
from cosmos3_ros.sim.examiner import Examiner
from cosmos3_ros.sim.scoring import Passed
from cosmos3_ros.sim.tasks import draw_trials
from cosmos3_ros.sim.team import Team, start_node

ROBOT = load_embodiment("pico_panda")
(TRIAL,) = draw_trials("touch", 1, seed=5)
PATIENCE_S = 2.0
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture
def children(ros_domain_id: int, tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path / "logs", ros_environment(ros_domain_id)) as children:
        yield children


@pytest.fixture
def examiner(
    ros_domain_id: int, children: Children, request: pytest.FixtureRequest
) -> Iterator[Examiner]:
    """With a team that does nothing but be there; its parameter is the simulator's factor."""
    team = Team(*(children.start(name, "sleep", "60") for name in ("sim", "policy", "controller")))
    rclpy.init(domain_id=ros_domain_id)
    examiner = Examiner(ROBOT, children, team, getattr(request, "param", 1.0), Passed(), PATIENCE_S)
    yield examiner
    examiner.destroy_node()
    rclpy.shutdown()


def until(examiner: Examiner, done: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    end_s = time.monotonic() + timeout_s
    while not done() and time.monotonic() < end_s:
        rclpy.spin_once(examiner, timeout_sec=0.05)
    return done()


def test_a_policy_in_fault_ends_the_episode_with_its_reason(examiner: Examiner) -> None:
    publisher = examiner.create_publisher(PolicyStatus, "status", LATCHED)
    publisher.publish(PolicyStatus(state=PolicyStatus.STATE_FAULT, reason="the engine is gone"))
    with pytest.raises(ProcessFailed, match="^policy is in fault: the engine is gone; the end of"):
        examiner.conduct(TRIAL)


def test_a_policy_that_says_nothing_ends_the_episode(examiner: Examiner) -> None:
    with pytest.raises(ProcessFailed, match="^policy has not planned by the new instruction with"):
        examiner.conduct(TRIAL)


@pytest.mark.parametrize(
    ("examiner", "patience_s"), [(0.5, 2 * PATIENCE_S), (20.0, PATIENCE_S)], indirect=["examiner"]
)
def test_it_waits_longer_for_a_slow_simulation_and_no_less_long_for_a_fast_one(
    examiner: Examiner, patience_s: float
) -> None:
    with pytest.raises(ProcessFailed, match=f"within {patience_s:g} s"):
        examiner.conduct(TRIAL)


def test_an_answer_to_the_reset_that_is_lost_is_not_waited_for(examiner: Examiner) -> None:
    other = rclpy.create_node("simulator")
    other.create_service(Trigger, "sim/reset", lambda _, answer: answer)  # asked, and never spun
    chunks = examiner.create_publisher(ActionChunk, "action_chunk", 10)
    states = examiner.create_publisher(SimState, "sim/state", 10)
    rows = np.zeros((16, ROBOT.width))
    chunk = Chunk(1, NS_PER_S, ROBOT.rate_hz or 0.0, rows, NS_PER_S, instruction=TRIAL.instruction)
    state = SimState(episode=TRIAL.episode, touched=[TRIAL.task.colour])
    state.centres, state.distances = [Point()] * 3, [0.1] * 3

    def speak() -> None:
        chunks.publish(message_from_chunk(chunk, command_space(ROBOT)))
        states.publish(state)

    timer = examiner.create_timer(0.05, speak, clock=Clock(clock_type=ClockType.STEADY_TIME))
    assert examiner.conduct(TRIAL).verdict == "success"
    timer.cancel()
    other.destroy_node()


def test_how_plans_follow_each_other_is_heard_once_there_are_plans(examiner: Examiner) -> None:
    statuses = examiner.create_publisher(PolicyStatus, "status", LATCHED)
    fault = PolicyStatus.STATE_FAULT  # to see that it was heard
    for plans, strategy in ((0, "blend"), (1, "sync")):
        said = PolicyStatus(state=fault, reason=strategy, plans=plans, strategy=strategy)
        statuses.publish(said)
        assert until(examiner, lambda heard=strategy: examiner._fault == heard)
    assert examiner._strategies == {"sync"}


def test_what_the_nodes_refuse_is_counted_by_reason(examiner: Examiner, children: Children) -> None:
    start_node(children, "controller_node", "nodes", {"embodiment": ROBOT.name})
    children.wait(
        children.start_module("bringup", "cosmos3_ros.nodes.bringup", "cosmos3_controller"), 120.0
    )
    stamp_ns = time.time_ns() + 3600 * NS_PER_S
    chunk = Chunk(1, stamp_ns, ROBOT.rate_hz or 0.0, np.zeros((16, ROBOT.width)), stamp_ns)
    chunks = examiner.create_publisher(ActionChunk, "action_chunk", 10)
    assert until(examiner, lambda: chunks.get_subscription_count() == 2)
    chunks.publish(message_from_chunk(chunk, command_space(ROBOT)))
    statuses = examiner.create_publisher(PolicyStatus, "status", LATCHED)
    statuses.publish(PolicyStatus(rejected_chunk_reasons=["late"], rejected_chunk_counts=[2]))
    expected = {Refusal.FUTURE: 1, "late": 2}
    assert until(examiner, lambda: examiner._refused_chunks == expected), examiner._refused_chunks
