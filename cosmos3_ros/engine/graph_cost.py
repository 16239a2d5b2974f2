"""What one run of an ONNX graph costs: operators, bytes of weights, floating-point operations.

Counted from shapes alone, without reading a weight. A multiplication and an addition are two:

=================  ============================================================
MatMul, Gemm       2 * elements of the output * length of the inner axis
Attention          2 * heads * queries * keys * (width of keys + width of values)
Conv               2 * elements of the output * channels of a group * kernel
=================  ============================================================

Everything else is left out: it moves bytes and multiplies next to nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto, shape_inference

LINEAR, ATTENTION, CONVOLUTION = "linear", "attention", "convolution"
# What a linear layer's weights are in; the others are as the graph is.
_QUANTISED: dict[int, str] = {TensorProto.FLOAT8E4M3FN: "fp8", TensorProto.FLOAT4E2M1: "nvfp4"}
_BITS: dict[int, int] = {
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.UINT8: 8,
    TensorProto.INT8: 8,
    TensorProto.BOOL: 8,
    TensorProto.BFLOAT16: 16,
    TensorProto.FLOAT16: 16,
    TensorProto.FLOAT: 32,
    TensorProto.INT32: 32,
    TensorProto.DOUBLE: 64,
    TensorProto.INT64: 64,
}


class GraphCostError(ValueError):
    """A graph cannot be counted."""


@dataclass(frozen=True)
class GraphCost:
    """Of one run. ``flops``: by kind (LINEAR, ...) and quantisation ("" where there is none)."""

    operators: Mapping[str, int]
    weight_bytes: int
    flops: Mapping[tuple[str, str], int]

    @property
    def total_flops(self) -> int:
        return sum(self.flops.values())

    def of_kind(self, kind: str) -> int:
        """Operations of one kind, quantised or not."""
        return sum(count for (k, _), count in self.flops.items() if k == kind)

    def of_quantisation(self, quantisation: str) -> int:
        """Operations of one quantisation, of any kind."""
        return sum(count for (_, q), count in self.flops.items() if q == quantisation)


def graph_cost(path: Path) -> GraphCost:
    """Count a graph in a file; its weights may lie elsewhere, or nowhere yet.

    Raises GraphCostError where a shape cannot be known.
    """
    try:
        return model_cost(onnx.load(path, load_external_data=False))
    except GraphCostError as error:
        raise GraphCostError(f"graph '{path}': {error}") from error


def model_cost(model: onnx.ModelProto) -> GraphCost:
    """Count a graph."""
    graph = shape_inference.infer_shapes(model).graph
    shapes = {init.name: tuple(init.dims) for init in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.name not in shapes and all(d.HasField("dim_value") for d in dims):
            shapes[value.name] = tuple(d.dim_value for d in dims)
    types = {init.name: init.data_type for init in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    flops: Counter[tuple[str, str]] = Counter()
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            flops[LINEAR, _quantisation(node.input[1], makers, types)] += _product(node, shapes)
        elif node.op_type == "Attention":
            flops[ATTENTION, ""] += _attention(node, shapes)
        elif node.op_type == "Conv":
            flops[CONVOLUTION, ""] += _convolution(node, shapes)
    return GraphCost(
        operators=dict(Counter(node.op_type for node in graph.node).most_common()),
        weight_bytes=sum(_bytes(init) for init in graph.initializer),
        flops=dict(flops),
    )


def _product(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """MatMul and Gemm; a product of two activations, as attention in float32 is, counts too."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    # Either factor names the inner axis: a quantised one may not say its shape.
    left, right = shapes.get(node.input[0]), shapes.get(node.input[1])
    swapped = any(a.name == "transA" and a.i for a in node.attribute)
    if right is not None and len(right) > 1:
        inner = right[-1 if transposed else -2]
    elif left is not None:
        inner = left[-2 if swapped else -1]
    else:
        raise _unknown(node)
    return 2 * prod(_shape(node, node.output[0], shapes)) * inner


def _attention(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Query [1,H,n,D], keys [1,K,m,D], values [1,K,m,E]."""
    query, keys, values = (_shape(node, name, shapes) for name in node.input[:3])
    if len(query) != 4:
        raise GraphCostError(f"node '{node.name}' attends over {query}; expected four axes")
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * keys[2] * (width + values[3])


def _convolution(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The weight is [channels out, channels in of a group, kernel...]."""
    weight = _shape(node, node.input[1], shapes)
    return 2 * prod(_shape(node, node.output[0], shapes)) * prod(weight[1:])


def _quantisation(name: str, makers: Mapping[str, onnx.NodeProto], types: Mapping[str, int]) -> str:
    """What a weight is stored in, seen through what makes it usable."""
    while name in makers and makers[name].op_type in ("Cast", "DequantizeLinear", "Transpose"):
        name = makers[name].input[0]
    return _QUANTISED.get(types.get(name, TensorProto.UNDEFINED), "")


def _shape(
    node: onnx.NodeProto, name: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    if name not in shapes:
        raise _unknown(node)
    return shapes[name]


def _unknown(node: onnx.NodeProto) -> GraphCostError:
    return GraphCostError(
        f"node '{node.name}' ({node.op_type}) has tensors of unknown shape; expected static ones"
    )


def _bytes(tensor: TensorProto) -> int:
    return prod(tensor.dims) * _BITS[tensor.data_type] // 8
