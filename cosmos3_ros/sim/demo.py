"""The demo: a simulated arm, the policy node and the controller node, driven by an instruction.

Every node is a process of its own. Leaves ``summary.json``, ``report.png``, the recording
``output.mcap`` and the logs of all processes in its folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import String
from tqdm import tqdm

from cosmos3_ros.msg import PolicyStatus
from cosmos3_ros.processes import Child, Children, ProcessFailed, end_on_signals, ros_environment
from cosmos3_ros.replay.report import report
from cosmos3_ros.replay.summary import Summary, summarise
from cosmos3_ros.resources import resource

EMBODIMENT = "sim_panda"
CONTROL_RATE_HZ = 50.0
# A busy machine is late now and then, and DDS may take seconds to find the clock at the start.
LEAST_SHARE_OF_RATE = 0.8
LEAST_SHARE_OF_TIME = 0.5
BRINGUP_TIMEOUT_S = 120.0
STANDSTILL_TIMEOUT_S = 20.0

RECORDED = {
    "action_chunk": "cosmos3_ros/msg/ActionChunk",
    "camera/exterior/image": "sensor_msgs/msg/Image",
    "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
    "instruction": "std_msgs/msg/String",
    "joint_command": "sensor_msgs/msg/JointState",
    "joint_states": "sensor_msgs/msg/JointState",
    "predicted_frame": "sensor_msgs/msg/Image",
    "sim/cube_distances": "std_msgs/msg/Float64MultiArray",
    "status": "cosmos3_ros/msg/PolicyStatus",
}


@dataclass(frozen=True)
class Team:
    """The processes of a demo, in the order in which they start; they end in the other."""

    recorder: Child
    sim: Child
    policy: Child
    controller: Child


class Director(Node):
    """Gives the instruction, watches simulated time pass and the policy node for a fault."""

    def __init__(self, instruction: str) -> None:
        super().__init__("cosmos3_demo")
        self.fault = ""
        self._first_ns: int | None = None
        self._driven_s = 0.0
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._instruction = self.create_publisher(String, "instruction", latched)
        self._instruction.publish(String(data=instruction))
        # Simulated time in small messages, fifteen a second.
        self.create_subscription(CameraInfo, "camera/exterior/camera_info", self._tick, 1)
        self.create_subscription(PolicyStatus, "status", self._hear, latched)

    def drive(self, seconds: float, children: Children, team: Team) -> float:
        """Let simulated time pass, or less when the policy fails; returns the wall time taken [s].

        Raises ProcessFailed when a process ends or the clock stands still.
        """
        began_s = self._ticked_s = time.monotonic()
        bar_format = "{l_bar}{bar}| {n:.1f} of {total:.0f} simulated seconds [{elapsed}]"
        with tqdm(total=seconds, desc="driving", bar_format=bar_format) as bar:
            while bar.n < seconds and not self.fault:
                rclpy.spin_once(self, timeout_sec=0.2)
                children.check()
                if time.monotonic() - self._ticked_s > STANDSTILL_TIMEOUT_S:
                    raise team.sim.failure(f"sent no picture for {STANDSTILL_TIMEOUT_S:g} s")
                bar.update(min(self._driven_s, seconds) - bar.n)
        return time.monotonic() - began_s

    def _tick(self, message: CameraInfo) -> None:
        now_ns = Time.from_msg(message.header.stamp).nanoseconds
        self._first_ns = now_ns if self._first_ns is None else self._first_ns
        self._driven_s = (now_ns - self._first_ns) / 1e9
        self._ticked_s = time.monotonic()

    def _hear(self, status: PolicyStatus) -> None:
        if status.state == PolicyStatus.STATE_FAULT:
            self.fault = status.reason


def main(argv: list[str] | None = None) -> int:
    """Run the demo; 0 when plans and commands really flowed, 1 with the reason otherwise."""
    args = _parser().parse_args(argv)
    end_on_signals()
    try:
        bundle = args.bundle or tiny_bundle(args.out.parent / "bundles" / "tiny")
        demonstrate(args.out, args.seconds, args.instruction, bundle)
    except (ProcessFailed, subprocess.CalledProcessError) as error:
        print(f"demo failed: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./run demo", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of everything it leaves")
    parser.add_argument("--seconds", type=float, default=20.0, help="simulated time to drive")
    parser.add_argument("--instruction", default="touch the red cube", help="what the arm is told")
    parser.add_argument("--bundle", type=Path, help="default: engines/tiny.yaml, random weights")
    return parser


def tiny_bundle(folder: Path) -> Path:
    """The bundle of ``engines/tiny.yaml`` in ``folder``, made when its sources have changed."""
    recipe = resource("engines", "tiny.yaml")
    embodiment = resource("config", "embodiments", f"{EMBODIMENT}.yaml")
    exporter = sorted((Path(__file__).parents[1] / "engine").glob("*.py"))
    sources = hashlib.sha256(b"".join(p.read_bytes() for p in (recipe, embodiment, *exporter)))
    stamp = folder.with_suffix(".sources")
    if not (folder.is_dir() and stamp.is_file() and stamp.read_text() == sources.hexdigest()):
        command = ("-m", "cosmos3_ros.cli", "export", str(recipe), "--out", str(folder))
        subprocess.run([sys.executable, *command], check=True)
        stamp.write_text(sources.hexdigest())
    return folder


def demonstrate(out: Path, seconds: float, instruction: str, bundle: Path) -> None:
    """Drive the arm and write what came of it.

    Raises ProcessFailed naming the process that failed, with the end of its log.
    """
    recording = out / "output.mcap"
    for stale in (recording, out / "summary.json", out / "report.png"):
        stale.unlink(missing_ok=True)
    environment = ros_environment()
    os.environ.update(environment)
    with Children(out / "logs", environment) as children:
        team = _start(children, recording, bundle)
        # It speaks before the nodes are up: the instruction is there when the policy node is.
        with _directing(instruction) as director:
            _bring_up(children, team)
            wall_s = director.drive(seconds, children, team)
        endings = children.stop()
    if not recording.is_file():
        raise team.recorder.failure("left no recording")
    summary = summarise(recording, out / "summary.json")
    report(recording, out / "report.png")
    _print_table(summary, out)
    for ending in endings:
        if not ending.clean:
            raise ending.child.failure(f"ended badly, with exit code {ending.exit_code}")
    if director.fault:
        raise team.policy.failure(f"is in fault: {director.fault}")
    if summary.plans == 0:
        raise team.policy.failure("made no plan")
    least_hz = LEAST_SHARE_OF_RATE * CONTROL_RATE_HZ
    least = LEAST_SHARE_OF_TIME * wall_s * least_hz
    rate_hz = summary.command_rate_hz or 0.0
    if summary.commands < least or rate_hz < least_hz:
        raise team.controller.failure(
            f"sent {summary.commands} commands in {wall_s:.1f} s, {rate_hz:.1f} a second while it "
            f"sent; expected at least {least:.0f} and {least_hz:g} a second: free the machine, or "
            "see why it was late"
        )


@contextmanager
def _directing(instruction: str) -> Iterator[Director]:
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    director = Director(instruction)
    try:
        yield director
    finally:
        director.destroy_node()
        rclpy.shutdown()


def _start(children: Children, recording: Path, bundle: Path) -> Team:
    topics = json.dumps([f"{topic}:{kind}" for topic, kind in RECORDED.items()])

    def node(name: str, room: str, **parameters: object) -> Child:
        words = [word for key, value in parameters.items() for word in ("-p", f"{key}:={value}")]
        return children.start_module(name, f"cosmos3_ros.{room}.{name}", "--ros-args", *words)

    common = {"embodiment": EMBODIMENT, "use_sim_time": "true"}
    return Team(
        recorder=node("recorder_node", "nodes", output=recording, topics=topics),
        sim=node("sim_node", "sim"),
        policy=node("policy_node", "nodes", bundle=bundle, **common),
        controller=node("controller_node", "nodes", control_rate_hz=CONTROL_RATE_HZ, **common),
    )


def _bring_up(children: Children, team: Team) -> None:
    bringup = children.start_module(
        "bringup", "cosmos3_ros.nodes.bringup", "cosmos3_policy", "cosmos3_controller"
    )
    try:
        children.wait(bringup, BRINGUP_TIMEOUT_S)
    except ProcessFailed as error:
        # It names the node; why, only the node's own log says.
        logs = [f"{child.log}:\n{child.tail()}" for child in (team.policy, team.controller)]
        raise ProcessFailed("\n".join([str(error), *logs])) from None


def _print_table(summary: Summary, out: Path) -> None:
    latency, jitter = summary.plan_latency_ms, summary.command_jitter_ms
    rows = {
        "instruction": summary.instruction,
        "bundle": f"{summary.bundle} on {summary.backend}",
        "plans": f"{summary.plans}, latency p50 {_ms(latency.p50)}, p99 {_ms(latency.p99)}",
        "commands": f"{summary.commands}, jitter p50 {_ms(jitter.p50)}, p99 {_ms(jitter.p99)}",
        "observations": f"{summary.observations} used, {summary.dropped_observations} refused",
        "predicted": f"{summary.predicted_frames} frames",
        "holds": f"{summary.holds}, and {summary.rejected_chunks} refused chunks",
        "simulated": f"{summary.duration_s} s at {summary.pace} of real time",
        "picture": out / "report.png",
    }
    for name, value in rows.items():
        print(f"  {name:13} {value}")


def _ms(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
