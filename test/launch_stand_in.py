"""As much of ``launch`` and ``launch_ros`` as the launch files use, where the real ones are not.

It performs substitutions and lists the processes that would be started, with the command lines that
launch_ros gives them. Names and signatures are those of Jazzy.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Context:
    """What is known while a launch file is performed, and what came of it."""

    arguments: dict[str, str]
    environment: dict[str, str]
    declared: dict[str, Any] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    processes: list[Node] = field(default_factory=list)
    handlers: list[Any] = field(default_factory=list)
    is_shutdown: bool = False


def perform(value: Any, context: Context) -> str:
    if isinstance(value, list | tuple):
        return "".join(perform(part, context) for part in value)
    return value if isinstance(value, str) else value.perform(context)


@dataclass
class LaunchConfiguration:
    name: str

    def perform(self, context: Context) -> str:
        context.used.add(self.name)
        return context.arguments[self.name]


@dataclass
class EnvironmentVariable:
    name: str
    default_value: Any = None

    def perform(self, context: Context) -> str:
        if self.name in context.environment:
            return context.environment[self.name]
        return perform(self.default_value, context)


@dataclass
class FindPackageShare:
    package: str

    def perform(self, context: Context) -> str:
        assert self.package == "cosmos3_ros"
        return str(ROOT)


@dataclass
class PathJoinSubstitution:
    parts: Iterable[Any]

    def perform(self, context: Context) -> str:
        path = Path(*[perform(part, context) for part in self.parts])
        assert path.exists(), f"{path} is not shipped"
        return str(path)


@dataclass
class DeclareLaunchArgument:
    name: str
    default_value: Any = None
    description: str = ""

    def execute(self, context: Context) -> None:
        assert self.description, f"argument '{self.name}' has no description"
        context.declared[self.name] = self
        if self.name not in context.arguments:
            assert self.default_value is not None, f"argument '{self.name}' is required"
            context.arguments[self.name] = perform(self.default_value, context)


@dataclass
class SetEnvironmentVariable:
    name: str
    value: Any

    def execute(self, context: Context) -> None:
        context.environment[self.name] = perform(self.value, context)


@dataclass
class OpaqueFunction:
    function: Any

    def execute(self, context: Context) -> None:
        for entity in self.function(context):
            entity.execute(context)


@dataclass
class LaunchDescription:
    entities: Sequence[Any]

    def execute(self, context: Context) -> None:
        for entity in self.entities:
            entity.execute(context)


@dataclass
class PythonLaunchDescriptionSource:
    location: Any


@dataclass
class IncludeLaunchDescription:
    source: PythonLaunchDescriptionSource
    launch_arguments: Iterable[tuple[str, Any]] = ()

    def execute(self, context: Context) -> None:
        for name, value in self.launch_arguments:
            context.arguments[name] = perform(value, context)
        load(Path(perform(self.source.location, context))).execute(context)


@dataclass
class RegisterEventHandler:
    handler: Any

    def execute(self, context: Context) -> None:
        context.handlers.append(self.handler)


@dataclass(kw_only=True)
class OnProcessExit:
    target_action: Any
    on_exit: Any


@dataclass(kw_only=True)
class EmitEvent:
    event: Any


@dataclass(kw_only=True)
class Shutdown:
    reason: str


@dataclass
class ParameterValue:
    value: Any
    value_type: type

    def __post_init__(self) -> None:
        if isinstance(self.value, str | int | float) and not isinstance(
            self.value, self.value_type
        ):
            raise TypeError(f"{self.value!r} is no {self.value_type}: only substitutions are read")

    def evaluate(self, context: Context) -> Any:
        text = perform(self.value, context)
        found = text if self.value_type is str else self.value_type(yaml.safe_load(text))
        assert isinstance(found, self.value_type)
        return found


@dataclass(kw_only=True)
class Node:
    package: str
    executable: str
    namespace: Any = ""
    parameters: Sequence[Any] = ()
    remappings: Sequence[tuple[Any, Any]] = ()
    ros_arguments: Sequence[Any] = ()
    arguments: Sequence[Any] = ()
    output: str = "log"
    environment: dict[str, str] = field(default_factory=dict)
    resolved: dict[str, Any] = field(default_factory=dict)

    def execute(self, context: Context) -> None:
        self.environment = dict(context.environment)
        parameters: dict[str, Any] = {}
        files = []
        for given in self.parameters:
            if isinstance(given, Mapping):
                parameters |= {
                    name: v.evaluate(context) if isinstance(v, ParameterValue) else v
                    for name, v in given.items()
                }
            else:
                files.append(perform(given, context))
        self.resolved = {
            "namespace": "/" + perform(self.namespace, context).strip("/"),
            "files": files,
            "parameters": parameters,
            "remappings": {perform(a, context): perform(b, context) for a, b in self.remappings},
            "ros_arguments": [perform(a, context) for a in self.ros_arguments],
            "arguments": [perform(a, context) for a in self.arguments],
        }
        context.processes.append(self)

    def command_line(self, parameter_file: Path) -> list[str]:
        """Arguments as launch_ros writes them; the parameters go through ``parameter_file``."""
        found = self.resolved
        parameter_file.write_text(yaml.safe_dump({"/**": {"ros__parameters": found["parameters"]}}))
        line = [*found["arguments"], "--ros-args", *found["ros_arguments"]]
        line += ["-r", f"__ns:={found['namespace']}"]
        for path in (
            [*found["files"], str(parameter_file)] if found["parameters"] else found["files"]
        ):
            line += ["--params-file", path]
        for before, after in found["remappings"].items():
            line += ["-r", f"{before}:={after}"]
        return line


MODULES: dict[str, dict[str, Any]] = {
    "launch": {"LaunchContext": Context, "LaunchDescription": LaunchDescription},
    "launch.actions": {
        "DeclareLaunchArgument": DeclareLaunchArgument,
        "EmitEvent": EmitEvent,
        "IncludeLaunchDescription": IncludeLaunchDescription,
        "OpaqueFunction": OpaqueFunction,
        "RegisterEventHandler": RegisterEventHandler,
        "SetEnvironmentVariable": SetEnvironmentVariable,
    },
    "launch.event_handlers": {"OnProcessExit": OnProcessExit},
    "launch.events": {"Shutdown": Shutdown},
    "launch.events.process": {"ProcessExited": object},
    "launch.launch_description_entity": {"LaunchDescriptionEntity": object},
    "launch.launch_description_sources": {
        "PythonLaunchDescriptionSource": PythonLaunchDescriptionSource
    },
    "launch.substitutions": {
        "EnvironmentVariable": EnvironmentVariable,
        "LaunchConfiguration": LaunchConfiguration,
        "PathJoinSubstitution": PathJoinSubstitution,
    },
    "launch_ros": {},
    "launch_ros.actions": {"Node": Node},
    "launch_ros.parameter_descriptions": {"ParameterValue": ParameterValue},
    "launch_ros.substitutions": {"FindPackageShare": FindPackageShare},
}


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``import launch`` find this, for one test."""
    for name, members in MODULES.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


def load(path: Path) -> LaunchDescription:
    """The launch description of a launch file."""
    name = path.name.replace(".", "_")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    description = module.generate_launch_description()
    assert isinstance(description, LaunchDescription)
    return description


def performed(file: str, environment: Mapping[str, str] = {}, **arguments: str) -> Context:
    """Perform a launch file of ours with these arguments."""
    context = Context(dict(arguments), dict(environment))
    load(ROOT / "launch" / file).execute(context)
    return context
