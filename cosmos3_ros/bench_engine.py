"""``./run bench engine``: time and peak memory from checkpoint to bundle to engine, by precision.

A synthetic checkpoint of each shape is written first; its weights mean nothing, which neither an
export nor a compiler minds. Each step runs in a process of its own. No GPU is used: what is
measured here is the way to an engine, not the engine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cosmos3_ros.engine.bundle import load_bundle
from cosmos3_ros.engine.recipe import QUANTISED
from cosmos3_ros.resources import resource

# Shape: the recipe whose model it is, and the precisions that are measured.
SHAPES = {
    "tiny": ("tiny.yaml", ("fp32", "bf16", "fp8", "nvfp4")),
    "mid": ("mid_droid.yaml", ("fp32", "bf16", "fp8", "nvfp4")),
    "nano": ("nano_droid.yaml", ("bf16", "fp8", "nvfp4")),
}
COMPUTE_CAPABILITY = "12.0"
# Any will do: the weights mean nothing.
RANGES = {"attention_in": 16.0, "attention_out": 16.0, "mlp_in": 16.0, "mlp_down": 64.0}


class StepFailed(RuntimeError):
    """A step of the benchmark ended with an error; the message is the end of what it printed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shape", choices=SHAPES, action="append", help="default: tiny and mid; nano takes 70 GB"
    )
    parser.add_argument("--precision", action="append", help="default: all of the shape's")
    parser.add_argument("--out", type=Path, default=Path("build/bench_engine.json"))


def main(args: argparse.Namespace) -> int:
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}
    measured: dict[str, Any] = {}
    folder = args.out.parent / "bench_engine"
    for shape in args.shape or ("tiny", "mid"):
        folder.mkdir(parents=True, exist_ok=True)
        found = measured[shape] = {}
        try:
            recipe_file, precisions = SHAPES[shape]
            recipe = resource("engines", recipe_file)
            checkpoint = folder / f"{shape}-checkpoint"
            found["checkpoint"] = step("synthetic-checkpoint", recipe, "--out", checkpoint)
            found["checkpoint"]["bytes"] = _bytes(checkpoint)
            for precision in args.precision or precisions:
                found[precision] = way(recipe, precision, checkpoint, folder)
                # What was measured of other shapes and precisions stays in the file.
                kept = {**results, shape: {**results.get(shape, {}), **found}}
                args.out.write_text(json.dumps(kept, indent=2) + "\n")
                results = kept
        finally:
            shutil.rmtree(folder)
    print(table(measured))
    return 0


def way(recipe: Path, precision: str, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Export and compile one precision. Engines are measured and deleted, to spare the disk.

    The recipe's own variant of that name is taken where there is one.
    """
    variant = recipe.with_name(f"{recipe.stem}_{precision}.yaml")
    if not variant.is_file():
        variant = folder / variant.name
        settings: dict[str, Any] = {
            "name": variant.stem,
            "extends": str(recipe),
            "precision": precision,
        }
        if precision in QUANTISED:
            settings["quantisation"] = {"ranges": RANGES}
        variant.write_text(yaml.safe_dump(settings))
    bundle = folder / variant.stem
    export = step("export", variant, "--checkpoint", checkpoint, "--out", bundle)
    export["bytes"] = _bytes(bundle)
    parts = {}
    graphs = load_bundle(bundle).manifest.graphs
    for graph, spec in graphs.items():
        step("compile", bundle, "--compute-capability", COMPUTE_CAPABILITY, "--graph", graph)
        for part in spec.parts:
            engine = (bundle / part.file).with_suffix(".engine")
            record = json.loads(engine.with_name(f"{engine.name}.json").read_text())
            parts[engine.name] = {key: record[key] for key in ("build_s", "peak_bytes", "bytes")}
            engine.unlink()
    shutil.rmtree(bundle)
    return {"export": export, "compile": parts}


def step(command: str, *arguments: object) -> dict[str, Any]:
    """Run a cosmos3 command; returns its seconds and the peak of its and its children's memory."""
    words = [sys.executable, "-m", "cosmos3_ros.cli", command, *map(str, arguments)]
    print(f"{command} {' '.join(str(word) for word in arguments)}", file=sys.stderr)
    begin = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise StepFailed(f"{command} ended with exit code {process.returncode}: {said[-2000:]}")
    seconds = round(time.monotonic() - begin, 1)
    return {"seconds": seconds, "peak_bytes": usage.ru_maxrss * 1024}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| shape | precision | step | time [s] | peak memory [GB] | written [GB] |",
        "| --- | --- | --- | --: | --: | --: |",
    ]
    for shape, found in results.items():
        lines.append(_row(shape, "", "synthetic checkpoint", found["checkpoint"]))
        for precision, measured in found.items():
            if precision == "checkpoint":
                continue
            lines.append(_row(shape, precision, "export", measured["export"]))
            for engine, part in measured["compile"].items():
                timed = {**part, "seconds": part["build_s"]}
                lines.append(_row(shape, precision, f"compile {engine}", timed))
    return "\n".join(lines)


def _row(shape: str, precision: str, what: str, measured: Mapping[str, Any]) -> str:
    return (
        f"| {shape} | {precision} | {what} | {measured['seconds']:.1f} | "
        f"{measured['peak_bytes'] / 1e9:.1f} | {measured['bytes'] / 1e9:.3f} |"
    )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
