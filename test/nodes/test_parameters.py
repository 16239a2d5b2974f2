"""Parameters as a table, on real nodes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

import rclpy
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

from cosmos3_ros.nodes.parameters import (
    DeclaredParameters,
    ParameterError,
    depth_parameter,
    parameter,
    parameter_rows,
    qos_profile,
    reliability_parameter,
)


@dataclass(frozen=True)
class Table:
    rate_hz: float = parameter(50.0, "Rate of things.", "Hz", minimum=1.0, maximum=1000.0)
    threads: int = parameter(2, "Threads.", minimum=1, maximum=8)
    mode: str = parameter("fast", "How.", choices=("fast", "slow"))
    verbose: bool = parameter(False, "Talk.")
    names: tuple[str, ...] = parameter((), "Names.")
    image_reliability: str = reliability_parameter("the images", "best_effort")
    image_depth: int = depth_parameter("the images", 1)


@pytest.fixture
def context() -> Iterator[Context]:
    context = Context()
    rclpy.init(args=[], context=context)
    yield context
    rclpy.shutdown(context=context)


def node_with(context: Context, **overrides: Any) -> Node:
    given = [Parameter(name, value=value) for name, value in overrides.items()]
    return Node("parameters_test", context=context, parameter_overrides=given)


def declared(context: Context, **overrides: Any) -> DeclaredParameters[Table]:
    return DeclaredParameters(node_with(context, **overrides), Table)


def test_defaults_are_read_when_nothing_is_given(context: Context) -> None:
    assert declared(context).read() == Table()


def test_given_values_are_read_with_their_types(context: Context) -> None:
    values = declared(
        context, rate_hz=10.0, threads=4, mode="slow", verbose=True, names=["a", "b"]
    ).read()
    assert values == Table(rate_hz=10.0, threads=4, mode="slow", verbose=True, names=("a", "b"))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("rate_hz", 0.5, "a float, written with a decimal point from 1 to 1000 [Hz]"),
        ("rate_hz", math.nan, "from 1 to 1000"),
        ("rate_hz", 50, "a float"),
        ("threads", 9, "an integer from 1 to 8"),
        ("threads", "two", "an integer"),
        ("mode", "sideways", "one of fast, slow"),
        ("verbose", "yes", "true or false"),
        ("names", "a", "a list of strings"),
        ("image_reliability", "perfect", "one of reliable, best_effort"),
        ("image_depth", 0, "an integer from 1 to 1000 [messages]"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(
    context: Context, name: str, value: Any, expected: str
) -> None:
    with pytest.raises(ParameterError) as caught:
        declared(context, **{name: value}).read()
    assert f"parameter '{name}' is {value!r}; expected" in str(caught.value)
    assert expected in str(caught.value)


def test_every_wrong_value_is_named_at_once(context: Context) -> None:
    with pytest.raises(ParameterError, match=r"'rate_hz'.*'mode'"):
        declared(context, rate_hz=-1.0, mode="sideways").read()


def test_a_wrong_value_can_be_put_right_on_the_running_node(context: Context) -> None:
    node = node_with(context, rate_hz=5000.0)
    parameters = DeclaredParameters(node, Table)
    assert not node.set_parameters([Parameter("rate_hz", value=6000.0)])[0].successful
    with pytest.raises(ParameterError, match=r"5000\.0"):
        parameters.read()
    assert node.set_parameters([Parameter("rate_hz", value=500.0)])[0].successful
    assert parameters.read().rate_hz == 500.0


def test_the_list_of_names_can_be_emptied_again(context: Context) -> None:
    node = node_with(context, names=["a"])
    parameters = DeclaredParameters(node, Table)
    node.set_parameters([Parameter("names", Parameter.Type.STRING_ARRAY, [])])
    assert parameters.read().names == ()


def test_descriptors_carry_the_description_the_unit_and_the_range(context: Context) -> None:
    node = node_with(context)
    DeclaredParameters(node, Table)
    rate = node.describe_parameter("rate_hz")
    assert rate.description == "Rate of things. [Hz]"
    assert (rate.floating_point_range[0].from_value, rate.floating_point_range[0].to_value) == (
        1.0,
        1000.0,
    )
    assert node.describe_parameter("threads").integer_range[0].to_value == 8
    assert "one of fast, slow" in node.describe_parameter("mode").additional_constraints


def test_the_rows_of_a_table_keep_its_order() -> None:
    assert [row.name for row in parameter_rows(Table)][:3] == ["rate_hz", "threads", "mode"]


def test_qos_follows_the_parameters() -> None:
    profile = qos_profile("best_effort", 3, transient_local=True)
    assert profile.reliability == ReliabilityPolicy.BEST_EFFORT
    assert profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
    assert profile.depth == 3
    assert qos_profile("reliable", 1).reliability == ReliabilityPolicy.RELIABLE
