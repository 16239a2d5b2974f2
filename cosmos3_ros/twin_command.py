"""``cosmos3 twin``: a bundle of reduced precision as a CPU can run it, to see what it costs."""

from __future__ import annotations

import argparse
from pathlib import Path

from cosmos3_ros.engine.bundle import BundleError, load_bundle
from cosmos3_ros.engine.export_folder import bundle_folder
from cosmos3_ros.engine.twin import twin_bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="folder written by 'cosmos3 export'")
    parser.add_argument("--out", type=Path, required=True, help="folder of its float32 twin")


def main(args: argparse.Namespace) -> int:
    bundle = load_bundle(args.bundle)
    manifest = bundle.manifest
    if manifest.precision == "fp32":
        raise BundleError(
            f"bundle '{manifest.name}' is fp32 already; expected one of reduced precision: this "
            "one runs on a CPU as it is"
        )
    if args.out.resolve() == bundle.path.resolve():
        raise BundleError(f"--out is bundle '{args.out}' itself; expected another folder")
    with bundle_folder(args.out) as work:
        twin_bundle(bundle, work)
    print(f"{args.out}: the float32 twin of '{manifest.name}' in {manifest.precision}")
    return 0
