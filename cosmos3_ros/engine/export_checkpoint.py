"""Weights by name, read one at a time: from a checkpoint's safetensors, or from a module in memory.

A checkpoint in diffusers' layout is a folder a component (``transformer/``, ``vae/``), with one
``diffusion_pytorch_model.safetensors`` or several shards named by an index. Only the headers are
read until a tensor is asked for, and no file is mapped: memory holds one tensor at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from torch import nn

from cosmos3_ros.engine.recipe import RecipeError

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
# What ``cosmos3 train`` leaves beside the weights of how they were trained.
FACTS = "training.json"
# safetensors' names of the types that an export reads.
READABLE = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# The bits of an exponent that is all ones: infinity or NaN.
_EXPONENT = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
_CHUNK = 1 << 22


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: ``type`` is safetensors' name of it, ``start`` an offset in the file."""

    file: Path
    type: str
    shape: tuple[int, ...]
    start: int


class WeightSource(Protocol):
    """Weights by the names that the stock module gives them."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, name: str) -> np.ndarray:
        """A new array, float32, float16 or bfloat16. Raises RecipeError where it is not finite."""
        ...


class ModuleWeights:
    """The weights of a module in memory."""

    def __init__(self, module: nn.Module) -> None:
        self._tensors = module.state_dict()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        return self._tensors[name].detach().float().numpy().copy()


class CheckpointWeights:
    """One component's weights in a checkpoint.

    Raises RecipeError for files that are missing, cut short or no safetensors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _files(folder)
        self.tensors: dict[str, StoredTensor] = {}
        for file, expected in self.files.items():
            stored = _stored_tensors(file)
            for name in expected or ():
                if name not in stored:
                    raise RecipeError(
                        f"checkpoint: {_named(file)} has no tensor '{name}', which {INDEX} says "
                        "it holds; copy the checkpoint again"
                    )
            self.tensors |= stored

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        tensor = self.tensors[name]
        array = np.fromfile(
            tensor.file, READABLE[tensor.type], math.prod(tensor.shape), offset=tensor.start
        )
        _require_finite(array, tensor, name)
        return array.reshape(tensor.shape)


def require_stock(weights: CheckpointWeights, stock: Mapping[str, tuple[int, ...]]) -> None:
    """Raises RecipeError where tensors are missing, extra, or of another shape or type.

    ``stock``: the shapes of the stock class's own state dict.
    """
    where = f"checkpoint: {weights.folder.name}/"
    missing = [name for name in stock if name not in weights.tensors]
    if missing:
        raise RecipeError(
            f"{where} lacks {_some(missing)}; expected every tensor of diffusers' class, copy or "
            "convert the checkpoint again"
        )
    extra = [name for name in weights.tensors if name not in stock]
    if extra:
        raise RecipeError(
            f"{where} has {_some(extra)}, which diffusers' class of this configuration does not "
            "know; expected its tensors and no others"
        )
    for name, tensor in weights.tensors.items():
        if tensor.shape != stock[name]:
            raise RecipeError(
                f"{where} {name} has shape {tensor.shape}; its configuration asks for {stock[name]}"
            )
        if tensor.type not in READABLE:
            raise RecipeError(
                f"{where} {name} is {tensor.type}; expected one of {', '.join(READABLE)}: start "
                "from the checkpoint that was not quantised"
            )


def _files(folder: Path) -> dict[Path, list[str] | None]:
    """Weight files and the tensors that the index says they hold (None without an index)."""
    if not (folder / INDEX).is_file():
        if not (folder / WEIGHTS).is_file():
            raise RecipeError(
                f"checkpoint: {folder.name}/ has neither {WEIGHTS} nor {INDEX}; expected "
                "diffusers' weights as safetensors"
            )
        return {folder / WEIGHTS: None}
    try:
        index = json.loads((folder / INDEX).read_text())["weight_map"]
        files: dict[Path, list[str] | None] = {}
        for name, file in index.items():
            held = files.setdefault(folder / file, [])
            assert held is not None, "made a line above"
            held.append(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"checkpoint: {folder.name}/{INDEX} is no index of weights ({error}); copy the "
            "checkpoint again"
        ) from error
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise RecipeError(
            f"checkpoint: {folder.name}/{INDEX} names {_some(missing)}, which is not there; copy "
            "the checkpoint again"
        )
    return files


def _stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """The header of a safetensors file: 8 bytes of length, JSON, then the data."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            if 8 + length > size:
                raise ValueError(f"its header ends at byte {8 + length} of {size}")
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            begin = 8 + length
            ends = [begin + entry["data_offsets"][1] for entry in header.values()]
            if max(ends, default=begin) > size:
                raise ValueError(f"its tensors end at byte {max(ends)} of {size}")
            return {
                name: StoredTensor(
                    file,
                    str(entry["dtype"]),
                    tuple(entry["shape"]),
                    begin + entry["data_offsets"][0],
                )
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecipeError(
                f"checkpoint: {_named(file)} is cut short or no safetensors file ({error}); copy "
                "it again"
            ) from error


def _require_finite(array: np.ndarray, tensor: StoredTensor, name: str) -> None:
    bits: np.ndarray = array.view(np.uint32 if tensor.type == "F32" else np.uint16)
    exponent = _EXPONENT[tensor.type]
    for start in range(0, bits.size, _CHUNK):
        if ((bits[start : start + _CHUNK] & exponent) == exponent).any():
            raise RecipeError(
                f"checkpoint: tensor '{name}' in {_named(tensor.file)} has NaN or infinity; "
                "expected finite weights"
            )


def _named(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def _some(names: list[str]) -> str:
    """The first few of many names."""
    listed = ", ".join(f"'{name}'" for name in names[:3])
    return listed if len(names) <= 3 else f"{listed} and {len(names) - 3} more"
