"""Node parameters: one frozen dataclass is the table, the declaration and what the node reads.

    @dataclass(frozen=True)
    class ControllerParameters:
        control_rate_hz: float = parameter(50.0, "Commands a second.", "Hz", minimum=1, maximum=1e3)

    self._declared = DeclaredParameters(self, ControllerParameters)   # in __init__
    parameters = self._declared.read()                                # in on_configure

A value that a user got wrong never ends the process: the node comes up, stays unconfigured, and
``read`` says which parameter, what was found and what was expected.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

Value = bool | int | float | str | tuple[str, ...]
Table = TypeVar("Table")

RELIABILITIES = ("reliable", "best_effort")

_TYPES: dict[type, tuple[Parameter.Type, str]] = {
    bool: (Parameter.Type.BOOL, "true or false"),
    int: (Parameter.Type.INTEGER, "an integer"),
    float: (Parameter.Type.DOUBLE, "a float, written with a decimal point"),
    str: (Parameter.Type.STRING, "a string"),
    tuple: (Parameter.Type.STRING_ARRAY, "a list of strings"),
}


class ParameterError(ValueError):
    """A parameter has a value that the node cannot work with."""


@dataclass(frozen=True)
class ParameterRow:
    """One parameter: a row of a table of parameters, in code and in the README."""

    name: str
    default: Value
    description: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def type(self) -> Parameter.Type:
        return _TYPES[type(self.default)][0]

    @property
    def expected(self) -> str:
        """What a value must be, for a person."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        words = _TYPES[type(self.default)][1]
        if self.minimum is not None:
            words += f" from {self.minimum:g} to {self.maximum:g}"
        return words + (f" [{self.unit}]" if self.unit else "")

    def descriptor(self) -> ParameterDescriptor:
        unit = f" [{self.unit}]" if self.unit else ""
        descriptor = ParameterDescriptor(
            description=self.description + unit,
            additional_constraints=f"{self.expected}; read when the node is configured",
        )
        if self.minimum is not None and self.maximum is not None:
            if isinstance(self.default, int):
                span = IntegerRange(from_value=int(self.minimum), to_value=int(self.maximum))
                descriptor.integer_range = [span]
            else:
                bounds = FloatingPointRange(
                    from_value=float(self.minimum), to_value=float(self.maximum)
                )
                descriptor.floating_point_range = [bounds]
        return descriptor

    def refusal(self, found: Any) -> str:
        return f"parameter '{self.name}' is {found!r}; expected {self.expected}"


def parameter(
    default: Any,
    description: str,
    unit: str = "",
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field of a parameter table: bool, int, float, str, or tuple of str (a list of strings).

    ``minimum`` and ``maximum`` are inclusive, in ``unit``, and given both or not at all.
    """
    assert (minimum is None) == (maximum is None), description
    row = ParameterRow("", default, description, unit, minimum, maximum, choices)
    return dataclasses.field(default=default, metadata={"row": row})


def parameter_rows(table: type) -> list[ParameterRow]:
    """The rows of a table, in its order."""
    return [
        dataclasses.replace(field.metadata["row"], name=field.name)
        for field in dataclasses.fields(table)
    ]


class DeclaredParameters(Generic[Table]):
    """The parameters of a table, declared on a node."""

    def __init__(self, node: Node, table: type[Table]) -> None:
        self._node = node
        self._table = table
        self._refused: dict[str, str] = {}
        for row in parameter_rows(table):
            self._declare(row)
        node.add_post_set_parameters_callback(self._forget_refusals)

    def read(self) -> Table:
        """The present values as an instance of the table.

        Raises ParameterError that names each wrong parameter, its value and what was expected.
        """
        errors = list(self._refused.values())
        values: dict[str, Any] = {}
        for row in parameter_rows(self._table):
            value = self._node.get_parameter(row.name).value
            values[row.name] = tuple(value) if isinstance(row.default, tuple) else value
            if row.choices and value not in row.choices:
                errors.append(row.refusal(value))
        if errors:
            raise ParameterError("; ".join(errors))
        return self._table(**values)

    def _declare(self, row: ParameterRow) -> None:
        # Declared by type, not by default: rclpy takes an empty list for an array of bytes.
        try:
            self._node.declare_parameter(row.name, row.type, row.descriptor())
        except (InvalidParameterTypeException, InvalidParameterValueException):
            self._refused[row.name] = row.refusal(self._overridden(row.name))
            self._node.declare_parameter(row.name, row.type, row.descriptor(), ignore_override=True)
        if self._node.get_parameter_or(row.name).type_ == Parameter.Type.NOT_SET:
            default = list(row.default) if isinstance(row.default, tuple) else row.default
            self._node.set_parameters([Parameter(row.name, row.type, default)])

    def _overridden(self, name: str) -> Any:
        """The value that a user gave; rclpy shows it only to a declaration that accepts it."""
        descriptor = ParameterDescriptor(dynamic_typing=True)
        found = self._node.declare_parameter(name, None, descriptor).value
        self._node.undeclare_parameter(name)
        return found

    def _forget_refusals(self, parameters: list[Parameter]) -> None:
        for changed in parameters:
            self._refused.pop(changed.name, None)


def qos_profile(reliability: str, depth: int, *, transient_local: bool = False) -> QoSProfile:
    """QoS from parameters: ``reliability`` one of RELIABILITIES, history the last ``depth``."""
    return QoSProfile(
        depth=depth,
        reliability=ReliabilityPolicy[reliability.upper()],
        durability=DurabilityPolicy.TRANSIENT_LOCAL
        if transient_local
        else DurabilityPolicy.VOLATILE,
    )


def reliability_parameter(topics: str, default: str = "reliable") -> Any:
    """A field for the reliability of the subscriptions to ``topics`` (words for a person)."""
    return parameter(default, f"Reliability asked of {topics}.", choices=RELIABILITIES)


def depth_parameter(topics: str, default: int) -> Any:
    """A field for the queue depth of the subscriptions to ``topics`` (words for a person)."""
    return parameter(
        default, f"Messages of {topics} kept in the queue.", "messages", minimum=1, maximum=1000
    )
