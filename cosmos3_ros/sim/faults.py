"""``./run faults``: what the nodes do when something fails. Real processes, real topics.

The simulated arm is driven by the policy that ships, and one thing after another goes wrong. For
each: how long until the controller held, against the bound that its time-outs give, the largest
step of a command, whether the arm moved on when the fault was over, and what was logged.
"""

from __future__ import annotations

import argparse
import json
import os
import resource as limits
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from tqdm import tqdm

from cosmos3_ros.engine.bundle import MANIFEST, Bundle, file_sha256, load_bundle
from cosmos3_ros.msg import ControllerStatus
from cosmos3_ros.policy.embodiment import Embodiment, load_embodiment
from cosmos3_ros.processes import Child, Children, ProcessFailed, end_on_signals, ros_environment
from cosmos3_ros.resources import resource
from cosmos3_ros.sim.saboteur import Commanded, Saboteur, Spoiled, remapped
from cosmos3_ros.sim.tasks import COLOURS
from cosmos3_ros.sim.team import BRINGUP_TIMEOUT_S, CONTROL_RATE_HZ, start_node
from cosmos3_ros.sim.world import CAMERAS

# From a time-out to a message in our hands: a control period, a report, a busy machine [ms].
_SLACK_MS = 150.0
# A little over one, for the rounding of a stamp.
_LARGEST_STEP = 1.01
_CLOCK_JUMP_S = 1.0
_RECOVERY_S = 15.0
_HELD = (ControllerStatus.STATE_HOLDING, ControllerStatus.STATE_STOPPED)


@dataclass(frozen=True)
class Row:
    """What came of one fault. ``largest_step``: of a joint in one control period, as a share of
    what its velocity limit allows. ``log``: the first warning or error of the nodes after it."""

    fault: str
    time_to_hold_ms: float | None
    bound_ms: float | None
    largest_step: float
    recovered: bool
    ok: bool
    log: str


@dataclass(frozen=True)
class Fault:
    """``begin`` and ``end`` it. ``bound_ms``: in which the controller has to hold; None: it need
    not. ``lasts_s``: from one to the other."""

    name: str
    begin: Callable[[Stage], None]
    end: Callable[[Stage], None]
    bound_ms: float | None
    lasts_s: float = 3.0


class Stage:
    """The processes, and the saboteur between them."""

    def __init__(self, children: Children, bundle: Path, robot: Embodiment) -> None:
        self.children, self.bundle, self.robot = children, bundle, robot
        self.saboteur = Saboteur()
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.saboteur)
        self._told = 0
        sim_topics = ("/clock", "joint_states", *(f"camera/{name}/image" for name in CAMERAS))
        self.sim = start_node(children, "sim_node", "sim", {}, *remapped(*sim_topics))
        self.controller = start_node(
            children,
            "controller_node",
            "nodes",
            {
                "embodiment": robot.name,
                "use_sim_time": "true",
                "control_rate_hz": CONTROL_RATE_HZ,
            },
        )
        self.policy = self.start_policy()
        self.bring_up("cosmos3_controller", "cosmos3_policy")

    def start_policy(self, *, bundle: Path | None = None, name: str = "cosmos3_policy") -> Child:
        return start_node(
            self.children,
            "policy_node" if name == "cosmos3_policy" else name,
            "nodes",
            {
                "bundle": bundle or self.bundle,
                "embodiment": self.robot.name,
                "use_sim_time": "true",
                "threads": 1,
                "predicted_frame_rate_hz": 0.0,
            },
            "-r",
            f"__node:={name}",
            *remapped("action_chunk"),
            module="policy_node",
        )

    def bring_up(self, *nodes: str) -> int:
        """Configure and activate; the exit code."""
        bringup = self.children.start_module("bringup", "cosmos3_ros.nodes.bringup", *nodes)
        end_s = time.monotonic() + BRINGUP_TIMEOUT_S
        while (code := bringup.process.poll()) is None and time.monotonic() < end_s:
            self.spin(0.1)
        self.children.running.remove(bringup)
        if code is None:
            bringup.process.kill()
            raise bringup.failure(f"did not end within {BRINGUP_TIMEOUT_S:g} s")
        return code

    def kill_policy(self) -> None:
        self.policy.process.kill()
        self.policy.process.wait()
        self.children.running.remove(self.policy)

    def restart_policy(self) -> None:
        self.policy = self.start_policy()
        self.bring_up("cosmos3_policy")

    def spin(self, seconds: float) -> None:
        self.until(lambda: False, seconds)

    def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        end_s = time.monotonic() + seconds
        while not condition() and (left := end_s - time.monotonic()) > 0:
            self._executor.spin_once(min(left, 0.05))
        return condition()

    def tell(self) -> None:
        """Another cube than the last."""
        self._told += 1
        self.saboteur.instruct(f"touch the {COLOURS[self._told % len(COLOURS)]} cube")

    def is_tracking(self) -> bool:
        return self.saboteur.state == ControllerStatus.STATE_TRACKING

    def close(self) -> None:
        self._executor.shutdown()
        self.saboteur.destroy_node()


