"""The two ends of the control benchmark: a robot that sends, and somebody who listens to the
controller. See ``cosmos3_ros.bench_control``.

python -m cosmos3_ros.nodes.bench_control robot --embodiment NAME [--cameras]     (until SIGINT)
python -m cosmos3_ros.nodes.bench_control listen --out FILE.json                  (until SIGINT)
"""

from __future__ import annotations

import argparse
import array
import json
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from cosmos3_ros.nodes.joints import JointMap
from cosmos3_ros.nodes.parameters import qos_profile
from cosmos3_ros.nodes.running import leave
from cosmos3_ros.policy.embodiment import Embodiment, load_embodiment

WIDTH, HEIGHT, CAMERA_RATE_HZ, JOINT_RATE_HZ = 640, 480, 30.0, 100.0
INSTRUCTION = "pick up the red cube"


class Robot(Node):
    """Joint states at rest and, where asked, every camera of the embodiment at CAMERA_RATE_HZ."""

    def __init__(self, embodiment: Embodiment, cameras: bool) -> None:
        super().__init__("bench_robot")
        joints = JointMap(embodiment)
        middle = (np.maximum(embodiment.lower, -1) + np.minimum(embodiment.upper, 1)) / 2
        self._state = JointState(name=joints.names, position=joints.to_joints(middle).tolist())
        self._joints = self.create_publisher(JointState, "joint_states", 10)
        self.create_timer(1 / JOINT_RATE_HZ, self._send_joints)
        latched = qos_profile("reliable", 1, transient_local=True)
        self._instruction = self.create_publisher(String, "instruction", latched)
        self._instruction.publish(String(data=INSTRUCTION))
        if cameras:
            pixels = np.random.default_rng(0).integers(0, 256, HEIGHT * WIDTH * 3, np.uint8)
            data = array.array("B", pixels.tobytes())
            self._image = Image(
                height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH, data=data
            )
            self._cameras = [
                self.create_publisher(Image, f"camera/{view.name}/image", qos_profile_sensor_data)
                for view in embodiment.cameras
            ]
            self.create_timer(1 / CAMERA_RATE_HZ, self._send_images)

    def _send_joints(self) -> None:
        self._state.header.stamp = self.get_clock().now().to_msg()
        self._joints.publish(self._state)

    def _send_images(self) -> None:
        self._image.header.stamp = self.get_clock().now().to_msg()
        for publisher in self._cameras:
            publisher.publish(self._image)


class Listener(Node):
    """Keeps what the controller said of itself last."""

    def __init__(self) -> None:
        super().__init__("bench_listener")
        self.last: dict[str, str] = {}
        self.create_subscription(DiagnosticArray, "/diagnostics", self._hear, 100)

    def _hear(self, message: DiagnosticArray) -> None:
        for entry in message.status:
            if entry.name.endswith(": commands"):
                self.last = {pair.key: pair.value for pair in entry.values}


def main() -> int:
    """Run one end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("end", choices=("robot", "listen"))
    parser.add_argument("--embodiment", default="droid_joint_pos")
    parser.add_argument("--cameras", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rclpy.init()
    is_robot = args.end == "robot"
    node = Robot(load_embodiment(args.embodiment), args.cameras) if is_robot else Listener()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    if isinstance(node, Listener):
        args.out.write_text(json.dumps(node.last))
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    leave(main())
