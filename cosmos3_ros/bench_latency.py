"""``./run bench latency``: what slow plans cost a policy, by how they follow each other.

Episodes of the simulated arm with the policy that ships, in the offline twin: by strategy, with so
much latency added to each plan. The same scenes in every cell.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cosmos3_ros.command_line import count, whole
from cosmos3_ros.control.overlap import Strategy
from cosmos3_ros.engine.bundle import Bundle, load_bundle
from cosmos3_ros.resources import resource
from cosmos3_ros.sim.offline import Conditions, Offline
from cosmos3_ros.sim.scoring import score
from cosmos3_ros.sim.tasks import KINDS, draw_trials

SEED = 3_000_000
LATENCIES_MS = (0, 300, 700, 1200)
# What is drawn: success by latency, one line a strategy, and beside it the time it took.
_WIDTH, _HEIGHT, _DPI = 9.0, 3.6, 110
_STYLES, _APART_MS = ("--", "-", "-"), 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, help="default: the policy that ships, engines/pico")
    parser.add_argument("--task", choices=KINDS, default="touch")
    parser.add_argument("--episodes", type=count, default=50, help="a cell (default: %(default)s)")
    parser.add_argument(
        "--state-ahead", action="store_true", help="plan from where it will be; without prefix"
    )
    parser.add_argument("--threads", type=whole, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/bench_latency.json"))
    parser.add_argument("--picture", type=Path, help="a PNG of the table")


def main(args: argparse.Namespace) -> int:
    bundle = load_bundle(args.bundle or resource("engines", "pico"))
    cells = []
    # A plan that begins when it arrives has no rows before that to be told of.
    strategies = [s for s in Strategy if not (args.state_ahead and s is Strategy.PREFIX)]
    with tqdm(total=len(strategies) * len(LATENCIES_MS), unit="cell", disable=None) as bar:
        for strategy in strategies:
            for latency_ms in LATENCIES_MS:
                cells.append(_cell(bundle, strategy, latency_ms, args))
                bar.update()
    content = {
        "bundle": bundle.manifest.name,
        "task": args.task,
        "episodes": args.episodes,
        "state_ahead": args.state_ahead,
        "through": "offline twin",
        "cells": cells,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    _print(cells)
    if args.picture is not None:
        draw(cells, args.picture)
    return 0


def _cell(
    bundle: Bundle, strategy: Strategy, latency_ms: int, args: argparse.Namespace
) -> dict[str, Any]:
    conditions = Conditions(
        added_latency_s=latency_ms / 1e3, strategy=strategy, state_ahead=args.state_ahead
    )
    trials = draw_trials(args.task, args.episodes, SEED)
    with Offline(bundle, conditions, threads=args.threads, seed=1) as twin:
        results = list(twin.episodes(trials))
    figures = score(results)
    kept = ("success", "wrong", "neither", "time_to_goal_s", "plans", "seam_jump", "refused_chunks")
    return {
        "strategy": str(strategy),
        "added_latency_ms": latency_ms,
        "degraded": Strategy.SYNC in figures["strategies_in_force"]
        and strategy is not Strategy.SYNC,
        **{key: figures[key] for key in kept},
    }


def _print(cells: list[dict[str, Any]]) -> None:
    print(f"{'strategy':10}{'added [ms]':>11}{'success':>9}{'95 %':>17}{'time [s]':>10}{'seam':>8}")
    for cell in cells:
        success, time_s = cell["success"], cell["time_to_goal_s"]["p50"]
        interval = f"{success['low']:.1%} .. {success['high']:.1%}"
        seam = cell["seam_jump"]["p50"]
        print(
            f"{cell['strategy']:10}{cell['added_latency_ms']:>11}{success['rate']:>9.1%}"
            f"{interval:>17}{'-' if time_s is None else format(time_s, '.2f'):>10}"
            f"{'-' if seam is None else format(seam, '.3f'):>8}"
            f"{'  as sync' if cell['degraded'] else ''}"
        )


def draw(cells: list[dict[str, Any]], png: Path) -> None:
    """Success and time to the goal by added latency, one line a strategy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (of_success, of_time) = pyplot.subplots(1, 2, figsize=(_WIDTH, _HEIGHT))
    for place, strategy in enumerate(Strategy):
        own = [cell for cell in cells if cell["strategy"] == strategy]
        # Side by side, for what degrades to sync is drawn where sync is.
        at = [cell["added_latency_ms"] + (place - 1) * _APART_MS for cell in own]
        rates = [100 * cell["success"]["rate"] for cell in own]
        errors = [
            [100 * (cell["success"]["rate"] - cell["success"]["low"]) for cell in own],
            [100 * (cell["success"]["high"] - cell["success"]["rate"]) for cell in own],
        ]
        times = [cell["time_to_goal_s"]["p50"] or float("nan") for cell in own]
        colour, style = f"C{place}", _STYLES[place]
        of_success.errorbar(at, rates, errors, color=colour, linestyle=style, capsize=3)
        of_time.plot(at, times, color=colour, linestyle=style, label=strategy)
        for axis, values in ((of_success, rates), (of_time, times)):
            for x, y, cell in zip(at, values, own, strict=True):
                face = "white" if cell["degraded"] else colour
                axis.plot(x, y, marker="o", color=colour, markerfacecolor=face)
    of_time.plot([], [], "ko", markerfacecolor="white", linestyle="", label="as sync")
    of_success.set_ylabel("success [%], 95 % interval")
    of_success.set_ylim(0, 102)
    of_time.set_ylabel("time to the goal [s], median")
    of_time.set_ylim(bottom=0)
    for axis in (of_success, of_time):
        axis.set_xlabel("latency added to each plan [ms]")
        axis.grid(alpha=0.3)
    of_time.legend()
    figure.tight_layout()
    figure.savefig(png, dpi=_DPI)
    pyplot.close(figure)
