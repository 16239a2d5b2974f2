"""``cosmos3 open-loop``: what a checkpoint predicts of recorded episodes, beside what came."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cosmos3_ros.command_line import count
from cosmos3_ros.engine.recipe import load_recipe
from cosmos3_ros.policy.embodiment import load_embodiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Predictions are sampled without guidance, whatever the recipe says of it."
    parser.add_argument("recipe", type=Path, help="recipe of the checkpoint")
    parser.add_argument("--checkpoint", type=Path, required=True, help="in diffusers' layout")
    parser.add_argument(
        "--dataset", type=Path, required=True, help="LeRobot v3 data set it was not trained on"
    )
    parser.add_argument("--clips", type=count, default=200, help="at most (default: %(default)s)")
    parser.add_argument(
        "--threads", type=count, default=2, help="of the CPU (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    parser.add_argument("--picture", type=Path, help="draw some predictions there as PNG")


def main(args: argparse.Namespace) -> int:
    recipe = load_recipe(args.recipe)
    embodiment = load_embodiment(recipe.embodiment)
    # torch takes seconds to import: refuse a bad recipe before.
    from cosmos3_ros.training.open_loop import predict, write_picture

    for file in filter(None, (args.out, args.picture)):
        file.parent.mkdir(parents=True, exist_ok=True)
    predicted = predict(recipe, embodiment, args.checkpoint, args.dataset, args.clips, args.threads)
    figures = predicted.figures()
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n")
    if args.picture is not None:
        write_picture(predicted, args.picture)
    names = ("predicted", "nothing_changes", "vae")
    print(
        f"{figures['clips']} clips {'':12}{'predicted':>12}{'no change':>12}{'VAE':>8}  PSNR [dB]"
    )
    for what in ("all", "changed", "last", "last_changed"):
        found = [figures[name][what] for name in names]
        row = ["-" if value is None else f"{value:.2f}" for value in found]
        print(f"{what:24}{row[0]:>12}{row[1]:>12}{row[2]:>8}")
    for name, error in figures["row_error"].items():
        print(f"{name:24}{error:>12.4f}")
    return 0
