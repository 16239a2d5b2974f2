"""Fixtures of every room's tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bundles import even_grid, odd_grid, tiny  # noqa: E402, F401
