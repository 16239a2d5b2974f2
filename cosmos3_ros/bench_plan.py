"""``./run bench plan``: a plan beside diffusers' pipeline and beside the denoise graph alone.

Same weights, same noise, same threads, in turn in one process. The model is of middle size, and
its VAE is meant so that decoding nine latents costs about five forwards and encoding one frame
about 4 % of one, as Nano's do: otherwise a ratio would say something about a small VAE.

``plan_pico`` is the trained policy that ships. It stands beside its denoise graph alone: diffusers'
pipeline knows tiers of pictures, and pico's canvas is none of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from cosmos3_ros.engine.backends import open_backend
from cosmos3_ros.engine.bundle import TOKENIZER, Bundle, load_bundle
from cosmos3_ros.engine.recipe import Recipe, load_recipe
from cosmos3_ros.engine.session import Call, Engine
from cosmos3_ros.engine.watched import Watched
from cosmos3_ros.export_command import body_of
from cosmos3_ros.policy.canvas import Composer
from cosmos3_ros.policy.embodiment import Embodiment, load_embodiment
from cosmos3_ros.policy.plan import Noise, Observation, Plan, Policy, Prompt, draw_noise
from cosmos3_ros.policy.program import PLAN
from cosmos3_ros.resources import resource

CASES = {"plan_256": "mid_256.yaml", "plan_droid": "mid_droid.yaml", "plan_pico": "pico.yaml"}
INSTRUCTIONS = ("pick up the red cube", "pick up the blue cube")
SEED = 7
# The name under which diffusers knows the embodiment's domain.
REFERENCE_DOMAIN = "droid_lerobot"
# A prediction that is further off than this is looked into, and the reason is written down.
EXPLAINED_WITHIN = 0.15


class Timed(Watched):
    """An engine that runs call by call and adds up the time of each graph [s]."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, self._begin, self._end)
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._begun = 0.0

    def _begin(self, engine: Engine, call: Call) -> None:
        self._begun = time.perf_counter()

    def _end(self, engine: Engine, call: Call) -> None:
        self.seconds[call.graph] += time.perf_counter() - self._begun


@dataclass(frozen=True)
class Case:
    """One bundle with everything that is measured on it."""

    name: str
    recipe: Recipe
    embodiment: Embodiment
    bundle: Bundle
    policy: Policy
    timed: Timed
    observation: Observation
    noise: Noise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement, at least 1")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--out", type=Path, default=Path("build/bench_plan.json"))


def main(args: argparse.Namespace) -> int:
    results = {}
    for name in args.case or CASES:
        results[name] = measure(name, args.out.parent / "bench_plan", args.threads, args.repeats)
        args.out.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))
    return 0


def measure(name: str, folder: Path, threads: int, repeats: int) -> dict[str, Any]:
    """Everything about one case. Times are milliseconds."""
    case = open_case(name, folder, threads)
    policy, observation, noise = case.policy, case.observation, case.noise
    floor = floor_program(policy)
    case.timed.engine.prepare({"floor": floor})
    plans: list[Plan] = []
    state: dict[str, Prompt] = {"prompt": policy.prefill(INSTRUCTIONS[1])}

    def act() -> None:
        """An instruction that has just changed, then a plan."""
        state["prompt"] = policy.prefill(INSTRUCTIONS[0])
        plans.append(policy.plan(observation, state["prompt"], noise))

    actions: dict[str, Callable[[], object]] = {
        "action_ms": act,
        "replan_ms": lambda: policy.plan(observation, state["prompt"], noise),
        "frame_ms": lambda: policy.predict_frames(plans[-1]),
        "floor_ms": lambda: case.timed.engine.run("floor"),
    }
    references = reference_actions(case, threads)
    actions |= references
    act()  # the first run of each graph allocates what later ones find
    actions["frame_ms"]()
    times = in_turn(actions, repeats, case.name)
    result: dict[str, Any] = {key: spread(values) for key, values in times.items()}
    median = {key: value["median"] for key, value in result.items()}
    if references:
        result |= {
            "ratio": median["reference_ms"] / median["action_ms"],
            "replan_ratio": median["reference_ms"] / median["replan_ms"],
        }
    result |= {
        "over_floor": median["action_ms"] / median["floor_ms"],
        "replan_over_floor": median["replan_ms"] / median["floor_ms"],
        "forwards": policy.contract.sampler.forwards,
        "tokens": policy.contract.tokens,
        "text_tokens": policy.contract.prompting.text_tokens,
        "threads": threads,
        "repeats": repeats,
        "graph_share": graph_share(case, act),
        "allocations_per_plan": {
            **allocations(actions["replan_ms"]),
            "returned_bytes": plans[-1].rows.nbytes + plans[-1].latents.nbytes,
        },
    }
    if references:
        result["predicted"] = predicted(case, references["reference_ms"])
    return result


def reference_actions(case: Case, threads: int) -> dict[str, Callable[[], object]]:
    """The stock pipeline's runs, with and without its video; none where its tiers do not fit."""
    if case.recipe.tier is None:
        return {}
    from cosmos3_ros.engine.export_model import make_components
    from cosmos3_ros.engine.export_pipeline import stock_policy, use_threads

    use_threads(threads)
    picture = Composer(case.embodiment)(case.observation.images)
    reference = stock_policy(
        make_components(case.recipe, None),
        case.policy.contract,
        case.recipe.tier,
        REFERENCE_DOMAIN,
        case.embodiment.view_point,
    )
    return {
        "reference_ms": lambda: reference(INSTRUCTIONS[0], picture, SEED, True),
        "reference_latent_ms": lambda: reference(INSTRUCTIONS[0], picture, SEED, False),
    }


