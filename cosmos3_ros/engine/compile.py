"""From the graphs of a bundle to engines beside them, one part after another.

Each part is compiled in a process of its own (``cosmos3_ros.engine.compile_part``). An engine is
written under another name and takes its place whole, its key last: what is interrupted leaves
nothing that loads.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cosmos3_ros.engine.bundle import Bundle, PartSpec
from cosmos3_ros.engine.compile_part import Answer, Request
from cosmos3_ros.engine.engine_key import (
    EngineRecord,
    engine_path,
    make_key,
    mismatch,
    record_path,
    write_record,
)
from cosmos3_ros.engine.export_folder import require_space
from cosmos3_ros.engine.tensorrt_library import EngineError, Target, import_library
from cosmos3_ros.processes import alone_in

# Memory that a build takes for each byte of weights, and beside them: measured on the whole shape
# of Nano with TensorRT-RTX 1.7 (FP8: 21.2 GB for 7.1 GB, NVFP4: 12.8 GB for 3.6 GB).
_MEMORY_FACTOR = {"nvfp4": 3.6}
_USUAL_FACTOR = 3.0
_BASE_BYTES = 1e9
# Kernels and tables of an engine, beside its weights.
_ENGINE_BASE_BYTES = 50e6
_POLL_S = 0.2
_GB = 1e9


@dataclass(frozen=True)
class Job:
    """A part to compile and the memory that takes, by estimate."""

    graph: str
    part: PartSpec
    weight_bytes: int
    memory_bytes: float


@dataclass(frozen=True)
class Compiled:
    """What came of a part: ``skipped`` where its engine was there and fits."""

    part: PartSpec
    record: EngineRecord | None
    skipped: bool


class Progress:
    """What is told of a compile; the base class is silent."""

    def begin(self, jobs: Sequence[Job]) -> None:
        """These parts are about to be compiled."""

    def working(self, job: Job) -> None:
        """A part is being compiled; called several times a second."""

    def done(self, job: Job, record: EngineRecord) -> None:
        """A part is compiled."""


def find_target(backend: str, compute_capability: str) -> Target:
    """What this machine compiles with. Raises EngineError where the backend is not installed."""
    return Target(backend, str(import_library(backend).__version__), compute_capability)


def compile_bundle(
    bundle: Bundle,
    target: Target,
    graphs: Sequence[str] | None = None,
    memory_bytes: float | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Compiled]:
    """Compile the parts of these graphs whose engines are missing or do not fit.

    ``graphs``: None: all of them. ``memory_bytes``: what a build may take; None: what this machine
    has available. ``force``: compile what fits too. Raises EngineError naming the part, and where
    memory or disk do not suffice before anything is compiled.
    """
    progress = progress or Progress()
    specs = bundle.manifest.graphs
    wanted = [(g, p) for g in graphs or specs for p in specs[g].parts]
    # One compile of a bundle at a time, for they write the same files.
    busy = EngineError(
        f"bundle '{bundle.path}' is being compiled by another process; wait for it to end"
    )
    with alone_in(bundle.path, busy):
        fits = {p.file for _, p in wanted if not force and not mismatch(bundle, p, target)}
        jobs = [_job(bundle, graph, part) for graph, part in wanted if part.file not in fits]
        available = available_bytes() if memory_bytes is None else memory_bytes
        for job in jobs:
            require_memory(bundle, job, available)
        if jobs:
            engines = sum(job.weight_bytes + _ENGINE_BASE_BYTES for job in jobs)
            require_space(bundle.path, int(engines))
        progress.begin(jobs)
        made = {job.part.file: _compile(bundle, job, target, progress) for job in jobs}
    return [Compiled(p, made.get(p.file), skipped=p.file in fits) for _, p in wanted]


def estimated_bytes(weight_bytes: int, precision: str) -> float:
    """Memory that the build of a part takes: an estimate."""
    return _MEMORY_FACTOR.get(precision, _USUAL_FACTOR) * weight_bytes + _BASE_BYTES


def available_bytes() -> float:
    """Memory that this machine can give without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    raise EngineError(
        "/proc/meminfo does not say what memory is available; expected a line MemAvailable, as "
        "Linux has it since 2014; 'cosmos3 compile' takes it from --memory-gb"
    )


def require_memory(bundle: Bundle, job: Job, available: float) -> None:
    """Raises EngineError with both figures where a build would not fit in memory."""
    if job.memory_bytes <= available:
        return
    first, last = job.part.layers
    fit = int((last - first) * (available - _BASE_BYTES) / (job.memory_bytes - _BASE_BYTES))
    remedy = "compile it on a machine with more memory"
    if fit > 0 and last - first > 1:
        remedy = (
            f"it holds {last - first} layers: export the bundle with layers_per_part {fit} or "
            f"less in its recipe, or {remedy}"
        )
    raise EngineError(
        f"bundle '{bundle.path}': compiling {job.part.file} takes {job.memory_bytes / _GB:.1f} GB "
        f"of memory (estimate, from {job.weight_bytes / _GB:.1f} GB of weights) and "
        f"{available / _GB:.1f} GB are available; {remedy}"
    )


def _job(bundle: Bundle, graph: str, part: PartSpec) -> Job:
    files = (bundle.path / part.file, bundle.path / f"{part.file}.data")
    size = sum(path.stat().st_size for path in files if path.is_file())
    # Quantised weights are those of denoise; the other graphs are as in BF16.
    precision = bundle.manifest.precision if graph == "denoise" else ""
    return Job(graph, part, size, estimated_bytes(size, precision))


def _compile(bundle: Bundle, job: Job, target: Target, progress: Progress) -> EngineRecord:
    engine, record = engine_path(bundle, job.part), record_path(bundle, job.part)
    partial = engine.with_name(f".{engine.name}.partial")
    request = Request(
        backend=target.backend,
        compute_capability=target.compute_capability,
        graph=str(bundle.path / job.part.file),
        engine=str(partial),
    )
    try:
        answer = _run(request, lambda: progress.working(job))
        if answer.error:
            raise EngineError(
                f"bundle '{bundle.path}': {target.backend} {target.version} cannot compile "
                f"{job.part.file} for compute capability {target.compute_capability}: "
                f"{answer.error}"
            )
        record.unlink(missing_ok=True)
        partial.rename(engine)
    finally:
        partial.unlink(missing_ok=True)
    made = EngineRecord(
        key=make_key(bundle, job.part, target),
        sha256=answer.sha256,
        bytes=answer.bytes,
        build_s=answer.build_s,
        peak_bytes=answer.peak_bytes,
    )
    write_record(record, made)
    progress.done(job, made)
    return made


def _run(request: Request, working: Callable[[], None]) -> Answer:
    """Compile in a child process; what kills it becomes the answer's error."""
    command = [sys.executable, "-m", "cosmos3_ros.engine.compile_part", json.dumps(asdict(request))]
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True) as child,
    ):
        try:
            while True:
                try:
                    printed, _ = child.communicate(timeout=_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    working()
        except BaseException:
            child.kill()
            raise
        if child.returncode == 0:
            return Answer(**json.loads(printed.splitlines()[-1]))
        said.seek(0)
        last = said.read().strip().splitlines()[-1:] or [""]
    return Answer(error=_ending(child.returncode, last[0]))


def _ending(code: int, said: str) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed, as the kernel does where memory runs out"
    if code < 0:
        return f"its process crashed with {signal.Signals(-code).name} {said}".strip()
    return said or f"its process ended with code {code}"
