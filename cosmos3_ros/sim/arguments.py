"""What the simulated arm's commands take."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cosmos3_ros.command_line import not_negative
from cosmos3_ros.control.overlap import Strategy


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
