"""The processes around a simulated arm: simulator, policy node, controller node and others."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cosmos3_ros.control.overlap import Strategy
from cosmos3_ros.processes import Child, Children, ProcessFailed

CONTROL_RATE_HZ = 50.0
BRINGUP_TIMEOUT_S = 120.0

Parameters = Mapping[str, object]


@dataclass(frozen=True)
class Team:
    """Started in this order; they end in the other."""

    sim: Child
    policy: Child
    controller: Child


def start_team(
    children: Children,
    bundle: Path,
    embodiment: str,
    *,
    sim: Parameters,
    policy: Parameters,
) -> Team:
    """Start the three nodes. ``sim``, ``policy``: their parameters besides the usual ones."""
    common = {"embodiment": embodiment, "use_sim_time": "true"}
    return Team(
        sim=start_node(children, "sim_node", "sim", sim),
        policy=start_node(children, "policy_node", "nodes", {"bundle": bundle, **common, **policy}),
        controller=start_node(
            children, "controller_node", "nodes", {"control_rate_hz": CONTROL_RATE_HZ, **common}
        ),
    )


def add_planning_arguments(parser: argparse.ArgumentParser) -> None:
    """How plans follow each other, and how much later than it is made each one arrives."""
    parser.add_argument(
        "--strategy",
        choices=[str(strategy) for strategy in Strategy],
        default=str(Strategy.BLEND),
        help="how plans follow each other (default: %(default)s)",
    )
    parser.add_argument(
        "--state-ahead", action="store_true", help="plan from where the arm will be by then"
    )
    parser.add_argument(
        "--added-latency-ms", type=float, default=0.0, help="every plan arrives so much later"
    )


def start_node(
    children: Children,
    name: str,
    room: str,
    parameters: Parameters,
    *words: str,
    module: str | None = None,
) -> Child:
    """Start a node's module with parameters and further ROS arguments. ``module``: where the
    child's name is another."""
    given = [word for key, value in parameters.items() for word in ("-p", f"{key}:={value}")]
    path = f"cosmos3_ros.{room}.{module or name}"
    return children.start_module(name, path, "--ros-args", *given, *words)


def bring_up(children: Children, team: Team) -> None:
    """Configure and activate policy and controller. Raises ProcessFailed with their logs' ends."""
    bringup = children.start_module(
        "bringup", "cosmos3_ros.nodes.bringup", "cosmos3_policy", "cosmos3_controller"
    )
    try:
        children.wait(bringup, BRINGUP_TIMEOUT_S)
    except ProcessFailed as error:
        # It names the node; why, only the node's own log says.
        logs = [f"{child.log}:\n{child.tail()}" for child in (team.policy, team.controller)]
        raise ProcessFailed("\n".join([str(error), *logs])) from None
