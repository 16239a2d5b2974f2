"""What came of an instruction: the first cube that is touched anew, and what is lifted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import JOINTS, chunk, header, joint_state, string

from cosmos3_ros.replay.bags import BagWriter, encode, message_class, open_bag
from cosmos3_ros.replay.outcomes import Outcome, outcomes_of

SAID_S = 2.0


def state(stamp_ns: int, touched: list[str], red_z: float) -> bytes:
    point = message_class("geometry_msgs/msg/Point")
    centres = [point(0.0, 0.0, z) for z in (red_z, 0.0, 0.0)]
    make = message_class("cosmos3_ros/msg/SimState")
    cubes = ["red", "green", "blue"]
    return encode(make(header(stamp_ns), 0, 0, cubes, centres, np.zeros(3), touched))


def outcome_of(
    folder: Path,
    touches: dict[float, str],
    red_z: Any = lambda s: 0.0,
    planned: dict[float, str] | None = None,
) -> Outcome:
    """Of one instruction at SAID_S, when cubes are touched at these times [s]; ``planned``: from
    pictures of when, and by which instruction."""
    topics = {
        "/sim/state": "cosmos3_ros/msg/SimState",
        "/joint_states": "sensor_msgs/msg/JointState",
        "/instruction": "std_msgs/msg/String",
        "/action_chunk": "cosmos3_ros/msg/ActionChunk",
    }
    with BagWriter(folder / "run.mcap", topics) as bag:
        for tick in range(60):
            seconds = round(tick / 10, 1)
            ns = 1_000_000_000 + tick * 100_000_000
            touched = [touches[seconds]] if seconds in touches else []
            bag.write("/joint_states", ns, joint_state(ns, JOINTS, [0.0] * 8))
            bag.write("/sim/state", ns, state(ns, touched, red_z(seconds)))
            if seconds in (planned or {}):
                said = (planned or {})[seconds]
                bag.write("/action_chunk", ns + 2, chunk(ns, tick + 1, 0.05, said))
            if seconds == SAID_S:
                bag.write("/instruction", ns + 1, string("touch it"))
    with open_bag(folder / "run.mcap") as bag:
        (outcome,) = outcomes_of(bag)
    return outcome


def test_the_first_cube_that_is_touched_after_it_was_said_counts(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, {0.5: "green", 3.0: "blue", 4.0: "red"})
    assert outcome.touched == "blue"
    assert outcome.touched_after_s == pytest.approx(1.0, abs=0.02)


def test_a_cube_that_is_grazed_while_it_is_left_was_not_touched_anew(tmp_path: Path) -> None:
    leaving = {1.8: "red", 2.0: "red", 2.3: "red", 2.7: "red"}
    assert outcome_of(tmp_path, leaving | {4.0: "blue"}).touched == "blue"


def test_a_cube_that_was_let_go_counts_again(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, {2.0: "red", 2.2: "red", 3.5: "red"})
    assert outcome.touched == "red"
    assert outcome.touched_after_s == pytest.approx(1.5, abs=0.02)


def test_what_rises_was_lifted(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, {3.0: "red"}, lambda s: 0.0 if s < 3.5 else 0.11)
    assert (outcome.touched, outcome.lifted) == ("red", "red")
    assert outcome.lifted_after_s == pytest.approx(1.5, abs=0.02)


def test_what_was_planned_by_it_shows_that_it_was_said_before_the_recorder_heard_it(
    tmp_path: Path,
) -> None:
    touches = {1.2: "green", 1.8: "red"}
    outcome = outcome_of(tmp_path, touches, planned={0.6: "touch that", 1.5: "touch it"})
    assert outcome.said_s == pytest.approx(1.5, abs=0.02)
    assert outcome.touched == "red"
