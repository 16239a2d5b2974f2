"""What the simulated arm's commands take, each refusal in one line."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import NoReturn

from cosmos3_ros.control.overlap import Strategy


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusals are one line and exit code 1, as those of ``cosmos3``."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see '{self.prog} --help'", file=sys.stderr)
        raise SystemExit(1)


def add_planning_arguments(parser: argparse.ArgumentParser) -> None:
    """How plans follow each other, and how much later than it is made each one arrives."""
    parser.add_argument(
        "--strategy",
        choices=[str(strategy) for strategy in Strategy],
        default=str(Strategy.BLEND),
        help="how plans follow each other (default: %(default)s)",
    )
    parser.add_argument(
        "--state-ahead", action="store_true", help="plan from where the arm will be by then"
    )
    parser.add_argument(
        "--added-latency-ms",
        type=not_negative,
        default=0.0,
        help="every plan arrives so much later",
    )


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of a parser that has those of planning."""
    args = parser.parse_args(argv)
    if args.state_ahead and args.strategy == Strategy.PREFIX:
        parser.error(
            "--state-ahead with --strategy prefix: a plan that begins when it arrives has no rows "
            "before that to be told of; expected one of both"
        )
    return args


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
