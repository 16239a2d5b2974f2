"""``./run faults``: what the nodes do when something fails. Real processes, real topics.

The simulated arm is driven by the policy that ships, and one thing after another goes wrong. For
each: how long until the controller held, and how long, once it was over, until the arm followed a
new plan, against the bounds that the time-outs give; the largest step of a command; what was
logged.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import rclpy
from rclpy.signals import SignalHandlerOptions
from tqdm import tqdm

from cosmos3_ros.command_line import Parser
from cosmos3_ros.engine.bundle import Bundle, load_bundle
from cosmos3_ros.policy.embodiment import Embodiment
from cosmos3_ros.processes import (
    Children,
    ProcessFailed,
    alone_in,
    end_on_signals,
    ros_environment,
    take_environment,
)
from cosmos3_ros.resources import resource
from cosmos3_ros.sim.fault_bundle import poisoned_copy
from cosmos3_ros.sim.fault_list import FAULTS, HORIZON_S, POISON, RECOVERY_S, Fault
from cosmos3_ros.sim.fault_stage import INSTRUCTIONS, Stage, largest_step
from cosmos3_ros.sim.team import require_arm

# A little over one, for the rounding of a stamp.
_LARGEST_STEP = 1.01
# How long a recovery is waited for, to say how late it was.
_PATIENCE_S = 15.0
# On the way to another cube, and not yet there.
_ON_ITS_WAY_S = 0.6
_WARM_UP_INSTRUCTION = "Hold still."
# What a run leaves in its folder.
_OURS = _BUNDLE, _LOGS = "bundle", "logs"


@dataclass(frozen=True)
class Row:
    """What came of one fault. ``recovery_ms``: until a plan from after it was followed.
    ``largest_step``: of a joint in one control period, as a share of what its velocity limit
    allows. ``log``: what is wrong with the row, or else what the nodes said of the fault."""

    fault: str
    time_to_hold_ms: float | None
    bound_ms: float | None
    recovery_ms: float | None
    recovery_bound_ms: float
    largest_step: float
    recovered: bool
    ok: bool
    log: str


@dataclass
class Seen:
    """What was seen of a fault; as it is made, nothing. ``troubles``: what must not be."""

    hold_s: float | None = None
    recovery_s: float | None = None
    step: float = 0.0
    troubles: list[str] = field(default_factory=list)
    logged: str = ""


def main(argv: list[str] | None = None) -> int:
    """Run the faults; 0 when all ended as they have to."""
    args = _parser().parse_args(argv)
    end_on_signals()
    try:
        rows = run(args.out, args.bundle or resource("engines", "pico"), args.fault)
    except (OSError, ValueError) as error:
        print(f"faults failed: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    print(args.out)
    return 0 if all(row.ok for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="./run faults", description=__doc__)
    parser.add_argument("--fault", action="append", choices=[f.name for f in FAULTS])
    parser.add_argument("--bundle", type=Path, help="default: the policy that ships, engines/pico")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    return parser


def run(out: Path, bundle_path: Path, names: list[str] | None = None) -> list[Row]:
    """Every fault, or those named, one after another.

    ``out`` is written when all are through, and until then what it was; the rows so far are in a
    .partial beside it. Bundle and logs lie in a folder of its name. Raises ValueError where that is
    something else, or another run is at it, ProcessFailed and OSError where nothing can be started.
    """
    robot = require_arm(load_bundle(bundle_path))
    if out.is_dir():
        raise ValueError(f"--out '{out}' is a folder; expected a file to write")
    folder = out.with_name(f"{out.stem}_run")
    folder.mkdir(parents=True, exist_ok=True)
    busy = ValueError(f"another run is at '{folder}'; wait for it to end, or name another --out")
    with alone_in(folder, busy):
        others = [path.name for path in folder.iterdir() if path.name not in _OURS]
        if others:
            raise ValueError(
                f"'{folder}' holds '{others[0]}', which is not of a run of faults; expected it to "
                "be free for bundle and logs: move it, or name another --out"
            )
        for path in folder.iterdir():
            shutil.rmtree(path)
        return _run(out, folder, bundle_path, robot, names)


def _run(
    out: Path, folder: Path, bundle_path: Path, robot: Embodiment, names: list[str] | None
) -> list[Row]:
    so_far = out.with_suffix(".partial")
    so_far.unlink(missing_ok=True)
    # A copy, for one of the faults deletes it.
    others = (_WARM_UP_INSTRUCTION, *INSTRUCTIONS)
    bundle = poisoned_copy(bundle_path, folder / _BUNDLE, POISON, others)
    contract = bundle.manifest.contract
    if not math.isclose(contract.chunk / contract.fps, HORIZON_S):
        raise ValueError(
            f"bundle '{bundle_path}' plans {contract.chunk / contract.fps:.2f} s ahead; expected "
            f"{HORIZON_S:.2f} s, which the bounds are made for"
        )
    rows: list[Row] = []
    with _stage(folder, bundle, robot) as stage:
        chosen = [fault for fault in FAULTS if names is None or fault.name in names]
        for fault in tqdm(chosen, unit="fault", disable=None):
            rows.append(_suffer(stage, fault))
            _write(so_far, rows)
        noted = stage.note()
    # By now all were told to end.
    if troubles := stage.troubles_since(noted):
        log = f"at the end {'; '.join(troubles)}; before it {rows[-1].log or 'nothing'}"
        rows[-1] = replace(rows[-1], ok=False, log=log)
    _write(so_far, rows)
    so_far.replace(out)
    return rows


def _write(out: Path, rows: list[Row]) -> None:
    out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


@contextmanager
def _stage(folder: Path, bundle: Bundle, robot: Embodiment) -> Iterator[Stage]:
    environment = ros_environment()
    take_environment(environment)
    # Through pipes, as under a launch file: a full disk does not silence the nodes themselves.
    with Children(folder / _LOGS, environment, piped=True) as children:
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        stage = Stage(children, bundle.path, robot)
        try:
            yield stage
        finally:
            stage.close()
            rclpy.shutdown()


def _suffer(stage: Stage, fault: Fault) -> Row:
    noted, seen = stage.note(), Seen()
    try:
        _watch(stage, fault, seen)
    except ProcessFailed as error:
        # The first line says what failed, the last one of its log why.
        lines = str(error).splitlines()
        seen.troubles.append(" ".join(dict.fromkeys((lines[0], lines[-1].strip()))))
    seen.troubles += stage.troubles_since(noted)
    seen.logged = stage.logged_since(noted)
    return judge(fault, seen)


def _watch(stage: Stage, fault: Fault, seen: Seen) -> None:
    """One fault from an arm that moves to an arm that moves again. Raises ProcessFailed where a
    process is not as it has to be."""
    if stage.moved_on_s(_PATIENCE_S) is None:
        raise stage.controller.failure("did not track before the fault")
    stage.spin(_ON_ITS_WAY_S)
    began_s, first = time.monotonic(), len(stage.saboteur.commands)
    try:
        fault.begin(stage)
        stage.spin(fault.lasts_s)
        seen.hold_s = stage.held_s(began_s)
        if not fault.goes_on:
            fault.end(stage)
        seen.recovery_s = stage.moved_on_s(_PATIENCE_S)
        if fault.goes_on:
            fault.end(stage)
        stage.spin(0.5)
        stage.children.check()
    finally:
        seen.step = largest_step(stage.saboteur.commands[first:], stage.robot)


def judge(fault: Fault, seen: Seen) -> Row:
    """The row of what was seen, and whether it is as it has to be."""
    held = fault.hold_s is None or (seen.hold_s is not None and seen.hold_s <= fault.hold_s)
    recovered = seen.recovery_s is not None and seen.recovery_s <= RECOVERY_S
    troubles = list(seen.troubles)
    if fault.says not in seen.logged:
        troubles.append(f"nothing says '{fault.says}'")
    return Row(
        fault=fault.name,
        time_to_hold_ms=_milliseconds(seen.hold_s),
        bound_ms=_milliseconds(fault.hold_s),
        recovery_ms=_milliseconds(seen.recovery_s),
        recovery_bound_ms=round(1e3 * RECOVERY_S, 1),
        largest_step=round(seen.step, 3),
        recovered=seen.recovery_s is not None,
        ok=held and recovered and seen.step <= _LARGEST_STEP and not troubles,
        log="; ".join(troubles) or _first_word(seen.logged, fault.says),
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 1)


def _first_word(logged: str, says: str) -> str:
    """The first line that says so, else the first warning or error."""
    for line in logged.splitlines():
        if says in line and (says or "[WARN]" in line or "[ERROR]" in line):
            return line.strip()
    return ""


def table(rows: list[Row]) -> str:
    columns = f"{'hold [ms]':>10}{'bound':>7}{'recovery':>10}{'bound':>7}{'step':>6}{'ok':>5}"
    lines = [f"{'fault':26}{columns}  log"]
    for row in rows:
        figures = f"{_whole(row.time_to_hold_ms):>10}{_whole(row.bound_ms):>7}"
        figures += f"{_whole(row.recovery_ms):>10}{_whole(row.recovery_bound_ms):>7}"
        figures += f"{row.largest_step:>6.2f}{'yes' if row.ok else 'NO':>5}"
        lines.append(f"{row.fault:26}{figures}  {row.log[-90:]}")
    return "\n".join(lines)


def _whole(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.0f}"


if __name__ == "__main__":
    sys.exit(main())
