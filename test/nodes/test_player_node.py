"""The player gives a bag back as it was recorded, by a clock that nothing of it is ahead of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from recordings import FPS, image, joint_state, string
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from cosmos3_ros.nodes.parameters import ParameterError, qos_profile
from cosmos3_ros.nodes.player_node import PlayerError, PlayerNode
from cosmos3_ros.replay.bags import BagError, BagWriter

START_NS = 5_000_000_000
FRAMES = 10
CAMERA = "/camera/front/image"
TOPICS = {
    CAMERA: "sensor_msgs/msg/Image",
    "/joint_states": "sensor_msgs/msg/JointState",
    "/instruction": "std_msgs/msg/String",
}


def picture(frame: int) -> np.ndarray:
    return np.full((360, 640, 3), 10 + frame, np.uint8)


def write_bag(path: Path, *, log_offset_ns: int = 0, images: bool = True) -> Path:
    topics = {t: kind for t, kind in TOPICS.items() if images or t != CAMERA}
    with BagWriter(path, topics) as bag:
        bag.write("/instruction", START_NS + log_offset_ns, string("Pick it up."))
        for i in range(FRAMES):
            stamp = START_NS + round(i / FPS * 1e9)
            log_ns = stamp + log_offset_ns
            bag.write("/joint_states", log_ns, joint_state(stamp, ["a"], [i / 10]))
            if images:
                bag.write(CAMERA, log_ns, image(stamp, picture(i)))
    return path


@dataclass
class Listener:
    """Hears what is played; ``heard`` holds topic, message, and what the clock showed last."""

    context: Context
    heard: list[tuple[str, Any, int]] = field(default_factory=list)
    clocks: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.node = Node("listener", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self.executor.spin)

    def listen(self) -> None:
        latched = qos_profile("reliable", 1, transient_local=True)
        for name, kind, qos in (
            (CAMERA, Image, 10), ("joint_states", JointState, 10), ("instruction", String, latched)
        ):  # fmt: skip
            note = partial(self.note, name.strip("/"))
            self.node.create_subscription(kind, name, note, qos)
        self.node.create_subscription(Clock, "/clock", self.tick, 100)
        self.thread.start()

    def note(self, name: str, message: Any) -> None:
        self.heard.append((name, message, self.clocks[-1][1] if self.clocks else 0))

    def tick(self, message: Clock) -> None:
        now_ns = message.clock.sec * 1_000_000_000 + message.clock.nanosec
        self.clocks.append((time.monotonic(), now_ns))

    def of(self, name: str) -> list[Any]:
        return [m for n, m, _ in self.heard if n == name.strip("/")]


@pytest.fixture
def listener(ros_context: Context) -> Iterator[Listener]:
    listener = Listener(ros_context)
    yield listener
    listener.executor.shutdown()
    if listener.thread.is_alive():
        listener.thread.join()
    listener.node.destroy_node()


def player(context: Context, bag: Path | str, **parameters: Any) -> PlayerNode:
    values = {"bag": str(bag), "settle_s": 2.0, "match_timeout_s": 10.0} | parameters
    overrides = [Parameter(name, value=value) for name, value in values.items()]
    return PlayerNode(threading.Event(), context=context, parameter_overrides=overrides)


def test_every_message_of_the_bag_arrives_as_it_is_in_the_bag(
    listener: Listener, tmp_path: Path
) -> None:
    listener.listen()
    node = player(listener.context, write_bag(tmp_path / "bag.mcap"), rate=4.0)
    node.play()
    assert node.sent == {CAMERA: FRAMES, "/joint_states": FRAMES, "/instruction": 1}
    images = listener.of(CAMERA)
    assert [np.frombuffer(m.data, np.uint8).mean() for m in images] == list(range(10, 20))
    assert (images[3].width, images[3].height, images[3].encoding) == (640, 360, "rgb8")
    assert [m.position[0] for m in listener.of("joint_states")] == [i / 10 for i in range(FRAMES)]
    assert [m.data for m in listener.of("instruction")] == ["Pick it up."]
    node.destroy_node()


def test_the_clock_runs_at_the_pace_asked_for_and_is_never_behind_a_message(
    listener: Listener, tmp_path: Path
) -> None:
    listener.listen()
    node = player(listener.context, write_bag(tmp_path / "bag.mcap"), rate=0.5)
    node.play()
    shown = [ns for _, ns in listener.clocks]
    assert shown == sorted(shown)
    assert (shown[0], shown[-1]) == (START_NS, START_NS + round((FRAMES - 1) / FPS * 1e9))
    for name, message, clock_ns in listener.heard:
        if name == "joint_states":
            stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
            # Messages of two topics may overtake each other on the way by moments.
            assert abs(clock_ns - stamp) < 150_000_000
    running = [(wall, ns) for wall, ns in listener.clocks if shown[0] < ns < shown[-1]]
    # A machine that stalls stops the clock, and where it stalls the listener hears it late.
    wall_s = running[-1][0] - running[0][0] - node._stalled_s
    pace = (running[-1][1] - running[0][1]) / 1e9 / wall_s
    assert pace == pytest.approx(0.5, rel=0.3)
    assert len(running) / wall_s >= 70
    node.destroy_node()


def test_playing_waits_for_all_listeners_and_names_who_is_missing(
    listener: Listener, tmp_path: Path
) -> None:
    bag = write_bag(tmp_path / "bag.mcap")
    node = player(listener.context, bag, match_timeout_s=0.5)
    with pytest.raises(PlayerError, match=rf"{CAMERA} has 0 of 1 listeners, /joint_states has 0"):
        node.play()
    node.destroy_node()
    listener.listen()
    expected = ["/joint_states=2"]
    node = player(listener.context, bag, match_timeout_s=0.5, expected_subscriptions=expected)
    with pytest.raises(PlayerError, match=r"/joint_states has 1 of 2 listeners"):
        node.play()
    assert not node.sent
    node.destroy_node()


def test_a_given_instruction_takes_the_place_of_the_bags(
    listener: Listener, tmp_path: Path
) -> None:
    listener.listen()
    bag = write_bag(tmp_path / "bag.mcap")
    node = player(listener.context, bag, rate=10.0, instruction="Put it down.")
    node.play()
    assert [m.data for m in listener.of("instruction")] == ["Put it down."]
    assert len(listener.of(CAMERA)) == FRAMES
    node.destroy_node()


def test_only_the_topics_asked_for_are_played(listener: Listener, tmp_path: Path) -> None:
    listener.listen()
    bag = write_bag(tmp_path / "bag.mcap")
    node = player(listener.context, bag, rate=10.0, topics=[CAMERA])
    node.play()
    assert {name for name, _, _ in listener.heard} == {CAMERA.strip("/")}
    node.destroy_node()


def test_the_clock_goes_by_the_stamps_where_log_times_are_another_clocks(
    listener: Listener, tmp_path: Path
) -> None:
    """A simulation recorded in wall time: the nodes compare stamps with the clock."""
    listener.listen()
    bag = write_bag(tmp_path / "bag.mcap", log_offset_ns=1_700_000_000_000_000_000)
    node = player(listener.context, bag, rate=10.0)
    node.play()
    assert (listener.clocks[0][1], len(listener.of(CAMERA))) == (START_NS, FRAMES)
    node.destroy_node()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"topics": ["/camera/wrist/image"]}, "no messages on /camera/wrist/image; it has /"),
        ({"topics": ["/joint_states"]}, "is a bag without images: it has .*/joint_states"),
        ({"expected_subscriptions": ["joint_states"]}, "'expected_subscriptions' holds 'joint_s"),
        ({"expected_subscriptions": ["/nobody=1"]}, "expected TOPIC=COUNT with a topic that is pl"),
    ],
)
def test_what_the_bag_cannot_give_is_refused(
    ros_context: Context, tmp_path: Path, parameters: dict[str, Any], words: str
) -> None:
    node = player(ros_context, write_bag(tmp_path / "bag.mcap"), **parameters)
    with pytest.raises((PlayerError, ParameterError), match=words):
        node.play()
    node.destroy_node()


def test_a_bag_without_images_is_refused_unless_it_is_wanted(
    listener: Listener, tmp_path: Path
) -> None:
    bag = write_bag(tmp_path / "bag.mcap", images=False)
    node = player(listener.context, bag)
    with pytest.raises(PlayerError, match=r"is a bag without images: it has .*/joint_states"):
        node.play()
    node.destroy_node()
    listener.listen()
    node = player(listener.context, bag, require_images=False, rate=10.0)
    node.play()
    assert len(listener.of("joint_states")) == FRAMES
    node.destroy_node()


def test_what_is_no_bag_is_refused(ros_context: Context, tmp_path: Path) -> None:
    for path, words in (("", "parameter 'bag' is empty"), (tmp_path, "is no bag")):
        node = player(ros_context, path)
        with pytest.raises((BagError, ParameterError), match=words):
            node.play()
        node.destroy_node()


def run_player(domain_id: int, *parameters: str) -> subprocess.Popen[str]:
    words = [word for parameter in parameters for word in ("-p", parameter)]
    return subprocess.Popen(
        [sys.executable, "-m", "cosmos3_ros.nodes.player_node", "--ros-args", *words],
        env=os.environ | {"ROS_DOMAIN_ID": str(domain_id)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_program_says_in_one_line_why_it_cannot_play(
    ros_domain_id: int, tmp_path: Path
) -> None:
    bag = write_bag(tmp_path / "bag.mcap")
    bag.write_bytes(bag.read_bytes()[:-50])
    process = run_player(ros_domain_id, f"bag:={bag}")
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 1
    # Fast DDS may say in colour that a segment's lock was held; that is not the player's line.
    said = [line for line in out.splitlines() if "RTPS_TRANSPORT_SHM" not in line]
    assert len(said) == 1, out
    assert said[0].startswith("player_node: bag") and "cut short" in said[0]


def test_the_program_ends_by_itself_and_at_an_interrupt(
    listener: Listener, ros_domain_id: int, tmp_path: Path
) -> None:
    listener.listen()
    bag = write_bag(tmp_path / "bag.mcap")
    process = run_player(ros_domain_id, f"bag:={bag}", "rate:=5.0", "settle_s:=0.3")
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 0, out
    assert f"{FRAMES} {CAMERA}" in out

    process = run_player(ros_domain_id, f"bag:={bag}", "rate:=0.01")
    heard = len(listener.of(CAMERA))
    end = time.monotonic() + 30
    while len(listener.of(CAMERA)) == heard and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 0, out
    assert "interrupted; sent" in out and "Traceback" not in out
