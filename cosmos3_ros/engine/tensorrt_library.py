"""TensorRT-RTX and TensorRT: two libraries with one interface, imported by the backend's name.

TensorRT-RTX compiles engines on any machine, without a GPU, for the RTX GPUs it knows. TensorRT
compiles for the GPU of the machine it runs on.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

# A backend is named after the Python package it stands on. What to do where it is missing:
INSTALL = {
    "tensorrt_rtx": "install it with 'pip install tensorrt-rtx-cu13'",
    "tensorrt": "it comes with JetPack or from NVIDIA's package index; engines for it are compiled "
    "on the robot, those for tensorrt_rtx anywhere",
}
TENSORRT_BACKENDS = tuple(INSTALL)


class EngineError(ValueError):
    """An engine cannot be compiled, loaded or run."""


@dataclass(frozen=True)
class Target:
    """What compiles or runs engines, and for which GPU (``compute_capability``: such as 12.0)."""

    backend: str
    version: str
    compute_capability: str


def import_library(backend: str) -> Any:
    """The library of a backend. Raises EngineError saying where to get it from."""
    try:
        return import_module(backend)
    except ImportError as error:
        raise EngineError(
            f"backend '{backend}' needs the Python package {backend}, which cannot be imported "
            f"({error}); {INSTALL[backend]}"
        ) from error


def make_logger(library: Any, errors: list[str]) -> Any:
    """A logger of the library that appends what it calls an error to ``errors``."""
    severe = (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR)

    class Logger(library.ILogger):
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in severe:
                errors.append(" ".join(message.split()))

    return Logger()
