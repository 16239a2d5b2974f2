"""``cosmos3 export``: a recipe, and a checkpoint where it needs one, to a bundle."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from cosmos3_ros.engine.recipe import QUANTISED, Recipe, RecipeError, load_recipe
from cosmos3_ros.policy.embodiment import Embodiment, load_embodiment

if TYPE_CHECKING:
    from cosmos3_ros.engine.export import Calibration
    from cosmos3_ros.engine.export_contract import Body

_OBSERVATIONS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="recipe file, such as engines/tiny.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    parser.add_argument(
        "--checkpoint", type=Path, help="folder in diffusers' layout (transformer/, vae/, ...)"
    )
    parser.add_argument(
        "--embodiment", help="name or YAML file to use in place of the recipe's embodiment"
    )
    parser.add_argument(
        "--calibrate", type=Path, metavar="BAG", help="see in this bag how large activations grow"
    )
    parser.add_argument(
        "--observations", type=int, help=f"to calibrate on (default: {_OBSERVATIONS})"
    )
    parser.add_argument("--instruction", help="to calibrate with, instead of the bag's")


def main(args: argparse.Namespace) -> int:
    recipe = load_recipe(args.recipe)
    if args.embodiment:
        recipe = replace(recipe, embodiment=args.embodiment)
    embodiment = load_embodiment(recipe.embodiment)
    calibration = _calibration(args, recipe, embodiment)
    # torch takes seconds to import: refuse a bad recipe before.
    from cosmos3_ros.engine.export import export

    with tqdm(desc=f"export {recipe.name}", unit="B", unit_scale=True, unit_divisor=1000) as bar:

        def progress(step: str, written: int, size: int) -> None:
            if size:
                bar.total = size
                bar.update(written - bar.n)
            bar.set_postfix_str(step, refresh=not size)

        bundle = export(
            recipe, body_of(embodiment), args.out, args.checkpoint, progress, calibration
        )
    print(f"{bundle.path}: bundle '{recipe.name}', SHA-256 {bundle.sha256[:12]}")
    for warning in bundle.manifest.warnings:
        print(f"warning: {warning}")
    return 0


def _calibration(
    args: argparse.Namespace, recipe: Recipe, embodiment: Embodiment
) -> Calibration | None:
    """What ``--calibrate`` asks for. Raises RecipeError where the recipe quantises nothing, and
    for what belongs to a calibration that is not asked for."""
    if args.calibrate is None:
        for name in ("observations", "instruction"):
            if getattr(args, name) is not None:
                raise RecipeError(
                    f"--{name} is for a calibration and there is none; expected --calibrate BAG, "
                    f"or no --{name}"
                )
        return None
    observations = _OBSERVATIONS if args.observations is None else args.observations
    if recipe.precision not in QUANTISED:
        raise RecipeError(
            f"recipe '{recipe.name}' is {recipe.precision}: nothing is calibrated; expected "
            f"precision {' or '.join(QUANTISED)}, or no --calibrate"
        )
    from cosmos3_ros.calibration import calibrate

    with tqdm(desc=f"calibrate {recipe.name}", unit="plan", total=observations) as bar:
        return calibrate(
            recipe,
            embodiment,
            body_of(embodiment),
            args.checkpoint,
            args.calibrate,
            observations,
            args.instruction,
            lambda done: bar.update(done - bar.n),
        )


def body_of(embodiment: Embodiment) -> Body:
    """What an export needs of an embodiment."""
    from cosmos3_ros.engine.export_contract import Body

    return Body(
        name=embodiment.name,
        meaning=embodiment.meaning,
        domain_id=embodiment.domain_id,
        width=embodiment.width,
        state_row=embodiment.state_row,
        rate_hz=embodiment.rate_hz,
        picture_width=embodiment.canvas_width,
        picture_height=embodiment.canvas_height,
    )