def main(argv: list[str] | None = None) -> int:
    """Run the faults; 0 when all ended as they have to."""
    args = _parser().parse_args(argv)
    end_on_signals()
    try:
        rows = run(args.out, args.bundle or resource("engines", "pico"), args.fault)
    except (ProcessFailed, ValueError) as error:
        print(f"faults failed: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    print(args.out)
    return 0 if all(row.ok for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./run faults", description=__doc__)
    parser.add_argument("--fault", action="append", choices=[f.name for f in FAULTS])
    parser.add_argument("--bundle", type=Path, help="default: the policy that ships, engines/pico")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    return parser


def run(out: Path, bundle_path: Path, names: list[str] | None = None) -> list[Row]:
    """Every fault, or those named, one after another; writes the rows as they come."""
    folder = out.parent / "faults"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # A copy, for one of the faults deletes it.
    bundle = load_bundle(shutil.copytree(bundle_path, folder / "bundle"))
    rows: list[Row] = []
    with _stage(folder, bundle) as stage:
        chosen = [fault for fault in FAULTS if names is None or fault.name in names]
        for fault in tqdm(chosen, unit="fault", disable=None):
            rows.append(_suffer(stage, fault))
            out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
            stage.children.check()
    return rows


@contextmanager
def _stage(folder: Path, bundle: Bundle) -> Iterator[Stage]:
    environment = ros_environment()
    os.environ.update(environment)
    with Children(folder / "logs", environment) as children:
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        robot = load_embodiment(bundle.manifest.contract.embodiment)
        stage = Stage(children, bundle.path, robot)
        try:
            yield stage
        finally:
            stage.close()
            rclpy.shutdown()


def _suffer(stage: Stage, fault: Fault) -> Row:
    """One fault from an arm that moves to an arm that moves again."""
    saboteur = stage.saboteur
    stage.tell()
    if not stage.until(stage.is_tracking, _RECOVERY_S):
        raise stage.controller.failure(f"did not track before '{fault.name}'")
    # On its way to another cube, and not yet there.
    stage.spin(0.6)
    logged = _log_sizes(stage)
    began_s, first = time.monotonic(), len(saboteur.commands)
    fault.begin(stage)
    injected_s = time.monotonic()
    stage.spin(max(fault.lasts_s - (injected_s - began_s), 0.1))
    held = [e for e in saboteur.entered if e.at_s >= began_s and e.state in _HELD]
    fault.end(stage)
    stage.tell()
    recovered = stage.until(stage.is_tracking, _RECOVERY_S)
    stage.spin(0.5)
    step = largest_step(saboteur.commands[first:], stage.robot)
    text = _logged_since(stage, logged)
    hold_ms = 1e3 * (held[0].at_s - began_s) if held else None
    in_time = fault.bound_ms is None or (hold_ms is not None and hold_ms <= fault.bound_ms)
    return Row(
        fault=fault.name,
        time_to_hold_ms=None if hold_ms is None else round(hold_ms, 1),
        bound_ms=fault.bound_ms,
        largest_step=round(step, 3),
        recovered=recovered,
        ok=in_time and recovered and step <= _LARGEST_STEP and "Traceback" not in text,
        log=_first_word(text),
    )


def largest_step(commands: list[Commanded], robot: Embodiment) -> float:
    """Of a joint between two commands, as a share of its velocity limit times the time that has
    passed by their stamps; across a jump of the clock, by their arrival."""
    speed = robot.velocity[: len(robot.joints)]
    largest = 0.0
    for before, after in pairwise(commands):
        passed_s = after.stamp_s - before.stamp_s
        if not 0 < passed_s <= _CLOCK_JUMP_S:
            periods = round((after.at_s - before.at_s) * CONTROL_RATE_HZ)
            passed_s = max(periods, 1) / CONTROL_RATE_HZ
        step = np.abs(after.positions - before.positions)[: len(speed)]
        largest = max(largest, float(np.max(step / (speed * passed_s))))
    return largest


def _log_sizes(stage: Stage) -> dict[Path, int]:
    return {log: log.stat().st_size for log in _logs(stage)}


def _logs(stage: Stage) -> list[Path]:
    return sorted(stage.children.logs.glob("*.log"))


def _logged_since(stage: Stage, sizes: dict[Path, int]) -> str:
    parts = []
    for log in _logs(stage):
        content = log.read_bytes()
        begin = sizes.get(log, 0)
        # A node that was started again begins its log anew.
        parts.append(content[begin if len(content) >= begin else 0 :].decode(errors="replace"))
    return "\n".join(parts)


def _first_word(text: str) -> str:
    lines = [line for line in text.splitlines() if "[WARN]" in line or "[ERROR]" in line]
    return lines[0].strip() if lines else ""


def table(rows: list[Row]) -> str:
    lines = [f"{'fault':28}{'hold [ms]':>10}{'bound':>8}{'step':>7}{'recovered':>11}{'ok':>5}  log"]
    for row in rows:
        hold = "-" if row.time_to_hold_ms is None else f"{row.time_to_hold_ms:.0f}"
        bound = "-" if row.bound_ms is None else f"{row.bound_ms:.0f}"
        lines.append(
            f"{row.fault:28}{hold:>10}{bound:>8}{row.largest_step:>7.2f}"
            f"{'yes' if row.recovered else 'no':>11}{'yes' if row.ok else 'NO':>5}  {row.log[-90:]}"
        )
    return "\n".join(lines)


def _nothing(stage: Stage) -> None:
    """There is nothing to undo."""


def _spoil(**changes: object) -> Callable[[Stage], None]:
    def begin(stage: Stage) -> None:
        for name, value in changes.items():
            setattr(stage.saboteur.spoiled, name, value)

    return begin


def _mend(stage: Stage) -> None:
    offset_ns = stage.saboteur.spoiled.clock_offset_ns
    stage.saboteur.spoiled = Spoiled(clock_offset_ns=offset_ns)


def _jump(seconds: float) -> Callable[[Stage], None]:
    def begin(stage: Stage) -> None:
        stage.saboteur.spoiled.clock_offset_ns += round(seconds * 1e9)

    return begin


def _stop_policy(stage: Stage) -> None:
    stage.policy.process.send_signal(signal.SIGSTOP)


def _continue_policy(stage: Stage) -> None:
    stage.policy.process.send_signal(signal.SIGCONT)


def _poison(stage: Stage) -> None:
    """The policy node dies, and comes back with weights that make NaN."""
    stage.kill_policy()
    poisoned = stage.bundle.parent / "poisoned"
    shutil.copytree(stage.bundle, poisoned, dirs_exist_ok=True)
    weights = poisoned / "denoise.onnx.data"
    before = file_sha256(weights)
    values = np.fromfile(weights, np.float32)
    values[:] = np.nan
    values.tofile(weights)
    manifest = poisoned / MANIFEST
    manifest.write_text(manifest.read_text().replace(before, file_sha256(weights)))
    stage.policy = stage.start_policy(bundle=poisoned)
    if stage.bring_up("cosmos3_policy") == 0:
        raise stage.policy.failure("was activated with a bundle that makes NaN")


def _heal(stage: Stage) -> None:
    stage.kill_policy()
    stage.restart_policy()


def _second_planner(stage: Stage) -> None:
    stage.start_policy(name="other_policy")
    stage.bring_up("other_policy")


def _end_second_planner(stage: Stage) -> None:
    other = next(child for child in stage.children.running if child.name == "other_policy")
    stage.children.running.remove(other)
    other.process.send_signal(signal.SIGINT)
    other.process.wait(timeout=20)


def _chatter(stage: Stage) -> None:
    for _ in range(100):
        stage.tell()
        stage.spin(0.1)


def _delete_bundle(stage: Stage) -> None:
    stage.bundle.rename(stage.bundle.with_name("deleted"))


def _restore_bundle(stage: Stage) -> None:
    stage.bundle.with_name("deleted").rename(stage.bundle)


def _limit_files(stage: Stage, size: int) -> None:
    """No file of a node may grow beyond ``size``: each write fails, as on a full disk."""
    for child in (stage.policy, stage.controller):
        limits.prlimit(child.process.pid, limits.RLIMIT_FSIZE, (size, limits.RLIM_INFINITY))


# A chunk of pico, its grace, and what the planner needs to notice.
_CHUNK_MS = 16 / 15 * 1e3 + 100.0
FAULTS = (
    Fault("policy killed", Stage.kill_policy, Stage.restart_policy, _CHUNK_MS + _SLACK_MS),
    Fault("policy stopped for 3 s", _stop_policy, _continue_policy, _CHUNK_MS + _SLACK_MS),
    *(
        Fault(
            f"camera {name} frozen",
            _spoil(frozen_cameras={name}),
            _mend,
            _CHUNK_MS + _SLACK_MS + 500.0,
        )
        for name in CAMERAS
    ),
    Fault("clock 10 s forward", _jump(10.0), _nothing, 1e3 / CONTROL_RATE_HZ + _SLACK_MS),
    Fault("clock 10 s back", _jump(-10.0), _nothing, 1e3 / CONTROL_RATE_HZ + _SLACK_MS),
    Fault("NaN in chunks", _spoil(nan_in_chunks=True), _mend, _CHUNK_MS + _SLACK_MS),
    Fault("NaN from the model", _poison, _heal, _CHUNK_MS + _SLACK_MS),
    # A chunk of pico lasts 1.07 s: a second late its last rows are followed, or none is.
    Fault("chunks 1 s late", _spoil(chunk_delay_s=1.0), _mend, None),
    Fault("chunks 1.5 s late", _spoil(chunk_delay_s=1.5), _mend, _CHUNK_MS + _SLACK_MS),
    Fault("joint states at 1 Hz", _spoil(joint_period_s=1.0), _mend, 250.0 + _SLACK_MS),
    Fault("20 % of messages lost", _spoil(dropped_share=0.2), _mend, None, 10.0),
    Fault("second policy node", _second_planner, _end_second_planner, None, 20.0),
    Fault("100 instructions in 10 s", _chatter, _nothing, None, 10.0),
    Fault("bundle deleted", _delete_bundle, _restore_bundle, None),
    Fault(
        "disk full",
        lambda stage: _limit_files(stage, 0),
        lambda stage: _limit_files(stage, limits.RLIM_INFINITY),
        None,
    ),
)


if __name__ == "__main__":
    sys.exit(main())
