"""Fixtures of every room's tests."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from bundles import even_grid, odd_grid, tiny

__all__ = ["even_grid", "odd_grid", "ros_domain_id", "tiny"]

_used = itertools.count()


@pytest.fixture
def ros_domain_id() -> int:
    """A domain of the test's own: no test hears another, nor another run on this machine."""
    assert os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE") == "LOCALHOST", "start with ./run test"
    return 1 + (os.getpid() * 7 + next(_used)) % 100
