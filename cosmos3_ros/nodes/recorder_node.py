"""The recorder node: topics into an ``.mcap`` file, each message as the bytes that arrived.

Log time is wall time, whatever clock the nodes go by: it shows the real pace. The messages keep
their stamps. The file gets its name when the node ends; until then nothing looks like a bag.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

from cosmos3_ros.nodes.message_types import message_type
from cosmos3_ros.nodes.parameters import (
    DeclaredParameters,
    ParameterError,
    depth_parameter,
    parameter,
    qos_profile,
)
from cosmos3_ros.nodes.running import leave, run
from cosmos3_ros.replay.bags import BagWriter

DISCOVERY_PERIOD_S = 0.05


@dataclass(frozen=True)
class RecorderParameters:
    """Parameters of the recorder node, read at its start."""

    output: str = parameter("", "File to write, *.mcap; its folder is made.")
    topics: tuple[str, ...] = parameter(
        (), "What to record, as TOPIC:TYPE, for example joint_states:sensor_msgs/msg/JointState."
    )
    depth: int = depth_parameter("each topic", 100)


class RecorderNode(Node):
    """See the module and the README for parameters. ``close`` finishes the file.

    ``failure`` is why writing ended early, None while all is well.
    """

    def __init__(self, **node_arguments: Any) -> None:
        super().__init__("cosmos3_recorder", **node_arguments)
        self.failure: Exception | None = None
        parameters = DeclaredParameters(self, RecorderParameters).read()
        self._depth = parameters.depth
        self._awaited = dict(self._topic_and_type(entry) for entry in parameters.topics)
        if not parameters.output or not self._awaited:
            raise ParameterError(
                f"parameter 'output' is '{parameters.output}' and 'topics' names "
                f"{len(self._awaited)}; expected a *.mcap file and at least one TOPIC:TYPE"
            )
        # Every topic is in the bag, said or silent.
        self._types = {topic: message_type(kind) for topic, kind in self._awaited.items()}
        self._writer = BagWriter(Path(parameters.output), self._awaited)
        self._wall_ns = time.time_ns() - time.monotonic_ns()
        self._arrived: queue.SimpleQueue[tuple[str, int, bytes] | None] = queue.SimpleQueue()
        # A daemon: a program that fails elsewhere still ends, and leaves no bag.
        self._thread: threading.Thread | None = threading.Thread(
            target=self._write, name="writer", daemon=True
        )
        self._thread.start()
        self.create_timer(DISCOVERY_PERIOD_S, self._discover)

    @property
    def counts(self) -> dict[str, int]:
        """Messages written, by topic."""
        return self._writer.counts

    def close(self) -> None:
        """Write what has arrived, finish the file and give it its name."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._arrived.put(None)
        thread.join()

    def destroy_node(self) -> None:
        self.close()
        super().destroy_node()

    def _topic_and_type(self, entry: str) -> tuple[str, str]:
        topic, _, kind = entry.partition(":")
        if not topic or not kind:
            raise ParameterError(
                f"parameter 'topics' holds '{entry}'; expected TOPIC:TYPE, for example "
                "joint_states:sensor_msgs/msg/JointState"
            )
        return self.resolve_topic_name(topic), kind

    def _discover(self) -> None:
        """Subscribe to topics that are published by now, as strictly as all publishers allow."""
        for topic in list(self._awaited):
            offered = [about.qos_profile for about in self.get_publishers_info_by_topic(topic)]
            if not offered:
                continue
            del self._awaited[topic]
            reliable = all(q.reliability == ReliabilityPolicy.RELIABLE for q in offered)
            latched = all(q.durability == DurabilityPolicy.TRANSIENT_LOCAL for q in offered)
            self.create_subscription(
                self._types[topic],
                topic,
                partial(self._on_message, topic),
                qos_profile(
                    "reliable" if reliable else "best_effort", self._depth, transient_local=latched
                ),
                raw=True,
            )

    def _on_message(self, topic: str, raw: bytes) -> None:
        self._arrived.put((topic, self._wall_ns + time.monotonic_ns(), raw))

    def _write(self) -> None:
        """On the writing thread: a slow disk must not keep messages from being received."""
        try:
            with self._writer as writer:
                while (entry := self._arrived.get()) is not None:
                    writer.write(*entry)
        except Exception as error:  # whatever it is, the node must end and say so
            self.failure = error
            self.context.try_shutdown()


def main() -> int:
    """Record until told to end; 1 when the file could not be written."""
    nodes: list[RecorderNode] = []

    def make() -> RecorderNode:
        nodes.append(RecorderNode())
        return nodes[0]

    try:
        run(make)
    except (ValueError, OSError) as error:
        print(f"recorder_node: {error}", file=sys.stderr)
        return 1
    node = nodes[0]
    if node.failure is not None:
        print(f"recorder_node: nothing was recorded: {node.failure}", file=sys.stderr)
        return 1
    counts = ", ".join(f"{count} {topic}" for topic, count in node.counts.items())
    print(f"recorded {counts}")
    return 0


if __name__ == "__main__":
    leave(main())
