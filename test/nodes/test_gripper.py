"""A gripper that is driven by an action beside the commands: the real client and a real server.

control_msgs is in no wheel; the one action is built from its definition.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

from rclpy.context import Context
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from cosmos3_ros.nodes.controller_node import ControllerNode

TESTS = Path(__file__).resolve().parent.parent
CONTROL_MSGS = TESTS / "control_msgs"


@pytest.fixture(scope="session")
def control_msgs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which control_msgs can be imported."""
    folder = tmp_path_factory.mktemp("control_msgs")
    shutil.copytree(CONTROL_MSGS, folder / "source")
    prefix, build = folder / "prefix", folder / "build"
    for command in (
        ["cmake", "-S", folder / "source", "-B", build, f"-DCMAKE_INSTALL_PREFIX={prefix}",
         "-DBUILD_TESTING=OFF", f"-DPython3_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", build, "--parallel", "2"],
        ["cmake", "--install", build],
    ):  # fmt: skip
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
    (packages,) = prefix.glob("lib/python3.*/site-packages")
    environment = dict(os.environ)
    for name, path in {"PYTHONPATH": packages, "LD_LIBRARY_PATH": prefix / "lib",
                       "AMENT_PREFIX_PATH": prefix}.items():  # fmt: skip
        environment[name] = f"{path}:{environment.get(name, '')}"
    return environment


@pytest.mark.timeout(1200)
def test_the_gripper_gets_goals_and_the_arm_the_rest(
    control_msgs: dict[str, str], ros_domain_id: int
) -> None:
    ended = subprocess.run(
        [sys.executable, TESTS / "gripper_driver.py"],
        env=control_msgs | {"ROS_DOMAIN_ID": str(ros_domain_id)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["at_first"] == 0, "a gripper that holds something is left alone before a plan"
    # Open, refused and therefore sent again; then closed, and closed to the next driver. Each once,
    # however long it is commanded, and whatever stops the arm on the way.
    assert told["goals"] == [[0.04, 20.0], [0.04, 20.0], [0.0, 20.0], [0.0, 20.0]]
    assert told["names"] == [f"panda_joint{i}" for i in range(1, 8)]


def test_without_control_msgs_it_is_refused_with_the_package_to_install(
    ros_context: Context, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "control_msgs.action", None)
    node = ControllerNode(
        context=ros_context,
        parameter_overrides=[
            Parameter("embodiment", value="sim_panda"),
            Parameter("gripper_action", value="gripper_cmd"),
        ],
    )
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    node.destroy_node()
    said = capfd.readouterr().err
    assert "takes control_msgs" in said and "ros-$ROS_DISTRO-control-msgs" in said
