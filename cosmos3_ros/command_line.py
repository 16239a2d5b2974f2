"""What every command of ours has in common."""

from __future__ import annotations

import argparse
import math
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusals are one line and exit code 1."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see '{self.prog} --help'", file=sys.stderr)
        raise SystemExit(1)


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least 1")
    return int(text)


def whole(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least 0")
    return int(text)


def not_negative(text: str) -> float:
    """A finite number of at least 0."""
    if not 0 <= _number(text) < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no finite number of at least 0")
    return _number(text)


def positive(text: str) -> float:
    """A finite number above 0."""
    if not 0 < _number(text) < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no finite number above 0")
    return _number(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
