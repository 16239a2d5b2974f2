"""``cosmos3 inspect``: what is in a bundle, and what it costs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from cosmos3_ros.engine.bundle import Bundle, Manifest, PartSpec, load_bundle
from cosmos3_ros.engine.engine_key import judge_engine
from cosmos3_ros.engine.graph_cost import GraphCost, graph_cost
from cosmos3_ros.estimate import GPUS, Rates, plan_s, rates_of, run_s

_TOP_OPERATORS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="folder written by 'cosmos3 export'")
    parser.add_argument(
        "--gpu",
        default=next(iter(GPUS)),
        help=f"estimate the time of a plan on this GPU: {', '.join(GPUS)} (default: the first)",
    )


def main(args: argparse.Namespace) -> int:
    rates = rates_of(args.gpu)
    bundle = load_bundle(args.bundle)
    costs = {
        part.file: graph_cost(bundle.path / part.file)
        for spec in bundle.manifest.graphs.values()
        for part in spec.parts
    }
    lines = [*_manifest(bundle), "", *_graphs(bundle, costs), ""]
    print("\n".join([*lines, *_times(bundle, costs, args.gpu, rates)]))
    return 0


def _manifest(bundle: Bundle) -> list[str]:
    manifest, contract = bundle.manifest, bundle.manifest.contract
    frames, height, width = contract.grid
    size = sum((bundle.path / name).stat().st_size for name in manifest.files)
    rows = [
        ("bundle", f"{manifest.name}, {len(manifest.files)} files, {_bytes(size)}"),
        ("SHA-256", bundle.sha256),
        ("source", f"{manifest.source}, SHA-256 {manifest.source_sha256[:12]}"),
        ("tools", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())),
        ("precision", manifest.precision),
        *_quantisation(manifest),
        *(("warning", warning) for warning in manifest.warnings),
        ("embodiment", f"{contract.embodiment}, domain {contract.domain_id}, {contract.width} of "
         f"{contract.action_dim} channels"),
        ("chunk", f"{contract.chunk} rows at {contract.fps:g} Hz"
         f"{', after a state row' if contract.state_row else ''}"),
        ("canvas", f"{contract.canvas_width}x{contract.canvas_height} px, of which "
         f"{contract.content_width}x{contract.content_height} are the picture"),
        ("tokens", f"{contract.tokens} ({frames} latents x {height} x {width}, {contract.rows} "
         f"rows), text {contract.prompting.text_tokens}"),
        ("sampler", f"{contract.sampler.steps} steps, shift {contract.sampler.shift:g}, guidance "
         f"{contract.sampler.guidance:g}"),
        ("forwards", f"{len(manifest.forwards)} a plan: {_forwards(manifest)}"),
    ]  # fmt: skip
    return [f"{name:11} {text}" for name, text in rows]


def _quantisation(manifest: Manifest) -> list[tuple[str, str]]:
    found = manifest.quantisation
    if found is None:
        return []
    ranges = f"ranges {found.ranges}"
    if found.observations:
        ranges += f" on {found.observations} observations of {found.source}"
    kept = f"; kept high: {', '.join(found.kept)}" if found.kept else ""
    return [("quantised", f"{found.layers} linear layers, {ranges}{kept}")]


def _forwards(manifest: Manifest) -> str:
    steps: dict[tuple[int, float], list[str]] = {}
    for step, timestep, branch in manifest.forwards:
        steps.setdefault((step, timestep), []).append(branch)
    return "; ".join(
        f"step {step} at {timestep:g} {' and '.join(branches)}"
        for (step, timestep), branches in steps.items()
    )


def _graphs(bundle: Bundle, costs: Mapping[str, GraphCost]) -> list[str]:
    lines = []
    for name, spec in bundle.manifest.graphs.items():
        for part in spec.parts:
            cost = costs[part.file]
            top = list(cost.operators.items())[:_TOP_OPERATORS]
            named = ", ".join(f"{operator} {count}" for operator, count in top)
            rest = sum(cost.operators.values()) - sum(count for _, count in top)
            first, last = part.layers
            layers = f", layers {first} to {last - 1}" if name in ("text", "denoise") else ""
            lines += [
                f"{name:11} {part.file}{layers}: weights {_bytes(cost.weight_bytes)}, "
                f"{_flops(cost)} a run",
                f"{'':11} {named}{f', {rest} others' if rest else ''}",
                f"{'':11} {_engine(bundle, part)}",
            ]
    return lines


def _flops(cost: GraphCost) -> str:
    kinds = ", ".join(
        f"{kind}{f' in {quantisation}' if quantisation else ''} {_count(count)}"
        for (kind, quantisation), count in cost.flops.items()
    )
    return f"{_count(cost.total_flops)}FLOP ({kinds})" if kinds else "no products"


def _engine(bundle: Bundle, part: PartSpec) -> str:
    judged = judge_engine(bundle, part)
    if judged is None:
        return "no engine"
    fits = f"DOES NOT FIT, {judged.mismatch}" if judged.mismatch else "fits"
    note = f"; {judged.note}" if judged.note else ""
    return f"engine for {judged.told}: {fits}{note}"


def _times(bundle: Bundle, costs: Mapping[str, GraphCost], gpu: str, rates: Rates) -> list[str]:
    manifest = bundle.manifest
    runs: dict[str, float] = {}
    for name, spec in manifest.graphs.items():
        parts = [run_s(costs[part.file], manifest.precision, rates) for part in spec.parts]
        if None in parts:
            return [f"estimate    none for {manifest.precision}: no rate is known of it on {gpu}"]
        runs[name] = sum(part for part in parts if part is not None)
    sampler = manifest.contract.sampler
    each = ", ".join(f"{name} {seconds * 1e3:.2f}" for name, seconds in runs.items())
    return [
        f"estimate    a plan on {gpu}: {plan_s(runs, sampler) * 1e3:.1f} ms for "
        f"{sampler.forwards} forwards; not measured",
        f"{'':11} ms a run: {each}; text runs once an instruction, frame beside the plans",
    ]


def _bytes(count: float) -> str:
    return f"{_count(count)}B"


def _count(count: float) -> str:
    """With a decimal prefix."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {prefix}"
    return f"{count:.0f} "
