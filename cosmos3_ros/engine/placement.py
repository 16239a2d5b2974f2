"""Where buffers lie in one stretch of a device's memory, and what of it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from math import prod

import numpy as np

from cosmos3_ros.engine.bundle import TensorSpec
from cosmos3_ros.engine.parts import Piece

# TensorRT takes no tensor at an address that is not a multiple of this.
ALIGNMENT = 256
_TYPE_BYTES = {"uint8": 1, "float16": 2, "bfloat16": 2, "float32": 4, "int32": 4, "int64": 8}
_GB = 1e9


@dataclass(frozen=True)
class Placement:
    """Offset [bytes] of each buffer in one allocation, and the allocation's size."""

    offsets: Mapping[str, int]
    bytes: int


@dataclass(frozen=True)
class Need:
    """Device memory [bytes] that is about to be allocated for something, and what is free."""

    what: str
    bytes: int
    free: int

    @property
    def fits(self) -> bool:
        return self.bytes <= self.free

    def __str__(self) -> str:
        return (
            f"{self.what} take {self.bytes / _GB:.3f} GB of device memory, "
            f"{self.free / _GB:.3f} GB are free"
        )


def tensor_bytes(spec: TensorSpec) -> int:
    """Size of a tensor. Raises ValueError for a type that no buffer has."""
    if spec.type not in _TYPE_BYTES:
        raise ValueError(f"a buffer is {spec.type}; expected one of {', '.join(_TYPE_BYTES)}")
    return prod(spec.shape) * _TYPE_BYTES[spec.type]


def place(buffers: Mapping[str, TensorSpec]) -> Placement:
    """Lay buffers one after another, each at an aligned offset."""
    offsets, end = {}, 0
    for name, spec in buffers.items():
        offsets[name] = end
        end += aligned(tensor_bytes(spec))
    return Placement(offsets, end)


def piece_offset(piece: Piece, spec: TensorSpec) -> int:
    """Where a piece of a buffer begins within it [bytes].

    Raises ValueError where TensorRT would not take a tensor there.
    """
    if piece.first == 0:
        return 0
    offset = piece.first * (tensor_bytes(spec) // spec.shape[0])
    if offset % ALIGNMENT:
        raise ValueError(
            f"buffer '{piece.buffer}': entry {piece.first} of {spec.type} {spec.shape} begins at "
            f"byte {offset}, expected a multiple of {ALIGNMENT}; export with another "
            "layers_per_part"
        )
    return offset


def aligned(size: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def host_type(buffer: str, spec: TensorSpec) -> np.dtype:
    """The numpy type of a buffer. Raises ValueError where numpy has none for it."""
    if spec.type == "bfloat16":
        try:
            return np.dtype(import_module("ml_dtypes").bfloat16)
        except ImportError as error:
            raise ValueError(
                f"buffer '{buffer}' is bfloat16, which the host reads with the Python package "
                "ml_dtypes; install it, or leave the buffer on the device"
            ) from error
    return np.dtype(spec.type)
