"""What the simulated arm's commands take."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TypeVar

from cosmos3_ros.command_line import not_negative
from cosmos3_ros.control.overlap import Strategy

# The policy that ships chooses anew with each plan's noise, and planning all the time it hesitates
# between two cubes that will do.
PLAN_RATE_HZ = 2.0
# The most that policy node and simulator take, as they declare it where only ROS can read it.
LARGEST_LATENCY_S = 10.0
LARGEST_RATE_HZ = 100.0
LARGEST_TIMEOUT_S = 60.0
LARGEST_THREADS = 256
LARGEST_SEED = 2**31 - 1
LARGEST_REAL_TIME_FACTOR = 100.0

Number = TypeVar("Number", int, float)


def at_most(largest: Number, kind: Callable[[str], Number]) -> Callable[[str], Number]:
    """An argument's type: a ``kind`` of number, and none above ``largest``."""

    def number(text: str) -> Number:
        if kind(text) > largest:
            raise argparse.ArgumentTypeError(f"'{text}' is above {largest:.10g}, the most allowed")
        return kind(text)

    return number


def add_planning_arguments(parser: argparse.ArgumentParser) -> None:
    """How often it plans, how plans follow each other, how much later than made each arrives."""
    parser.add_argument(
        "--plan-rate",
        type=at_most(LARGEST_RATE_HZ, not_negative),
        default=PLAN_RATE_HZ,
        metavar="HZ",
        help="at most so many plans a simulated second; 0: whenever free (default: %(default)s)",
    )
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
        type=at_most(LARGEST_LATENCY_S * 1e3, not_negative),
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
