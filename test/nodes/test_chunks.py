"""ActionChunk messages and chunks, both ways, by name."""

from __future__ import annotations

import array
import math
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

from rclpy.serialization import deserialize_message, serialize_message

from cosmos3_ros.control.chunk import Chunk, ChunkRefused, Refusal
from cosmos3_ros.msg import ActionChunk
from cosmos3_ros.nodes.chunks import chunk_from_message, message_from_chunk
from cosmos3_ros.policy.commands import command_space
from cosmos3_ros.policy.embodiment import load_embodiment

EMBODIMENT = command_space(load_embodiment("sim_panda"))
STAMP_NS = 1_763_000_000_123_456_789


def message() -> ActionChunk:
    rows = np.arange(16 * 8).reshape(16, 8) / 100
    return message_from_chunk(
        Chunk(7, STAMP_NS, 15.0, rows, STAMP_NS + 1, 2**63 + 5, "touch the red cube", 3, 0.25),
        EMBODIMENT,
    )


def test_a_chunk_survives_the_way_over_the_wire() -> None:
    sent = message()
    received = deserialize_message(serialize_message(sent), ActionChunk)
    chunk = chunk_from_message(received, EMBODIMENT)
    assert (chunk.plan_id, chunk.stamp_ns, chunk.rate_hz) == (7, STAMP_NS, 15.0)
    assert (chunk.start_ns, chunk.planner) == (STAMP_NS + 1, 2**63 + 5)
    assert (chunk.instruction, chunk.latency_s) == ("touch the red cube", 0.25)
    assert chunk.committed_rows == 3
    assert np.array_equal(chunk.rows, np.arange(16 * 8).reshape(16, 8) / 100)


def test_the_message_says_all_that_a_reader_of_a_bag_needs() -> None:
    sent = message()
    assert (sent.header.stamp.sec, sent.header.stamp.nanosec) == (1_763_000_000, 123_456_789)
    assert sent.header.frame_id == "panda_link0"
    assert sent.embodiment == "sim_panda"
    assert sent.instruction == "touch the red cube"
    assert list(sent.channel_names) == [*(f"joint_{i}" for i in range(1, 8)), "gripper"]
    assert list(sent.channel_units) == ["rad"] * 7 + ["1"]
    assert (sent.rows, sent.width, sent.committed_rows, sent.plan_latency) == (16, 8, 3, 0.25)


def short(m: ActionChunk) -> None:
    m.data = m.data[:-1]


def no_rows(m: ActionChunk) -> None:
    m.rows, m.data = 0, array.array("d")


def no_rate(m: ActionChunk) -> None:
    m.rate_hz = 0.0


def another_robot(m: ActionChunk) -> None:
    m.embodiment = "droid_joint_pos"


def seven_wide(m: ActionChunk) -> None:
    m.width, m.data = 7, m.data[: 16 * 7]


def other_order(m: ActionChunk) -> None:
    m.channel_names = list(reversed(m.channel_names))


def a_name_too_few(m: ActionChunk) -> None:
    m.channel_names = m.channel_names[:-1]


def degrees(m: ActionChunk) -> None:
    m.channel_units = ["deg"] * 7 + ["1"]


def nan(m: ActionChunk) -> None:
    m.data[17] = math.nan


def no_time(m: ActionChunk) -> None:
    m.engine_time = math.inf


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (short, Refusal.MALFORMED),
        (no_rows, Refusal.MALFORMED),
        (no_rate, Refusal.MALFORMED),
        (another_robot, Refusal.WRONG_EMBODIMENT),
        (seven_wide, Refusal.WRONG_WIDTH),
        (other_order, Refusal.WRONG_NAMES),
        (a_name_too_few, Refusal.WRONG_NAMES),
        (degrees, Refusal.WRONG_UNITS),
        (nan, Refusal.NOT_FINITE),
        (no_time, Refusal.NOT_FINITE),
    ],
)
def test_what_is_not_ours_is_refused_by_its_reason(
    spoil: Callable[[ActionChunk], None], reason: Refusal
) -> None:
    spoiled = message()
    spoil(spoiled)
    with pytest.raises(ChunkRefused) as caught:
        chunk_from_message(spoiled, EMBODIMENT)
    assert caught.value.reason is reason


def test_a_refusal_says_what_was_found_and_what_was_expected() -> None:
    spoiled = message()
    another_robot(spoiled)
    with pytest.raises(ChunkRefused, match=r"found 'droid_joint_pos'; expected 'sim_panda'"):
        chunk_from_message(spoiled, EMBODIMENT)
