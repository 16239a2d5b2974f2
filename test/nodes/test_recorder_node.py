"""The recorder writes what arrives, and a bag that looks whole is whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import String

from cosmos3_ros.nodes.images import image_message
from cosmos3_ros.nodes.message_types import MessageTypeError
from cosmos3_ros.nodes.parameters import ParameterError, qos_profile
from cosmos3_ros.nodes.recorder_node import RecorderNode
from cosmos3_ros.replay.bags import BagError, open_bag

TOPICS = ["words:std_msgs/msg/String", "picture:sensor_msgs/msg/Image"]


def recorder(context: Context, output: Path, topics: list[str] = TOPICS) -> RecorderNode:
    overrides = [
        Parameter("output", value=str(output)),
        Parameter("topics", Parameter.Type.STRING_ARRAY, topics),
    ]
    return RecorderNode(context=context, parameter_overrides=overrides)


@pytest.fixture
def peer(ros_context: Context) -> Iterator[Node]:
    node = Node("peer", context=ros_context)
    yield node
    node.destroy_node()


def spin(node: Node, done: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    end = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < end, f"waited {timeout_s} s until {what}"
        executor.spin_once(timeout_sec=0.05)
    executor.remove_node(node)
    executor.shutdown()


def test_everything_that_is_sent_is_in_the_bag_in_its_order(peer: Node, tmp_path: Path) -> None:
    out = tmp_path / "new" / "output.mcap"
    words = peer.create_publisher(String, "words", 100)
    pictures = peer.create_publisher(Image, "picture", 10)
    node = recorder(peer.context, out)
    spin(
        node,
        lambda: words.get_subscription_count() == 1 and pictures.get_subscription_count() == 1,
        "the recorder listens",
    )
    rgb = np.arange(480 * 640 * 3, dtype=np.uint32).astype(np.uint8).reshape(480, 640, 3)
    before_ns = time.time_ns()
    for i in range(60):
        words.publish(String(data=f"word {i}"))
        pictures.publish(image_message(rgb + np.uint8(i), Time(sec=i), "front"))
        time.sleep(0.005)
        executor_turns(node)
    spin(node, lambda: node.counts == {"/words": 60, "/picture": 60}, "all is written")
    assert list(out.parent.glob("output*")) == []
    node.destroy_node()
    assert [p.name for p in out.parent.iterdir()] == ["output.mcap"]
    with open_bag(out) as bag:
        assert [m.decoded().data for m in bag.messages(["/words"])] == [
            f"word {i}" for i in range(60)
        ]
        assert bag.topics["/picture"].count == 60
        for i, message in enumerate(bag.messages(["/picture"])):
            # Stamps stay; log time is wall time.
            assert message.stamp_ns == i * 1_000_000_000
            assert before_ns <= message.log_ns <= time.time_ns()
            assert (message.decoded().data == (rgb + np.uint8(i)).reshape(-1)).all()


def executor_turns(node: Node) -> None:
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    for _ in range(2):
        executor.spin_once(timeout_sec=0.0)
    executor.remove_node(node)
    executor.shutdown()


def test_what_was_latched_before_and_what_is_best_effort_is_recorded(
    peer: Node, tmp_path: Path
) -> None:
    latched = peer.create_publisher(
        String, "words", qos_profile("reliable", 1, transient_local=True)
    )
    latched.publish(String(data="said before"))
    loose = peer.create_publisher(Image, "picture", qos_profile("best_effort", 1))
    node = recorder(peer.context, tmp_path / "output.mcap")

    def send() -> bool:
        loose.publish(image_message(np.zeros((4, 4, 3), np.uint8), Time(), "front"))
        return node.counts["/words"] == 1 and node.counts["/picture"] > 0

    spin(node, send, "both are written")
    node.destroy_node()


def test_silent_topics_are_in_the_bag_with_their_types(peer: Node, tmp_path: Path) -> None:
    node = recorder(peer.context, tmp_path / "output.mcap")
    node.destroy_node()
    with open_bag(tmp_path / "output.mcap") as bag:
        assert {t: (a.type, a.count) for t, a in bag.topics.items()} == {
            "/words": ("std_msgs/msg/String", 0),
            "/picture": ("sensor_msgs/msg/Image", 0),
        }


def test_a_recorder_that_cannot_write_says_so_and_leaves_nothing(
    peer: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, as the writing thread meets it."""
    words = peer.create_publisher(String, "words", 10)
    node = recorder(peer.context, tmp_path / "output.mcap")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node._writer, "write", full)
    spin(node, lambda: words.get_subscription_count() == 1, "the recorder listens")
    words.publish(String(data="lost"))
    end = time.monotonic() + 10
    executor = SingleThreadedExecutor(context=peer.context)
    executor.add_node(node)
    with suppress(ExternalShutdownException):
        while node.failure is None and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.05)
    assert "No space left" in str(node.failure)
    assert not peer.context.ok()
    node.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "topics", "error", "words"),
    [
        ("output.mcap", [], ParameterError, "parameter .*topics.*expected"),
        ("output.mcap", ["words"], ParameterError, "'topics' holds 'words'; expected TOPIC:TYPE"),
        ("output.mcap", ["words:std_msgs/msg/Strong"], MessageTypeError, "std_msgs/msg/Strong"),
        ("output.mcap", ["words:nobody/msg/String"], MessageTypeError, "nobody/msg/String"),
        ("output", TOPICS, BagError, r"expected a \*.mcap file"),
    ],
)
def test_what_cannot_be_recorded_is_refused_at_the_start(
    ros_context: Context,
    tmp_path: Path,
    output: str,
    topics: list[str],
    error: type[ValueError],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        recorder(ros_context, tmp_path / output, topics)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def program(ros_domain_id: int, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    topics = ",".join(f"'{topic}'" for topic in TOPICS)
    arguments = ["-p", f"output:={tmp_path / 'output.mcap'}", "-p", f"topics:=[{topics}]"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cosmos3_ros.nodes.recorder_node", "--ros-args", *arguments],
        env=os.environ | {"ROS_DOMAIN_ID": str(ros_domain_id)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


def talk(peer: Node) -> None:
    words = peer.create_publisher(String, "words", 10)
    end = time.monotonic() + 30
    while words.get_subscription_count() == 0:
        assert time.monotonic() < end, "waited 30 s until the recorder listens"
        time.sleep(0.05)
    for i in range(5):
        words.publish(String(data=str(i)))
    time.sleep(0.5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_even_twice_closes_the_bag(
    peer: Node, program: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    talk(peer)
    program.send_signal(number)
    program.send_signal(number)
    out, _ = program.communicate(timeout=90)
    assert program.returncode == 0, out
    assert "recorded 5 /words, 0 /picture" in out
    with open_bag(tmp_path / "output.mcap") as bag:
        assert bag.topics["/words"].count == 5


def test_a_recorder_that_is_killed_leaves_nothing_that_looks_like_a_bag(
    peer: Node, program: subprocess.Popen[str], tmp_path: Path
) -> None:
    talk(peer)
    program.kill()
    program.communicate(timeout=90)
    assert not (tmp_path / "output.mcap").exists()
    # What lies there is hidden, and no bag.
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    for path in tmp_path.rglob("*.mcap"):
        with pytest.raises(BagError), open_bag(path):
            pass
