"""A hollow module to an ONNX file: the graph is traced without weights, then they are streamed in.

Weights keep the names of the stock module's parameters, whatever part of it a graph holds. They lie
beside the graph in ``<file>.data``; constants of the graph stay within it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnxscript import opset23 as op
from onnxscript.optimizer import optimize_ir
from torch import Tensor

from cosmos3_ros.engine.bundle import TensorSpec
from cosmos3_ros.engine.export_checkpoint import WeightSource
from cosmos3_ros.engine.export_graphs import Graph
from cosmos3_ros.engine.quantise import Convert
from cosmos3_ros.engine.recipe import RecipeError

# Lets whoever maps the file map a tensor by itself.
_ALIGNMENT = 4096
_ATTENTION_OPSET = 23


@dataclass(frozen=True)
class Traced:
    """A graph whose weights are declared and not there yet.

    ``weights``: the names of those it takes as the checkpoint has them. ``converts``: what makes
    the others' data, by the name of the checkpoint's tensor.
    """

    file: str
    model: ir.Model
    source: WeightSource
    weights: tuple[str, ...]
    converts: Mapping[str, Convert]

    @property
    def data(self) -> str:
        """The file of the weights."""
        return f"{self.file}.data"

    @property
    def bytes(self) -> int:
        """Of the weights, as they will be written."""
        declared = [v for v in self.model.graph.initializers.values() if v.const_value is None]
        return sum(_padded(_bytes(value)) for value in declared)

    @property
    def inputs(self) -> dict[str, TensorSpec]:
        return {str(v.name): _spec(v) for v in self.model.graph.inputs}

    @property
    def outputs(self) -> dict[str, TensorSpec]:
        return {str(v.name): _spec(v) for v in self.model.graph.outputs}


def trace(
    module: Graph, examples: tuple[Tensor, ...], names: Mapping[int, str], opset: int
) -> ir.Model:
    """The graph of a hollow module, simplified, its weights declared under their stock names.

    ``examples``: one of each input. ``names``: the stock name of a parameter, by its id.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module.eval(),
            examples,
            dynamo=True,
            opset_version=opset,
            input_names=list(module.inputs),
            output_names=list(module.outputs),
            custom_translation_table=_ATTENTION if opset >= _ATTENTION_OPSET else None,
            optimize=False,
            verbose=False,
        )
    assert program is not None, "dynamo=True returns a program"
    model = program.model
    weights = _as_inputs(model, {n: names[id(p)] for n, p in module.named_parameters()})
    optimize_ir(model)
    _as_initializers(model, weights)
    _require_names(module, model)
    _forget_the_tracing(model)
    return model


def write(traced: Traced, folder: Path, progress: Callable[[int], None]) -> None:
    """Write a graph and its weights, one tensor in memory at a time.

    ``progress`` is called with the bytes just written. Raises RecipeError for a weight that is not
    finite, or too large for its type.
    """
    if traced.weights or traced.converts:
        with (folder / traced.data).open("wb") as stream:
            for value, array in _arrays(traced):
                before = stream.tell()
                value.const_value = _append(stream, value, array, traced.data, folder)
                progress(stream.tell() - before)
    ir.save(traced.model, folder / traced.file)
    onnx.checker.check_model(str(folder / traced.file))


def _forget_the_tracing(model: ir.Model) -> None:
    """torch notes at every node which lines of which files on this machine it comes from."""
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values()]
    for node in ir.traversal.RecursiveGraphIterator(graph):
        node.metadata_props.clear()
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
    graph.metadata_props.clear()
    model.metadata_props.clear()


