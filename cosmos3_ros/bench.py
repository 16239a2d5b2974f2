"""Benchmarks: ``./run bench images``, ``plan`` (``cosmos3_ros.bench_plan``), ``engine``
(``cosmos3_ros.bench_engine``), ``latency`` (``cosmos3_ros.bench_latency``) and ``control``
(``cosmos3_ros.bench_control``).

``images``: camera frames between two processes, best effort, with and without the DDS profile that
the package ships. Without it Fast DDS's defaults apply, but for UDP, which stays on loopback as it
does with the profile: the two runs differ in the size of the shared-memory segment alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from cosmos3_ros import bench_control, bench_engine, bench_latency, bench_plan
from cosmos3_ros.command_line import Parser
from cosmos3_ros.processes import Children, ProcessFailed, end_on_signals, ros_environment
from cosmos3_ros.resources import resource

NAMESPACE = "{http://www.eprosima.com}"
SEGMENT_SETTINGS = ("segment_size", "maxMessageSize")
NODE = "cosmos3_ros.nodes.bench_images"
END_TIMEOUT_S = 120.0


def write_default_profile(path: Path) -> None:
    """Write our loopback profile without its segment settings, which leaves Fast DDS's defaults."""
    ElementTree.register_namespace("", NAMESPACE.strip("{}"))
    tree = ElementTree.parse(resource("config", "fastdds_local.xml"))
    for transport in tree.iter(f"{NAMESPACE}transport_descriptor"):
        for setting in SEGMENT_SETTINGS:
            for element in transport.findall(NAMESPACE + setting):
                transport.remove(element)
    tree.write(path)


def images_once(profile: Path, seconds: float, folder: Path) -> dict[str, float]:
    """Run both ends under a profile; returns sent, received and latency percentiles [ms]."""
    environment = ros_environment() | {"FASTRTPS_DEFAULT_PROFILES_FILE": str(profile)}
    received = folder / "latencies_ms.json"
    received.unlink(missing_ok=True)
    with Children(folder, environment) as children:
        children.start_module("receive", NODE, "receive", "--out", received)
        sender = children.start_module("send", NODE, "send", "--seconds", str(seconds))
        children.wait(sender, seconds + END_TIMEOUT_S)
    latencies_ms = np.array(json.loads(received.read_text()))
    p50, p99 = np.percentile(latencies_ms, (50, 99)) if len(latencies_ms) else (np.nan, np.nan)
    return {
        "sent": int(sender.log.read_text().split()[-1]),
        "received": len(latencies_ms),
        "latency_p50_ms": round(float(p50), 2),
        "latency_p99_ms": round(float(p99), 2),
    }


def images(args: argparse.Namespace) -> int:
    """Measure both profiles, write the JSON file, print a table."""
    folder = args.out.parent / "bench_images_logs"
    folder.mkdir(parents=True, exist_ok=True)
    default = folder / "fastdds_default_segment.xml"
    write_default_profile(default)
    profiles = {
        "default segment": default,
        "fastdds_local.xml": resource("config", "fastdds_local.xml"),
    }
    results = {
        name: images_once(path, args.seconds, folder / path.stem) for name, path in profiles.items()
    }
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    print("1280x720 rgb8 at 30 Hz, best effort, between two processes")
    print(f"{'profile':20}{'received':>10}{'sent':>6}{'p50 [ms]':>10}{'p99 [ms]':>10}")
    for name, row in results.items():
        print(
            f"{name:20}{row['received']:>10}{row['sent']:>6}"
            f"{row['latency_p50_ms']:>10.1f}{row['latency_p99_ms']:>10.1f}"
        )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns the exit code."""
    parser = Parser(prog="bench", description="Benchmarks of cosmos3_ros.")
    benches = parser.add_subparsers(required=True, metavar="NAME")
    of_images = benches.add_parser("images", help="camera frames received of frames sent")
    of_images.add_argument("--seconds", type=float, default=5.0)
    of_images.add_argument("--out", type=Path, default=Path("build/bench_images.json"))
    of_images.set_defaults(run=images)
    of_plan = benches.add_parser("plan", help="a plan beside diffusers' pipeline")
    bench_plan.add_arguments(of_plan)
    of_plan.set_defaults(run=bench_plan.main)
    of_engine = benches.add_parser("engine", help="from checkpoint to bundle to engine")
    bench_engine.add_arguments(of_engine)
    of_engine.set_defaults(run=bench_engine.main)
    of_latency = benches.add_parser("latency", help="what slow plans cost, by strategy")
    bench_latency.add_arguments(of_latency)
    of_latency.set_defaults(run=bench_latency.main)
    of_control = benches.add_parser("control", help="how regularly commands leave, under load")
    bench_control.add_arguments(of_control)
    of_control.set_defaults(run=bench_control.main)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except (OSError, ValueError, ProcessFailed, bench_engine.StepFailed) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    end_on_signals()
    sys.exit(main())
