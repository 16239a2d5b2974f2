"""Fixtures of every room's tests."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

from bundles import (
    even_grid,
    odd_grid,
    pico,
    tiny,
    tiny_bf16,
    tiny_fp8,
    tiny_in_parts,
    tiny_nvfp4,
)

from cosmos3_ros.processes import free_domain_id

if TYPE_CHECKING:
    from rclpy.context import Context

__all__ = [
    "even_grid",
    "odd_grid",
    "pico",
    "ros_context",
    "ros_domain_id",
    "tiny",
    "tiny_bf16",
    "tiny_fp8",
    "tiny_in_parts",
    "tiny_nvfp4",
]

# A run repeats the one before it; `--hypothesis-profile search` tries other examples each time.
_patient = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("search", **_patient)
settings.register_profile("repeat", derandomize=True, **_patient)
settings.load_profile("repeat")

# Rooms whose tests start ROS in this process; the others start it in processes that are told how.
ROS_ROOMS = ("launch", "nodes", "sim")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Keep ROS on this machine, and GPU tests where a GPU is."""
    room = item.path.relative_to(Path(__file__).parent).parts[0]
    if room in ROS_ROOMS and os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE") != "LOCALHOST":
        pytest.fail(
            "ROS would reach beyond this machine: ROS_AUTOMATIC_DISCOVERY_RANGE is not LOCALHOST; "
            "start the tests with ./run test, or with ./run exec python -m pytest",
            pytrace=False,
        )
    if item.get_closest_marker("gpu") is not None and shutil.which("nvidia-smi") is None:
        pytest.skip("no NVIDIA GPU on this machine")


@pytest.fixture
def hangup() -> Iterator[None]:
    """Processes started meanwhile hear a lost terminal, though the tests may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def ros_domain_id() -> int:
    """A domain of the test's own: no test hears another, nor another run on this machine."""
    return free_domain_id()


@pytest.fixture
def ros_context(ros_domain_id: int) -> Iterator[Context]:
    """A context on the test's own domain, shut down whatever happens."""
    from rclpy.context import Context

    context = Context()
    context.init(domain_id=ros_domain_id)
    yield context
    context.try_shutdown()
