"""The simulated arm on the topics of Isaac Sim's ROS 2 bridge, pacing itself in real time.

One loop does it all: a physics step, what is due to be published, and the executor for the rest of
the step. So a command or a reset never meets a half-made step, and rendering stays in one thread.
"""

from __future__ import annotations

import array
import signal
import sys
import threading
import time
from collections import Counter

import numpy as np
import rclpy
from builtin_interfaces.msg import Time as TimeMessage
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.clock import Clock as RosClock
from rclpy.clock_type import ClockType
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from cosmos3_ros.msg import SimState
from cosmos3_ros.sim.pace import Pace
from cosmos3_ros.sim.world import (
    CAMERAS,
    CUBES,
    GRIPPER_JOINT,
    JOINTS,
    STEP_RATE_HZ,
    STEPS_PER_FRAME,
    RenderError,
    World,
)

BASE_FRAME = "panda_link0"
STEPS_PER_JOINT_STATE = 2
REPORT_PERIOD_S = 1.0
# Isaac Sim's bridge: reliable, keep last 10.
QUEUE_DEPTH = 10
# How far ahead of the clock a command may be stamped: for the time that it is executed.
_STAMPED_AHEAD_NS = 1_000_000_000


class SimNode(Node):
    """Publishes the world after each physics step; see ``advance`` and ``run``."""

    def __init__(self) -> None:
        super().__init__("cosmos3_sim")
        self._seed = self._declare_seed()
        self._pace = Pace(self._declare_real_time_factor())
        self._black_cameras = self._declare_black_cameras()
        if self._black_cameras:
            self.get_logger().warning("the cameras show black pictures (black_cameras)")
        self._world = World()
        self._world.reset(self._seed)
        self._episode = 0
        # Since the episode began, and before it.
        self._steps = self._elapsed_steps = 0
        self._ended_ns = 0  # the clock at the end of the episode before
        self._counts: Counter[str] = Counter()
        self._warned: set[str] = set()
        self._touched: frozenset[str] = frozenset()

        self._clock_out = self.create_publisher(Clock, "/clock", QUEUE_DEPTH)
        self._joints_out = self.create_publisher(JointState, "joint_states", QUEUE_DEPTH)
        self._images_out = {
            camera: self.create_publisher(Image, f"camera/{camera}/image", QUEUE_DEPTH)
            for camera in CAMERAS
        }
        self._infos_out = {
            camera: self.create_publisher(CameraInfo, f"camera/{camera}/camera_info", QUEUE_DEPTH)
            for camera in CAMERAS
        }
        self._state_out = self.create_publisher(SimState, "sim/state", QUEUE_DEPTH)
        self._diagnostics_out = self.create_publisher(DiagnosticArray, "/diagnostics", QUEUE_DEPTH)
        self.create_subscription(JointState, "joint_command", self._command, QUEUE_DEPTH)
        self.create_service(Trigger, "sim/reset", self._reset)
        self._reported = (time.monotonic(), 0, 0.0)
        self.create_timer(
            REPORT_PERIOD_S, self._report, clock=RosClock(clock_type=ClockType.STEADY_TIME)
        )
        self.get_logger().info(self._scene())

    def run(self, stop: threading.Event) -> None:
        """Simulate until ``stop`` is set."""
        executor = SingleThreadedExecutor()
        executor.add_node(self)
        while not stop.is_set():
            self.advance()
            # At least one callback a step, however late we are.
            executor.spin_once(timeout_sec=max(0.0, self._pace.wait_s(self._simulated_s)))
            while not stop.is_set() and (wait := self._pace.wait_s(self._simulated_s)) > 0:
                executor.spin_once(timeout_sec=wait)

    def advance(self) -> None:
        """One physics step, then what is due after it, all with one stamp."""
        self._world.step()
        self._steps += 1
        self._touched |= self._world.contacts
        stamp = self._stamp()
        self._clock_out.publish(Clock(clock=stamp))
        if self._steps % STEPS_PER_JOINT_STATE == 0:
            message = JointState(name=[*JOINTS, GRIPPER_JOINT])
            message.header.stamp = stamp
            message.header.frame_id = BASE_FRAME
            message.position = self._world.positions.tolist()
            message.velocity = self._world.velocities.tolist()
            self._joints_out.publish(message)
        if self._steps % STEPS_PER_FRAME == 0:
            for camera in CAMERAS:
                info = camera_info(self._world, camera)
                info.header.stamp = stamp
                self._infos_out[camera].publish(info)
                self._images_out[camera].publish(self._image(camera, info.header))
            self._state_out.publish(self._state(stamp))

    @property
    def _simulated_s(self) -> float:
        return self._steps / STEP_RATE_HZ

    @property
    def _now_ns(self) -> int:
        return self._steps * 1_000_000_000 // STEP_RATE_HZ

    def _stamp(self) -> TimeMessage:
        return Time(nanoseconds=self._now_ns).to_msg()

    def _image(self, camera: str, header: Header) -> Image:
        frame = self._world.frame(camera)
        if self._black_cameras:
            frame[:] = 0
        height, width, channels = frame.shape
        return Image(
            header=header,
            height=height,
            width=width,
            encoding="rgb8",
            step=width * channels,
            # Anything but an array of bytes is checked by rclpy one pixel at a time.
            data=array.array("B", frame.tobytes()),
        )

    def _state(self, stamp: TimeMessage) -> SimState:
        message = SimState(seed=self._seed, episode=self._episode, cubes=list(CUBES))
        message.header.stamp = stamp
        message.header.frame_id = BASE_FRAME
        message.centres = [Point(x=x, y=y, z=z) for x, y, z in self._world.cubes.tolist()]
        message.distances = self._world.cube_distances.tolist()
        message.touched = sorted(self._touched)
        self._touched = frozenset()
        return message

    def _command(self, message: JointState) -> None:
        if len(message.name) != len(message.position):
            self._refuse(
                "malformed",
                "joint_command",
                f"it has {len(message.name)} names and {len(message.position)} positions; "
                "expected a position for each name",
            )
            return
        if self._is_of_before(message):
            self._counts["commands_of_the_scene_before"] += 1
            return
        self._counts["commands"] += 1
        named = dict(zip(message.name, message.position, strict=True))
        for joint, reason in self._world.command(named).items():
            self._refuse(
                reason,
                f"joint_command for '{joint}'",
                f"position {named[joint]} is {reason}; expected finite positions of "
                f"{', '.join((*JOINTS, GRIPPER_JOINT))}",
            )

    def _is_of_before(self, command: JointState) -> bool:
        """Whether a command was meant for the scene before this one, whose clock was ahead.

        Whoever stamps commands may take until the first picture to notice that the clock went
        back, and commands the arm until then to where it was. No stamp, or that of another clock:
        it is followed.
        """
        stamp_ns = Time.from_msg(command.header.stamp).nanoseconds
        if not self._episode or stamp_ns == 0:
            return False
        first = self._steps < STEPS_PER_FRAME
        return first or self._now_ns < stamp_ns <= self._ended_ns + _STAMPED_AHEAD_NS

    def _refuse(self, reason: str, what: str, why: str) -> None:
        """Count a refusal; say it once for each thing that is refused."""
        self._counts[f"refused_{reason}"] += 1
        if (key := f"{reason} {what}") not in self._warned:
            self._warned.add(key)
            self.get_logger().warning(f"{what} is not followed: {why} (said once, counted)")

    def _reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """The next scene, at time zero: a clock that jumps back has all forget the last one."""
        self._episode += 1
        self._world.reset(self._seed, self._episode)
        self._pace.restart()
        self._elapsed_steps += self._steps
        self._ended_ns = self._now_ns
        self._steps = 0
        self._touched = frozenset()
        response.success = True
        response.message = self._scene()
        self.get_logger().info(response.message)
        return response

    def _scene(self) -> str:
        places = [
            f"{name} at ({x:.3f}, {y:.3f})"
            for name, (x, y, _) in zip(CUBES, self._world.cubes, strict=True)
        ]
        return f"seed {self._seed}, episode {self._episode}: cubes {', '.join(places)} [m]"

    def _report(self) -> None:
        """Once a second of the steady clock: the pace that was kept, and what was refused."""
        now = time.monotonic()
        then, steps, lost_s = self._reported
        total = self._elapsed_steps + self._steps
        self._reported = (now, total, self._pace.lost_s)
        factor = (total - steps) / STEP_RATE_HZ / (now - then)
        slow = self._pace.lost_s > lost_s
        if slow:
            self.get_logger().warning(
                f"cannot keep pace: simulated {factor:.2f} s in the last second; "
                "free the machine or lower real_time_factor"
            )
        values = {
            "real_time_factor": f"{factor:.3f}",
            "pace_slips": self._pace.slips,
            "pace_lost_s": f"{self._pace.lost_s:.3f}",
            "simulated_s": f"{self._simulated_s:.3f}",
            "episode": self._episode,
            **self._counts,
        }
        status = DiagnosticStatus(
            name="cosmos3_sim: pace",
            level=DiagnosticStatus.WARN if slow else DiagnosticStatus.OK,
            message="cannot keep pace" if slow else "simulating",
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        message = DiagnosticArray(status=[status])
        message.header.stamp = self._stamp()
        self._diagnostics_out.publish(message)

    def _declare_seed(self) -> int:
        descriptor = ParameterDescriptor(
            description="Seed of the scenes; each reset makes the next scene of the seed.",
            integer_range=[IntegerRange(from_value=0, to_value=2**31 - 1)],
            read_only=True,
        )
        return int(self.declare_parameter("seed", 0, descriptor).value)

    def _declare_black_cameras(self) -> bool:
        descriptor = ParameterDescriptor(
            description="Publish black pictures, to see what a policy does that sees nothing.",
            read_only=True,
        )
        return bool(self.declare_parameter("black_cameras", False, descriptor).value)

    def _declare_real_time_factor(self) -> float:
        descriptor = ParameterDescriptor(
            description="Simulated seconds a second; 0: as fast as it can.",
            floating_point_range=[FloatingPointRange(from_value=0.0, to_value=100.0)],
            read_only=True,
        )
        return float(self.declare_parameter("real_time_factor", 1.0, descriptor).value)


def camera_info(world: World, name: str) -> CameraInfo:
    """Of a camera of CAMERAS, without a stamp."""
    camera = world.intrinsics(name)
    k = np.array([[camera.focal, 0, camera.cx], [0, camera.focal, camera.cy], [0, 0, 1]])
    message = CameraInfo(
        width=camera.width,
        height=camera.height,
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=k.ravel().tolist(),
        r=np.eye(3).ravel().tolist(),
        p=np.hstack([k, np.zeros((3, 1))]).ravel().tolist(),
    )
    message.header.frame_id = f"{name}_camera_optical_frame"
    return message


def main() -> int:
    """Simulate until SIGINT or SIGTERM, however often they come."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = SimNode()
    except (InvalidParameterTypeException, InvalidParameterValueException, RenderError) as error:
        print(f"sim_node: {error}", file=sys.stderr)
        return 1
    node.run(stop)
    node.destroy_node()
    rclpy.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
