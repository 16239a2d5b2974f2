"""``cosmos3 verify``: is this bundle whole, and does it plan?"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from cosmos3_ros.engine.backends import BACKENDS, open_backend
from cosmos3_ros.engine.bundle import TOKENIZER, load_bundle
from cosmos3_ros.policy.embodiment import load_embodiment
from cosmos3_ros.policy.plan import Observation, Policy, draw_noise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="folder written by 'cosmos3 export'")
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0])
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: one a core)")
    parser.add_argument("--embodiment", help="name or YAML file; default: the bundle's own")


def main(args: argparse.Namespace) -> int:
    bundle = load_bundle(args.bundle)
    manifest = bundle.manifest
    _row("bundle", f"{manifest.name}, {manifest.precision}, from {manifest.source}")
    _row("hashes", f"{len(manifest.files)} files as the manifest says")
    sessions = open_backend(bundle, args.backend, args.threads)
    _row("shapes", f"{len(sessions)} graphs open on {args.backend}")

    embodiment = load_embodiment(args.embodiment or manifest.contract.embodiment)
    tokenizer = Tokenizer.from_file(str(bundle.path / TOKENIZER))
    policy = Policy(manifest.contract, embodiment, sessions, tokenizer)
    prompt = policy.prefill("Pick up the cube.")
    grey = {v.name: np.full((v.height, v.width, 3), 128, np.uint8) for v in embodiment.cameras}
    start = time.perf_counter()
    noise = draw_noise(manifest.contract, np.random.default_rng(0))
    plan = policy.plan(Observation(grey, embodiment.offset), prompt, noise)
    _row(
        "plan",
        f"{plan.rows.shape[0]} rows x {plan.rows.shape[1]}, all finite, "
        f"{(time.perf_counter() - start) * 1e3:.0f} ms",
    )
    frames = policy.predict_frames(plan)
    _row("frames", f"{frames.shape[0]} of {frames.shape[2]}x{frames.shape[1]} px")
    return 0


def _row(check: str, result: str) -> None:
    print(f"{check:8} {result}")
