"""``cosmos3 train``: a recipe and demonstrations to a checkpoint in diffusers' layout."""

from __future__ import annotations

import argparse
from pathlib import Path

from cosmos3_ros.engine.recipe import load_recipe
from cosmos3_ros.policy.embodiment import load_embodiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="recipe file with a section 'training'")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run; an unfinished one goes on"
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        help="LeRobot v3 data set of the embodiment's robot (default: make demonstrations of the "
        "simulated arm)",
    )
    parser.add_argument("--seed", type=int, help="instead of the recipe's")
    parser.add_argument(
        "--threads", type=int, default=2, help="CPU threads to train with (default: %(default)s)"
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="train without torch.compile, which takes longer"
    )


def main(args: argparse.Namespace) -> int:
    recipe = load_recipe(args.recipe)
    embodiment = load_embodiment(recipe.embodiment)
    # torch takes seconds to import: refuse a bad recipe before.
    from cosmos3_ros.training.run import train

    checkpoint = train(
        recipe,
        embodiment,
        args.out,
        dataset=args.dataset,
        seed=args.seed,
        threads=args.threads,
        compiled=not args.no_compile,
    )
    print(f"{checkpoint}: the trained checkpoint")
    print(f"cosmos3 export {args.recipe} --checkpoint {checkpoint} --out BUNDLE makes it a bundle")
    return 0
