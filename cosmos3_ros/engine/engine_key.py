"""Compiled engines beside their graphs: ``denoise.engine`` and its key ``denoise.engine.json``.

An engine holds for one graph, one library in one version, and one kind of GPU. The key says which;
an engine whose key does not fit is never loaded.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cosmos3_ros.engine.bundle import Bundle, PartSpec, file_sha256
from cosmos3_ros.engine.tensorrt_library import EngineError, Target, import_library


class EngineMismatch(EngineError):
    """An engine is missing, damaged, or was compiled of something else or for something else."""


@dataclass(frozen=True)
class EngineKey:
    """What an engine was compiled of, by what, and for which GPU.

    ``graph_sha256``: of the graph and its weights.
    """

    graph_sha256: str
    backend: str
    version: str
    compute_capability: str
    precision: str


@dataclass(frozen=True)
class EngineRecord:
    """What stands beside an engine: its key, its own SHA-256 and size, and what it cost."""

    key: EngineKey
    sha256: str
    bytes: int
    build_s: float
    peak_bytes: int


def engine_path(bundle: Bundle, part: PartSpec) -> Path:
    """Where the engine of a part lies."""
    return (bundle.path / part.file).with_suffix(".engine")


def record_path(bundle: Bundle, part: PartSpec) -> Path:
    """Where its key lies."""
    return (bundle.path / part.file).with_suffix(".engine.json")


def make_key(bundle: Bundle, part: PartSpec, target: Target) -> EngineKey:
    """The key of the engine that ``target`` takes for a part."""
    manifest = bundle.manifest
    files = [name for name in (part.file, f"{part.file}.data") if name in manifest.files]
    return EngineKey(
        graph_sha256=hashlib.sha256(
            ":".join(manifest.files[n] for n in files).encode()
        ).hexdigest(),
        backend=target.backend,
        version=target.version,
        compute_capability=target.compute_capability,
        precision=manifest.precision,
    )


def write_record(path: Path, record: EngineRecord) -> None:
    """Write a key whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(asdict(record), indent=1) + "\n")
    partial.rename(path)


def read_record(path: Path) -> EngineRecord | None:
    """The key in a file; None where it is missing or is no key."""
    try:
        data = json.loads(path.read_text())
        key = EngineKey(**data["key"])
        return EngineRecord(**{**data, "key": key})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def mismatch(bundle: Bundle, part: PartSpec, target: Target, whole: bool = True) -> str:
    """What keeps the engine of a part from being loaded; empty where nothing does.

    ``whole``: compare its SHA-256 too, which reads all of it.
    """
    path, record = engine_path(bundle, part), read_record(record_path(bundle, part))
    if not path.is_file():
        return f"{path.name} is missing"
    if record is None:
        return f"{path.name} has no readable key {path.name}.json"
    expected = make_key(bundle, part, target)
    for field in fields(EngineKey):
        found, wanted = getattr(record.key, field.name), getattr(expected, field.name)
        if found != wanted:
            return f"{path.name} was compiled for {_named(field.name, found)}, expected {wanted}"
    size = path.stat().st_size
    if size != record.bytes:
        return f"{path.name} has {size} bytes, its key says {record.bytes}"
    if whole and file_sha256(path) != record.sha256:
        return f"{path.name} is not the file its key was written for: its SHA-256 differs"
    return ""


@dataclass(frozen=True)
class JudgedEngine:
    """An engine beside its graph. ``told``: what it was compiled for and by. ``mismatch``: as the
    function's. ``note``: what could not be compared here; empty where all was."""

    told: str
    mismatch: str
    note: str


def judge_engine(bundle: Bundle, part: PartSpec) -> JudgedEngine | None:
    """What is known of a part's engine, by the library that is installed here; None: there is none.

    Whether this machine has the GPU it was compiled for is not asked.
    """
    record = read_record(record_path(bundle, part))
    if record is None:
        return None
    key = record.key
    version, note = key.version, ""
    try:
        version = str(import_library(key.backend).__version__)
    except EngineError:
        note = f"{key.backend} is not installed here, its version was not compared"
    what = mismatch(bundle, part, Target(key.backend, version, key.compute_capability))
    return JudgedEngine(f"{key.compute_capability}, {key.backend} {key.version}", what, note)


def compile_command(bundle: Bundle, target: Target) -> str:
    """The command that compiles what is missing or does not fit."""
    return (
        f"cosmos3 compile {shlex.quote(str(bundle.path))} --backend {target.backend} "
        f"--compute-capability {target.compute_capability}"
    )


def require_engines(bundle: Bundle, target: Target) -> None:
    """Raises EngineMismatch, in one line with the command that mends it, unless all engines fit."""
    for spec in bundle.manifest.graphs.values():
        for part in spec.parts:
            what = mismatch(bundle, part, target)
            if what:
                raise EngineMismatch(
                    f"bundle '{bundle.path}': {what}; run: {compile_command(bundle, target)}"
                )


def _named(field: str, value: str) -> str:
    return f"{field.replace('_', ' ')} {value}"
