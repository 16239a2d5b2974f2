"""What the saboteur does to the messages between the nodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from cosmos3_ros.msg import ActionChunk
from cosmos3_ros.sim.saboteur import Saboteur, Spoiled, raw


class Peer(Node):
    """The policy node's publisher, and what the controller node would hear."""

    def __init__(self, context: Context) -> None:
        super().__init__("peer", context=context)
        self.chunks = self.create_publisher(ActionChunk, raw("action_chunk"), 10)
        self.heard: list[int] = []
        self.create_subscription(
            ActionChunk, "action_chunk", lambda chunk: self.heard.append(chunk.plan_id), 10
        )


@pytest.fixture
def nodes(ros_context: Context) -> Iterator[tuple[Saboteur, Peer, SingleThreadedExecutor]]:
    saboteur, peer = Saboteur(context=ros_context), Peer(ros_context)
    executor = SingleThreadedExecutor(context=ros_context)
    executor.add_node(saboteur)
    executor.add_node(peer)
    yield saboteur, peer, executor
    executor.shutdown()
    saboteur.destroy_node()
    peer.destroy_node()


def spin(executor: SingleThreadedExecutor, done: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end_s
        executor.spin_once(0.05)


def test_late_chunks_go_out_at_once_and_in_order_when_the_delay_is_over(
    nodes: tuple[Saboteur, Peer, SingleThreadedExecutor],
) -> None:
    saboteur, peer, executor = nodes
    spin(executor, lambda: peer.chunks.get_subscription_count() == 1)
    spin(executor, lambda: peer.count_publishers("action_chunk") == 1)
    saboteur.spoiled.chunk_delay_s = 1000.0
    for plan_id in (1, 2, 3):
        peer.chunks.publish(ActionChunk(planner=7, plan_id=plan_id))
    spin(executor, lambda: saboteur.newest_plans == {7: 3})
    for _ in range(20):
        executor.spin_once(0.01)
    assert peer.heard == []
    saboteur.spoiled = Spoiled()
    peer.chunks.publish(ActionChunk(planner=7, plan_id=4))
    spin(executor, lambda: len(peer.heard) == 4)
    assert peer.heard == [1, 2, 3, 4]
