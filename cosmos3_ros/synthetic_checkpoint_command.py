"""``cosmos3 synthetic-checkpoint``: a recipe's model on disk, with weights that mean nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from cosmos3_ros.engine.recipe import load_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="recipe file, such as engines/nano_droid.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    recipe = load_recipe(args.recipe)
    if args.out.exists():
        raise FileExistsError(f"'{args.out}' exists; name a new folder for the checkpoint")
    # torch takes seconds to import: refuse a bad recipe before.
    from cosmos3_ros.engine.export_synthetic import write_checkpoint

    with tqdm(desc=f"checkpoint {recipe.name}", unit="B", unit_scale=True) as bar:

        def progress(written: int, size: int) -> None:
            bar.total = size
            bar.update(written - bar.n)

        write_checkpoint(recipe, args.out, args.seed, progress=progress)
    print(f"{args.out}: checkpoint of the shape of '{recipe.name}', its weights mean nothing")
    return 0
