"""The stage of the fault run: the nodes in processes of their own, the saboteur between them, and
what is seen of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from rclpy.executors import SingleThreadedExecutor

from cosmos3_ros.msg import ControllerStatus
from cosmos3_ros.policy.embodiment import Embodiment
from cosmos3_ros.processes import Child, Children
from cosmos3_ros.sim.saboteur import Commanded, Reported, Saboteur, remapped
from cosmos3_ros.sim.tasks import COLOURS
from cosmos3_ros.sim.team import BRINGUP_TIMEOUT_S, CONTROL_RATE_HZ, start_node
from cosmos3_ros.sim.world import CAMERAS

INSTRUCTIONS = tuple(f"touch the {colour} cube" for colour in COLOURS)
_CLOCK_JUMP_S = 1.0
_HELD = (ControllerStatus.STATE_HOLDING, ControllerStatus.STATE_STOPPED)


@dataclass(frozen=True)
class Noted:
    """How far what is seen had come: the size of each log, and how many children had ended."""

    logs: dict[Path, int]
    endings: int


class Stage:
    """The processes, and the saboteur between them. The policy follows ``bundle``."""

    def __init__(self, children: Children, bundle: Path, robot: Embodiment) -> None:
        self.children, self.bundle, self.robot = children, bundle, robot
        self.saboteur = Saboteur()
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.saboteur)
        self._told = 0
        sim_topics = ("/clock", "joint_states", *(f"camera/{name}/image" for name in CAMERAS))
        self.sim = start_node(children, "sim_node", "sim", {}, *remapped(*sim_topics))
        self.controller = start_node(
            children,
            "controller_node",
            "nodes",
            {
                "embodiment": robot.name,
                "use_sim_time": "true",
                "control_rate_hz": CONTROL_RATE_HZ,
            },
        )
        self.policy = self.start_policy()
        self.bring_up("cosmos3_controller", "cosmos3_policy")

    def start_policy(self, name: str = "cosmos3_policy") -> Child:
        return start_node(
            self.children,
            "policy_node" if name == "cosmos3_policy" else name,
            "nodes",
            {
                "bundle": self.bundle,
                "embodiment": self.robot.name,
                "use_sim_time": "true",
                "threads": 1,
                "predicted_frame_rate_hz": 0.0,
            },
            "-r",
            f"__node:={name}",
            *remapped("action_chunk"),
            module="policy_node",
        )

    def bring_up(self, *nodes: str) -> None:
        """Configure and activate. Raises ProcessFailed where they are not active then."""
        bringup = self.children.start_module("bringup", "cosmos3_ros.nodes.bringup", *nodes)
        if (code := self.exit_code(bringup, BRINGUP_TIMEOUT_S)) != 0:
            raise bringup.failure(f"of {', '.join(nodes)} ended with exit code {code}")

    def exit_code(self, child: Child, timeout_s: float) -> int:
        """Of one that ends by itself. Raises ProcessFailed where it had to be killed, and where
        another one has ended meanwhile."""

        def has_ended() -> bool:
            self.children.check(but=child)
            return child.process.poll() is not None

        self.until(has_ended, timeout_s)
        if (code := child.process.poll()) is None:
            self.children.kill(child)
            raise child.failure(f"did not end within {timeout_s:g} s")
        self.children.running.remove(child)
        return code

    def kill_policy(self) -> None:
        self.children.kill(self.policy)

    def restart_policy(self) -> None:
        self.policy = self.start_policy()
        self.bring_up("cosmos3_policy")

    def child(self, name: str) -> Child:
        """The one of that name that runs."""
        return next(child for child in self.children.running if child.name == name)

    def spin(self, seconds: float) -> None:
        self.until(lambda: False, seconds)

    def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        end_s = time.monotonic() + seconds
        while not condition() and (left := end_s - time.monotonic()) > 0:
            self._executor.spin_once(min(left, 0.05))
        return condition()

    def tell(self) -> None:
        """Another cube than the last."""
        self._told += 1
        self.saboteur.instruct(INSTRUCTIONS[self._told % len(INSTRUCTIONS)])

    def moved_on_s(self, patience_s: float) -> float | None:
        """Tell the arm to go on: how long until the controller follows a plan that is newer than
        this call; None: not within ``patience_s``."""
        saboteur, began_s = self.saboteur, time.monotonic()
        newest = dict(saboteur.newest_plans)

        def moves_on() -> bool:
            return bool(saboteur.reports) and follows_newer(saboteur.reports[-1], newest)

        self.tell()
        moved_on = self.until(moves_on, patience_s)
        return saboteur.reports[-1].at_s - began_s if moved_on else None

    def held_s(self, since_s: float) -> float | None:
        """How long after ``since_s`` the controller said that it holds; None: it did not."""
        for report in self.saboteur.reports:
            if report.at_s >= since_s and report.state in _HELD:
                return report.at_s - since_s
        return None

    def note(self) -> Noted:
        logs = {log: log.stat().st_size for log in self.children.logs.glob("*.log")}
        return Noted(logs, len(self.children.endings))

    def logged_since(self, noted: Noted) -> str:
        """What all processes printed, one after another."""
        logs = sorted(self.children.logs.glob("*.log"))
        parts = (log.read_bytes()[noted.logs.get(log, 0) :] for log in logs)
        return "\n".join(part.decode(errors="replace") for part in parts)

    def troubles_since(self, noted: Noted) -> list[str]:
        """Which processes did not end as they were told, and whether any wrote a traceback."""
        troubles = [
            f"{ending.child.name} "
            + ("had to be killed" if ending.killed else f"ended with exit code {ending.exit_code}")
            for ending in self.children.endings[noted.endings :]
            if not ending.clean
        ]
        if "Traceback" in self.logged_since(noted):
            troubles.append(f"a process wrote a traceback, see {self.children.logs}")
        return troubles

    def close(self) -> None:
        self._executor.shutdown()
        self.saboteur.destroy_node()


def follows_newer(report: Reported, newest: Mapping[int, int]) -> bool:
    """Whether the controller follows a plan that comes after the ``newest`` of its planner."""
    is_newer = report.plan_id > newest.get(report.planner, 0)
    return is_newer and report.state == ControllerStatus.STATE_TRACKING


def largest_step(commands: list[Commanded], robot: Embodiment) -> float:
    """Of a joint between two commands, as a share of its velocity limit times the time that has
    passed by their stamps; across a jump of the clock, by their arrival."""
    speed = robot.velocity[: len(robot.joints)]
    largest = 0.0
    for before, after in pairwise(commands):
        passed_s = after.stamp_s - before.stamp_s
        if not 0 < passed_s <= _CLOCK_JUMP_S:
            periods = round((after.at_s - before.at_s) * CONTROL_RATE_HZ)
            passed_s = max(periods, 1) / CONTROL_RATE_HZ
        step = np.abs(after.positions - before.positions)[: len(speed)]
        largest = max(largest, float(np.max(step / (speed * passed_s))))
    return largest
