"""The figures of a run, from the bag that was recorded of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cosmos3_ros.policy.embodiment import Embodiment
from cosmos3_ros.replay.bags import Bag, Message, open_bag
from cosmos3_ros.replay.outcomes import Outcome, outcomes_of
from cosmos3_ros.replay.seams import ACTION_CHUNK, Seams, seams_of

POLICY_STATUS = "cosmos3_ros/msg/PolicyStatus"
DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"
COMMAND_TOPICS = ("joint_command", "joint_trajectory", "position_commands", "twist_command")
POSE_COMMAND = "pose_command"  # what the topics of each end effector end in
# The controller's entry in /diagnostics, whatever the node is called.
CONTROLLER_ENTRY = ": commands"
_HOLDS = "holds_"


@dataclass(frozen=True)
class Jitter:
    """Percentiles of a duration on a steady clock [ms]; None when nothing said."""

    p50: float | None
    p99: float | None
    max: float | None


@dataclass(frozen=True)
class Loop:
    """The controller's loop: ``wake_up_ms`` from deadline to wake-up, ``execution_ms`` of its work,
    ``missed_periods`` of ``periods``, and ``early_commands`` beside them, of chunks that had just
    come; ``frame_to_command_ms`` from a picture's stamp to the first command of its plan, without
    the planning."""

    wake_up_ms: Jitter
    execution_ms: Jitter
    periods: int
    missed_periods: int
    early_commands: int
    frame_to_command_ms: Jitter


@dataclass(frozen=True)
class Latency:
    """From an observation's arrival in the planner to its plan [ms]; None without plans."""

    p50: float | None
    p99: float | None


@dataclass(frozen=True)
class Summary:
    """What happened. Counts are since the nodes were activated.

    ``duration_s`` is by the nodes' clock, ``pace`` that duration over the wall time it took, both
    None when too little was recorded. ``dropped_observations`` were refused by the policy node,
    ``observations`` planned from; ``command_jitter_ms`` is |interval - period| of the commands;
    ``holds`` counts the times tracking ended in a hold, ``holds_by_reason`` for which. ``fault`` is
    why the policy node gave up in the end, empty when it did not. ``outcomes``: what came of each
    instruction, where a simulator said so.
    """

    plans: int
    commands: int
    command_rate_hz: float | None
    command_jitter_ms: Jitter
    loop: Loop
    seams: Seams
    plan_latency_ms: Latency
    predicted_frames: int
    observations: int
    dropped_observations: int
    dropped_by_reason: Mapping[str, int]
    holds: int
    holds_by_reason: Mapping[str, int]
    transitions: int
    saturated: int
    rejected_chunks: int
    backend: str
    bundle: str
    instruction: str
    duration_s: float | None
    pace: float | None
    fault: str
    outcomes: Sequence[Outcome]


def summarise(bag: Path, out_json: Path, robot: Embodiment | None = None) -> Summary:
    """Write the figures of a recorded run to ``out_json``, and return them.

    ``robot``: whose limits the figures are shares of; None: the one that ships under the name in
    the chunks. Raises BagError for what is no bag.
    """
    with open_bag(bag) as recorded:
        summary = summary_of(recorded, robot)
    out_json.write_text(json.dumps(asdict(summary), indent=2, allow_nan=False) + "\n")
    return summary


def summary_of(bag: Bag, robot: Embodiment | None = None) -> Summary:
    """The figures of an open bag; ``robot`` as in ``summarise``."""
    latencies_ms = [m.decoded().plan_latency * 1e3 for m in bag.messages(bag.typed(ACTION_CHUNK))]
    statuses = [m.decoded() for m in bag.messages(bag.typed(POLICY_STATUS))]
    status = statuses[-1] if statuses else None
    controller = controller_reports(bag)
    last = controller[-1].values if controller else {}
    dropped = (
        dict(
            zip(
                status.rejected_observation_reasons,
                map(int, status.rejected_observation_counts),
                strict=True,
            )
        )
        if status
        else {}
    )
    duration_s, wall_s = _spans(bag)
    return Summary(
        plans=len(latencies_ms),
        commands=sum(bag.topics[topic].count for topic in command_topics(bag)),
        command_rate_hz=_number(last.get("command_rate_hz")),
        command_jitter_ms=_jitter(last, "command_jitter"),
        loop=Loop(
            wake_up_ms=_jitter(last, "wake_up"),
            execution_ms=_jitter(last, "execution"),
            periods=int(last.get("periods", 0)),
            missed_periods=int(last.get("missed_periods", 0)),
            early_commands=int(last.get("early_commands", 0)),
            frame_to_command_ms=_jitter(last, "frame_to_command"),
        ),
        seams=seams_of(bag, command_topics(bag), robot),
        plan_latency_ms=Latency(_percentile(latencies_ms, 50), _percentile(latencies_ms, 99)),
        predicted_frames=sum(bag.topics[topic].count for topic in bag.named("predicted_frame")),
        observations=int(status.observations) if status else 0,
        dropped_observations=sum(dropped.values()),
        dropped_by_reason=dropped,
        holds=int(last.get("holds", 0)),
        holds_by_reason={
            key.removeprefix(_HOLDS): int(count)
            for key, count in last.items()
            if key.startswith(_HOLDS) and int(count)
        },
        transitions=int(last.get("transitions", 0)),
        saturated=int(last.get("saturated", 0)),
        rejected_chunks=int(last.get("rejected_chunks", 0)),
        backend=status.backend if status else "",
        bundle=status.bundle if status else "",
        instruction=status.instruction if status else "",
        duration_s=_rounded(duration_s),
        pace=_rounded(duration_s / wall_s) if duration_s and wall_s else None,
        fault=status.reason if status and status.state == status.STATE_FAULT else "",
        outcomes=outcomes_of(bag),
    )


@dataclass(frozen=True)
class ControllerReport:
    """The controller's entry of one diagnostics message; ``stamp_ns`` by the node's clock."""

    stamp_ns: int
    values: Mapping[str, str]


def controller_reports(bag: Bag) -> list[ControllerReport]:
    """What the controller said of itself, once a second."""
    reports = []
    for message in bag.messages(bag.typed(DIAGNOSTICS)):
        for entry in message.decoded().status:
            if entry.name.endswith(CONTROLLER_ENTRY):
                values = {pair.key: pair.value for pair in entry.values}
                reports.append(ControllerReport(message.stamp_ns, values))
    return reports


def command_topics(bag: Bag) -> list[str]:
    """Topics that hold commands, of whatever interface."""
    poses = [topic for topic in sorted(bag.topics) if topic.endswith(POSE_COMMAND)]
    return [topic for name in COMMAND_TOPICS for topic in bag.named(name)] + poses


def _spans(bag: Bag) -> tuple[float | None, float | None]:
    """From the first joint states to the last: by their stamps, and by when they arrived [s]."""
    messages: list[Message] = list(bag.messages(bag.named("joint_states")))
    if len(messages) < 2:
        return None, None
    first, last = messages[0], messages[-1]
    stamped_ns = last.stamp_ns - first.stamp_ns
    return stamped_ns / 1e9, (last.log_ns - first.log_ns) / 1e9


def _jitter(values: Mapping[str, str], name: str) -> Jitter:
    return Jitter(*(_number(values.get(f"{name}_{part}_ms")) for part in ("p50", "p99", "max")))


def _percentile(values: list[float], percent: float) -> float | None:
    return _rounded(float(np.percentile(values, percent))) if values else None


def _number(text: str | None) -> float | None:
    """A figure of a diagnostics value; None when it is missing or was not known."""
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 3)
