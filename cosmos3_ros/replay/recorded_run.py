"""A recorded run, read from its bag: what the robot saw, what was predicted, what was commanded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from cosmos3_ros.policy.embodiment import Embodiment, EmbodimentError, load_embodiment
from cosmos3_ros.replay.bags import Bag
from cosmos3_ros.replay.clock import NodeClock
from cosmos3_ros.replay.outcomes import SIM_STATE
from cosmos3_ros.replay.pictures import (
    camera_topics,
    canvas_like,
    nearest_pictures,
    picture,
)
from cosmos3_ros.replay.seams import ACTION_CHUNK
from cosmos3_ros.replay.summary import (
    Summary,
    command_topics,
    controller_reports,
    summary_of,
)

# Pictures over the run, unless fewer were predicted.
GLIMPSES = 7


@dataclass(frozen=True)
class Series:
    """One joint over time: seconds from the run's start [n], and its positions [n]."""

    times_s: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True)
class Glimpse:
    """What cameras saw at a time, and what was predicted for it."""

    time_s: float
    cameras: dict[str, np.ndarray]
    predicted: np.ndarray | None
    seen: np.ndarray | None  # the cameras as a canvas of the prediction's size


@dataclass(frozen=True)
class Scene:
    """What a simulator knew: distance of the fingertip to each cube's centre by name [n, m]."""

    times_s: np.ndarray
    distances_m: dict[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """A recorded run, ready to be drawn. Times are seconds of the nodes' clock from its start."""

    summary: Summary
    glimpses: list[Glimpse]
    commanded: dict[str, Series]
    measured: dict[str, Series]
    recorded: dict[str, Series]
    plan_starts_s: np.ndarray
    plan_latencies_ms: np.ndarray
    holds_s: list[tuple[float, float]]
    command_times_s: np.ndarray
    command_intervals_ms: np.ndarray
    scene: Scene | None
    end_s: float


def read_run(output: Bag, played: Bag) -> Run:
    """Everything a report shows, from the recording and the bag that was played."""
    joint_topics = output.named("joint_states")
    clock = NodeClock(output, joint_topics)
    chunks = [m.decoded() for m in output.messages(output.typed(ACTION_CHUNK))]
    commands = command_topics(output)
    arrivals = np.array([m.log_ns for m in output.messages(commands)])
    intervals_ms = np.diff(arrivals) / 1e6
    embodiment = _embodiment(chunks[-1].embodiment) if chunks else None
    return Run(
        summary=summary_of(output),
        glimpses=_glimpses(output, played, clock, embodiment),
        commanded=_series(output, commands, clock),
        measured=_series(output, joint_topics, clock),
        recorded=_series(played, played.named("recorded_action"), clock),
        plan_starts_s=np.array([clock.seconds(_stamp_ns(c)) for c in chunks]),
        plan_latencies_ms=np.array([c.plan_latency * 1e3 for c in chunks]),
        holds_s=_holds(output, clock),
        command_times_s=clock.arrived(arrivals)[1:],
        command_intervals_ms=intervals_ms,
        scene=_scene(output, clock),
        end_s=clock.end_s,
    )


def _stamp_ns(message: Any) -> int:
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def _embodiment(name: str) -> Embodiment | None:
    """None for one that is not shipped: its cameras' places are then not known here."""
    try:
        return load_embodiment(name)
    except EmbodimentError:
        return None


def _glimpses(
    output: Bag, played: Bag, clock: NodeClock, embodiment: Embodiment | None
) -> list[Glimpse]:
    """Evenly over the run; at the times of predicted frames where there are some."""
    frames = output.named("predicted_frame")
    stamps = [m.stamp_ns for m in output.messages(frames) if m.stamp_ns <= clock.end_ns]
    even_ns = np.linspace(clock.start_ns, clock.end_ns, GLIMPSES).astype(np.int64).tolist()
    times_ns = (
        sorted({min(stamps, key=lambda stamp: abs(stamp - t)) for t in even_ns})
        if stamps
        else even_ns
    )
    source = output if camera_topics(output) else played
    cameras = camera_topics(source)
    seen = nearest_pictures(source, list(cameras.values()), times_ns)
    predictions = {
        m.stamp_ns: picture(m.decoded()) for m in output.messages(frames) if m.stamp_ns in times_ns
    }
    glimpses = []
    for i, time_ns in enumerate(times_ns):
        pictures = {name: seen[topic][i] for name, topic in cameras.items()}
        predicted = predictions.get(time_ns)
        canvas = (
            canvas_like(predicted, pictures, embodiment)
            if predicted is not None and embodiment is not None
            else None
        )
        glimpses.append(Glimpse(clock.seconds(time_ns), pictures, predicted, canvas))
    return glimpses


def _scene(bag: Bag, clock: NodeClock) -> Scene | None:
    states = [(m.stamp_ns, m.decoded()) for m in bag.messages(bag.typed(SIM_STATE))]
    if not states:
        return None
    distances = np.array([state.distances for _, state in states])
    cubes = states[0][1].cubes
    times_s = np.array([clock.seconds(stamp_ns) for stamp_ns, _ in states])
    return Scene(times_s, dict(zip(cubes, distances.T, strict=True)))


def _series(bag: Bag, topics: Sequence[str], clock: NodeClock) -> dict[str, Series]:
    """Joints by name, of joint states and joint trajectories."""
    points: dict[str, list[tuple[float, float]]] = {}
    for time_s, names, positions in _positions(bag, topics, clock):
        for name, position in zip(names, positions, strict=False):
            points.setdefault(name, []).append((time_s, float(position)))
    return {name: Series(*np.array(pairs).T) for name, pairs in points.items()}


def _positions(
    bag: Bag, topics: Sequence[str], clock: NodeClock
) -> Iterator[tuple[float, list[str], np.ndarray]]:
    for message in bag.messages(topics):
        content = message.decoded()
        if message.type.endswith("/JointState"):
            yield clock.seconds(message.stamp_ns), content.name, content.position
        elif message.type.endswith("/JointTrajectory") and content.points:
            # Its stamp is zero: from when it arrives.
            time_s = float(clock.arrived(np.array([message.log_ns]))[0])
            yield time_s, content.joint_names, content.points[0].positions


def _holds(bag: Bag, clock: NodeClock) -> list[tuple[float, float]]:
    """Spans in which the controller held, as finely as it reports: once a second."""
    reports = controller_reports(bag)
    spans: list[tuple[float, float]] = []
    for before, after in pairwise(reports):
        held = after.values.get("state") == "holding"
        if held or after.values.get("holds") != before.values.get("holds"):
            start_s, end_s = clock.seconds(before.stamp_ns), clock.seconds(after.stamp_ns)
            if spans and abs(spans[-1][1] - start_s) < 1e-6:
                start_s = spans.pop()[0]
            spans.append((start_s, end_s))
    # While the clock stands, before and after a bag, a hold takes no time.
    return [(start_s, end_s) for start_s, end_s in spans if end_s > start_s]
