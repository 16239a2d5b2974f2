"""``./run bench control``: how regularly the controller node commands, idle and beside a load.

The load: the policy node plans without pause on every core, from three cameras of 640 x 480 at
30 Hz. The controller follows what it plans. Its model has random weights, so its arm has no limits.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from cosmos3_ros.engine.recipe import Recipe, load_recipe
from cosmos3_ros.export_command import body_of
from cosmos3_ros.policy.embodiment import load_embodiment
from cosmos3_ros.processes import Child, Children, ProcessFailed, ros_environment
from cosmos3_ros.resources import resource

ENDS = "cosmos3_ros.nodes.bench_control"
# Three cameras, and a model that plans in tens of milliseconds.
EMBODIMENT, RECIPE = "droid_joint_pos", "tiny_droid.yaml"
# Of pictures of 640 x 480: name, x, y and width.
CELLS = (("wrist", 0, 0, 640), ("exterior_1", 0, 480, 320), ("exterior_2", 320, 480, 320))
RATES_HZ = (50, 100, 250)
CASES = ("idle", "load", "load_fifo")
FIFO_PRIORITY = 60
BRINGUP_TIMEOUT_S = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60.0, help="a cell (default: %(default)s)")
    parser.add_argument("--rate", type=int, action="append", help=f"default: {RATES_HZ}")
    parser.add_argument(
        "--next-period",
        action="store_true",
        help="a chunk's first command waits for its period (command_at_once: false)",
    )
    parser.add_argument("--out", type=Path, default=Path("build/bench_control.json"))


def main(args: argparse.Namespace) -> int:
    folder = args.out.parent / "bench_control"
    bundle, embodiment = _model(folder)
    results: dict[str, Any] = {"seconds": args.seconds, "cores": os.cpu_count()}
    results["command_at_once"] = at_once = not args.next_period
    rates = args.rate or RATES_HZ
    with tqdm(total=len(rates) * len(CASES), unit="run", disable=None) as bar:
        for rate_hz in rates:
            cells = results.setdefault(f"{rate_hz}", {})
            for case in CASES:
                cells[case] = measure(
                    rate_hz, case, args.seconds, folder, bundle, embodiment, at_once=at_once
                )
                args.out.write_text(json.dumps(results, indent=2) + "\n")
                bar.update()
    _print(results)
    return 0


def measure(
    rate_hz: int,
    case: str,
    seconds: float,
    folder: Path,
    bundle: Path,
    embodiment: Path,
    *,
    at_once: bool = True,
) -> dict[str, Any]:
    """One run: jitter of the commands [ms], periods, and what was missed of them."""
    out = folder / "controller.json"
    out.unlink(missing_ok=True)
    logs = folder / f"{rate_hz}_{case}"
    loaded = case != "idle"
    with Children(logs, ros_environment()) as children:
        listener = children.start_module("listen", ENDS, "listen", "--out", out)
        cameras = ("--cameras",) if loaded else ()
        children.start_module("robot", ENDS, "robot", "--embodiment", embodiment, *cameras)
        nodes = []
        if loaded:
            given = {"bundle": bundle, "embodiment": embodiment, "threads": os.cpu_count()}
            _start(children, "policy_node", given | {"predicted_frame_rate_hz": 0.0})
            nodes.append("cosmos3_policy")
        fifo = FIFO_PRIORITY if case == "load_fifo" else 0
        controller = _start(
            children,
            "controller_node",
            {
                "embodiment": embodiment,
                "control_rate_hz": float(rate_hz),
                "command_at_once": str(at_once).lower(),
                "fifo_priority": fifo,
                "lock_memory": str(bool(fifo)).lower(),
            },
        )
        nodes.append("cosmos3_controller")
        bringup = children.start_module("bringup", "cosmos3_ros.nodes.bringup", *nodes)
        children.wait(bringup, BRINGUP_TIMEOUT_S)
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            time.sleep(0.5)
            children.check()
        # The listener ends last, and hears the controller's last word.
        children.running.remove(listener)
        children.running.insert(0, listener)
        refused = "refused" if "was refused" in controller.log.read_text() else ""
    said = json.loads(out.read_text())
    if not said:
        raise ProcessFailed(f"the controller said nothing of itself; see {logs}")
    return _figures(said, refused)


def _figures(said: dict[str, str], refused: str) -> dict[str, Any]:
    def of(name: str) -> dict[str, float]:
        return {part: float(said[f"{name}_{part}"]) for part in ("p50_ms", "p99_ms", "max_ms")}

    frame = of("frame_to_command")
    return {
        **of("command_jitter"),
        "missed": int(said["missed_periods"]),
        "periods": int(said["periods"]),
        "wake_up_ms": of("wake_up"),
        "execution_ms": of("execution"),
        "frame_to_command_ms": {
            part: None if frame[f"{part}_ms"] != frame[f"{part}_ms"] else frame[f"{part}_ms"]
            for part in ("p50", "p99")
        },
        "scheduling": refused or "granted",
    }


def _model(folder: Path) -> tuple[Path, Path]:
    """A bundle of random weights for an arm that is hardly limited, and the arm's file."""
    from cosmos3_ros.engine.export import export

    folder.mkdir(parents=True, exist_ok=True)
    arm = yaml.safe_load(resource("config", "embodiments", f"{EMBODIMENT}.yaml").read_text())
    arm["name"] = "bench_arm"
    for channel in arm["channels"]:
        # So wide that whatever the random model plans is followed.
        channel |= {"lower": -1e3, "upper": 1e3, "velocity": 1e3, "acceleration": 1e6, "jump": 1e3}
    arm["cameras"] = [
        {"name": name, "x": x, "y": y, "width": width, "height": width * 3 // 4}
        for name, x, y, width in CELLS
    ]
    arm["canvas"] = {"width": 640, "height": 720}
    file = folder / "bench_arm.yaml"
    file.write_text(yaml.safe_dump(arm, sort_keys=False))
    recipe: Recipe = load_recipe(resource("engines", RECIPE))
    recipe = replace(recipe, name="bench_control", embodiment=arm["name"])
    bundle = export(recipe, body_of(load_embodiment(file)), folder / recipe.name)
    return bundle.path, file


def _start(children: Children, name: str, parameters: dict[str, Any]) -> Child:
    given = [word for key, value in parameters.items() for word in ("-p", f"{key}:={value}")]
    return children.start_module(name, f"cosmos3_ros.nodes.{name}", "--ros-args", *given)


def _print(results: dict[str, Any]) -> None:
    print(
        f"{'rate':>6} {'run':10}{'p50':>8}{'p99':>8}{'max':>9}  jitter [ms]{'missed':>8}"
        f"{'periods':>9}{'frame to command p99 [ms]':>27}"
    )
    for rate_hz, cells in results.items():
        if not isinstance(cells, dict):
            continue
        for case, row in cells.items():
            frame = row["frame_to_command_ms"]["p99"]
            print(
                f"{rate_hz:>6} {case:10}{row['p50_ms']:>8.2f}{row['p99_ms']:>8.2f}"
                f"{row['max_ms']:>9.2f}{'':13}{row['missed']:>8}{row['periods']:>9}"
                f"{'-' if frame is None else format(frame, '.1f'):>27}"
            )
