"""Backends by name: who runs the graphs of a bundle. A backend is never replaced in silence."""

from __future__ import annotations

from cosmos3_ros.engine.bundle import Bundle
from cosmos3_ros.engine.session import Engine

BACKENDS = ("onnxruntime",)


class BackendError(ValueError):
    """A backend is not known, or not installed."""


def open_backend(bundle: Bundle, backend: str, threads: int) -> Engine:
    """An engine over every graph of a bundle.

    Raises BackendError for a backend that cannot be had, BundleError for a bundle that the
    backend cannot run.
    """
    if backend not in BACKENDS:
        raise BackendError(
            f"backend '{backend}' is not known; expected one of {', '.join(BACKENDS)}"
        )
    try:
        from cosmos3_ros.engine.onnx_engine import OnnxEngine
    except ImportError as error:
        raise BackendError(
            f"backend 'onnxruntime' cannot be imported ({error}); install it with "
            "'pip install onnxruntime'"
        ) from error
    return OnnxEngine(bundle, threads)
