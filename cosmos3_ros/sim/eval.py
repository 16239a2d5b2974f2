"""``./run eval``: how often a policy does what it is told, over the real nodes and topics.

Every episode is a new scene of the simulated arm. Writes ``build/eval.json``: by task ``touch``,
``lift`` and ``any`` the rates of success, of the wrong cube and of neither, each with its 95 %
interval (Wilson), also by colour, by wording and by the colour that was told; the time to the goal,
the plans, the jumps where one plan takes over from another, and the nearest that the fingertip came
to a goal. Until all tasks are done, those that are stand in ``build/eval.partial``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cosmos3_ros.command_line import Parser, count, positive, whole
from cosmos3_ros.control.overlap import Strategy
from cosmos3_ros.control.watchdog import Timeouts
from cosmos3_ros.engine.bundle import Bundle, load_bundle
from cosmos3_ros.engine.recipe import RECIPE, load_recipe
from cosmos3_ros.processes import (
    Children,
    ProcessFailed,
    end_on_signals,
    ros_environment,
    take_environment,
)
from cosmos3_ros.resources import resource
from cosmos3_ros.sim.arguments import (
    LARGEST_LATENCY_S,
    LARGEST_REAL_TIME_FACTOR,
    LARGEST_SEED,
    LARGEST_THREADS,
    LARGEST_TIMEOUT_S,
    add_planning_arguments,
    at_most,
    parse,
)
from cosmos3_ros.sim.comparison import (
    Evaluation,
    EvaluationError,
    comparison,
    evaluation_of,
    load_evaluation,
)
from cosmos3_ros.sim.offline import Conditions, Offline
from cosmos3_ros.sim.scoring import EpisodeResult, Passed, score, table
from cosmos3_ros.sim.tasks import KINDS, Trial, draw_trials
from cosmos3_ros.sim.team import (
    await_recorder,
    bring_up,
    require_arm,
    require_runnable,
    start_recorder,
    start_team,
)

# Scenes that no demonstration begins with: those have the seed of their training.
SEED = 1_000_003


class SeenScenes(ValueError):
    """An evaluation would be in the scenes of a policy's own demonstrations."""


def main(argv: list[str] | None = None) -> int:
    """Evaluate; returns the exit code."""
    args = _arguments(argv)
    end_on_signals()
    try:
        evaluate(args)
    except (ProcessFailed, ValueError, OSError) as error:
        print(f"eval: {error}", file=sys.stderr)
        return 1
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = _parser()
    args = parse(parser, argv)
    if args.record and (args.offline or len(set(args.task or KINDS)) > 1):
        parser.error("--record: expected one --task, and not --offline, which has no nodes")
    # The node waits on the steady clock, what it adds is meant in simulated time.
    if (steady_s := _added_latency_s(args)) > LARGEST_LATENCY_S and not args.offline:
        parser.error(
            f"--added-latency-ms {args.added_latency_ms:g} with --real-time-factor "
            f"{args.real_time_factor:g}: every plan would be held back for {steady_s:g} s; "
            f"expected at most {LARGEST_LATENCY_S:g} s"
        )
    return args


