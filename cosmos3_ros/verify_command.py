"""``cosmos3 verify``: is this bundle whole, and does it do what the stock modules do?"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from tqdm import tqdm

from cosmos3_ros import parity
from cosmos3_ros.engine.backends import BACKENDS, open_backend
from cosmos3_ros.engine.bundle import TOKENIZER, Bundle, Manifest, load_bundle
from cosmos3_ros.engine.compile import available_bytes
from cosmos3_ros.engine.recipe import RECIPE, Recipe, load_recipe
from cosmos3_ros.engine.twin import twin_bundle, twin_bytes
from cosmos3_ros.policy.embodiment import load_embodiment
from cosmos3_ros.policy.plan import Policy

if TYPE_CHECKING:
    from cosmos3_ros.engine.export_model import Components

ON_CPU = "onnxruntime"
_GB = 1e9
# Beside weights and scores: the packages themselves, and what a layer holds on its way.
_MEMORY_BESIDE = 1.5 * _GB


class VerifyError(ValueError):
    """A bundle cannot be verified with what is given, or on this machine."""


@dataclass(frozen=True)
class Need:
    """Bytes that a step of the verification takes, and of which resource."""

    what: str
    bytes: float
    resource: str
    available: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="folder written by 'cosmos3 export'")
    parser.add_argument(
        "--checkpoint", type=Path, help="compare with the checkpoint that the bundle was made from"
    )
    parser.add_argument("--recipe", type=Path, help=f"recipe (default: the bundle's own {RECIPE})")
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0])
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: one a core)")
    parser.add_argument("--embodiment", help="name or YAML file; default: the bundle's own")


def main(args: argparse.Namespace) -> int:
    bundle = _load(args.bundle)
    manifest = bundle.manifest
    _row("bundle", f"{manifest.name}, {manifest.precision}, from {manifest.source}")
    for warning in manifest.warnings:
        _row("warning", warning)
    _row("hashes", f"{len(manifest.files)} files as the manifest says")
    embodiment = load_embodiment(args.embodiment or manifest.contract.embodiment)
    tokenizer = Tokenizer.from_file(str(bundle.path / TOKENIZER))
    task = parity.make_task(manifest.contract, embodiment, tokenizer)
    _require_room(bundle, args.backend)
    stock = _stock_outputs(bundle, args, task)
    with _runnable(bundle, args.backend) as runnable:
        engine = open_backend(runnable, args.backend, args.threads)
        _row("shapes", f"{len(manifest.graphs)} graphs open on {args.backend}")
        policy = Policy(manifest.contract, embodiment, engine, tokenizer)
        _plan(policy, task)
        if stock is None:
            return 0
        with _steps("this bundle") as step:
            found = parity.bundle_outputs(runnable, manifest, engine, policy, task, stock, step)
    return _conclude(manifest, runnable, parity.compare(manifest, stock, found))


def _load(path: Path) -> Bundle:
    size = sum(p.stat().st_size for p in path.iterdir() if p.is_file()) if path.is_dir() else 0
    with tqdm(
        desc="hashes", total=size, unit="B", unit_scale=True, leave=False, disable=None
    ) as bar:
        return load_bundle(path, lambda file: bar.update(file.stat().st_size))


def _stock_outputs(
    bundle: Bundle, args: argparse.Namespace, task: parity.Task
) -> parity.Outputs | None:
    """What the stock modules make of the task; None, with a line that says so, without weights."""
    recipe = _recipe(bundle, args)
    if recipe is None or (args.checkpoint is None and recipe.model.random_seed is None):
        _row("parity", "not checked: give --checkpoint DIR, the folder this bundle was made from")
        return None
    manifest = bundle.manifest
    if recipe.precision != manifest.precision:
        raise VerifyError(
            f"bundle '{manifest.name}' is {manifest.precision}, made by a recipe in "
            f"{recipe.precision}: a twin is not what the checkpoint was exported to; verify the "
            "bundle it is the twin of"
        )
    # torch takes seconds to import.
    from cosmos3_ros.engine.export_model import make_components, open_components

    hollow = open_components(recipe, args.checkpoint)
    if hollow.source_sha256 != manifest.source_sha256:
        raise VerifyError(
            f"'{hollow.source}' has weights of SHA-256 {hollow.source_sha256[:12]}…, bundle "
            f"'{manifest.name}' was made from '{manifest.source}', {manifest.source_sha256[:12]}…; "
            "give the checkpoint and the recipe it was made from"
        )
    _require(Need("the stock model in float32", _stock_bytes(hollow), "memory", available_bytes()))
    del hollow
    with _steps("stock modules") as step:
        step("weights")
        components = make_components(recipe, args.checkpoint)
        return parity.stock_outputs(components, manifest.contract, task, step)


def _recipe(bundle: Bundle, args: argparse.Namespace) -> Recipe | None:
    if args.recipe is not None:
        return load_recipe(args.recipe)
    own = bundle.path / RECIPE
    if own.is_file():
        return load_recipe(own)
    if args.checkpoint is not None:
        raise VerifyError(
            f"bundle '{bundle.path}' has no {RECIPE}; give --recipe FILE, the one it was made of"
        )
    return None


@contextmanager
def _runnable(bundle: Bundle, backend: str) -> Iterator[Bundle]:
    """The bundle itself, or its float32 twin where the backend cannot run its types."""
    if not _needs_twin(bundle, backend):
        yield bundle
        return
    with tempfile.TemporaryDirectory(prefix="cosmos3-verify-") as temporary:
        with _steps("float32 twin") as step:
            step("weights")
            twin = twin_bundle(bundle, Path(temporary))
        _row("twin", f"{backend} runs no {bundle.manifest.precision} on this CPU: float32 twin")
        yield twin


def _needs_twin(bundle: Bundle, backend: str) -> bool:
    return backend == ON_CPU and bundle.manifest.precision != "fp32"


def _require_room(bundle: Bundle, backend: str) -> None:
    """Refuse, before anything is run, what this machine has no room for."""
    if backend != ON_CPU:
        return
    sizes = [twin_bytes(path) for path in _graph_files(bundle)]
    what = f"bundle '{bundle.manifest.name}'"
    if _needs_twin(bundle, backend):
        what = f"the float32 twin of '{bundle.manifest.name}'"
        folder = Path(tempfile.gettempdir())
        free = shutil.disk_usage(folder).free
        _require(Need(what, sum(sizes), f"disk at '{folder}'", free))
    # The largest is there twice while its weights are laid out for the processor.
    need = sum(sizes) + max(sizes) + _MEMORY_BESIDE
    _require(Need(what, need, "memory", available_bytes()))


def _graph_files(bundle: Bundle) -> list[Path]:
    graphs = bundle.manifest.graphs.values()
    return [bundle.path / part.file for graph in graphs for part in graph.parts]


def _stock_bytes(components: Components) -> float:
    modules = (components.transformer, components.vae)
    return 4.0 * sum(p.numel() for module in modules for p in module.parameters()) + _MEMORY_BESIDE


def _require(need: Need) -> None:
    if need.bytes > need.available:
        raise VerifyError(
            f"{need.what} takes at least {need.bytes / _GB:.1f} GB of {need.resource}, and this "
            f"machine has {need.available / _GB:.1f} GB free; verify on a larger one"
        )


def _plan(policy: Policy, task: parity.Task) -> None:
    """A whole plan and its frames, with what they took."""
    prompt = policy.prefill(parity.INSTRUCTION)
    start = time.perf_counter()
    plan = policy.plan(task.observation, prompt, task.noise)
    took_ms = (time.perf_counter() - start) * 1e3
    rows, width = plan.rows.shape
    _row("plan", f"{rows} rows x {width}, all finite, {took_ms:.0f} ms")
    frames = policy.predict_frames(plan)
    _row("frames", f"{frames.shape[0]} of {frames.shape[2]}x{frames.shape[1]} px")


def _conclude(manifest: Manifest, run: Bundle, rows: list[parity.Row]) -> int:
    print(f"\n{'graph':9}{'output':17}{'cosine':>10}{'rel. L2':>11}{'largest':>11}  verdict")
    for row in rows:
        print(
            f"{row.graph:9}{row.output:17}{row.cosine:>10.6f}{row.relative_l2:>11.2e}"
            f"{row.largest:>11.2e}  {'ok' if row.passed else 'MISS'}"
        )
    print(f"\n{_explained(manifest, run)}")
    missed = [f"{row.graph} {row.output}" for row in rows if not row.passed]
    if missed:
        print(f"parity missed by {', '.join(missed)}")
    return int(bool(missed))


def _explained(manifest: Manifest, run: Bundle) -> str:
    levels = "frames by one level of 256"
    if manifest.precision == "fp32":
        return f"allowed: {parity.LARGEST_DIFFERENCE:g} anywhere, {levels}"
    factor = parity.amplification(manifest)
    on_twin = "" if run.manifest == manifest else " (run as its float32 twin)"
    return (
        f"allowed in {manifest.precision}{on_twin}: cosine of {parity.LEAST_COSINE:g}, relative L2 "
        f"of {parity.MOST_RELATIVE_L2:.0%}; a plan {parity.MOST_RELATIVE_L2 * factor:.1%}, for "
        f"guidance multiplies what a forward is off by {factor:.1f}"
    )


@contextmanager
def _steps(title: str) -> Iterator[Callable[[str], None]]:
    with tqdm(
        desc=title, bar_format="{desc}: {postfix} {elapsed}", leave=False, disable=None
    ) as bar:
        yield lambda step: bar.set_postfix_str(step)


def _row(check: str, result: str) -> None:
    print(f"{check:8} {result}")
