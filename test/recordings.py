"""Bags that the tests stand on, written as the recorder and the robots write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cosmos3_ros.policy.embodiment import Channel
from cosmos3_ros.replay.bags import BagWriter, encode, message_class

JOINTS = [*(f"panda_joint{i}" for i in range(1, 8)), "finger_joint"]
FPS = 15
WIDTH, HEIGHT = 64, 48


def header(stamp_ns: int) -> Any:
    stamp = message_class("builtin_interfaces/msg/Time")(*divmod(stamp_ns, 1_000_000_000))
    return message_class("std_msgs/msg/Header")(stamp, "")


def joint_state(stamp_ns: int, names: list[str], positions: list[float]) -> bytes:
    nothing = np.zeros(0)
    make = message_class("sensor_msgs/msg/JointState")
    return encode(make(header(stamp_ns), names, np.array(positions, float), nothing, nothing))


def image(stamp_ns: int, rgb: np.ndarray) -> bytes:
    make = message_class("sensor_msgs/msg/Image")
    height, width = rgb.shape[:2]
    return encode(make(header(stamp_ns), height, width, "rgb8", 0, width * 3, rgb.reshape(-1)))


def compressed_image(stamp_ns: int, rgb: np.ndarray) -> bytes:
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]))
    make = message_class("sensor_msgs/msg/CompressedImage")
    return encode(make(header(stamp_ns), "jpeg", data.reshape(-1)))


def string(text: str) -> bytes:
    return encode(message_class("std_msgs/msg/String")(text))


SAID = "Pick up the pen."


def chunk(stamp_ns: int, plan_id: int, latency_s: float, instruction: str = SAID) -> bytes:
    channels = [Channel(f"joint_{i}", "rad") for i in range(1, 8)] + [Channel("gripper", "1")]
    rows = np.zeros((4, len(JOINTS)))
    return encode_chunk(
        stamp_ns, plan_id, rows, channels, "droid_exterior", latency_s, instruction=instruction
    )


def encode_chunk(
    stamp_ns: int,
    plan_id: int,
    rows: np.ndarray,
    channels: Sequence[Channel],
    embodiment: str,
    latency_s: float = 0.1,
    committed_rows: int = 0,
    instruction: str = SAID,
) -> bytes:
    """A chunk that starts at its observation."""
    make = message_class("cosmos3_ros/msg/ActionChunk")
    stamped = header(stamp_ns)
    names, units = [c.name for c in channels], [c.unit for c in channels]
    message = make(
        stamped, stamped.stamp, plan_id, 77, embodiment, instruction, float(FPS),
        names, units, *rows.shape, rows.reshape(-1), committed_rows, latency_s, latency_s,
    )  # fmt: skip
    return encode(message)


def status(
    stamp_ns: int, plans: int, refused: dict[str, int], state: int = 2, reason: str = ""
) -> bytes:
    make = message_class("cosmos3_ros/msg/PolicyStatus")
    counts = np.array(list(refused.values()), np.uint64)
    none = np.zeros(0, np.uint64)
    message = make(
        header(stamp_ns), state, reason, 77, "onnxruntime", "tiny_droid", "ab" * 32,
        "Pick up the pen.", "blend", 0.2, 0.2, 0.3, 0.1, plans, plans, plans,
        list(refused), counts, [], none,
    )  # fmt: skip
    return encode(message)


def diagnostics(stamp_ns: int, **values: object) -> bytes:
    pair = message_class("diagnostic_msgs/msg/KeyValue")
    pairs = [pair(key, str(value)) for key, value in values.items()]
    entry = message_class("diagnostic_msgs/msg/DiagnosticStatus")
    array = message_class("diagnostic_msgs/msg/DiagnosticArray")
    other = entry(0, "cosmos3_policy: planning", "", "", [pair("holds", "99")])
    ours = entry(0, "cosmos3_controller: commands", "", "", pairs)
    return encode(array(header(stamp_ns), [ours, other]))


def controller_status(stamp_ns: int, plan_id: int, newest_plan_id: int) -> bytes:
    """Of a controller that tracks a plan."""
    make = message_class("cosmos3_ros/msg/ControllerStatus")
    return encode(make(header(stamp_ns), 2, "", "", plan_id, 77, newest_plan_id, 1, 0))


def pose(stamp_ns: int, position: Sequence[float], quaternion: Sequence[float]) -> bytes:
    point = message_class("geometry_msgs/msg/Point")(*position)
    turn = message_class("geometry_msgs/msg/Quaternion")(*quaternion)
    stamped = message_class("geometry_msgs/msg/PoseStamped")
    return encode(stamped(header(stamp_ns), message_class("geometry_msgs/msg/Pose")(point, turn)))


def twist(stamp_ns: int, linear_x: float, angular_z: float) -> bytes:
    three = message_class("geometry_msgs/msg/Vector3")
    moves = message_class("geometry_msgs/msg/Twist")(
        three(linear_x, 0.0, 0.0), three(0.0, 0.0, angular_z)
    )
    return encode(message_class("geometry_msgs/msg/TwistStamped")(header(stamp_ns), moves))


def write_recording(path: Path, seconds: int = 6) -> Path:
    """What the recorder writes of a run at twice its pace: log times are wall times."""
    topics = {
        "/action_chunk": "cosmos3_ros/msg/ActionChunk",
        "/status": "cosmos3_ros/msg/PolicyStatus",
        "/joint_command": "sensor_msgs/msg/JointState",
        "/joint_states": "sensor_msgs/msg/JointState",
        "/predicted_frame": "sensor_msgs/msg/Image",
        "/camera/exterior_2/image": "sensor_msgs/msg/Image",
        "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
    }
    wall_ns = 1_700_000_000_000_000_000

    def log(stamp_ns: int) -> int:
        return wall_ns + stamp_ns // 2

    with BagWriter(path, topics) as bag:
        for i in range(seconds * FPS + 1):
            stamp, now_s = 1_000_000_000 + round(i / FPS * 1e9), i / FPS
            pose = [float(np.sin(now_s + j)) for j in range(8)]
            bag.write("/joint_states", log(stamp), joint_state(stamp, JOINTS, pose))
            picture = np.full((HEIGHT, WIDTH, 3), 40 + i % 200, np.uint8)
            bag.write("/camera/exterior_2/image", log(stamp), image(stamp, picture))
        for i in range(seconds * 50):
            stamp = 1_000_000_000 + i * 20_000_000
            pose = [float(np.sin(i / 50 + j)) + 0.05 for j in range(8)]
            bag.write("/joint_command", log(stamp), joint_state(stamp, JOINTS, pose))
        for i in range(seconds * 2):
            stamp = 1_000_000_000 + i * 500_000_000
            bag.write("/action_chunk", log(stamp), chunk(stamp, i + 1, 0.1 + 0.01 * i))
            predicted = np.full((HEIGHT // 2, WIDTH // 2, 3), 60, np.uint8)
            bag.write("/predicted_frame", log(stamp), image(stamp + 66_666_667, predicted))
        for i in range(seconds + 1):
            stamp = 1_000_000_000 + i * 1_000_000_000
            refused = {"camera_stale": 2 * i, "camera_skew": i}
            bag.write("/status", log(stamp), status(stamp, 2 * i, refused))
            raw = diagnostics(
                stamp, state="holding" if 3 <= i < seconds else "tracking", holds=int(i >= 3),
                rejected_chunks=i, command_rate_hz="49.980", command_jitter_p50_ms="0.012",
                command_jitter_p99_ms="1.500", command_jitter_max_ms="nan",
                wake_up_p50_ms="0.061", execution_p99_ms="0.830", periods=50 * i, missed_periods=2,
                early_commands=12, frame_to_command_p99_ms="17.500", transitions=9, saturated=3,
                holds_chunk_ended=int(i >= 3), holds_overrun=0,
            )  # fmt: skip
            bag.write("/diagnostics", log(stamp), raw)
    return path
