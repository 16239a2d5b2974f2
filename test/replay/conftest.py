"""Fixtures of the tests of bags, data sets and reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from episodes import write_dataset
from recordings import write_recording


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write_recording(tmp_path / "recording.mcap")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "dataset")


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    return lambda **changes: write_dataset(tmp_path / "dataset", **changes)


@pytest.fixture
def droid_episode() -> Path:
    """A real episode, beside the checkout of those who have it."""
    path = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "droid_episode"
    if not path.is_dir():
        pytest.skip("the real DROID episode is not here (expected beside the checkout)")
    return path
