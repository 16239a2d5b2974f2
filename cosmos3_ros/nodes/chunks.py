"""ActionChunk messages and chunks, both ways."""

from __future__ import annotations

import math

import numpy as np
from builtin_interfaces.msg import Time

from cosmos3_ros.control.chunk import NS_PER_S, Chunk, ChunkRefused, Refusal
from cosmos3_ros.msg import ActionChunk
from cosmos3_ros.policy.commands import CommandSpace


def chunk_from_message(message: ActionChunk, space: CommandSpace) -> Chunk:
    """The chunk in a message, once its meaning is known to be the robot's.

    Raises ChunkRefused (malformed, wrong_embodiment, wrong_width, wrong_names, wrong_units,
    not_finite).
    """
    rows, width = message.rows, message.width
    if rows * width != len(message.data):
        raise ChunkRefused(
            Refusal.MALFORMED,
            f"{len(message.data)} values; expected rows x width = {rows} x {width}",
        )
    _require(Refusal.WRONG_EMBODIMENT, "embodiment", message.embodiment, space.embodiment)
    _require(Refusal.WRONG_WIDTH, "width", width, space.width)
    _require(Refusal.WRONG_NAMES, "channels", tuple(message.channel_names), space.names)
    _require(Refusal.WRONG_UNITS, "units", tuple(message.channel_units), space.units)
    if not math.isfinite(message.plan_latency) or not math.isfinite(message.engine_time):
        raise ChunkRefused(
            Refusal.NOT_FINITE,
            f"plan_latency is {message.plan_latency}, engine_time {message.engine_time}; expected "
            "finite numbers",
        )
    return Chunk(
        plan_id=message.plan_id,
        stamp_ns=nanoseconds(message.header.stamp),
        rate_hz=message.rate_hz,
        rows=np.array(message.data, np.float64).reshape(rows, width),
        start_ns=nanoseconds(message.start),
        planner=message.planner,
        instruction=message.instruction,
        committed_rows=message.committed_rows,
        latency_s=message.plan_latency,
        engine_s=message.engine_time,
    )


def message_from_chunk(chunk: Chunk, space: CommandSpace) -> ActionChunk:
    """The message that carries a chunk."""
    rows, width = chunk.rows.shape
    message = ActionChunk(
        start=time_message(chunk.start_ns),
        plan_id=chunk.plan_id,
        planner=chunk.planner,
        embodiment=space.embodiment,
        instruction=chunk.instruction,
        rate_hz=chunk.rate_hz,
        channel_names=space.names,
        channel_units=space.units,
        rows=rows,
        width=width,
        data=chunk.rows.ravel().tolist(),
        committed_rows=chunk.committed_rows,
        plan_latency=chunk.latency_s,
        engine_time=chunk.engine_s,
    )
    message.header.frame_id = space.base_frame
    message.header.stamp = time_message(chunk.stamp_ns)
    return message


def time_message(ns: int) -> Time:
    """builtin_interfaces/Time of nanoseconds."""
    return Time(sec=ns // NS_PER_S, nanosec=ns % NS_PER_S)


def nanoseconds(time: Time) -> int:
    """Nanoseconds of builtin_interfaces/Time."""
    return int(time.sec * NS_PER_S + time.nanosec)


def _require(reason: Refusal, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ChunkRefused(reason, f"{what}: found {found!r}; expected {expected!r}")
