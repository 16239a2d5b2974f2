"""Fixtures of the nodes' tests."""

from __future__ import annotations

from contextlib import suppress

with suppress(ImportError):  # without ROS the tests that want it say so themselves
    from controller_graph import graph
    from policy_world import make_world

__all__ = ["graph", "make_world"]
