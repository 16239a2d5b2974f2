"""The fault run, as a user runs it: real processes, and figures that can be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

from cosmos3_ros.msg import ControllerStatus
from cosmos3_ros.policy.embodiment import load_embodiment
from cosmos3_ros.processes import ros_environment
from cosmos3_ros.resources import resource
from cosmos3_ros.sim.fault_list import FAULTS, RECOVERY_S, Fault
from cosmos3_ros.sim.fault_stage import follows_newer, largest_step
from cosmos3_ros.sim.faults import Row, Seen, judge, run, table
from cosmos3_ros.sim.saboteur import Commanded, Reported
from cosmos3_ros.sim.team import CONTROL_RATE_HZ

ROBOT = load_embodiment("pico_panda")
START_S = 1000.0
PERIOD_S = 1 / CONTROL_RATE_HZ
# Faults whose rows must not be ok, and one between them whose row is.
ANOTHER_LIST = """
import sys
from cosmos3_ros.sim import faults
from cosmos3_ros.sim.fault_list import Fault
from cosmos3_ros.sim.fault_stage import Stage

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN);"
    "print('Traceback (most recent call last):', flush=True); time.sleep(100)"
)

def nothing(stage):
    pass

def begin_stubborn(stage):
    stage.children.start("stubborn", sys.executable, "-c", STUBBORN)
    stage.until(lambda: "Traceback" in stage.child("stubborn").tail(), 20)

def end_stubborn(stage):
    stage.children.end(stage.child("stubborn"), timeout_s=0.2)

def begin_other(stage):
    bundle, stage.bundle = stage.bundle, stage.bundle / "nowhere"
    stage.start_policy("other_policy")
    stage.bundle = bundle
    stage.bring_up("other_policy")

def end_for_good(stage):
    stage.kill_policy()
    begin_stubborn(stage)

faults._PATIENCE_S = 5.0
faults.FAULTS = (
    Fault("not said", nothing, nothing, None, "the arm is on fire", lasts_s=0.0),
    Fault("stubborn", begin_stubborn, end_stubborn, None, lasts_s=0.0),
    Fault("nothing", nothing, nothing, None, lasts_s=0.0, goes_on=True),
    Fault("no such bundle", begin_other, nothing, None, lasts_s=0.0),
    Fault("no recovery", end_for_good, nothing, 3.0),
    Fault("too late", nothing, nothing, None),
)
sys.exit(faults.main(["--out", sys.argv[1]]))
"""


# The list as it is, on a machine that may be stalled by others for a while.
PATIENT = """
import sys
from dataclasses import replace
from cosmos3_ros.sim import faults

