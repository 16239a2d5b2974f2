"""``cosmos3 train``: a recipe and demonstrations to a checkpoint in diffusers' layout."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cosmos3_ros.command_line import count, whole
from cosmos3_ros.engine.recipe import load_recipe
from cosmos3_ros.policy.embodiment import load_embodiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="recipe file with a section 'training'")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the run; an unfinished one goes on (default: build/NAME, by the recipe's "
        "name)",
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        help="LeRobot v3 data set of the embodiment's robot (default: make demonstrations of the "
        "simulated arm)",
    )
    parser.add_argument("--seed", type=whole, help="instead of the recipe's")
    parser.add_argument(
        "--threads", type=count, default=2, help="CPU threads to train with (default: %(default)s)"
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="train without torch.compile, which takes longer"
    )


def main(args: argparse.Namespace) -> int:
    recipe = load_recipe(args.recipe)
    embodiment = load_embodiment(recipe.embodiment)
    # torch takes seconds to import: refuse a bad recipe before.
    from cosmos3_ros.engine.export_checkpoint import FACTS
    from cosmos3_ros.training.run import train

    checkpoint = train(
        recipe,
        embodiment,
        args.out or Path("build") / recipe.name,
        dataset=args.dataset,
        seed=args.seed,
        threads=args.threads,
        compiled=not args.no_compile,
    )
    facts = json.loads((checkpoint / FACTS).read_text())
    facts.pop("training", None)  # as the recipe says it
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):24}{value}")
    print(f"{checkpoint}: the trained checkpoint")
    print(f"cosmos3 export {args.recipe} --checkpoint {checkpoint} --out BUNDLE makes it a bundle")
    return 0
