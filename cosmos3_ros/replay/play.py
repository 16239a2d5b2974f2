"""``cosmos3 replay``: a bag into the two real nodes over ROS, and what they make of it.

The nodes run as they run on a robot, as processes of their own on a domain of their own. The clock
is the bag's. Joint states are those that were recorded: the commands move nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from cosmos3_ros.policy.embodiment import Embodiment, load_embodiment
from cosmos3_ros.processes import (
    Child,
    Children,
    ProcessFailed,
    end_on_signals,
    ros_environment,
)
from cosmos3_ros.replay.bags import Bag, open_bag
from cosmos3_ros.replay.pictures import COMPRESSED_IMAGE, IMAGE
from cosmos3_ros.replay.report import report
from cosmos3_ros.replay.seams import CONTROLLER_STATUS
from cosmos3_ros.replay.summary import Summary, summarise

OUTPUT, SUMMARY, REPORT, LOGS = "output.mcap", "summary.json", "report.png", "logs"
NODES = "cosmos3_ros.nodes"
# By node: its module, and what it runs under in ROS.
POLICY, CONTROLLER = "cosmos3_policy", "cosmos3_controller"
RECORDED = {
    "action_chunk": "cosmos3_ros/msg/ActionChunk",
    "predicted_frame": IMAGE,
    "status": "cosmos3_ros/msg/PolicyStatus",
    "controller_status": CONTROLLER_STATUS,
    "joint_command": "sensor_msgs/msg/JointState",
    "joint_states": "sensor_msgs/msg/JointState",
    "instruction": "std_msgs/msg/String",
    "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
}
# The policy node, the controller node and the recorder.
JOINT_STATES_LISTENERS = 3
CLOCK_LISTENERS = 2
# The pace drops where the machine cannot keep it; a replay this much slower hangs.
SLOWEST_PACE = 0.2
START_TIMEOUT_S = 120.0


class ReplayError(ValueError):
    """The bag, the bundle and the options do not make a replay."""


@dataclass(frozen=True)
class Inputs:
    """What of the bag is played: bag topics to the names they are played under."""

    topics: Mapping[str, str]
    cameras: tuple[str, ...]
    compressed: bool
    duration_s: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", type=Path, help="rosbag2 folder, or .mcap or .db3 file")
    parser.add_argument("--bundle", type=Path, required=True, help="made by 'cosmos3 export'")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--rate", type=float, default=1.0, help="pace, 1 as recorded (default)")
    parser.add_argument("--embodiment", help="name or YAML file (default: the bundle's own)")
    parser.add_argument("--backend", help="who runs the graphs (default: the policy node's)")
    parser.add_argument("--instruction", help="instead of the bag's")
    parser.add_argument(
        "--remap",
        action="append",
        default=[],
        metavar="FROM=TO",
        help="play the bag's topic FROM as TO, for example /wrist/image_raw=/camera/wrist/image",
    )
    parser.add_argument("--params-file", type=Path, help="ROS parameters of both nodes")


def main(args: argparse.Namespace) -> int:
    end_on_signals()
    if not 0 < args.rate <= 100:
        raise ReplayError(f"--rate is {args.rate:g}; expected more than 0, at most 100")
    embodiment_name = args.embodiment or bundle_embodiment(args.bundle)
    embodiment = load_embodiment(embodiment_name)
    with open_bag(args.bag) as bag:
        inputs = choose_inputs(bag, embodiment, _remappings(args.remap), bool(args.instruction))
    if args.bag.resolve() == (args.out / OUTPUT).resolve():
        raise ReplayError(
            f"'{args.bag}' is where the recording of the replay goes; expected another --out"
        )
    for name in (OUTPUT, SUMMARY, REPORT):
        (args.out / name).unlink(missing_ok=True)
    _run_nodes(args, embodiment_name, inputs)
    with tqdm(desc="reporting", total=2, bar_format="{desc} {n} of {total}", disable=None) as bar:
        summary = summarise(args.out / OUTPUT, args.out / SUMMARY, embodiment)
        bar.update()
        report(args.out / OUTPUT, args.out / REPORT, inputs=args.bag)
        bar.update()
    return _conclude(summary, args.out)


def bundle_embodiment(bundle: Path) -> str:
    """The embodiment that a bundle was exported for. Raises ReplayError for what is no bundle."""
    manifest = bundle / "manifest.json"
    try:
        return str(json.loads(manifest.read_text())["contract"]["embodiment"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReplayError(
            f"'{bundle}' is no bundle: {manifest} cannot be read ({error}); expected a folder "
            "written by 'cosmos3 export'"
        ) from error


def choose_inputs(
    bag: Bag, embodiment: Embodiment, remappings: Mapping[str, str], instructed: bool
) -> Inputs:
    """The topics that the nodes need, in the bag. Raises ReplayError that names the first missing.

    ``instructed``: the instruction is given, the bag needs none.
    """
    there = {remappings.get(t, t): t for t, about in bag.topics.items() if about.count}
    pictures = {
        played: bag.topics[topic].type
        for played, topic in there.items()
        if bag.topics[topic].type in (IMAGE, COMPRESSED_IMAGE)
    }
    if not pictures:
        raise ReplayError(
            f"'{bag.path}' is a bag without images: it has {', '.join(there) or 'no messages'}; "
            "record the cameras too"
        )
    wanted = {view.name: f"/camera/{view.name}/image" for view in embodiment.cameras}
    compressed = any(f"{topic}/compressed" in pictures for topic in wanted.values())
    cameras = [f"{topic}/compressed" if compressed else topic for topic in wanted.values()]
    for topic in cameras:
        if topic not in pictures:
            raise ReplayError(
                f"bag '{bag.path}' has no images on {topic}, which embodiment '{embodiment.name}' "
                f"needs; it has images on {', '.join(pictures)} (--remap FROM={topic})"
            )
    topics = [*cameras, "/joint_states"]
    if not instructed:
        topics.append("/instruction")
    for topic in topics:
        if topic not in there:
            raise ReplayError(
                f"bag '{bag.path}' has no messages on {topic}; it has {', '.join(there)}"
                + ("; give --instruction TEXT" if topic == "/instruction" else " (--remap)")
            )
    return Inputs(
        topics={there[topic]: topic for topic in topics},
        cameras=tuple(there[topic] for topic in cameras),
        compressed=compressed,
        duration_s=(bag.end_ns - bag.start_ns) / 1e9,
    )


def _run_nodes(args: argparse.Namespace, embodiment: str, inputs: Inputs) -> None:
    """Play the bag through both nodes; afterwards ``output.mcap`` is there."""
    logs = args.out / LOGS
    with Children(logs, ros_environment()) as children:
        topics = [f"{topic}:{kind}" for topic, kind in RECORDED.items()]
        _start(children, "recorder_node", output=str(args.out / OUTPUT), topics=topics)
        common = {"embodiment": embodiment, "use_sim_time": True}
        files = [] if args.params_file is None else ["--params-file", str(args.params_file)]
        backend = {} if args.backend is None else {"backend": args.backend}
        controller = _start(children, "controller_node", *files, **common, open_loop=True)
        policy = _start(
            children,
            "policy_node",
            *files,
            **common,
            **backend,
            bundle=str(args.bundle),
            image_transport="compressed" if inputs.compressed else "raw",
            # No picture of the bag is to be lost on the way.
            image_reliability="reliable",
        )
        _bring_up(children, [controller, policy])
        _play(children, args, inputs)
        endings = {ending.child.name: ending for ending in children.stop()}
        recorder = endings["recorder_node"]
        if not recorder.clean:
            raise recorder.child.failure(f"ended with exit code {recorder.exit_code}")


def _bring_up(children: Children, nodes: list[Child]) -> None:
    """Configure and activate; a node that refuses says why in its own log."""
    bringup = children.start_module("bringup", f"{NODES}.bringup", CONTROLLER, POLICY)
    try:
        with tqdm(desc="starting", bar_format="{desc} {elapsed}", disable=None) as bar:
            _wait(children, bringup, math.inf, bar)
    except ProcessFailed:
        reasons = [
            line.partition("not ")[2]
            for node in nodes
            for line in node.tail(100).splitlines()
            if "not configured: " in line or "not activated: " in line
        ]
        if reasons:
            raise ReplayError(f"the nodes did not start: not {'; not '.join(reasons)}") from None
        raise


def _play(children: Children, args: argparse.Namespace, inputs: Inputs) -> None:
    expected = [f"{topic}=1" for topic in inputs.cameras]
    joint_states = next(t for t, played in inputs.topics.items() if played == "/joint_states")
    expected += [f"{joint_states}={JOINT_STATES_LISTENERS}", f"/clock={CLOCK_LISTENERS}"]
    remappings = [
        word
        for topic, played in inputs.topics.items()
        if topic != played
        for word in ("-r", f"{topic}:={played}")
    ]
    player = _start(
        children,
        "player_node",
        *remappings,
        bag=str(args.bag),
        topics=list(inputs.topics),
        rate=float(args.rate),
        expected_subscriptions=expected,
        match_timeout_s=START_TIMEOUT_S,
        **({"instruction": args.instruction} if args.instruction else {}),
    )
    length_s = inputs.duration_s / args.rate
    layout = "{l_bar}{bar}| {n} of {total} s"
    with tqdm(total=round(length_s), desc="playing", disable=None, bar_format=layout) as bar:
        _wait(children, player, START_TIMEOUT_S + length_s / SLOWEST_PACE, bar)


def _wait(children: Children, child: Child, timeout_s: float, bar: tqdm) -> None:
    """Wait for a child as ``Children.wait`` does, and move a bar by the seconds it took."""
    started_s = time.monotonic()
    while child.process.poll() is None and time.monotonic() - started_s < timeout_s:
        children.check(but=child)
        elapsed_s = int(time.monotonic() - started_s)
        bar.update(min(elapsed_s, bar.total or elapsed_s) - bar.n)
        time.sleep(0.1)
    if child.process.poll() is None:
        raise child.failure(f"did not end within {timeout_s:g} s")
    children.wait(child, 0.0)


def _start(children: Children, node: str, *ros_arguments: str, **parameters: object) -> Child:
    words = [
        word
        for name, value in parameters.items()
        # JSON is YAML, which ROS reads parameters as.
        for word in ("-p", f"{name}:={json.dumps(value)}")
    ]
    return children.start_module(node, f"{NODES}.{node}", "--ros-args", *ros_arguments, *words)


def _remappings(entries: list[str]) -> dict[str, str]:
    remappings = {}
    for entry in entries:
        source, _, target = entry.partition("=")
        if not source.startswith("/") or not target.startswith("/"):
            raise ReplayError(f"--remap is '{entry}'; expected FROM=TO, two topics with a slash")
        remappings[source] = target
    return remappings


def _conclude(summary: Summary, out: Path) -> int:
    latency, jitter = summary.plan_latency_ms, summary.command_jitter_ms
    for name, value in (
        ("plans", f"{summary.plans}, latency p50 {latency.p50} p99 {latency.p99} ms"),
        ("commands", f"{summary.commands} at {summary.command_rate_hz} Hz"),
        ("jitter", f"p50 {jitter.p50} p99 {jitter.p99} max {jitter.max} ms"),
        ("frames", f"{summary.predicted_frames} predicted"),
        ("dropped", f"{summary.dropped_observations} of the observations"),
        ("holds", f"{summary.holds}, {summary.rejected_chunks} chunks rejected"),
        ("played", f"{summary.duration_s} s at {summary.pace} times real time"),
        ("written", ", ".join(str(out / name) for name in (OUTPUT, SUMMARY, REPORT))),
    ):
        print(f"{name:9} {value}")
    if summary.plans and summary.commands and not summary.fault:
        return 0
    refused = ", ".join(f"{r} {n}" for r, n in summary.dropped_by_reason.items()) or "none"
    why = f"the policy node gave up: {summary.fault}. " * bool(summary.fault)
    print(
        f"cosmos3 replay: {why}{summary.plans} plans and {summary.commands} commands flowed; "
        f"expected some of both to the end. Observations refused: {refused}; the nodes' logs are "
        f"in {out / LOGS}",
        file=sys.stderr,
    )
    return 1
