"""The launch files, performed: what they start, with which parameters, remappings, environment."""

from __future__ import annotations

import py_compile
import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import launch_stand_in
import pytest
import yaml
from launch_stand_in import EmitEvent, Node, performed

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

from cosmos3_ros.nodes.controller_parameters import ControllerParameters
from cosmos3_ros.nodes.player_node import PlayerParameters
from cosmos3_ros.nodes.policy_parameters import PolicyParameters
from cosmos3_ros.nodes.recorder_node import RecorderParameters

ROOT = launch_stand_in.ROOT
FILES = ("policy.launch.py", "replay.launch.py", "sim.launch.py")
REQUIRED = {"bag": "run.mcap", "bundle": "some/bundle"}
DDS_PROFILE = "FASTRTPS_DEFAULT_PROFILES_FILE"
PARAMETERS = {
    "policy_node": {field.name for field in fields(PolicyParameters)},
    "controller_node": {field.name for field in fields(ControllerParameters)},
    "player_node": {field.name for field in fields(PlayerParameters)},
    "recorder_node": {field.name for field in fields(RecorderParameters)},
    "sim_node": {"seed", "real_time_factor"},
}


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    launch_stand_in.install(monkeypatch)


def by_executable(context: launch_stand_in.Context) -> dict[str, Node]:
    return {node.executable: node for node in context.processes}


@pytest.mark.parametrize("file", FILES)
def test_launch_file_compiles(file: str, tmp_path: Path) -> None:
    py_compile.compile(str(ROOT / "launch" / file), str(tmp_path / "out.pyc"), doraise=True)


@pytest.mark.parametrize("file", FILES)
def test_every_declared_argument_is_used_and_every_used_one_declared(file: str) -> None:
    context = performed(file, **REQUIRED)
    assert context.used == set(context.declared)


@pytest.mark.parametrize("file", FILES)
def test_every_executable_is_one_that_cmake_installs(file: str) -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text()
    for node in performed(file, **REQUIRED).processes:
        assert node.package == "cosmos3_ros"
        assert re.search(rf"\b(nodes|sim)\.{node.executable}\b", cmake), node.executable


@pytest.mark.parametrize("file", FILES)
def test_every_parameter_given_is_one_the_node_declares(file: str) -> None:
    context = performed(
        file, **REQUIRED, embodiment="sim_panda", backend="onnxruntime", image_transport="raw",
        gripper_source="joint", command_interface="joint_command",
        command_topic="/arm/command",
    )  # fmt: skip
    for node in context.processes:
        given = set(node.resolved["parameters"]) - {"use_sim_time"}
        assert given <= PARAMETERS.get(node.executable, set()), node.executable


def test_parameter_file_names_what_the_nodes_declare_with_values_they_take() -> None:
    tables = yaml.safe_load((ROOT / "config" / "policy.params.yaml").read_text())
    for name, table in (("policy", PolicyParameters), ("controller", ControllerParameters)):
        defaults = {field.name: field.default for field in fields(table)}
        for parameter, value in tables[f"/**/cosmos3_{name}"]["ros__parameters"].items():
            assert type(value) is type(defaults[parameter]), parameter


def test_policy_launch_starts_both_nodes_and_the_bring_up_in_the_namespace() -> None:
    nodes = by_executable(performed("policy.launch.py", namespace="left_arm"))
    assert set(nodes) == {"controller_node", "policy_node", "bringup"}
    assert {node.resolved["namespace"] for node in nodes.values()} == {"/left_arm"}
    assert nodes["bringup"].resolved["arguments"][:2] == ["cosmos3_controller", "cosmos3_policy"]


def test_empty_arguments_leave_the_parameter_file_in_force() -> None:
    nodes = by_executable(performed("policy.launch.py"))
    for name in ("policy_node", "controller_node"):
        assert nodes[name].resolved["parameters"] == {}
        assert nodes[name].resolved["files"] == [str(ROOT / "config" / "policy.params.yaml")]


def test_arguments_become_parameters() -> None:
    arguments = {"bundle": "b", "embodiment": "sim_panda", "use_sim_time": "true"}
    arguments |= {"plan_rate_hz": "2.5", "open_loop": "true"}
    nodes = by_executable(performed("policy.launch.py", **arguments))
    shared = {"embodiment": "sim_panda", "use_sim_time": True}
    policy = {"bundle": "b", "plan_rate_hz": 2.5, **shared}
    assert nodes["policy_node"].resolved["parameters"] == policy
    assert nodes["controller_node"].resolved["parameters"] == {**shared, "open_loop": True}


def test_topics_are_remapped_by_arguments() -> None:
    nodes = by_executable(
        performed(
            "policy.launch.py",
            camera_topics="wrist=/wrist/color exterior_1=/left/color",
            joint_states_topic="/franka/joint_states",
            instruction_topic="/task",
            command_topic="/franka/command",
        )
    )
    policy, controller = (
        nodes[name].resolved["remappings"] for name in ("policy_node", "controller_node")
    )
    assert policy["camera/wrist/image"] == "/wrist/color"
    assert policy["camera/exterior_1/image/compressed"] == "/left/color/compressed"
    assert policy["joint_states"] == controller["joint_states"] == "/franka/joint_states"
    assert policy["instruction"] == controller["instruction"] == "/task"
    parameters = nodes["controller_node"].resolved["parameters"]
    assert parameters["command_topic"] == "/franka/command"


def test_camera_without_a_topic_is_refused_with_the_word_that_is_wrong() -> None:
    with pytest.raises(ValueError, match="'wrist'; expected NAME=TOPIC"):
        performed("policy.launch.py", camera_topics="wrist")


@pytest.mark.parametrize("file", FILES)
def test_all_nodes_get_the_shared_memory_profile(file: str) -> None:
    for node in performed(file, **REQUIRED).processes:
        assert node.environment[DDS_PROFILE] == str(ROOT / "config" / "fastdds_shm.xml")


def test_the_users_own_dds_profile_stays_in_force() -> None:
    context = performed("policy.launch.py", environment={DDS_PROFILE: "mine.xml"})
    assert {node.environment[DDS_PROFILE] for node in context.processes} == {"mine.xml"}


def test_failed_bring_up_ends_the_launch_and_a_good_one_does_not() -> None:
    context = performed("policy.launch.py")
    (handler,) = context.handlers
    assert handler.target_action.executable == "bringup"
    assert handler.on_exit(SimpleNamespace(returncode=0), context) == []
    (action,) = handler.on_exit(SimpleNamespace(returncode=1), context)
    assert isinstance(action, EmitEvent)
    assert "could not be brought up" in action.event.reason


def test_simulation_and_replay_run_on_simulated_time_and_pass_their_arguments_on() -> None:
    sim = by_executable(performed("sim.launch.py", bundle="b", seed="7", namespace="cell"))
    assert sim["sim_node"].resolved["parameters"] == {"seed": 7, "real_time_factor": 1.0}
    assert sim["sim_node"].resolved["namespace"] == "/cell"
    assert sim["controller_node"].resolved["parameters"]["embodiment"] == "pico_panda"
    replay = by_executable(
        performed("replay.launch.py", bag="run.mcap", bundle="b", rate="2.0", backend="other")
    )
    assert replay["player_node"].resolved["parameters"]["rate"] == 2.0
    assert replay["policy_node"].resolved["parameters"]["backend"] == "other"
    for nodes in (sim, replay):
        for name in ("policy_node", "controller_node"):
            assert nodes[name].resolved["parameters"]["use_sim_time"] is True
