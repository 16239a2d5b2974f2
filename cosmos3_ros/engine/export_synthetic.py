"""A checkpoint of a recipe's shape with weights that mean nothing, written shard by shard.

It is as large as the real one and reads like it: for measuring export and compilation where the
real weights are not at hand. Its values are normal, scaled so that activations stay finite.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from diffusers import AutoencoderKLWan, Cosmos3OmniTransformer

from cosmos3_ros.engine.bundle import TOKENIZER
from cosmos3_ros.engine.export_checkpoint import INDEX, WEIGHTS
from cosmos3_ros.engine.export_folder import require_space, whole_folder
from cosmos3_ros.engine.export_model import byte_level_tokenizer, flow_scheduler, hollow
from cosmos3_ros.engine.recipe import Recipe

SHARD_BYTES = 5_000_000_000
# Normal values that every tensor is made of, over and over. Prime, so that no two rows of a matrix
# are alike: the rows of every layer have a length that shares no factor with it.
_BLOCK = 4_194_301
_BYTES = 2

Scale = tuple[float, float]


def write_checkpoint(
    recipe: Recipe,
    out: Path,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda written, size: None,
) -> None:
    """Write a BF16 checkpoint in diffusers' layout: transformer, VAE, tokenizer, scheduler.

    ``progress`` is told the bytes written and those to be written. The folder appears whole or not
    at all. Raises FolderError where the disk has too little room.
    """
    z_dim = recipe.model.vae["z_dim"]
    vae_config = {"latents_mean": [0.0] * z_dim, "latents_std": [1.0] * z_dim, **recipe.model.vae}
    modules: dict[str, Any] = {
        "transformer": hollow(Cosmos3OmniTransformer, recipe.model.transformer, torch.bfloat16),
        "vae": hollow(AutoencoderKLWan, vae_config, torch.bfloat16),
    }
    size = sum(_size(t.shape) for module in modules.values() for t in module.state_dict().values())
    with whole_folder(out) as work:
        require_space(work, size)
        noise = _Noise(seed)
        written = 0
        for name, module in modules.items():
            module.save_config(work / name)
            for done in _write_module(module, work / name, noise, shard_bytes):
                written += done
                progress(written, size)
        tokenizer = byte_level_tokenizer()
        if recipe.model.tokenizer == "tokenizer_json":
            tokenizer.backend_tokenizer.save(str(work / TOKENIZER))
        else:
            tokenizer.save_pretrained(work / "text_tokenizer")
        flow_scheduler(recipe, recipe.model.scheduler).save_pretrained(work / "scheduler")


class _Noise:
    """A stream of normal values, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._block = np.random.default_rng(seed).standard_normal(_BLOCK, np.float32)
        self._scaled: dict[Scale, np.ndarray] = {}
        self._position = 0

    def chunks(self, count: int, scale: Scale) -> Iterator[np.ndarray]:
        """The next ``count`` values, of this mean and deviation, in bfloat16."""
        mean, deviation = scale
        if scale not in self._scaled:
            values = mean + deviation * self._block
            self._scaled[scale] = values.astype(ml_dtypes.bfloat16)
        while count:
            chunk = self._scaled[scale][self._position : self._position + count]
            yield chunk
            count -= len(chunk)
            self._position = (self._position + len(chunk)) % _BLOCK


def _write_module(module: Any, folder: Path, noise: _Noise, shard_bytes: int) -> Iterator[int]:
    """Write the shards of a module and their index; yields the bytes just written."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    scales = _scales(module, shapes)
    shards = _shards(shapes, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = WEIGHTS
        if len(shards) > 1:
            stem, _, ending = WEIGHTS.rpartition(".")
            file = f"{stem}-{number:05}-of-{len(shards):05}.{ending}"
        with (folder / file).open("wb") as stream:
            stream.write(_header({name: shapes[name] for name in names}))
            for name in names:
                for chunk in noise.chunks(math.prod(shapes[name]), scales[name]):
                    stream.write(chunk.view(np.uint16).data)
                    yield chunk.nbytes
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(_size(shape) for shape in shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1))


def _shards(shapes: Mapping[str, tuple[int, ...]], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, shape in shapes.items():
        if _size(shape) > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= _size(shape)
    return shards


def _header(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """safetensors: 8 bytes of length, then JSON padded with spaces to a multiple of 8."""
    header, start = {}, 0
    for name, shape in shapes.items():
        end = start + _size(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _scales(module: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Scale]:
    """Mean and deviation of every tensor: norms near 1, products that keep the size of what they
    multiply, everything added small.
    """
    by_domain = {
        f"{name}.fc.weight": part.input_size
        for name, part in module.named_modules()
        if hasattr(part, "input_size")
    }

    def scale(name: str, shape: tuple[int, ...]) -> Scale:
        if name.endswith("gamma") or (len(shape) == 1 and name.endswith("weight")):
            return (1.0, 0.05)
        if name.endswith("embed_tokens.weight"):
            return (0.0, 1.0)
        if len(shape) == 1 or name.endswith("bias.weight"):
            return (0.0, 0.02)
        inputs = by_domain.get(name, math.prod(shape[1:]))
        return (0.0, float(inputs) ** -0.5)

    return {name: scale(name, shape) for name, shape in shapes.items()}


def _size(shape: tuple[int, ...]) -> int:
    return math.prod(shape) * _BYTES
