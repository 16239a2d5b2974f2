"""The bring-up, against lifecycle nodes in this process that do as they are told."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.service import Service

from cosmos3_ros.nodes.bringup import BringupError, ManagedNode, bring_up

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class Obedient(LifecycleNode):
    """Does what its transitions are told to do: succeed, fail, raise or sleep."""

    def __init__(self, name: str, context: Context) -> None:
        super().__init__(name, context=context)
        self.seen: list[str] = []
        self.acts: dict[str, Callable[[], TransitionCallbackReturn]] = {}

    def _act(self, transition: str) -> TransitionCallbackReturn:
        self.seen.append(transition)
        return self.acts.get(transition, lambda: SUCCESS)()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._act("configure")

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._act("activate")

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._act("deactivate")

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._act("cleanup")


class Graph:
    """Two lifecycle nodes that spin in a thread, and the one that brings them up."""

    def __init__(self, context: Context) -> None:
        self.first, self.second = (Obedient(name, context) for name in ("first", "second"))
        self._nodes = SingleThreadedExecutor(context=context)
        for node in (self.first, self.second):
            self._nodes.add_node(node)
        self._thread = threading.Thread(target=self._nodes.spin)
        self._thread.start()
        manager = rclpy.create_node("manager", context=context)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(manager)
        self.managed = [ManagedNode(manager, executor, name) for name in ("first", "second")]

    def states(self) -> list[str]:
        return [node.state() for node in self.managed]

    def close(self) -> None:
        self._nodes.shutdown()
        self._thread.join()


@pytest.fixture
def graph(ros_context: Context) -> Iterator[Graph]:
    graph = Graph(ros_context)
    yield graph
    graph.close()


def test_nodes_are_all_configured_before_any_is_activated(graph: Graph) -> None:
    order: list[str] = []
    for node in (graph.first, graph.second):
        for transition in ("configure", "activate"):
            word = f"{node.get_name()} {transition}"
            node.acts[transition] = lambda word=word: order.append(word) or SUCCESS
    bring_up(graph.managed, 10.0, 10.0)
    assert graph.states() == ["active", "active"]
    assert order == ["first configure", "second configure", "first activate", "second activate"]


def test_nodes_that_are_up_already_are_left_alone(graph: Graph) -> None:
    bring_up(graph.managed, 10.0, 10.0)
    bring_up(graph.managed, 10.0, 10.0)
    assert graph.states() == ["active", "active"]
    assert graph.first.seen == ["configure", "activate"]


def test_refused_configuration_names_the_node_and_its_state(graph: Graph) -> None:
    graph.second.acts["configure"] = lambda: FAILURE
    with pytest.raises(BringupError, match="second: configure failed; its state is unconfigured"):
        bring_up(graph.managed, 10.0, 10.0)
    assert graph.states() == ["unconfigured", "unconfigured"]
    assert graph.first.seen == ["configure", "cleanup"]


def test_failed_activation_brings_the_active_ones_back_too(graph: Graph) -> None:
    graph.second.acts["activate"] = lambda: FAILURE
    with pytest.raises(BringupError, match="second: activate failed; its state is inactive"):
        bring_up(graph.managed, 10.0, 10.0)
    assert graph.states() == ["unconfigured", "unconfigured"]
    assert graph.first.seen == ["configure", "activate", "deactivate", "cleanup"]


def test_nodes_that_this_bring_up_did_not_move_stay_up_when_another_fails(graph: Graph) -> None:
    bring_up(graph.managed[:1], 10.0, 10.0)
    graph.second.acts["configure"] = lambda: FAILURE
    with pytest.raises(BringupError, match="second"):
        bring_up(graph.managed, 10.0, 10.0)
    assert graph.states() == ["active", "unconfigured"]


def test_transition_that_does_not_end_in_time_is_reported(graph: Graph) -> None:
    graph.second.acts["activate"] = lambda: time.sleep(6.0) or SUCCESS
    with pytest.raises(BringupError, match="second: did not activate within 2 s"):
        bring_up(graph.managed, 10.0, 2.0)


def test_answers_that_are_lost_are_asked_for_again_and_no_transition_is_asked_twice(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, dropped = Service.send_response, Counter[str]()

    def drop_the_first(service: Service, *answer: Any) -> None:
        dropped[service.srv_name] += 1
        if dropped[service.srv_name] > 1:
            send(service, *answer)

    monkeypatch.setattr(Service, "send_response", drop_the_first)
    bring_up(graph.managed, 10.0, 10.0)
    assert len(dropped) == 4, "each node was asked for its state, and for a change of it"
    assert graph.states() == ["active", "active"]
    assert graph.first.seen == graph.second.seen == ["configure", "activate"]


def test_a_node_that_is_slow_to_answer_is_waited_for(graph: Graph) -> None:
    graph.first.acts["configure"] = lambda: time.sleep(2.5) or SUCCESS
    bring_up(graph.managed, 10.0, 10.0)
    assert graph.states() == ["active", "active"]
    assert graph.first.seen == ["configure", "activate"]


def test_finalized_node_is_not_asked_for_what_it_cannot_do(graph: Graph) -> None:
    graph.managed[1].wait(10.0)
    graph.second.trigger_shutdown()
    with pytest.raises(BringupError, match="second: cannot configure: its state is finalized"):
        bring_up(graph.managed, 10.0, 10.0)


def test_program_says_which_node_is_not_there_and_fails(ros_domain_id: int) -> None:
    command = [sys.executable, "-m", "cosmos3_ros.nodes.bringup", "nobody"]
    done = subprocess.run(
        [*command, "--discovery-timeout", "0.5", "--ros-args", "-r", "__ns:=/cell"],
        env=os.environ | {"ROS_DOMAIN_ID": str(ros_domain_id)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "nobody: no service /cell/nobody/" in done.stdout + done.stderr
