"""The demo: a simulated arm that is told what to do, and told otherwise while it moves.

Simulator, policy node and controller node are processes of their own. Leaves ``summary.json``,
``report.png``, the recording ``output.mcap`` and the logs of all processes in its folder.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
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

from cosmos3_ros.command_line import Parser, positive
from cosmos3_ros.engine.bundle import load_bundle
from cosmos3_ros.msg import ActionChunk, PolicyStatus
from cosmos3_ros.processes import (
    Children,
    ProcessFailed,
    end_on_signals,
    ros_environment,
    take_environment,
)
from cosmos3_ros.replay.outcomes import describe
from cosmos3_ros.replay.report import report
from cosmos3_ros.replay.summary import Summary, summarise
from cosmos3_ros.resources import resource
from cosmos3_ros.sim.arguments import add_planning_arguments, parse
from cosmos3_ros.sim.team import (
    CONTROL_RATE_HZ,
    Parameters,
    Team,
    await_recorder,
    bring_up,
    require_arm,
    require_runnable,
    start_recorder,
    start_team,
)

# A busy machine is late now and then, and DDS may take seconds to find the clock at the start.
LEAST_SHARE_OF_RATE = 0.8
LEAST_SHARE_OF_TIME = 0.5
STANDSTILL_TIMEOUT_S = 20.0
# The script's time begins with the first plan; a policy that makes none is not waited for longer.
FIRST_PLAN_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Line:
    """What the arm is told, and when [simulated s from the first plan]."""

    at_s: float
    instruction: str


# The second line is overtaken by the third while the arm is on its way.
SCRIPT = (
    Line(0.0, "touch the red cube"),
    Line(2.5, "touch the green cube"),
    Line(3.1, "touch the blue cube"),
    Line(6.6, "lift the green cube"),
)
SECONDS = 12.0
# A scene that no demonstration of pico begins with.
_SEED = 1_000_004


class Director(Node):
    """Gives the instructions, watches simulated time pass and the policy node for a fault."""

    def __init__(self, script: Sequence[Line]) -> None:
        super().__init__("cosmos3_demo")
        self.fault = ""
        self._heard_ns: int | None = None
        self._first_ns: int | None = None
        self._planned = False
        self._driven_s = 0.0
        self._script = list(script)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._instruction = self.create_publisher(String, "instruction", latched)
        self._speak()
        # Simulated time in small messages, fifteen a second.
        self.create_subscription(CameraInfo, "camera/exterior/camera_info", self._tick, 1)
        self.create_subscription(PolicyStatus, "status", self._hear, latched)
        self.create_subscription(ActionChunk, "action_chunk", self._plan, 1)

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
        self._ticked_s = time.monotonic()
        now_ns = Time.from_msg(message.header.stamp).nanoseconds
        if self._heard_ns is None:
            self._heard_ns = now_ns
        if self._first_ns is None and self._may_begin(now_ns):
            self._first_ns = now_ns
        if self._first_ns is not None:
            self._driven_s = (now_ns - self._first_ns) / 1e9
            self._speak()

    def _may_begin(self, now_ns: int) -> bool:
        assert self._heard_ns is not None
        return self._planned or now_ns - self._heard_ns > FIRST_PLAN_PATIENCE_S * 1e9

    def _plan(self, _: ActionChunk) -> None:
        self._planned = True

    def _speak(self) -> None:
        while self._script and self._script[0].at_s <= self._driven_s:
            self._instruction.publish(String(data=self._script.pop(0).instruction))

    def _hear(self, status: PolicyStatus) -> None:
        if status.state == PolicyStatus.STATE_FAULT:
            self.fault = status.reason


def main(argv: list[str] | None = None) -> int:
    """Run the demo; 0 when plans and commands really flowed, 1 with the reason otherwise."""
    args = parse(_parser(), argv)
    end_on_signals()
    script = SCRIPT if args.instruction is None else (Line(0.0, args.instruction),)
    policy = {
        "plan_rate_hz": args.plan_rate,
        "strategy": args.strategy,
        "state_ahead": str(args.state_ahead).lower(),
        "added_latency_s": args.added_latency_ms / 1e3,
    }
    bundle = args.bundle or resource("engines", "pico")
    try:
        demonstrate(args.out, args.seconds, script, bundle, policy)
    except (ProcessFailed, ValueError, OSError) as error:
        print(f"demo failed: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="./run demo", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of everything it leaves")
    parser.add_argument(
        "--seconds", type=positive, default=SECONDS, help="simulated time (default: %(default)s)"
    )
    told = ", ".join(f"'{line.instruction}' at {line.at_s:g} s" for line in SCRIPT)
    parser.add_argument("--instruction", help=f"what the arm is told (default: {told})")
    parser.add_argument(
        "--bundle", type=Path, help="default: the trained policy that ships, engines/pico"
    )
    add_planning_arguments(parser)
    return parser


def demonstrate(
    out: Path, seconds: float, script: Sequence[Line], bundle: Path, policy: Parameters
) -> None:
    """Drive the arm and write what came of it. ``policy``: parameters of the policy node.

    Raises AnotherRobot for a bundle of one, BundleError for one that this CPU cannot run,
    ProcessFailed naming the process that failed, with the end of its log.
    """
    recording = out / "output.mcap"
    for stale in (recording, out / "summary.json", out / "report.png"):
        stale.unlink(missing_ok=True)
    loaded = load_bundle(bundle)
    embodiment = require_arm(loaded)
    require_runnable(loaded)
    # As far ahead as frames are decoded: a row ahead hardly anything has moved.
    policy = {**policy, "predicted_frame_rows": loaded.manifest.contract.predicted_rows}
    environment = ros_environment()
    take_environment(environment)
    with Children(out / "logs", environment) as children:
        recorder = start_recorder(children, recording)
        team = start_team(children, bundle, embodiment.name, sim={"seed": _SEED}, policy=policy)
        # It speaks before the nodes are up: the instruction is there when the policy node is.
        with _directing(script) as director:
            await_recorder(children, recorder, director)
            bring_up(children, team)
            wall_s = director.drive(seconds, children, team)
        endings = children.stop()
    if not recording.is_file():
        raise recorder.failure("left no recording")
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
def _directing(script: Sequence[Line]) -> Iterator[Director]:
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    director = Director(script)
    try:
        yield director
    finally:
        director.destroy_node()
        rclpy.shutdown()


def _print_table(summary: Summary, out: Path) -> None:
    latency, jitter = summary.plan_latency_ms, summary.command_jitter_ms
    rows = {
        **{f"at {o.said_s:.1f} s": describe(o) for o in summary.outcomes},
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
