"""Compiles one graph, in a process of its own: its memory returns, and a crash is only its own.

Called by ``cosmos3_ros.engine.compile`` with a request in JSON; prints its answer in JSON. ONNX
types and Q/DQ decide every precision: the network is strongly typed, no flag lowers anything.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cosmos3_ros.engine.tensorrt_library import EngineError, import_library, make_logger

_SET_PARENT_DEATH_SIGNAL = 1


@dataclass(frozen=True)
class Request:
    """Compile ``graph`` to ``engine`` with a backend for a compute capability such as 12.0."""

    backend: str
    compute_capability: str
    graph: str
    engine: str


@dataclass(frozen=True)
class Answer:
    """What came of it. ``error``: what went wrong, empty where nothing did."""

    error: str = ""
    sha256: str = ""
    bytes: int = 0
    build_s: float = 0.0
    peak_bytes: int = 0


def compile_graph(request: Request) -> Answer:
    """Parse, build and write. Raises EngineError where the library refuses."""
    begin = time.monotonic()
    library = import_library(request.backend)
    errors: list[str] = []
    logger = make_logger(library, errors)
    builder = library.Builder(logger)
    # Always so in TensorRT-RTX and from TensorRT 11 on; TensorRT 10 has to be told.
    strongly_typed = library.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(strongly_typed))
    parser = library.OnnxParser(network, logger)
    if not parser.parse_from_file(request.graph):
        raise EngineError(_parser_errors(parser) or "; ".join(errors) or "the parser refuses it")
    config = builder.create_builder_config()
    # All of an engine runs on the stream it is given, with that stream's priority.
    config.max_aux_streams = 0
    _aim(library, config, request)
    errors.clear()
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EngineError("; ".join(errors) or f"{request.backend} builds nothing and says nothing")
    content = memoryview(engine)
    Path(request.engine).write_bytes(content)
    return Answer(
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=content.nbytes,
        build_s=round(time.monotonic() - begin, 3),
        peak_bytes=_peak_bytes(),
    )


def main() -> None:
    """Answer the request in the first argument."""
    _end_with_parent()
    try:
        answer = compile_graph(Request(**json.loads(sys.argv[1])))
    except (EngineError, OSError) as error:
        answer = Answer(error=str(error))
    print(json.dumps(asdict(answer)))


def _aim(library: Any, config: Any, request: Request) -> None:
    """Compile for the GPU that is asked for; TensorRT compiles for the one that is there alone."""
    if not hasattr(config, "set_compute_capability"):
        _require_gpu(request)
        return
    known = library.ComputeCapability.__members__
    is_one = re.fullmatch(r"\d+\.\d", request.compute_capability)
    name = f"SM{request.compute_capability.replace('.', '')}"
    if not is_one or name not in known:
        numbers = sorted(int(n[2:]) for n in known if n.startswith("SM"))
        capabilities = ", ".join(f"{number / 10:.1f}" for number in numbers)
        raise EngineError(f"it knows the compute capabilities {capabilities}")
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(known[name], 0):
        raise EngineError("it does not compile for this compute capability")


def _require_gpu(request: Request) -> None:
    from cosmos3_ros.engine.tensorrt_engine import find_gpu

    gpu = find_gpu(request.backend)
    if gpu.compute_capability != request.compute_capability:
        raise EngineError(
            f"{request.backend} compiles for the GPU of this machine, {gpu.name} with compute "
            f"capability {gpu.compute_capability}; {request.compute_capability} was asked for"
        )


def _parser_errors(parser: Any) -> str:
    found = (parser.get_error(index) for index in range(parser.num_errors))
    return "; ".join(
        f"node '{error.node_name()}' ({error.node_operator()}): {' '.join(error.desc().split())}"
        for error in found
    )


def _peak_bytes() -> int:
    """The most memory this process held. What getrusage says may be its parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _end_with_parent() -> None:
    """A compile whose caller was killed is of use to nobody."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


if __name__ == "__main__":
    main()