def open_case(name: str, folder: Path, threads: int) -> Case:
    recipe = load_recipe(resource("engines", CASES[name]))
    embodiment = load_embodiment(recipe.embodiment)
    bundle = bundle_of(recipe, embodiment, folder)
    contract = bundle.manifest.contract
    timed = Timed(open_backend(bundle, "onnxruntime", threads))
    tokenizer = Tokenizer.from_file(str(bundle.path / TOKENIZER))
    rng = np.random.default_rng(SEED)
    images = {
        view.name: rng.integers(0, 255, (view.height, view.width, 3), np.uint8)
        for view in embodiment.cameras
    }
    return Case(
        name=name,
        recipe=recipe,
        embodiment=embodiment,
        bundle=bundle,
        policy=Policy(contract, embodiment, timed, tokenizer),
        timed=timed,
        observation=Observation(images, embodiment.offset),
        noise=draw_noise(contract, rng),
    )


def bundle_of(recipe: Recipe, embodiment: Embodiment, folder: Path) -> Bundle:
    """Of random weights one that is made in ``folder``, of trained ones the one that ships."""
    if recipe.model.random_seed is None:
        return load_bundle(resource("engines", recipe.name))
    from cosmos3_ros.engine.export import export

    return export(recipe, body_of(embodiment), folder / recipe.name)


def floor_program(policy: Policy) -> list[Call]:
    """The denoise graph alone, run as often as a plan runs it, on the plan's own buffers."""
    return [call for call in policy.programs[PLAN] if call.graph == "denoise"]


def in_turn(
    actions: Mapping[str, Callable[[], object]], repeats: int, name: str
) -> dict[str, list[float]]:
    """Milliseconds of every action, one after another and over again.

    What else the machine does then falls on all of them alike.
    """
    times: dict[str, list[float]] = {key: [] for key in actions}
    with tqdm(total=len(actions) * repeats, desc=name, unit="run") as bar:
        for _ in range(repeats):
            for key, action in actions.items():
                bar.set_postfix_str(key)
                begin = time.perf_counter()
                action()
                times[key].append((time.perf_counter() - begin) * 1e3)
                bar.update()
    return times


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def graph_share(case: Case, act: Callable[[], object]) -> dict[str, float]:
    """The share of one action's time that each graph takes; "host" is what no graph takes."""
    case.timed.seconds.clear()
    begin = time.perf_counter()
    act()
    whole = time.perf_counter() - begin
    shares = {graph: seconds / whole for graph, seconds in case.timed.seconds.items()}
    shares["host"] = 1 - sum(shares.values())
    return {key: round(value, 4) for key, value in shares.items()}


def allocations(replan: Callable[[], object]) -> dict[str, int]:
    """Bytes of the arrays that a plan holds at its peak, beyond those from before it."""
    tracemalloc.start()
    try:
        replan()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        replan()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return {"peak_bytes": peak - before}


def predicted(case: Case, reference: Callable[[], object]) -> dict[str, float]:
    """What the arithmetic alone says: ratios of floating-point operations, counted by torch."""
    from cosmos3_ros.engine.export_pipeline import flops_of, graph_flops

    contract = case.policy.contract
    flops = graph_flops(case.recipe, contract)
    floor = contract.sampler.forwards * flops["denoise"]
    action = flops["text"] + flops["image"] + floor
    stock = flops_of(reference)
    return {
        "ratio": round(stock / action, 3),
        "over_floor": round(action / floor, 3),
        "reference_tflop": round(stock / 1e12, 4),
        "action_tflop": round(action / 1e12, 4),
        "forward_tflop": round(flops["denoise"] / 1e12, 4),
        "text_tflop": round(flops["text"] / 1e12, 4),
        "image_tflop": round(flops["image"] / 1e12, 4),
        "frame_tflop": round(flops["frame"] / 1e12, 4),
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as text: times, ratios beside what was predicted, and what dominates."""
    lines = []
    for name, result in results.items():
        sampler = f"{result['forwards']} forwards of {result['tokens']} tokens"
        lines.append(f"{name}: {sampler}, {result['threads']} threads, {result['repeats']} repeats")
        for key, value in result.items():
            if key.endswith("_ms"):
                spread_of = f"{value['min']:.0f} .. {value['max']:.0f}"
                lines.append(f"  {key[:-3]:18}{value['median']:>10.1f} ms   {spread_of}")
        for key in ("ratio", "over_floor"):
            if key in result:
                lines.append(f"  {key:18}{result[key]:>10.2f}      {_beside(result, key)}")
        shares = sorted(result["graph_share"].items(), key=lambda item: -item[1])
        lines.append(
            "  of an action      " + ", ".join(f"{k} {v:.1%}" for k, v in shares if v > 1e-3)
        )
        made = {key: value / 1e6 for key, value in result["allocations_per_plan"].items()}
        returned = f"{made['returned_bytes']:.2f} MB of them the plan that is returned"
        lines.append(f"  new arrays        {made['peak_bytes']:>10.2f} MB at the peak, {returned}")
    return "\n".join(lines)


def _beside(result: Mapping[str, Any], key: str) -> str:
    if "predicted" not in result:
        return ""
    expected = result["predicted"][key]
    off = result[key] / expected - 1
    words = f"arithmetic: {expected:.2f} ({off:+.0%})"
    return words if abs(off) <= EXPLAINED_WITHIN else words + ", see docs/benchmarks.md"
