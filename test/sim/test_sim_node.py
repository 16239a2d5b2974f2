"""The simulator as a process of its own, over real topics."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Time as TimeMessage
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_srvs.srv import Trigger

from cosmos3_ros.msg import SimState
from cosmos3_ros.processes import Child, Children, ros_environment
from cosmos3_ros.sim.world import CAMERAS, CUBES, GRIPPER_JOINT, JOINTS, World

TIMEOUT_S = 60.0
ASIDE = dict(zip(JOINTS, (0, -1.5, 0, -2.8, 0, 1.571, 0.785), strict=True))

TOPICS = {
    "/clock": Clock,
    "joint_states": JointState,
    "camera/exterior/image": Image,
    "camera/exterior/camera_info": CameraInfo,
    "camera/wrist/image": Image,
    "camera/wrist/camera_info": CameraInfo,
    "sim/state": SimState,
    "/diagnostics": DiagnosticArray,
}


def nanoseconds(stamp: Any) -> int:
    return int(stamp.sec * 1_000_000_000 + stamp.nanosec)


def centres(state: SimState) -> np.ndarray:
    """Cube centres [3, 3, m]."""
    return np.array([[point.x, point.y, point.z] for point in state.centres])


class Peer:
    """Hears what the simulator says, commands it and resets it."""

    def __init__(self, domain_id: int) -> None:
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain_id)
        self.node = rclpy.create_node("peer", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.heard: dict[str, list[Any]] = {topic: [] for topic in TOPICS}
        for topic, kind in TOPICS.items():
            self.node.create_subscription(kind, topic, self.heard[topic].append, 1000)
        self.commands = self.node.create_publisher(JointState, "joint_command", 10)
        self.reset_client = self.node.create_client(Trigger, "sim/reset")
        self.until(lambda: all(self.heard.values()), "a message of every topic")
        assert self.reset_client.wait_for_service(TIMEOUT_S)

    def until(self, done: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not done():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            self.executor.spin_once(timeout_sec=0.05)

    def listen(self, simulated_s: float) -> dict[str, list[Any]]:
        """What is heard while this much simulated time passes."""
        for messages in self.heard.values():
            messages.clear()
        clocks = self.heard["/clock"]
        self.until(lambda: clocks, "the clock")
        end = nanoseconds(clocks[0].clock) + simulated_s * 1e9
        self.until(lambda: nanoseconds(clocks[-1].clock) >= end, "the clock to go on")
        return {topic: list(messages) for topic, messages in self.heard.items()}

    def command(self, positions: dict[str, float], stamp: TimeMessage | None = None) -> None:
        message = JointState(name=[*positions], position=[*positions.values()])
        if stamp is not None:
            message.header.stamp = stamp
        self.commands.publish(message)

    def reset(self) -> str:
        answer = self.reset_client.call_async(Trigger.Request())
        self.until(answer.done, "the answer to a reset")
        assert answer.result().success
        return str(answer.result().message)

    def positions(self) -> np.ndarray:
        return np.array(self.listen(0.05)["joint_states"][-1].position)

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@dataclass(frozen=True)
class Simulation:
    peer: Peer
    child: Child


@pytest.fixture
def simulate(tmp_path: Path) -> Iterator[Callable[..., Simulation]]:
    """Starts simulators with parameters, each in a domain of its own."""
    started: list[tuple[Children, Simulation]] = []

    def start(**parameters: object) -> Simulation:
        assignments = [
            word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")
        ]
        children = stack.enter_context(Children(tmp_path / str(len(started)), ros_environment()))
        child = children.start_module(
            "sim_node", "cosmos3_ros.sim.sim_node", "--ros-args", *assignments
        )
        peer = Peer(int(children.environment["ROS_DOMAIN_ID"]))
        stack.callback(peer.close)
        started.append((children, Simulation(peer, child)))
        return started[-1][1]

    with ExitStack() as stack:
        yield start
        endings = [ending for children, _ in started for ending in children.stop()]
    assert all(ending.clean for ending in endings), endings


def test_topics_come_at_their_rates_with_the_stamps_of_the_clock(
    simulate: Callable[..., Simulation],
) -> None:
    # At a pace that a busy machine can keep.
    peer = simulate(real_time_factor=0.3).peer
    began = time.monotonic()
    heard = peer.listen(3.0)
    wall_s = time.monotonic() - began
    clocks = [nanoseconds(message.clock) for message in heard["/clock"]]
    assert all(later > earlier for earlier, later in pairwise(clocks))
    assert (clocks[-1] - clocks[0]) / 1e9 / wall_s == pytest.approx(0.3, rel=0.2)
    assert len(clocks) == pytest.approx(3 * 180, abs=3)
    for topic, rate in (("joint_states", 90), *((f"camera/{c}/image", 15) for c in CAMERAS)):
        stamps = [nanoseconds(message.header.stamp) for message in heard[topic]]
        assert len(stamps) == pytest.approx(3 * rate, abs=3)
        steps = np.diff(stamps)
        np.testing.assert_allclose(steps, 1e9 / rate, atol=2)
        assert set(stamps[1:-1]) <= set(clocks), f"{topic} has stamps that are not the clock's"
    states = {nanoseconds(state.header.stamp) for state in heard["sim/state"]}
    for camera, (width, height) in CAMERAS.items():
        images = heard[f"camera/{camera}/image"]
        infos = heard[f"camera/{camera}/camera_info"]
        pictured = {nanoseconds(image.header.stamp) for image in images}
        # The last of one may have come before the end, and that of the other after it.
        assert len(pictured ^ {nanoseconds(info.header.stamp) for info in infos}) <= 2
        assert len(pictured ^ states) <= 2
        for message in (*images, *infos):
            assert message.header.frame_id == f"{camera}_camera_optical_frame"
            assert (message.width, message.height) == (width, height)
        assert {(image.encoding, image.step) for image in images} == {("rgb8", 3 * width)}


def test_a_command_moves_the_joints_it_names_and_no_others(
    simulate: Callable[..., Simulation],
) -> None:
    peer = simulate().peer
    before = peer.positions()
    peer.command({"panda_joint2": before[1] + 0.4, GRIPPER_JOINT: 0.0})
    heard = peer.listen(2.0)
    states = heard["joint_states"]
    assert all(list(state.name) == [*JOINTS, GRIPPER_JOINT] for state in states)
    assert max(abs(state.velocity[1]) for state in states) > 0.3
    moved = np.array(states[-1].position) - before
    assert moved[1] == pytest.approx(0.4, abs=0.02)
    assert states[-1].position[7] == pytest.approx(0.0, abs=1e-3)
    assert np.abs(np.delete(moved, [1, 7])).max() < 0.01


def test_wrong_commands_are_counted_said_once_and_change_nothing(
    simulate: Callable[..., Simulation],
) -> None:
    simulation = simulate()
    peer = simulation.peer
    before = peer.positions()
    for _ in range(3):
        peer.command({"elbow": 1.0})
        peer.command({"panda_joint1": float("inf")})
        peer.commands.publish(JointState(name=["panda_joint1"], position=[0.1, 0.2]))
    heard = peer.listen(2.5)
    values = {pair.key: pair.value for pair in heard["/diagnostics"][-1].status[0].values}
    assert [values[f"refused_{why}"] for why in ("unknown", "not_finite", "malformed")] == ["3"] * 3
    np.testing.assert_allclose(heard["joint_states"][-1].position, before, atol=0.005)
    said = [line for line in simulation.child.log.read_text().splitlines() if "WARN" in line]
    assert sum("'elbow'" in line for line in said) == 1
    assert sum("'panda_joint1'" in line for line in said) == 1
    assert sum("1 names and 2 positions" in line for line in said) == 1


def test_camera_info_says_where_the_picture_shows_the_cubes(
    simulate: Callable[..., Simulation],
) -> None:
    peer = simulate(seed=4).peer
    model = World(render=False)
    eye = model.model.camera("exterior").id
    for episode in (1, 2, 3):
        peer.reset()
        # The camera stands a little elsewhere in each scene.
        model.reset(4, episode)
        rotation = model.data.cam_xmat[eye].reshape(3, 3) * [1, -1, -1]  # optical: y down, z ahead
        peer.command(ASIDE)
        heard = peer.listen(2.0)
        image = heard["camera/exterior/image"][-1]
        info = heard["camera/exterior/camera_info"][-1]
        frame = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
        seen = (centres(heard["sim/state"][-1]) - model.data.cam_xpos[eye]) @ rotation
        pixels = (np.array(info.p).reshape(3, 4)[:, :3] @ seen.T).T
        np.testing.assert_allclose(np.array(info.k).reshape(3, 3) @ seen.T, pixels.T)
        for cube, (x, y, depth) in enumerate(pixels):
            colour = frame[round(y / depth), round(x / depth)].astype(int)
            assert colour.argmax() == cube, f"{CUBES[cube]}: {colour}"
            assert colour[cube] > 1.6 * np.delete(colour, cube).max()


def test_the_state_is_that_of_the_arm_and_the_cubes(simulate: Callable[..., Simulation]) -> None:
    peer = simulate(seed=7).peer
    peer.reset()
    model = World(render=False)
    model.reset(7, 1)
    state = peer.listen(0.3)["sim/state"][-1]
    assert (state.seed, state.episode, tuple(state.cubes)) == (7, 1, CUBES)
    assert state.header.frame_id == "panda_link0" and list(state.touched) == []
    np.testing.assert_allclose(centres(state), model.cubes, atol=1e-3)
    np.testing.assert_allclose(state.distances, model.cube_distances, atol=2e-3)
    # Down onto the blue cube, with the fingers closed.
    above = model.inverse_kinematics(model.cubes[2] + np.array([0, 0, 0.12]))
    on_it = model.inverse_kinematics(model.cubes[2] + np.array([0, 0, 0.025]), above)
    closed = {GRIPPER_JOINT: 0.0}
    peer.command(dict(zip(JOINTS, above.tolist(), strict=True)) | closed)
    peer.listen(1.5)
    peer.command(dict(zip(JOINTS, on_it.tolist(), strict=True)) | closed)
    states = peer.listen(1.5)["sim/state"]
    assert [list(s.touched) for s in states][-1] == ["blue"]
    assert states[-1].distances[2] < 0.05


def test_a_reset_makes_the_next_scene_and_begins_the_clock_anew(
    simulate: Callable[..., Simulation],
) -> None:
    model = World(render=False)

    def episodes() -> list[str]:
        peer = simulate(seed=5, real_time_factor=2.0).peer
        clocks, states = peer.heard["/clock"], peer.heard["joint_states"]
        scenes = []
        for episode in (1, 2, 3):
            peer.listen(0.5)
            scenes.append(peer.reset())
            model.reset(5, episode)
            # What was sent before the reset may still be on its way.
            peer.until(
                lambda: np.allclose(states[-1].position, model.positions, atol=2e-3),
                f"the arm at the start of episode {episode}",
            )

            def jumps_back() -> np.ndarray:
                stamps = np.array([nanoseconds(message.clock) for message in clocks])
                return np.flatnonzero(np.diff(stamps) < 0)

            peer.until(lambda: len(jumps_back()) > 0, "a clock that jumps back")
            stamps = np.array([nanoseconds(message.clock) for message in clocks])
            backwards = jumps_back()
            assert len(backwards) == 1, "the clock jumps back once"
            assert 0 < stamps[backwards[0] + 1] < 0.1e9
        return scenes

    scenes = episodes()
    assert len(set(scenes)) == 3
    assert "seed 5, episode 2: cubes red at (" in scenes[1]
    assert episodes() == scenes


def test_what_was_meant_for_the_scene_before_does_not_move_the_next(
    simulate: Callable[..., Simulation],
) -> None:
    # A tenth of the pace: there is no picture of the new scene in two thirds of a second.
    peer = simulate(real_time_factor=0.1).peer
    of_before = peer.listen(0.1)["/clock"][-1].clock
    peer.reset()
    peer.command(ASIDE, of_before)
    peer.command(ASIDE, TimeMessage(nanosec=10_000_000))
    heard = peer.listen(0.3)
    model = World(render=False)
    model.reset(0, 1)
    np.testing.assert_allclose(heard["joint_states"][-1].position, model.positions, atol=2e-3)
    values = {v.key: v.value for v in heard["/diagnostics"][-1].status[0].values}
    assert values["commands_of_the_scene_before"] == "2"
    peer.command(ASIDE, heard["/clock"][-1].clock)
    moved = np.array(peer.listen(0.3)["joint_states"][-1].position)
    assert abs(moved - model.positions).max() > 0.05, "commands of this scene are not followed"


def test_black_cameras_show_nothing(simulate: Callable[..., Simulation]) -> None:
    heard = simulate(black_cameras="true").peer.listen(0.5)
    for camera in CAMERAS:
        assert not any(np.any(image.data) for image in heard[f"camera/{camera}/image"])
        assert len(heard[f"camera/{camera}/image"]) >= 5


def test_a_simulator_that_cannot_keep_pace_says_so(simulate: Callable[..., Simulation]) -> None:
    simulation = simulate(real_time_factor=100.0)
    peer = simulation.peer
    peer.heard["/diagnostics"].clear()
    peer.until(lambda: len(peer.heard["/diagnostics"]) >= 2, "diagnostics")
    status = peer.heard["/diagnostics"][-1].status[0]
    values = {pair.key: pair.value for pair in status.values}
    assert status.message == "cannot keep pace"
    assert int(values["pace_slips"]) > 0
    assert float(values["pace_lost_s"]) > 0.5
    assert "cannot keep pace: simulated" in simulation.child.log.read_text()


def test_the_simulator_can_run_as_fast_as_it_can(simulate: Callable[..., Simulation]) -> None:
    peer = simulate(real_time_factor=0.0).peer
    began = time.monotonic()
    peer.listen(6.0)
    fast = time.monotonic() - began
    peer = simulate(real_time_factor=0.2).peer
    began = time.monotonic()
    peer.listen(1.2)
    assert fast < time.monotonic() - began, "6 s in the time of 1.2 at a fifth of real time"


def run_sim_node(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cosmos3_ros.sim.sim_node", "--ros-args", *arguments],
        env={**ros_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def test_a_parameter_out_of_its_range_ends_the_node_with_the_reason() -> None:
    ended = run_sim_node("-p", "real_time_factor:=-1.0")
    assert ended.returncode == 1
    assert "real_time_factor" in ended.stderr and "Min: 0.0" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_machine_that_cannot_render_is_told_what_to_install() -> None:
    ended = run_sim_node(MUJOCO_GL="disable")
    assert ended.returncode == 1
    assert "cannot be rendered" in ended.stderr and "libegl1" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_two_interrupts_end_the_simulator_with_exit_code_0(
    simulate: Callable[..., Simulation],
) -> None:
    process = simulate().child.process
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT_S) == 0
