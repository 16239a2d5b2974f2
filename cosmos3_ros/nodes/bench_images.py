"""One end of the image benchmark: a camera, or somebody who watches it. See ``cosmos3_ros.bench``.

python -m cosmos3_ros.nodes.bench_images send --seconds 5
python -m cosmos3_ros.nodes.bench_images receive --out FILE.json      (until SIGINT)
"""

from __future__ import annotations

import argparse
import array
import json
import sys
import time
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from cosmos3_ros.nodes.running import leave

WIDTH, HEIGHT, RATE_HZ = 1280, 720, 30
TOPIC = "bench/image"
MATCH_TIMEOUT_S = 20.0
# A stamp is the sender's monotonic clock, which all processes of a machine share.
NS = 1_000_000_000


def send(node: Node, seconds: float) -> int:
    """Publish frames at RATE_HZ to a listener; returns how many. Raises TimeoutError for none."""
    publisher = node.create_publisher(Image, TOPIC, qos_profile_sensor_data)
    pixels = np.random.default_rng(0).integers(0, 256, HEIGHT * WIDTH * 3, np.uint8)
    data = array.array("B", pixels.tobytes())
    message = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH, data=data)
    deadline = time.monotonic() + MATCH_TIMEOUT_S
    while publisher.get_subscription_count() == 0:
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody listens on {TOPIC} after {MATCH_TIMEOUT_S:g} s")
        time.sleep(0.05)
    time.sleep(1.0)
    frames, start = round(seconds * RATE_HZ), time.monotonic()
    for frame in range(frames):
        time.sleep(max(0.0, start + frame / RATE_HZ - time.monotonic()))
        message.header.frame_id = str(frame)
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(time.monotonic_ns(), NS)
        publisher.publish(message)
    time.sleep(1.0)
    return frames


def receive(node: Node, out: Path) -> None:
    """Note every frame's latency [ms] until SIGINT, then write them to ``out``."""
    latencies_ms: list[float] = []

    def note(message: Image) -> None:
        sent_ns = message.header.stamp.sec * NS + message.header.stamp.nanosec
        latencies_ms.append((time.monotonic_ns() - sent_ns) / 1e6)

    node.create_subscription(Image, TOPIC, note, qos_profile_sensor_data)
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    out.write_text(json.dumps(latencies_ms))


def main() -> int:
    """Run one end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("end", choices=("send", "receive"))
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rclpy.init()
    try:
        node = rclpy.create_node(f"bench_{args.end}")
        if args.end == "send":
            print(send(node, args.seconds), flush=True)
        else:
            receive(node, args.out)
        return 0
    except TimeoutError as error:
        print(f"bench_images: {error}", file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    leave(main())
