"""The policy node in time: rates, latency, clocks that jump, instructions that change in a plan."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from policy_world import SimulatedTime, World

from cosmos3_ros.msg import PolicyStatus
from cosmos3_ros.nodes.controller_parameters import ControllerParameters
from cosmos3_ros.nodes.parameters import parameter_rows
from cosmos3_ros.policy.program import PLAN


def test_a_controller_takes_no_time_out_that_a_living_policy_node_runs_into(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.activate()
    world.until(lambda: len(world.statuses) > 4, "statuses came, of a node that only waits")
    stamps = (status.header.stamp for status in world.statuses)
    stamps_s = [stamp.sec + stamp.nanosec / 1e9 for stamp in stamps]
    (row,) = (r for r in parameter_rows(ControllerParameters) if r.name == "planner_timeout_s")
    assert row.minimum is not None
    assert row.minimum > 1.5 * float(np.median(np.diff(stamps_s))), "one may be late"


def test_the_plan_rate_is_held(make_world: Callable[..., World]) -> None:
    world = make_world(plan_rate_hz=2.0)
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(lambda: bool(world.chunks), "a chunk came")
    start, before = time.monotonic(), len(world.chunks)
    world.send_until(lambda: time.monotonic() - start > 2.0, "two seconds went by")
    assert 2 <= len(world.chunks) - before <= 5


def test_the_plan_rate_is_of_the_nodes_clock(make_world: Callable[..., World]) -> None:
    world = make_world(use_sim_time=True, plan_rate_hz=2.0)
    world.activate()
    world.instruct("touch the red cube")
    SimulatedTime(world).run(100.0, lambda: len(world.chunks) > 4, "chunks came, slowly")
    stamps = [chunk.header.stamp for chunk in world.chunks]
    # Simulated time comes in steps of 0.07 s that take longer.
    periods_s = np.diff([stamp.sec + stamp.nanosec / 1e9 for stamp in stamps])
    assert periods_s.min() > 0.42, periods_s


def test_a_new_instruction_is_planned_at_once_however_low_the_plan_rate(
    make_world: Callable[..., World],
) -> None:
    world = make_world(plan_rate_hz=0.05)
    world.activate()
    for instruction in ("touch the red cube", "touch the green cube"):
        world.instruct(instruction)
        world.send_until(
            lambda told=instruction: any(c.instruction == told for c in world.chunks), instruction
        )
    assert len(world.chunks) == 2


def test_what_is_refused_is_no_plan_to_wait_after(make_world: Callable[..., World]) -> None:
    world = make_world(plan_rate_hz=0.05)
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(
        lambda: world.rejected("camera_stale") > 0, "refusals", lambda: world.send(age_s=2.0)
    )
    world.send_until(lambda: bool(world.chunks), "a chunk came")


def test_added_latency_is_latency(make_world: Callable[..., World]) -> None:
    world = make_world(added_latency_s=0.6)
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(lambda: len(world.chunks) >= 2, "two chunks came")
    assert all(chunk.plan_latency > 0.6 for chunk in world.chunks)
    stamps = [chunk.header.stamp.sec + chunk.header.stamp.nanosec / 1e9 for chunk in world.chunks]
    assert np.diff(stamps).min() > 0.6, "one plan at a time"


def test_plans_go_on_after_the_clock_has_jumped_back(make_world: Callable[..., World]) -> None:
    world = make_world(use_sim_time=True)
    world.activate()
    world.instruct("touch the red cube")
    robot = SimulatedTime(world)
    robot.run(100.0, lambda: bool(world.chunks), "a chunk came")
    assert world.chunks[0].header.stamp.sec >= 100
    planned = len(world.chunks)
    robot.run(5.0, lambda: len(world.chunks) > planned + 1, "plans came after the jump")
    assert world.chunks[-1].header.stamp.sec < 100


def test_a_clock_that_jumps_back_drops_what_was_seen_before(
    make_world: Callable[..., World],
) -> None:
    world = make_world(use_sim_time=True)
    world.activate()
    world.instruct("touch the red cube")
    robot = SimulatedTime(world)
    robot.run(100.0, lambda: bool(world.chunks), "a chunk came")
    # Joint states of before the jump are forgotten: they are missing, not merely old.
    robot.run(5.0, lambda: world.rejected("joints_missing") > 0, "refusals", joints_too=False)
    assert world.rejected("joints_stale") == 0


def test_a_clock_that_is_set_back_drops_what_was_seen_before(
    make_world: Callable[..., World], capfd: pytest.CaptureFixture[str]
) -> None:
    """Of a system's clock ROS says nothing."""
    world = make_world()
    behind_ns, now_ns = [0], world.policy.now_ns
    world.policy.now_ns = lambda: now_ns() - behind_ns[0]  # type: ignore[method-assign]
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(lambda: bool(world.chunks), "a chunk came")
    behind_ns[0] = 30 * 10**9
    world.send_until(
        lambda: "the clock jumped back" in capfd.readouterr().err,
        "it is said",
        lambda: world.send(age_s=30.0),
    )
    before = len(world.chunks)
    world.send_until(
        lambda: len(world.chunks) > before, "plans go on", lambda: world.send(age_s=30.0)
    )


def test_a_low_plan_rate_is_no_camera_that_has_stopped(make_world: Callable[..., World]) -> None:
    world = make_world(plan_rate_hz=0.2, observation_max_age_s=2.0)
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(lambda: world.says(PolicyStatus.STATE_PLANNING), "it plans")
    since = len(world.statuses)
    world.send_until(lambda: len(world.statuses) >= since + 5, "more was said")
    assert {status.state for status in world.statuses[since:]} == {PolicyStatus.STATE_PLANNING}