faults.RECOVERY_S += 8.0
faults.FAULTS = tuple(
    fault if fault.hold_s is None else replace(fault, hold_s=fault.hold_s + 0.8)
    for fault in faults.FAULTS
)
sys.exit(faults.main(sys.argv[1:]))
"""


def ran(out: Path, *words: str, exit_code: int) -> dict[str, dict[str, Any]]:
    """Rows by fault."""
    ended = subprocess.run(
        [sys.executable, *words], env=ros_environment(), capture_output=True, text=True, timeout=510
    )
    assert ended.returncode == exit_code, ended.stdout + ended.stderr
    return {row["fault"]: row for row in json.loads(out.read_text())}


def suffered(tmp_path: Path, *faults: str) -> dict[str, dict[str, Any]]:
    out = tmp_path / "faults.json"
    chosen = [word for fault in faults for word in ("--fault", fault)]
    rows = ran(out, "-c", PATIENT, "--out", str(out), *chosen, exit_code=0)
    assert set(rows) == set(faults)
    for row in rows.values():
        assert row["recovered"] and row["ok"] and 0 < row["largest_step"] <= 1.01
        assert 0 < row["recovery_ms"] <= row["recovery_bound_ms"]
    return rows


def test_a_policy_that_dies_or_stalls_ends_in_a_hold_and_the_arm_moves_again(
    tmp_path: Path,
) -> None:
    rows = suffered(tmp_path, "policy killed", "policy stopped for 3 s")
    for row in rows.values():
        assert 0 < row["time_to_hold_ms"] <= row["bound_ms"]
    assert "chunk" in rows["policy killed"]["log"]


def test_a_clock_that_jumps_and_nan_of_the_model_or_in_chunks_end_in_a_hold(
    tmp_path: Path,
) -> None:
    rows = suffered(tmp_path, "clock 10 s back", "NaN in chunks", "NaN from the model")
    assert rows["clock 10 s back"]["time_to_hold_ms"] < 1000
    assert "cosmos3_controller]: refused plan" in rows["NaN in chunks"]["log"]
    assert (
        "cosmos3_policy]: not_finite: the engine returned NaN"
        in (rows["NaN from the model"]["log"])
    )


def test_a_full_disk_ends_the_recorder_in_one_line_and_the_arm_moves_on(tmp_path: Path) -> None:
    row = suffered(tmp_path, "disk full")["disk full"]
    assert row["log"].startswith("recorder_node: nothing was recorded:")


def test_what_is_not_of_a_run_of_faults_is_left_alone_and_the_run_refused(
    tmp_path: Path,
) -> None:
    out, bundle = tmp_path / "thesis.json", resource("engines", "pico")
    (tmp_path / "thesis_run").mkdir()
    (tmp_path / "thesis_run" / "chapter").write_text("dear")
    with pytest.raises(ValueError, match="holds 'chapter', which is not of a run of faults"):
        run(out, bundle)
    assert (tmp_path / "thesis_run" / "chapter").read_text() == "dear"
    with pytest.raises(ValueError, match="is a folder; expected a file to write"):
        run(tmp_path, bundle)


def test_what_is_not_as_it_has_to_be_makes_its_row_not_ok_and_the_run_fail(tmp_path: Path) -> None:
    out = tmp_path / "faults.json"
    rows = ran(out, "-c", ANOTHER_LIST, str(out), exit_code=1)
    assert [name for name, row in rows.items() if row["ok"]] == ["nothing"]
    assert rows["not said"]["recovered"]
    assert rows["not said"]["log"] == "nothing says 'the arm is on fire'"
    assert "stubborn had to be killed; a process wrote a traceback" in rows["stubborn"]["log"]
    assert "bringup of other_policy ended with exit code 1" in rows["no such bundle"]["log"]
    assert 0 < rows["no recovery"]["time_to_hold_ms"] <= rows["no recovery"]["bound_ms"]
    assert not rows["no recovery"]["recovered"]
    last = rows["too late"]["log"]
    assert "at the end stubborn had to be killed" in last
    assert "did not track before the fault" in last


def test_every_fault_that_is_asked_for_is_in_the_list_and_has_a_name_of_its_own() -> None:
    assert [fault.name for fault in FAULTS] == [
        "policy killed",
        "policy stopped for 3 s",
        "camera exterior frozen",
        "camera wrist frozen",
        "clock 10 s forward",
        "clock 10 s back",
        "NaN in chunks",
        "NaN from the model",
        "chunks 1 s late",
        "chunks 1.5 s late",
        "joint states at 1 Hz",
        "20 % of messages lost",
        "second policy node",
        "100 instructions in 10 s",
        "bundle deleted",
        "disk full",
    ]


FAULT = Fault("fault", lambda stage: None, lambda stage: None, 0.5, "the chunk has ended")
SEEN = Seen(0.4, 1.0, 0.5, logged="[WARN] the clock\n[WARN] holding: the chunk has ended\n")


def test_a_row_shows_what_was_seen_and_the_bounds_and_what_the_nodes_said() -> None:
    assert judge(FAULT, SEEN) == Row(
        fault="fault",
        time_to_hold_ms=400.0,
        bound_ms=500.0,
        recovery_ms=1000.0,
        recovery_bound_ms=round(1e3 * RECOVERY_S, 1),
        largest_step=0.5,
        recovered=True,
        ok=True,
        log="[WARN] holding: the chunk has ended",
    )
    need_not_hold = replace(FAULT, hold_s=None, says="")
    row = judge(need_not_hold, replace(SEEN, hold_s=None))
    assert row.ok and row.time_to_hold_ms is None and row.log == "[WARN] the clock"


@pytest.mark.parametrize(
    "seen",
    [
        replace(SEEN, hold_s=None),
        replace(SEEN, hold_s=0.51),
        replace(SEEN, recovery_s=None),
        replace(SEEN, recovery_s=RECOVERY_S + 0.01),
        replace(SEEN, step=1.02),
        replace(SEEN, troubles=["the node had to be killed"]),
        replace(SEEN, logged="[WARN] something else"),
    ],
    ids=["no hold", "late hold", "no recovery", "late recovery", "leap", "trouble", "not said"],
)
def test_a_row_is_not_ok_when_one_thing_is_not_as_it_has_to_be(seen: Seen) -> None:
    assert not judge(FAULT, seen).ok


def test_only_a_plan_that_is_newer_and_followed_is_a_recovery() -> None:
    tracking, newest = ControllerStatus.STATE_TRACKING, {7: 12}
    assert follows_newer(Reported(START_S, tracking, planner=7, plan_id=13), newest)
    assert not follows_newer(Reported(START_S, tracking, planner=7, plan_id=12), newest)
    assert not follows_newer(
        Reported(START_S, ControllerStatus.STATE_HOLDING, planner=7, plan_id=13), newest
    )
    # One that was started again counts from 1; without a chunk there is no plan.
    assert follows_newer(Reported(START_S, tracking, planner=8, plan_id=1), newest)
    assert not follows_newer(Reported(START_S, tracking, planner=0, plan_id=0), newest)


def commands(*positions: float, late_s: float = 0.0) -> list[Commanded]:
    """Of the first joint, one a period; the last ``late_s`` later than that."""
    at_s = [i * PERIOD_S for i in range(len(positions))]
    at_s[-1] += late_s
    return [
        Commanded(at, START_S + at, np.array([position, *[0.0] * 7]))
        for at, position in zip(at_s, positions, strict=True)
    ]


def test_the_largest_step_is_a_share_of_what_the_limit_allows() -> None:
    allowed = float(ROBOT.velocity[0]) * PERIOD_S
    assert largest_step(commands(0.0, 0.5 * allowed, allowed), ROBOT) == pytest.approx(0.5)
    assert largest_step(commands(0.0, 1.5 * allowed), ROBOT) == pytest.approx(1.5)
    # Over two periods twice as much is allowed.
    assert largest_step(commands(0.0, allowed, late_s=PERIOD_S), ROBOT) == pytest.approx(0.5)
    # The stamp of a command from before the clock jumped says nothing.
    before = replace(commands(0.0)[0], stamp_s=START_S + 10)
    after = commands(0.0, 0.5 * allowed)[1]
    assert largest_step([before, after], ROBOT) == pytest.approx(0.5)


def test_the_table_shows_what_is_not_as_it_should_be() -> None:
    late = judge(FAULT, replace(SEEN, hold_s=2.5, recovery_s=None))
    (_, line) = table([late]).splitlines()
    assert line.split()[:7] == ["fault", "2500", "500", "-", "2217", "0.50", "NO"]
    assert "the chunk has ended" in line