def _added_latency_s(args: argparse.Namespace) -> float:
    """On the steady clock [s]."""
    return float(args.added_latency_ms / 1e3 / args.real_time_factor)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="./run eval", description=__doc__)
    add = parser.add_argument
    add("--task", action="append", choices=KINDS, help="repeat for more (default: all)")
    add("--episodes", type=count, default=50, help="a task (default: %(default)s)")
    add("--bundle", type=Path, help="default: the trained policy that ships, engines/pico")
    # Each kind has scenes of its own, by the seeds that follow.
    seed = at_most(LARGEST_SEED - len(KINDS) + 1, whole)
    add("--seed", type=seed, default=SEED, help="of the scenes (default: %(default)s)")
    add_planning_arguments(parser)
    add("--shuffle-instruction", action="store_true", help="tell it another episode's instruction")
    add("--black-camera", action="store_true", help="show it black pictures")
    add("--held-out", action="store_true", help="tell it in wordings kept from training")
    add("--offline", action="store_true", help="without ROS, in one process: the quick twin")
    threads = at_most(LARGEST_THREADS, whole)
    add("--threads", type=threads, default=1, help="of the engine (default: %(default)s; 0: all)")
    factor = at_most(LARGEST_REAL_TIME_FACTOR, positive)
    add("--real-time-factor", type=factor, default=1.0, help="(default: %(default)s)")
    add("--record", type=Path, help="an MCAP file of all that the nodes say; for one task")
    add("--against", type=Path, help="an earlier JSON file, to see whether the two agree")
    add("--out", type=Path, required=True, help="the JSON file")
    return parser


def evaluate(args: argparse.Namespace) -> None:
    """Conduct all episodes, write the figures, print a table.

    Raises AnotherRobot for a bundle of one, BundleError for one that this CPU cannot run,
    SeenScenes for scenes of its training, EvaluationError for no earlier evaluation to compare
    with, and for a place that cannot be written, ProcessFailed where a node fails.
    """
    bundle = load_bundle(args.bundle or resource("engines", "pico"))
    require_arm(bundle)
    require_runnable(bundle)
    earlier = None if args.against is None else load_evaluation(args.against)
    # Named twice, a task is still one: the same scenes again say nothing new.
    kinds = list(dict.fromkeys(args.task or KINDS))
    _require_new_scenes(bundle, args.seed, kinds)
    if args.out.is_dir():
        raise EvaluationError(f"--out '{args.out}' is a folder; expected a file to write")
    if args.record is not None:
        if args.record.suffix != ".mcap":
            raise EvaluationError(f"--record is '{args.record}'; expected a file NAME.mcap")
        args.record.unlink(missing_ok=True)
    # Some of the tasks are not to be taken for the whole; an earlier evaluation stays until then.
    args.out.parent.mkdir(parents=True, exist_ok=True)
    so_far = args.out.with_suffix(".partial")
    so_far.unlink(missing_ok=True)
    results: list[EpisodeResult] = []
    passed = Passed()
    total = len(kinds) * args.episodes
    with tqdm(desc="evaluating", total=total, unit="episode", disable=None) as bar:
        for kind in kinds:
            trials = draw_trials(
                kind,
                args.episodes,
                _seed_of(kind, args.seed),
                held_out=args.held_out,
                shuffled=args.shuffle_instruction,
            )
            conduct = _offline if args.offline else partial(_through_nodes, passed)
            for result in conduct(bundle, trials, args):
                results.append(result)
                bar.update()
                wins = sum(r.verdict == "success" for r in results)
                bar.set_postfix_str(f"{wins} of {len(results)}")
            content = _content(args, bundle, results, passed.pace)
            so_far.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    so_far.replace(args.out)
    print(table(content))
    evaluation = evaluation_of(content)
    if evaluation.lagged:
        print(_lag(evaluation), file=sys.stderr)
    if earlier is not None:
        print(comparison(evaluation, earlier))
    print(args.out)


def _seed_of(kind: str, seed: int) -> int:
    """Of the scenes of a kind of task."""
    return seed + KINDS.index(kind)


def _require_new_scenes(bundle: Bundle, seed: int, kinds: Iterable[str]) -> None:
    """Raises SeenScenes: those of a seed are the same in a demonstration and in an evaluation."""
    trained = _training_seed(bundle)
    for kind in kinds:
        if _seed_of(kind, seed) == trained:
            raise SeenScenes(
                f"--seed {seed}: the scenes of '{kind}' have seed {trained}, as have those of the "
                f"demonstrations that bundle '{bundle.manifest.name}' was trained on; expected "
                f"another one, as the usual {SEED}"
            )


