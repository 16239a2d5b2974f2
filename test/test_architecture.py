"""Who may import whom: the arrows between the rooms, and the few places of the heavy packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "cosmos3_ros"
MODULES = sorted(PACKAGE.rglob("*.py"))

# By room: what of ours it may import. A few root modules are everybody's.
ARROWS = {
    "nodes": ("nodes", "policy", "control", "engine", "msg"),
    "policy": ("policy", "engine.session"),
    "control": ("control",),
    "engine": ("engine",),
    "replay": ("replay", "policy", "control"),
    "sim": (
        "sim",
        "policy",
        "control",
        "engine.backends",
        "engine.bundle",
        "engine.recipe",
        "msg",
    ),
    "training": ("training", "policy", "engine", "replay.episode", "replay.lerobot"),
}
EVERYBODYS = ("resources", "processes", "command_line")
# Two nodes read and write bags, the demo reports as a replay does, the examiner hears chunks, and
# a training begins with the simulated arm's demonstrations and with what an export begins with.
ALSO = {
    "nodes.player_node": ("replay.bags",),
    "nodes.recorder_node": ("replay.bags",),
    "sim.demo": ("replay.outcomes", "replay.report", "replay.summary"),
    "sim.examiner": ("nodes.chunks",),
    "sim.saboteur": ("nodes.chunks",),
    "training.begin": ("sim",),
    "training.episodes": ("sim",),
    "training.open_loop": ("export_command",),
    "training.run": ("export_command",),
}

ROS_PACKAGES = {
    "rclpy", "action_msgs", "builtin_interfaces", "diagnostic_msgs", "geometry_msgs",
    "lifecycle_msgs", "rcl_interfaces", "rosgraph_msgs", "sensor_msgs", "std_msgs", "std_srvs",
    "trajectory_msgs",
}  # fmt: skip
EXPORT_PACKAGES = {"torch", "diffusers", "transformers", "accelerate", "safetensors"}


def name_of(path: Path) -> str:
    """Dotted name below cosmos3_ros: ``nodes.policy_node``; a package goes by its folder."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, as a dotted name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = str(node.module)
            # "from cosmos3_ros.engine import bundle" imports the module of that name.
            yield from (
                f"{module}.{alias.name}" if module.startswith("cosmos3_ros") else module
                for alias in node.names
            )


def ours(path: Path) -> Iterator[str]:
    prefix = "cosmos3_ros."
    return (name.removeprefix(prefix) for name in imports(path) if name.startswith(prefix))


def others(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def begins_with(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


def in_rooms(*rooms: str) -> list[Path]:
    return [path for path in MODULES if name_of(path).partition(".")[0] in rooms]


@pytest.mark.parametrize("room", ARROWS)
def test_room_imports_only_what_its_arrows_allow(room: str) -> None:
    assert in_rooms(room), f"no modules in {room}"
    for path in in_rooms(room):
        allowed = (*ARROWS[room], *EVERYBODYS, *ALSO.get(name_of(path), ()))
        wrong = [name for name in ours(path) if not begins_with(name, allowed)]
        assert not wrong, f"{name_of(path)} imports {', '.join(wrong)}"


def test_ros_is_imported_by_nodes_and_simulation_alone() -> None:
    with_ros = [p for p in MODULES if others(p) & ROS_PACKAGES or "msg" in {*map(_top, ours(p))}]
    assert with_ros
    assert set(with_ros) <= set(in_rooms("nodes", "sim"))


def test_torch_and_diffusers_are_imported_by_export_and_training_alone() -> None:
    heavy = {name_of(path) for path in MODULES if others(path) & EXPORT_PACKAGES}
    assert heavy
    assert all(name.startswith(("engine.export", "training.")) for name in heavy), heavy


def test_control_imports_nothing_of_ours() -> None:
    for path in in_rooms("control"):
        assert all(begins_with(name, ("control",)) for name in ours(path)), name_of(path)


@pytest.mark.parametrize(
    "module",
    ["nodes.policy_node", "nodes.controller_node", "cli", "sim.eval", "sim.demo", "sim.sim_node"],
)
def test_the_robots_processes_load_neither_torch_nor_diffusers(module: str) -> None:
    code = (
        f"import sys, cosmos3_ros.{module}\nprint(*sorted(set(sys.modules) & {EXPORT_PACKAGES!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def _top(name: str) -> str:
    return name.partition(".")[0]