def _arrays(traced: Traced) -> Iterator[tuple[ir.Value, np.ndarray]]:
    """Every weight of a graph with its data, in the type that the graph declares."""
    initializers = traced.model.graph.initializers
    for name in traced.weights:
        yield initializers[name], _cast(name, traced.source.read(name), initializers[name])
    for name, convert in traced.converts.items():
        for made, array in convert(traced.source.read(name).astype(np.float32)).items():
            yield initializers[made], array


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention of [1, heads, n, D] over [1, key/value heads, m, D].

    TensorRT has no kernel for the operator with one key/value head, as a VAE's attention is: that
    becomes products.
    """
    if key.shape[1] > 1:
        given = (query, key, value) if attn_mask is None else (query, key, value, attn_mask)
        return op.Attention(*given, scale=scale, is_causal=int(is_causal))[0]
    if attn_mask is not None or is_causal:
        raise RuntimeError("attention with one key/value head is masked; expected the VAE's, whole")
    factor: Any = query.shape[-1] ** -0.5 if scale is None else scale
    scores = op.MatMul(
        op.Mul(query, op.CastLike(factor, query)), op.Transpose(key, perm=[0, 1, 3, 2])
    )
    return op.MatMul(op.Softmax(scores, axis=-1), value)


_ATTENTION: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention
}


def _as_inputs(model: ir.Model, names: Mapping[str, str]) -> list[ir.Value]:
    """Make weights inputs under their stock names: what is not known cannot be folded or merged."""
    graph, weights = model.graph, []
    for name in [name for name in graph.initializers if name in names]:
        value = graph.initializers.pop(name)
        if value.uses():
            value.name, value.const_value = names[name], None
            graph.inputs.append(value)
            weights.append(value)
    return weights


def _as_initializers(model: ir.Model, weights: list[ir.Value]) -> None:
    for value in weights:
        model.graph.inputs.remove(value)
        if value.uses():
            model.graph.initializers[str(value.name)] = value


def _require_names(module: Graph, model: ir.Model) -> None:
    inputs = tuple(value.name for value in model.graph.inputs)
    outputs = tuple(value.name for value in model.graph.outputs)
    if inputs != tuple(module.inputs) or outputs != tuple(module.outputs):
        raise RuntimeError(
            f"{type(module).__name__} came out as {inputs} -> {outputs}; expected "
            f"{module.inputs} -> {module.outputs}"
        )


def _cast(name: str, array: np.ndarray, value: ir.Value) -> np.ndarray:
    assert value.dtype is not None and value.shape is not None, f"{name} has a type and a shape"
    if array.shape != tuple(value.shape.numpy()):
        raise RuntimeError(f"{name} has shape {array.shape}; its graph takes {value.shape}")
    dtype = value.dtype.numpy()
    with np.errstate(over="ignore"):
        cast = array.astype(dtype, copy=False)
    if dtype == np.float16 and array.dtype != np.float16 and np.isinf(cast).any():
        raise RecipeError(
            f"tensor '{name}' has values beyond ±65504, which FP16 cannot hold; export in bf16"
        )
    return cast


def _append(
    stream: BinaryIO, value: ir.Value, array: np.ndarray, location: str, folder: Path
) -> ir.ExternalTensor:
    assert value.dtype is not None and value.shape is not None, f"{value.name} is declared whole"
    offset, length = stream.tell(), _bytes(value)
    packed = _packed(np.ascontiguousarray(array))
    if packed.nbytes != length:
        raise RuntimeError(f"{value.name} takes {packed.nbytes} bytes; its graph says {length}")
    stream.write(packed.reshape(-1).view(np.uint8).data)
    stream.write(bytes(_padded(length) - length))
    return ir.ExternalTensor(
        location,
        offset,
        length,
        value.dtype,
        shape=value.shape,
        name=str(value.name),
        base_dir=folder,
    )


def _packed(array: np.ndarray) -> np.ndarray:
    """FP4 values two to a byte, the first in the low half; anything else as it is."""
    if array.dtype != ml_dtypes.float4_e2m1fn:
        return array
    codes = array.reshape(-1).view(np.uint8) & 0x0F
    return codes[::2] | (codes[1::2] << 4)


def _bytes(value: ir.Value) -> int:
    assert value.dtype is not None and value.shape is not None, f"{value.name} is declared whole"
    return -(-int(np.prod(value.shape.numpy(), dtype=np.int64)) * value.dtype.bitwidth // 8)


def _padded(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _spec(value: ir.Value) -> TensorSpec:
    assert value.dtype is not None and value.shape is not None, f"{value.name} is static"
    return TensorSpec(tuple(value.shape.numpy()), value.dtype.numpy().name)