def test_a_bag_that_loops_onto_the_same_stamp_is_planned_again(
    make_world: Callable[..., World],
) -> None:
    world = make_world(use_sim_time=True)
    world.activate()
    world.instruct("touch the red cube")
    robot = SimulatedTime(world)
    robot.run(100.0, lambda: bool(world.chunks), "a chunk came")
    world.until(lambda: len(world.chunks) > 0, "the plan is out")
    time.sleep(0.5)
    planned, stamp = len(world.chunks), world.chunks[-1].header.stamp
    last = stamp.sec + stamp.nanosec / 1e9

    def loop() -> None:
        robot.at(last + 0.05, picture_too=False)
        robot.at(last - 0.05, picture_too=False)
        robot.at(last)
        time.sleep(0.3)

    world.send_until(lambda: len(world.chunks) > planned, "the same stamp was planned again", loop)
    assert world.chunks[-1].header.stamp == stamp


def waiting_plans(world: World) -> tuple[threading.Event, threading.Event]:
    """Have every plan wait in its middle; the events: one has begun, and they may go on."""
    engine, begun, go_on = world.policy._policy._engine, threading.Event(), threading.Event()
    run = engine.run

    def wait_in_a_plan(program: str) -> None:
        if program == PLAN:
            begun.set()
            go_on.wait(10)
        run(program)

    engine.run = wait_in_a_plan
    return begun, go_on


def test_a_plan_that_is_under_way_when_the_instruction_changes_is_dropped(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.activate()
    begun, go_on = waiting_plans(world)
    world.instruct("touch the red cube")
    world.send_until(begun.is_set, "a plan is under way")
    world.instruct("touch the green cube")
    world.until(
        lambda: world.policy._planner.status().instruction == "touch the green cube", "it is heard"
    )
    go_on.set()
    world.send_until(lambda: bool(world.chunks), "a chunk came")
    assert {chunk.instruction for chunk in world.chunks} == {"touch the green cube"}


def test_an_instruction_that_is_taken_back_within_a_plan_is_followed_again(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.activate()
    begun, go_on = waiting_plans(world)
    world.instruct("touch the red cube")
    world.send_until(begun.is_set, "a plan is under way")
    told = world.policy._planner.status
    world.instruct("touch the green cube")
    world.until(lambda: told().instruction == "touch the green cube", "it is heard")
    world.instruct("touch the red cube")
    world.until(lambda: told().instruction == "touch the red cube", "it is taken back")
    go_on.set()
    world.send_until(lambda: bool(world.chunks), "a chunk came")
    assert world.chunks[-1].instruction == "touch the red cube"


def test_an_instruction_that_comes_while_the_planner_rests_ends_nothing(
    make_world: Callable[..., World],
) -> None:
    world = make_world(plan_rate_hz=1.0)
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(lambda: bool(world.chunks), "a chunk came")
    for text in ("touch the green cube", "", "touch the blue cube"):
        world.send()
        world.instruct(text)
        time.sleep(0.1)
    world.send_until(
        lambda: world.chunks[-1].instruction == "touch the blue cube", "the last instruction"
    )
    assert not world.policy._planner.status().fault


def test_a_planner_that_is_too_slow_for_its_strategy_says_so(
    make_world: Callable[..., World],
) -> None:
    world = make_world(added_latency_s=0.6)
    world.activate()
    world.instruct("touch the red cube")
    world.until(lambda: any(s.strategy == "blend" for s in world.statuses), "blend before a plan")
    world.send_until(lambda: any(s.strategy == "sync" for s in world.statuses), "sync after it")


def test_with_the_state_ahead_a_plan_starts_where_the_arm_is_when_it_arrives(
    make_world: Callable[..., World],
) -> None:
    world = make_world(state_ahead=True, added_latency_s=0.2)
    world.activate()
    world.instruct("touch the red cube")
    world.send_until(lambda: len(world.chunks) >= 5, "five chunks came")
    ahead_s = [
        (c.start.sec - c.header.stamp.sec) + (c.start.nanosec - c.header.stamp.nanosec) / 1e9
        for c in world.chunks
    ]
    assert min(ahead_s) >= 0.2 and max(ahead_s) < 1.0


def test_a_plan_that_is_under_way_when_the_clock_jumps_back_is_dropped(
    make_world: Callable[..., World],
) -> None:
    world = make_world(use_sim_time=True)
    world.activate()
    begun, go_on = waiting_plans(world)
    world.instruct("touch the red cube")
    robot = SimulatedTime(world)
    robot.run(100.0, begun.is_set, "a plan is under way")
    robot.at(99.5, picture_too=False)
    time.sleep(0.2)
    go_on.set()
    time.sleep(0.5)
    assert not world.chunks
    robot.run(99.6, lambda: bool(world.chunks), "a plan came after the jump")


def test_latency_that_is_added_to_a_plan_ends_when_the_clock_jumps_back(
    make_world: Callable[..., World],
) -> None:
    world = make_world(use_sim_time=True, added_latency_s=6.0)
    world.activate()
    begun, go_on = waiting_plans(world)
    world.instruct("touch the red cube")
    robot = SimulatedTime(world)
    robot.run(100.0, begun.is_set, "a plan is under way")
    go_on.set()
    time.sleep(0.3)
    # Slowly, for a plan may not take longer than its chunk lasts.
    seconds = iter(np.arange(5.0, 20.0, 0.004))
    world.send_until(lambda: bool(world.chunks), "a plan came", lambda: robot.at(next(seconds)))
    stamp = world.chunks[0].header.stamp
    assert stamp.sec + stamp.nanosec / 1e9 < 5.1, "the first pictures after the jump were not used"
