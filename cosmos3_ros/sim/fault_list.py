"""What goes wrong in the fault run, and the bounds that the time-outs give."""

from __future__ import annotations

import json
import resource as limits
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cosmos3_ros.control.watchdog import Timeouts
from cosmos3_ros.sim.fault_stage import Stage
from cosmos3_ros.sim.saboteur import Spoiled
from cosmos3_ros.sim.team import CONTROL_RATE_HZ, start_node
from cosmos3_ros.sim.world import CAMERAS

# The bounds below are those of plans that last so long, as pico's do.
HORIZON_S = 16 / 15
_TIMEOUTS = Timeouts()  # the controller's own
# From a time-out to a message in our hands: a control period, a report, a busy machine.
_SLACK_S = 0.15
_TICK_S = 1 / CONTROL_RATE_HZ + _SLACK_S
# The last chunk from before the fault is followed to its end.
_CHUNK_S = HORIZON_S + _TIMEOUTS.grace_s + _SLACK_S
_JOINTS_S = _TIMEOUTS.joint_s + _SLACK_S
# The plan under way is of the instruction before and is dropped, the next is followed: each takes
# half a horizon at most, as blending asks. An arm that never held says so in its next status, which
# comes once a second.
RECOVERY_S = HORIZON_S + 1.0 + _SLACK_S
# Makes the model say NaN: it has a word that nothing else has.
POISON = "touch the zebra"
# A recorder begins and ends in less on any machine.
_RECORDER_S = 60.0


@dataclass(frozen=True)
class Fault:
    """``begin`` and ``end`` it. ``hold_s``: within which the controller has to hold; None: it need
    not. ``says``: what has to be logged, so that this is what was measured. ``lasts_s``: between
    begin and end. ``goes_on``: the arm has to move on while it lasts, not only after it."""

    name: str
    begin: Callable[[Stage], None]
    end: Callable[[Stage], None]
    hold_s: float | None
    says: str = ""
    lasts_s: float = 3.0
    goes_on: bool = False


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
    stage.saboteur.instruct(POISON)


def _second_planner(stage: Stage) -> None:
    stage.start_policy("other_policy")
    stage.bring_up("other_policy")


def _end_second_planner(stage: Stage) -> None:
    stage.children.end(stage.child("other_policy"))


def _chatter(stage: Stage) -> None:
    for _ in range(100):
        stage.tell()
        stage.spin(0.1)


def _delete_bundle(stage: Stage) -> None:
    stage.bundle.rename(stage.bundle.with_name("deleted"))


def _restore_bundle(stage: Stage) -> None:
    stage.bundle.with_name("deleted").rename(stage.bundle)


def _recording(stage: Stage) -> Path:
    return stage.children.logs.with_name("recording")


def _fill_disk(stage: Stage) -> None:
    """While a bag is being written, no file of a node may grow any more: each write fails, as on a
    full disk, which it takes more rights to make."""
    topics = [f"camera/{name}/image:sensor_msgs/msg/Image" for name in CAMERAS]
    parameters = {"output": _recording(stage) / "run.mcap", "topics": json.dumps(topics)}
    recorder = start_node(stage.children, "recorder_node", "nodes", parameters)
    if not stage.until(lambda: any(_recording(stage).glob("**/*.mcap")), _RECORDER_S):
        raise recorder.failure(f"has not begun to write within {_RECORDER_S:g} s")
    for child in (stage.policy, stage.controller, recorder):
        limits.prlimit(child.process.pid, limits.RLIMIT_FSIZE, (0, limits.RLIM_INFINITY))


def _empty_disk(stage: Stage) -> None:
    """The recorder has given up by then, in one line, and nothing is left of its bag."""
    for child in (stage.policy, stage.controller):
        unlimited = (limits.RLIM_INFINITY, limits.RLIM_INFINITY)
        limits.prlimit(child.process.pid, limits.RLIMIT_FSIZE, unlimited)
    recorder = stage.child("recorder_node")
    code = stage.exit_code(recorder, _RECORDER_S)
    said = recorder.log.read_text().splitlines()
    left = [path.name for path in _recording(stage).glob("**/*")]
    if code != 1 or len(said) != 1 or left:
        raise recorder.failure(
            f"ended with exit code {code}, {len(said)} lines and left {left or 'nothing'}; "
            "expected 1, one line and nothing"
        )


FAULTS = (
    Fault("policy killed", Stage.kill_policy, Stage.restart_policy, _CHUNK_S),
    Fault("policy stopped for 3 s", _stop_policy, _continue_policy, _CHUNK_S),
    *(
        Fault(
            f"camera {name} frozen", _spoil(frozen_cameras={name}), _mend, _CHUNK_S, "camera_stale"
        )
        for name in CAMERAS
    ),
    Fault("clock 10 s forward", _jump(10.0), _nothing, _TICK_S, "the clock jumped"),
    Fault("clock 10 s back", _jump(-10.0), _nothing, _TICK_S, "the clock jumped"),
    Fault("NaN in chunks", _spoil(nan_in_chunks=True), _mend, _CHUNK_S, "not_finite"),
    Fault("NaN from the model", _poison, _nothing, _CHUNK_S, "the engine returned NaN"),
    # No bound to hold: a chunk has 67 ms left by then, less what planning took. Those that are in
    # time are followed, and the others refused; where none is for long enough, the arm holds.
    Fault("chunks 1 s late", _spoil(chunk_delay_s=1.0), _mend, None),
    Fault("chunks 1.5 s late", _spoil(chunk_delay_s=1.5), _mend, _CHUNK_S, "stale"),
    Fault("joint states at 1 Hz", _spoil(joint_period_s=1.0), _mend, _JOINTS_S, "joint states"),
    Fault(
        "20 % of messages lost", _spoil(dropped_share=0.2), _mend, None, lasts_s=10.0, goes_on=True
    ),
    Fault(
        "second policy node",
        _second_planner,
        _end_second_planner,
        None,
        "another_planner",
        goes_on=True,
    ),
    Fault("100 instructions in 10 s", _chatter, _nothing, None, lasts_s=0.0),
    Fault("bundle deleted", _delete_bundle, _restore_bundle, None, goes_on=True),
    Fault("disk full", _fill_disk, _empty_disk, None, "nothing was recorded", goes_on=True),
)