def _training_seed(bundle: Bundle) -> int | None:
    """What the bundle's recipe says of it; None where it says nothing of a training."""
    if RECIPE not in bundle.manifest.files:
        return None
    seed: int | None = load_recipe(bundle.path / RECIPE).training.get("seed")
    return seed


def _lag(evaluation: Evaluation) -> str:
    rate_hz, added_ms = (evaluation.conditions[k] for k in ("plan_rate_hz", "added_latency_ms"))
    more = ["plans came sooner"]
    more += [] if rate_hz else ["more often"]
    more += [f"with less than {added_ms:g} ms added"] if added_ms else []
    return (
        f"eval: warning: {evaluation.pace:g} simulated seconds a second, "
        f"{evaluation.real_time_factor:g} asked for: plans take real time, so in the simulation "
        f"{', '.join(more)}; free the machine or ask for a lower --real-time-factor"
    )


def _through_nodes(
    passed: Passed, bundle: Bundle, trials: list[Trial], args: argparse.Namespace
) -> Iterator[EpisodeResult]:
    """``passed`` grows with each episode."""
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from cosmos3_ros.sim.examiner import Examiner

    environment = ros_environment()
    take_environment(environment)
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
        "plan_rate_hz": args.plan_rate,
        "strategy": args.strategy,
        "state_ahead": str(args.state_ahead).lower(),
        "added_latency_s": _added_latency_s(args),
    }
    # Each task's nodes are others, and another evaluation may be at work beside this one.
    logs = args.out.with_name(f"{args.out.stem}_logs") / trials[0].task.kind
    with Children(logs, environment) as children:
        recorder = start_recorder(children, args.record) if args.record else None
        # Steady, where a slow simulation takes that much longer for a chunk.
        slow = min(1.0, args.real_time_factor)
        controller = {"chunk_timeout_s": min(LARGEST_TIMEOUT_S, Timeouts.chunk_s / slow)}
        team = start_team(
            children, bundle.path, embodiment.name, sim=sim, policy=policy, controller=controller
        )
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        examiner = Examiner(embodiment, children, team, args.real_time_factor, passed)
        try:
            if recorder is not None:
                await_recorder(children, recorder, examiner)
            bring_up(children, team)
            for trial in trials:
                yield examiner.conduct(trial)
        finally:
            examiner.destroy_node()
            rclpy.shutdown()
    if args.record and not args.record.is_file():
        raise ProcessFailed(f"'{args.record}' was not recorded; see {logs}/recorder_node.log")


def _offline(
    bundle: Bundle, trials: list[Trial], args: argparse.Namespace
) -> Iterator[EpisodeResult]:
    conditions = Conditions(
        plan_rate_hz=args.plan_rate,
        added_latency_s=args.added_latency_ms / 1e3,
        strategy=Strategy(args.strategy),
        state_ahead=args.state_ahead,
        black_cameras=args.black_camera,
    )
    with Offline(bundle, conditions, threads=args.threads, seed=1) as twin:
        yield from twin.episodes(trials)


def _content(
    args: argparse.Namespace, bundle: Bundle, results: list[EpisodeResult], pace: float | None
) -> dict[str, Any]:
    return {
        "bundle": bundle.manifest.name,
        "bundle_sha256": bundle.sha256,
        "precision": bundle.manifest.precision,
        "through": "offline twin" if args.offline else "nodes",
        "real_time_factor": None if args.offline else args.real_time_factor,
        "pace": None if pace is None else round(pace, 3),
        "threads": args.threads,
        "seed": args.seed,
        "plan_rate_hz": args.plan_rate,
        "added_latency_ms": args.added_latency_ms,
        "strategy": args.strategy,
        "state_ahead": args.state_ahead,
        "shuffled_instructions": args.shuffle_instruction,
        "black_cameras": args.black_camera,
        "held_out_wordings": args.held_out,
        **score(results),
        "each": [asdict(result) for result in results],
    }


if __name__ == "__main__":
    sys.exit(main())
