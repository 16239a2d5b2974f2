"""``cosmos3 compile``: the graphs of a bundle to engines for the robot's GPU."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from cosmos3_ros.engine.bundle import load_bundle
from cosmos3_ros.engine.compile import Job, Progress, compile_bundle, find_target
from cosmos3_ros.engine.engine_key import EngineRecord, engine_path
from cosmos3_ros.engine.session import GRAPHS
from cosmos3_ros.engine.tensorrt_library import TENSORRT_BACKENDS

_GB = 1e9


class _Bar(Progress):
    """A bar over the bytes of weights; each part moves it once, the clock runs on."""

    def __init__(self, bar: tqdm) -> None:
        self._bar = bar

    def begin(self, jobs: Sequence[Job]) -> None:
        self._bar.reset(total=sum(job.weight_bytes for job in jobs))

    def working(self, job: Job) -> None:
        self._bar.set_postfix_str(job.part.file, refresh=True)

    def done(self, job: Job, record: EngineRecord) -> None:
        self._bar.update(job.weight_bytes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="folder written by 'cosmos3 export'")
    parser.add_argument("--backend", choices=TENSORRT_BACKENDS, default=TENSORRT_BACKENDS[0])
    parser.add_argument(
        "--compute-capability",
        default="12.0",
        help="of the robot's GPU (default: 12.0, that of the RTX PRO 6000 Blackwell)",
    )
    parser.add_argument(
        "--graph", action="append", choices=GRAPHS, help="only this graph; may be repeated"
    )
    parser.add_argument(
        "--memory-gb", type=float, help="memory a build may take (default: what is available)"
    )
    parser.add_argument("--force", action="store_true", help="compile what is compiled already too")


def main(args: argparse.Namespace) -> int:
    target = find_target(args.backend, args.compute_capability)
    bundle = load_bundle(args.bundle)
    with tqdm(desc="compile", unit="B", unit_scale=True, leave=False, disable=None) as bar:
        found = compile_bundle(
            bundle,
            target,
            graphs=args.graph,
            memory_bytes=None if args.memory_gb is None else args.memory_gb * _GB,
            force=args.force,
            progress=_Bar(bar),
        )
    for compiled in found:
        print(f"{engine_path(bundle, compiled.part).name:22} {_told(compiled.record)}")
    print(
        f"{bundle.path}: engines for compute capability {target.compute_capability}, "
        f"{target.backend} {target.version}; they run on such a GPU alone"
    )
    return 0


def _told(record: EngineRecord | None) -> str:
    if record is None:
        return "is there and fits: skipped"
    return (
        f"compiled in {record.build_s:6.1f} s, {record.bytes / 1e6:9.1f} MB, "
        f"{record.peak_bytes / _GB:5.1f} GB of memory"
    )
