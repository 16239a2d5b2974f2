"""The player node: a bag's topics as they were recorded, and the clock that they were recorded by.

It waits until those who should listen do, runs ``/clock`` through the bag at ``rate``, and ends.
Messages go out as the bytes they are in the bag. The clock never passes a message that is not out
yet: where reading or sending cannot keep up, the pace drops, no message comes late.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String

from cosmos3_ros.nodes.message_types import message_type
from cosmos3_ros.nodes.parameters import (
    DeclaredParameters,
    ParameterError,
    depth_parameter,
    parameter,
    qos_profile,
)
from cosmos3_ros.nodes.running import leave
from cosmos3_ros.replay.bags import Bag, Message, open_bag

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
INSTRUCTION = "instruction"
CLOCK = "/clock"
# What a recording holds beside the robot's topics; the clock is the player's own.
NOT_PLAYED = (CLOCK, "/rosout", "/parameter_events", "/diagnostics")
# Four times finer than a 50 Hz control loop needs to see time pass evenly.
CLOCK_PERIOD_S = 0.005
# A message this late is waited for by the clock; less is the scheduler's noise.
LATE_S = 0.02
# Log times further than this from the pictures' stamps are another clock's: wall time beside
# simulation time. The nodes go by stamps.
OTHER_CLOCK_NS = 1_000_000_000


class PlayerError(ValueError):
    """The bag cannot be played as asked."""


@dataclass(frozen=True)
class PlayerParameters:
    """Parameters of the player node, read at its start."""

    bag: str = parameter("", "Bag to play: a rosbag2 folder, or an .mcap or .db3 file.")
    topics: tuple[str, ...] = parameter((), "Topics to play, as the bag names them; empty: all.")
    rate: float = parameter(1.0, "Pace, 1 as recorded.", minimum=0.01, maximum=100.0)
    instruction: str = parameter("", "Published as instruction, instead of what the bag holds.")
    require_images: bool = parameter(True, "Refuse a bag without images.")
    expected_subscriptions: tuple[str, ...] = parameter(
        (), "Wait for these, as TOPIC=COUNT; empty: one for each camera and joint_states."
    )
    match_timeout_s: float = parameter(
        60.0, "How long to wait for them.", "s", minimum=0.0, maximum=3600.0
    )
    settle_s: float = parameter(
        1.0, "How long the clock stands before and after the bag.", "s", minimum=0.0, maximum=60.0
    )
    depth: int = depth_parameter("each topic", 10)


class PlayerNode(Node):
    """See the module and the README for parameters. ``play`` does everything.

    ``stop``: once set, playing ends early.
    """

    def __init__(self, stop: threading.Event, **node_arguments: Any) -> None:
        super().__init__("cosmos3_player", **node_arguments)
        self._stop = stop
        self._settings = DeclaredParameters(self, PlayerParameters).read()
        self._clock_publisher = self.create_publisher(Clock, CLOCK, qos_profile("reliable", 10))
        self._shown_ns = 0
        self._stalled_s = 0.0
        self.sent: Counter[str] = Counter()

    def play(self) -> None:
        """Play the bag; returns at its end, or when it is stopped.

        Raises BagError, PlayerError, and MessageTypeError of what is wrong with the bag.
        """
        if not self._settings.bag:
            raise ParameterError("parameter 'bag' is empty; expected the path of a bag")
        with open_bag(Path(self._settings.bag)) as bag:
            topics = self._chosen_topics(bag)
            publishers = {topic: self._publisher(bag, topic) for topic in topics}
            messages = bag.messages(topics)
            offset_ns = self._clock_offset(bag, topics)
            first = next(messages)
            self._clock_to(first.log_ns + offset_ns)
            self._wait_for_listeners(publishers)
            self._stand_still()
            self.get_logger().info(
                f"playing {(bag.end_ns - first.log_ns) / 1e9:.1f} s of '{bag.path}' at "
                f"{self._settings.rate:g} times its pace: {', '.join(topics)}"
            )
            self._play(chain([first], messages), publishers, offset_ns)
            self._stand_still()
        self._report()

    def _chosen_topics(self, bag: Bag) -> list[str]:
        parameters = self._settings
        there = [topic for topic, about in bag.topics.items() if about.count]
        missing = [topic for topic in parameters.topics if topic not in there]
        if missing:
            raise PlayerError(
                f"bag '{bag.path}' has no messages on {', '.join(missing)}; it has "
                f"{', '.join(there) or 'none'}"
            )
        chosen = list(parameters.topics) or [t for t in there if t not in NOT_PLAYED]
        if parameters.instruction:
            chosen = [topic for topic in chosen if not _is_instruction(topic)]
        if parameters.require_images and not _image_topics(bag, chosen):
            raise PlayerError(
                f"'{bag.path}' is a bag without images: it has {', '.join(there) or 'no messages'};"
                " record the cameras too, or set require_images to false"
            )
        if not chosen:
            raise PlayerError(f"bag '{bag.path}' has no messages to play; record it again")
        return chosen

    def _publisher(self, bag: Bag, topic: str) -> Publisher:
        latched = bag.topics[topic].transient_local or _is_instruction(topic)
        depth = 1 if latched else self._settings.depth
        qos = qos_profile("reliable", depth, transient_local=latched)
        # Relative: in a namespace the bag's topics go there too.
        return self.create_publisher(message_type(bag.topics[topic].type), topic.lstrip("/"), qos)

    def _clock_offset(self, bag: Bag, topics: list[str]) -> int:
        """What to add to log times to get the clock that the pictures are stamped by [ns]."""
        first = next(bag.messages(_image_topics(bag, topics)), None)
        if first is None:
            return 0
        stamp = first.decoded().header.stamp
        offset_ns = int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec) - first.log_ns
        if abs(offset_ns) <= OTHER_CLOCK_NS:
            return 0
        self.get_logger().info(
            f"pictures are stamped {offset_ns / 1e9:.3f} s from their log time: the clock goes by "
            "their stamps"
        )
        return offset_ns

    def _wait_for_listeners(self, publishers: dict[str, Publisher]) -> None:
        publishers = {**publishers, CLOCK: self._clock_publisher}
        expected = self._expected_subscriptions(publishers)
        deadline = time.monotonic() + self._settings.match_timeout_s
        while self._going():
            found = {topic: publishers[topic].get_subscription_count() for topic in expected}
            lacking = [topic for topic in expected if found[topic] < expected[topic]]
            if not lacking:
                return
            if time.monotonic() > deadline:
                raise PlayerError(
                    f"after {self._settings.match_timeout_s:g} s "
                    + ", ".join(f"{t} has {found[t]} of {expected[t]} listeners" for t in lacking)
                    + "; are the policy and the controller node active, on this ROS_DOMAIN_ID?"
                )
            self._show_clock()
            self._stop.wait(CLOCK_PERIOD_S)

    def _expected_subscriptions(self, publishers: dict[str, Publisher]) -> dict[str, int]:
        given = self._settings.expected_subscriptions
        if not given:
            endings = ("/image", "/image/compressed", "joint_states")
            return {topic: 1 for topic in publishers if topic.endswith(endings)}
        expected = {}
        for entry in given:
            topic, _, count = entry.rpartition("=")
            if topic not in publishers or not count.isdigit():
                raise ParameterError(
                    f"parameter 'expected_subscriptions' holds '{entry}'; expected TOPIC=COUNT "
                    f"with a topic that is played: {', '.join(publishers)}"
                )
            expected[topic] = int(count)
        return expected

    def _play(
        self, messages: Iterator[Message], publishers: dict[str, Publisher], offset_ns: int
    ) -> None:
        rate = self._settings.rate
        if self._settings.instruction:
            self._instruct(self._settings.instruction)
        # The wall time [s] at which the clock showed, or would have shown, zero.
        zero_s = time.monotonic() - self._shown_ns / 1e9 / rate
        for message in messages:
            due_ns = message.log_ns + offset_ns
            due_s = zero_s + due_ns / 1e9 / rate
            while self._going() and (left_s := due_s - time.monotonic()) > 0:
                self._stop.wait(min(left_s, CLOCK_PERIOD_S))
                now_ns = round((time.monotonic() - zero_s) * rate * 1e9)
                self._clock_to(min(now_ns, due_ns))
            if not self._going():
                return
            if (late_s := time.monotonic() - due_s) > LATE_S:
                zero_s += late_s
                self._stalled_s += late_s
            self._clock_to(due_ns)
            publishers[message.topic].publish(message.raw)
            self.sent[message.topic] += 1

    def _instruct(self, instruction: str) -> None:
        qos = qos_profile("reliable", 1, transient_local=True)
        self.create_publisher(String, INSTRUCTION, qos).publish(String(data=instruction))
        self.sent[INSTRUCTION] += 1

    def _stand_still(self) -> None:
        """Let everyone find everyone, and let what is under way arrive."""
        until_s = time.monotonic() + self._settings.settle_s
        while self._going() and time.monotonic() < until_s:
            self._show_clock()
            self._stop.wait(CLOCK_PERIOD_S)

    def _clock_to(self, time_ns: int) -> None:
        if time_ns > self._shown_ns:
            self._shown_ns = time_ns
            self._show_clock()

    def _show_clock(self) -> None:
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(self._shown_ns, 1_000_000_000)
        self._clock_publisher.publish(message)

    def _going(self) -> bool:
        return not self._stop.is_set() and bool(self.context.ok())

    def _report(self) -> None:
        sent = ", ".join(f"{count} {topic}" for topic, count in self.sent.items()) or "nothing"
        self.get_logger().info(f"{'sent' if self._going() else 'interrupted; sent'} {sent}")
        if self._stalled_s:
            self.get_logger().warning(
                f"could not keep the pace: the clock stood still for {self._stalled_s:.2f} s in all"
            )


def _image_topics(bag: Bag, topics: list[str]) -> list[str]:
    return [topic for topic in topics if bag.topics[topic].type in IMAGE_TYPES]


def _is_instruction(topic: str) -> bool:
    return _ends(topic, INSTRUCTION)


def _ends(topic: str, name: str) -> bool:
    return topic.rpartition("/")[2] == name


def main() -> int:
    """Play a bag; 1 when it cannot be played. SIGINT and SIGTERM end it early."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        PlayerNode(stop).play()
    except (ValueError, OSError) as error:
        print(f"player_node: {error}", file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    leave(main())
