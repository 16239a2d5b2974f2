"""The README's tables say what the code declares."""

from __future__ import annotations

import re

import pytest
from bundles import ROOT

from cosmos3_ros.cli import COMMANDS
from cosmos3_ros.nodes.controller_parameters import ControllerParameters
from cosmos3_ros.nodes.parameters import ParameterRow, parameter_rows
from cosmos3_ros.nodes.player_node import PlayerParameters
from cosmos3_ros.nodes.policy_parameters import PolicyParameters
from cosmos3_ros.nodes.recorder_node import RecorderParameters
from cosmos3_ros.policy.embodiment import embodiment_names

README = (ROOT / "README.md").read_text()


def table_line(row: ParameterRow) -> str:
    """A parameter's line in the README."""
    if isinstance(row.default, tuple):
        default = "`[]`"
    elif isinstance(row.default, bool):
        default = f"`{str(row.default).lower()}`"
    else:
        default = f"`{row.default}`" if row.default != "" else "empty"
    span = ", ".join(f"`{choice}`" for choice in row.choices)
    if row.minimum is not None:
        span = f"{row.minimum:.10g} to {row.maximum:.10g}"
    return f"| `{row.name}` | {default} | {row.unit} | {span} | {row.description} |"


@pytest.mark.parametrize(
    "table", [PolicyParameters, ControllerParameters, PlayerParameters, RecorderParameters]
)
def test_every_parameter_stands_in_the_readme_as_it_is_declared(table: type) -> None:
    lines = [table_line(row) for row in parameter_rows(table)]
    expected = "\n".join(lines)
    assert expected in README, f"the README's table is out of date; it should hold:\n{expected}"


def test_every_command_and_embodiment_stands_in_the_readme() -> None:
    assert all(f"cosmos3 {command}" in README for command in COMMANDS)
    assert all(f"`{name}`" in README for name in embodiment_names())


def anchors_of(text: str) -> set[str]:
    """Where a link may point in a page, as the forge names its headings."""
    headings = (line.lstrip("# ").lower() for line in text.splitlines() if line.startswith("#"))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def test_every_place_that_the_readme_points_to_is_there() -> None:
    links = [part.split(")")[0] for part in README.split("](")[1:]]
    places = [link.partition("#")[::2] for link in links if not link.startswith("http")]
    assert places
    for path, anchor in places:
        assert (ROOT / path).exists(), path
        if anchor:
            page = (ROOT / path).read_text() if path else README
            assert anchor in anchors_of(page), f"{path}#{anchor}"
