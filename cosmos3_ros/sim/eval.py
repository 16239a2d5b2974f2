"""``./run eval``: how often a policy does what it is told, over the real nodes and topics.

Every episode is a new scene of the simulated arm. Writes ``build/eval.json``: by task ``touch``,
``lift`` and ``any`` the rates of success, of the wrong cube and of neither, each with its 95 %
interval (Wilson), also by colour and by wording; the time to the goal, the plans, the jumps where
one plan takes over from another, and the nearest that the fingertip came to a goal.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rclpy
from rclpy.signals import SignalHandlerOptions
from tqdm import tqdm

from cosmos3_ros.command_line import Parser, count, positive, whole
from cosmos3_ros.control.overlap import Strategy
from cosmos3_ros.engine.bundle import Bundle, load_bundle
from cosmos3_ros.processes import Children, ProcessFailed, end_on_signals, ros_environment
from cosmos3_ros.resources import resource
from cosmos3_ros.sim.arguments import add_planning_arguments, parse
from cosmos3_ros.sim.comparison import comparison, evaluation_of, load_evaluation
from cosmos3_ros.sim.examiner import Examiner
from cosmos3_ros.sim.offline import Conditions, Offline
from cosmos3_ros.sim.scoring import EpisodeResult, score, table
from cosmos3_ros.sim.tasks import KINDS, Trial, draw_trials
from cosmos3_ros.sim.team import bring_up, require_arm, start_team

# Scenes that no demonstration begins with: those have the seed of their training.
SEED = 1_000_003


def main(argv: list[str] | None = None) -> int:
    """Evaluate; returns the exit code."""
    args = parse(_parser(), argv)
    end_on_signals()
    try:
        evaluate(args)
    except (ProcessFailed, ValueError, OSError) as error:
        print(f"eval: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="./run eval", description=__doc__)
    add = parser.add_argument
    add("--task", action="append", choices=KINDS, help="repeat for more (default: all)")
    add("--episodes", type=count, default=50, help="a task (default: %(default)s)")
    add("--bundle", type=Path, help="default: the trained policy that ships, engines/pico")
    add("--seed", type=whole, default=SEED, help="of the scenes (default: %(default)s)")
    add_planning_arguments(parser)
    add("--shuffle-instruction", action="store_true", help="tell it another episode's instruction")
    add("--black-camera", action="store_true", help="show it black pictures")
    add("--held-out", action="store_true", help="tell it in wordings kept from training")
    add("--offline", action="store_true", help="without ROS, in one process: the quick twin")
    add("--threads", type=whole, default=1, help="of the engine (default: %(default)s; 0: all)")
    add("--real-time-factor", type=positive, default=1.0, help="(default: %(default)s)")
    add("--against", type=Path, help="an earlier JSON file, to see whether the two agree")
    add("--out", type=Path, required=True, help="the JSON file")
    return parser


def evaluate(args: argparse.Namespace) -> None:
    """Conduct all episodes, write the figures, print a table.

    Raises AnotherRobot for a bundle of one, EvaluationError for no earlier evaluation to compare
    with, ProcessFailed where a node fails.
    """
    bundle = load_bundle(args.bundle or resource("engines", "pico"))
    require_arm(bundle)
    earlier = None if args.against is None else load_evaluation(args.against)
    # Named twice, a task is still one: the same scenes again say nothing new.
    kinds = list(dict.fromkeys(args.task or KINDS))
    results: list[EpisodeResult] = []
    total = len(kinds) * args.episodes
    with tqdm(desc="evaluating", total=total, unit="episode", disable=None) as bar:
        for kind in kinds:
            trials = draw_trials(
                kind,
                args.episodes,
                args.seed + KINDS.index(kind),
                held_out=args.held_out,
                shuffled=args.shuffle_instruction,
            )
            conduct = _offline if args.offline else _through_nodes
            for result in conduct(bundle, trials, args):
                results.append(result)
                bar.update()
                wins = sum(r.verdict == "success" for r in results)
                bar.set_postfix_str(f"{wins} of {len(results)}")
            content = _content(args, bundle, results)
            _write(args.out, content)
    print(table(content))
    if earlier is not None:
        print(comparison(evaluation_of(content), earlier))
    print(args.out)


def _through_nodes(
    bundle: Bundle, trials: list[Trial], args: argparse.Namespace
) -> Iterator[EpisodeResult]:
    environment = ros_environment()
    os.environ.update(environment)
    embodiment = require_arm(bundle)
    sim = {
        "seed": trials[0].seed,
        "real_time_factor": args.real_time_factor,
        "black_cameras": str(args.black_camera).lower(),
    }
    policy = {
        "seed": 1,
        "threads": args.threads,
        "predicted_frame_rate_hz": 0.0,
        "strategy": args.strategy,
        "state_ahead": str(args.state_ahead).lower(),
        "added_latency_s": args.added_latency_ms / 1e3 / args.real_time_factor,
    }
    logs = args.out.parent / "eval_logs"
    with Children(logs, environment) as children:
        team = start_team(children, bundle.path, embodiment.name, sim=sim, policy=policy)
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        examiner = Examiner(embodiment, children, team)
        try:
            bring_up(children, team)
            for trial in trials:
                yield examiner.conduct(trial)
        finally:
            examiner.destroy_node()
            rclpy.shutdown()


def _offline(
    bundle: Bundle, trials: list[Trial], args: argparse.Namespace
) -> Iterator[EpisodeResult]:
    conditions = Conditions(
        added_latency_s=args.added_latency_ms / 1e3,
        strategy=Strategy(args.strategy),
        state_ahead=args.state_ahead,
        black_cameras=args.black_camera,
    )
    with Offline(bundle, conditions, threads=args.threads, seed=1) as twin:
        yield from twin.episodes(trials)


def _content(
    args: argparse.Namespace, bundle: Bundle, results: list[EpisodeResult]
) -> dict[str, Any]:
    return {
        "bundle": bundle.manifest.name,
        "bundle_sha256": bundle.sha256,
        "precision": bundle.manifest.precision,
        "through": "offline twin" if args.offline else "nodes",
        "real_time_factor": None if args.offline else args.real_time_factor,
        "threads": args.threads,
        "seed": args.seed,
        "added_latency_ms": args.added_latency_ms,
        "strategy": args.strategy,
        "state_ahead": args.state_ahead,
        "shuffled_instructions": args.shuffle_instruction,
        "black_cameras": args.black_camera,
        "held_out_wordings": args.held_out,
        **score(results),
        "each": [asdict(result) for result in results],
    }


def _write(out: Path, content: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    partial.replace(out)


if __name__ == "__main__":
    sys.exit(main())
