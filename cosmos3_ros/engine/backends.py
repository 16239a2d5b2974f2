"""Backends by name: who runs the graphs of a bundle. A backend is never replaced in silence."""

from __future__ import annotations

from collections.abc import Callable

from cosmos3_ros.engine.bundle import Bundle
from cosmos3_ros.engine.session import Engine
from cosmos3_ros.engine.tensorrt_library import TENSORRT_BACKENDS

BACKENDS = ("onnxruntime", *TENSORRT_BACKENDS)


class BackendError(ValueError):
    """A backend is not known, or not installed."""


def open_backend(
    bundle: Bundle,
    backend: str,
    threads: int,
    rebuild: bool = False,
    cuda_graphs: bool = True,
    report: Callable[[str], None] = print,
) -> Engine:
    """An engine over every graph of a bundle.

    ``threads``: CPU threads a graph, for onnxruntime (0: one a core). ``rebuild``: compile engines
    that are missing or do not fit, for TensorRT. ``cuda_graphs``: replay programs as CUDA graphs,
    there too. ``report`` is told what takes time or memory.
    Raises BackendError for a backend that cannot be had, BundleError for a bundle that the backend
    cannot run, EngineError for what else keeps TensorRT from running it.
    """
    if backend not in BACKENDS:
        raise BackendError(
            f"backend '{backend}' is not known; expected one of {', '.join(BACKENDS)}"
        )
    if backend in TENSORRT_BACKENDS:
        from cosmos3_ros.engine.tensorrt_engine import open_engine

        return open_engine(bundle, backend, rebuild, cuda_graphs, report)
    try:
        from cosmos3_ros.engine.onnx_engine import OnnxEngine
    except ImportError as error:
        raise BackendError(
            f"backend 'onnxruntime' cannot be imported ({error}); install it with "
            "'pip install onnxruntime'"
        ) from error
    return OnnxEngine(bundle, threads)
