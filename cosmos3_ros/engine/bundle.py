"""The bundle: one folder that holds all the runtime loads, described by ``manifest.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cosmos3_ros.engine.session import GRAPHS, Contract, Prompting, Rope, Sampler

FORMAT_VERSION = 4
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
# Of a manifest, the SHA-256 of all else that it says: its numbers are what is planned with.
_DIGEST = "sha256"


class BundleError(ValueError):
    """A bundle is missing, incomplete, changed, or of another format."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape and ONNX type name (float32, uint8, int64, bfloat16, ...) of a graph's tensor."""

    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True)
class PartSpec:
    """A stretch of a graph's layers, in a file of its own.

    ``layers``: (first, last + 1). A tensor that the graph has too is the graph's own, but for
    ``keys`` and ``values``, of which a part takes or gives those of its layers; any other is
    handed from one part to the next.
    """

    file: str
    layers: tuple[int, int]
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True)
class GraphSpec:
    """One graph: its tensors by name, and the parts that run one after another.

    Most graphs have one part, whose tensors are the graph's. Text and denoise may have several, so
    that each compiles in less memory than the whole.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    parts: tuple[PartSpec, ...]


@dataclass(frozen=True)
class Quantisation:
    """How the generation tower's linear layers were quantised.

    ``ranges``: where the largest activations come from: "declared" by the recipe, or "calibrated"
    on ``observations`` observations of ``source``. ``layers``: how many were quantised. ``kept``:
    those that stayed high, by name.
    """

    ranges: str
    source: str
    observations: int
    layers: int
    kept: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """What a bundle is.

    ``forwards``: those of a plan, as (step, timestep, branch). ``files`` maps every file that the
    export wrote to its SHA-256; engines that were compiled beside them have keys of their own.
    ``warnings``: what whoever runs this bundle has to know.
    """

    format_version: int
    name: str
    source: str
    source_sha256: str
    precision: str
    quantisation: Quantisation | None
    warnings: tuple[str, ...]
    forwards: tuple[tuple[int, float, str], ...]
    contract: Contract
    graphs: Mapping[str, GraphSpec]
    files: Mapping[str, str]
    tools: Mapping[str, str]


@dataclass(frozen=True)
class Bundle:
    """A folder whose files are those its manifest names, byte for byte."""

    path: Path
    manifest: Manifest
    sha256: str


def load_bundle(path: str | Path, checked: Callable[[Path], object] = lambda file: None) -> Bundle:
    """Read a bundle and check every file against its hash.

    ``checked`` is told each file that is as it should be. Raises BundleError naming the file and
    what to do about it.
    """
    path = Path(path)
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise BundleError(
            f"bundle '{path}' has no {MANIFEST}; expected a folder written by 'cosmos3 export'"
        )
    text = manifest_path.read_bytes()
    try:
        data = json.loads(text)
    except ValueError as error:
        raise BundleError(f"bundle '{path}': {MANIFEST} is not JSON: {error}") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"bundle '{path}' has format version {version}, this runtime reads {FORMAT_VERSION}; "
            "export the bundle again"
        )
    if data.get(_DIGEST) != (found := _digest(data)):
        raise BundleError(
            f"bundle '{path}': what {MANIFEST} says has SHA-256 {found[:12]}…, and it names "
            f"{str(data.get(_DIGEST))[:12]}…; it was changed, copy or export the bundle again"
        )
    try:
        manifest = _manifest(data)
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"bundle '{path}': {MANIFEST} is incomplete ({error}); export the bundle again"
        ) from error
    for name, expected in manifest.files.items():
        found = _hash_of(path, name)
        if found != expected:
            raise BundleError(
                f"bundle '{path}': {name} has SHA-256 {found[:12]}…, the manifest says "
                f"{expected[:12]}…; the file was changed or cut short, copy or export it again"
            )
        checked(path / name)
    return Bundle(path, manifest, hashlib.sha256(text).hexdigest())


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder whose other files are complete."""
    (path / MANIFEST).write_text(manifest_text(asdict(manifest)))


def manifest_text(data: Mapping[str, Any]) -> str:
    """What stands in a manifest of ``data``, with the hash of it."""
    return json.dumps({**data, _DIGEST: _digest(data)}, indent=1) + "\n"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(data: Mapping[str, Any]) -> str:
    said = {key: value for key, value in data.items() if key != _DIGEST}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _hash_of(path: Path, name: str) -> str:
    try:
        return file_sha256(path / name)
    except FileNotFoundError:
        raise BundleError(
            f"bundle '{path}' lacks {name}, which its manifest names; copy or export it again"
        ) from None


def _manifest(data: dict[str, Any]) -> Manifest:
    missing = [name for name in GRAPHS if name not in data["graphs"]]
    if missing:
        raise KeyError(f"graphs {', '.join(missing)}")
    quantisation = data["quantisation"]
    if quantisation is not None:
        quantisation = Quantisation(**quantisation | {"kept": tuple(quantisation["kept"])})
    return Manifest(
        **{f.name: data[f.name] for f in fields(Manifest)}
        | {
            "quantisation": quantisation,
            "warnings": tuple(data["warnings"]),
            "forwards": tuple(tuple(forward) for forward in data["forwards"]),
            "contract": _contract(data["contract"]),
            "graphs": {name: _graph(graph) for name, graph in data["graphs"].items()},
        }
    )


def _contract(data: dict[str, Any]) -> Contract:
    rope, sampler = dict(data["rope"]), dict(data["sampler"])
    for key in ("axes_dim", "inverse_frequency"):
        rope[key] = tuple(rope[key])
    for key in ("timesteps", "start", "guided"):
        sampler[key] = tuple(sampler[key])
    sampler["velocity"] = tuple(tuple(row) for row in sampler["velocity"])
    return Contract(
        **data
        | {
            "rope": Rope(**rope),
            "prompting": Prompting(**data["prompting"]),
            "sampler": Sampler(**sampler),
        }
    )


def _graph(data: dict[str, Any]) -> GraphSpec:
    return GraphSpec(
        _tensors(data["inputs"]),
        _tensors(data["outputs"]),
        tuple(
            PartSpec(
                part["file"],
                (part["layers"][0], part["layers"][1]),
                _tensors(part["inputs"]),
                _tensors(part["outputs"]),
            )
            for part in data["parts"]
        ),
    )


def _tensors(data: dict[str, Any]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tuple(t["shape"]), t["type"]) for name, t in data.items()}
