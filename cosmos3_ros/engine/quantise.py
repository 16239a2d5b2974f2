"""FP8 and NVFP4: linear layers of an ONNX graph on few bits, written as TensorRT reads them.

``fp8``
    Weights E4M3 with a scale for each output channel, activations E4M3 with one scale for the
    tensor, from the largest absolute value that calibration or recipe gives. A scale is that value
    over 448, the largest E4M3; what exceeds it saturates. Scales have the graph's own type, and
    weights are rounded against the scale as stored.

``nvfp4``
    Weights E2M1 in blocks of 16 along the input axis, an E4M3 scale for each block and one float32
    scale for the tensor. Activations get their block scales as they come, from
    ``TRT_FP4DynamicQuantize``; calibration or recipe gives their float32 scale. The float32 scale
    is the largest absolute value over 6 * 448, so that the largest block has the largest scale.

Everything rounds to the nearest, ties to even. Zeros stay zeros: no scale is ever 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import ml_dtypes
import numpy as np
import onnx_ir as ir

FORMATS = ("fp8", "nvfp4")
BLOCK = 16
FP4_QUANTIZE = "TRT_FP4DynamicQuantize"
TENSORRT_DOMAIN = "trt"

E4M3_MAX = 448.0
E4M3_SMALLEST = 2.0**-9
E2M1_MAX = 6.0
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
_CHUNK_VALUES = 1 << 20

# A weight [out, in] float32 to the arrays of the initializers that replace it, by name.
Convert = Callable[[np.ndarray], dict[str, np.ndarray]]


class QuantiseError(ValueError):
    """A graph, or one of its weights, cannot be quantised."""


def quantise(model: ir.Model, ranges: Mapping[str, float], format: str) -> dict[str, Convert]:
    """Quantise the Gemms that read these weights, in place.

    ``ranges``: by the weight's initializer name, the largest absolute activation at its layer's
    input. Layers that read one tensor share its quantisation, at the largest of their ranges.

    The weights leave the graph. What replaces them is declared with type and shape, without data;
    returned is, by the name of the old weight, the function that makes the data. Raises
    QuantiseError naming a weight that no Gemm reads as x @ W.T, or whose input width NVFP4 cannot
    cut into blocks.
    """
    if format not in FORMATS:
        raise QuantiseError(f"format is '{format}'; expected one of {', '.join(FORMATS)}")
    layers = {weight: _layer(model.graph, weight) for weight in ranges}
    activations: dict[ir.Value, float] = {}
    for name, gemm in layers.items():
        _require(name, ranges[name], _input(gemm, 1), format)
        read = _input(gemm, 0)
        activations[read] = max(activations.get(read, 0.0), float(ranges[name]))

    make = _Fp8(model.graph) if format == "fp8" else _Nvfp4(model.graph)
    if format == "nvfp4":
        model.graph.opset_imports[TENSORRT_DOMAIN] = 1
    rounded: dict[ir.Value, ir.Value] = {}
    converts: dict[str, Convert] = {}
    for node in list(model.graph):  # in the order they run: the first reader of a value adds it
        if node.op_type != "Gemm" or layers.get(_name(node.inputs[1])) is not node:
            continue
        value, weight = _input(node, 0), _input(node, 1)
        if value not in rounded:
            rounded[value] = make.activation(value, activations[value], node)
        node.replace_input_with(0, rounded[value])
        replacement, convert = make.weight(weight, node)
        node.replace_input_with(1, replacement)
        converts[_name(weight)] = convert
        del model.graph.initializers[_name(weight)]
    return converts


def fp8_weight(weight: np.ndarray, scale_type: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """E4M3 values [out, in] and scales [out] of a weight [out, in], float32."""
    largest = np.maximum(weight.max(1), -weight.min(1))
    scale = (np.maximum(largest, _SMALLEST_SCALE * E4M3_MAX) / E4M3_MAX).astype(scale_type)
    values = np.empty(weight.shape, ml_dtypes.float8_e4m3fn)
    for rows in _chunks(weight):
        values[rows] = _e4m3(weight[rows] / scale[rows, None].astype(np.float32))
    return values, scale


def nvfp4_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E2M1 values [out, in], E4M3 block scales [out, in / 16] and the float32 scale []."""
    largest = _largest_of_blocks(weight)
    scale = nvfp4_scale(float(largest.max()))
    block_scale = _e4m3(np.maximum(largest / (E2M1_MAX * scale), np.float32(E4M3_SMALLEST)))
    values = np.empty(weight.shape, ml_dtypes.float4_e2m1fn)
    for rows in _chunks(weight):
        spread = (block_scale[rows].astype(np.float32) * scale).repeat(BLOCK, 1)
        scaled = weight[rows] / spread
        np.clip(scaled, -E2M1_MAX, E2M1_MAX, out=scaled)
        values[rows] = scaled.astype(values.dtype)
    return values, block_scale, scale


def nvfp4_scale(largest: float) -> np.ndarray:
    """The float32 scale [] of a tensor whose largest absolute value this is."""
    # The smallest scale leaves room for a block scale below it.
    smallest = _SMALLEST_SCALE / E4M3_SMALLEST
    return np.array(max(largest / (E2M1_MAX * E4M3_MAX), smallest), np.float32)


def nvfp4_dequantised(values: np.ndarray, block_scale: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The weight [out, in] float32 that E2M1 values and their scales stand for."""
    blocks = values.astype(np.float32).reshape(*block_scale.shape, BLOCK)
    blocks *= (block_scale.astype(np.float32) * scale)[..., None]
    return blocks.reshape(values.shape)


class _Fp8:
    """Writes FP8 quantisation into a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph

    def activation(self, value: ir.Value, largest: float, before: ir.Node) -> ir.Value:
        name = _name(value)
        dtype = _dtype(value)
        scale = np.array(max(largest / E4M3_MAX, _SMALLEST_SCALE), dtype.numpy())
        zero = np.zeros((), ml_dtypes.float8_e4m3fn)
        scale_value = _constant(self.graph, f"{name}_scale", scale)
        inputs = [value, scale_value, _constant(self.graph, f"{name}_zero", zero)]
        quantised = ir.node("QuantizeLinear", inputs, name=f"{name}_quantise")
        _typed(quantised, f"{name}_fp8", ir.DataType.FLOAT8E4M3FN, value.shape)
        restored = ir.node(
            "DequantizeLinear", [quantised.outputs[0], scale_value], name=f"{name}_dequantise"
        )
        _typed(restored, f"{name}_rounded", dtype, value.shape)
        self.graph.insert_before(before, [quantised, restored])
        return restored.outputs[0]

    def weight(self, value: ir.Value, before: ir.Node) -> tuple[ir.Value, Convert]:
        name, dtype, shape = _name(value), _dtype(value), _shape(value)
        values = _declared(self.graph, f"{name}_fp8", ir.DataType.FLOAT8E4M3FN, shape)
        scale = _declared(self.graph, f"{name}_scale", dtype, shape[:1])
        restored = ir.node(
            "DequantizeLinear", [values, scale], {"axis": 0}, name=f"{name}_dequantise"
        )
        _typed(restored, f"{name}_rounded", dtype, value.shape)
        self.graph.insert_before(before, restored)
        return restored.outputs[0], partial(_fp8_arrays, name, dtype.numpy())


class _Nvfp4:
    """Writes NVFP4 quantisation into a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph

    def activation(self, value: ir.Value, largest: float, before: ir.Node) -> ir.Value:
        name, shape = _name(value), _shape(value)
        scale = _constant(self.graph, f"{name}_scale", nvfp4_scale(largest))
        quantised = ir.node(
            FP4_QUANTIZE,
            [value, scale],
            {"axis": -1, "block_size": BLOCK, "scale_type": int(ir.DataType.FLOAT8E4M3FN)},
            domain=TENSORRT_DOMAIN,
            num_outputs=2,
            name=f"{name}_quantise",
        )
        values, block_scale = quantised.outputs
        values.name, values.dtype, values.shape = f"{name}_fp4", ir.DataType.FLOAT4E2M1, value.shape
        block_scale.name, block_scale.dtype = f"{name}_block_scale", ir.DataType.FLOAT8E4M3FN
        block_scale.shape = ir.Shape((*shape[:-1], shape[-1] // BLOCK))
        self.graph.insert_before(before, quantised)
        return self._restored(name, values, block_scale, scale, _dtype(value), before)

    def weight(self, value: ir.Value, before: ir.Node) -> tuple[ir.Value, Convert]:
        name, (rows, columns) = _name(value), _shape(value)
        values = _declared(self.graph, f"{name}_fp4", ir.DataType.FLOAT4E2M1, (rows, columns))
        block_scale = _declared(
            self.graph,
            f"{name}_block_scale",
            ir.DataType.FLOAT8E4M3FN,
            (rows, columns // BLOCK),
        )
        scale = _declared(self.graph, f"{name}_scale", ir.DataType.FLOAT, ())
        restored = self._restored(name, values, block_scale, scale, _dtype(value), before)
        return restored, partial(_nvfp4_arrays, name)

    def _restored(
        self,
        name: str,
        values: ir.Value,
        block_scale: ir.Value,
        scale: ir.Value,
        dtype: ir.DataType,
        before: ir.Node,
    ) -> ir.Value:
        """Two dequantisations, of the scales and by them, as the TensorRT-RTX parser knows them."""
        scales = ir.node("DequantizeLinear", [block_scale, scale], name=f"{name}_scales")
        _typed(scales, f"{name}_scales", ir.DataType.FLOAT, block_scale.shape)
        restored = ir.node(
            "DequantizeLinear",
            [values, scales.outputs[0]],
            {"axis": -1, "block_size": BLOCK},
            name=f"{name}_dequantise",
        )
        _typed(restored, f"{name}_float", ir.DataType.FLOAT, values.shape)
        cast = ir.node("Cast", restored.outputs, {"to": int(dtype)}, name=f"{name}_cast")
        _typed(cast, f"{name}_rounded", dtype, values.shape)
        self.graph.insert_before(before, [scales, restored, cast])
        return cast.outputs[0]


def _fp8_arrays(name: str, scale_type: np.dtype, weight: np.ndarray) -> dict[str, np.ndarray]:
    values, scale = fp8_weight(weight, scale_type)
    return {f"{name}_fp8": values, f"{name}_scale": scale}


def _nvfp4_arrays(name: str, weight: np.ndarray) -> dict[str, np.ndarray]:
    values, block_scale, scale = nvfp4_weight(weight)
    return {f"{name}_fp4": values, f"{name}_block_scale": block_scale, f"{name}_scale": scale}


def _largest_of_blocks(weight: np.ndarray) -> np.ndarray:
    """Largest absolute value of each block [out, in / 16].

    By pairs: numpy is slow along short axes.
    """
    largest = np.empty((weight.shape[0], weight.shape[1] // BLOCK), np.float32)
    for rows in _chunks(weight):
        halved = np.abs(weight[rows])
        while halved.shape[1] > largest.shape[1]:
            halved = np.maximum(halved[:, ::2], halved[:, 1::2])
        largest[rows] = halved
    return largest


def _chunks(weight: np.ndarray) -> Iterator[slice]:
    """Rows that fit the processor's cache: what is made on the way stays small."""
    step = max(1, _CHUNK_VALUES // weight.shape[1])
    return (slice(first, first + step) for first in range(0, weight.shape[0], step))


def _e4m3(scaled: np.ndarray) -> np.ndarray:
    """Rounded to E4M3, saturating; ``scaled`` is overwritten."""
    np.clip(scaled, -E4M3_MAX, E4M3_MAX, out=scaled)
    return scaled.astype(ml_dtypes.float8_e4m3fn)


def _layer(graph: ir.Graph, weight: str) -> ir.Node:
    """The one Gemm that reads a weight, as x @ W.T."""
    value = graph.initializers.get(weight)
    readers = [] if value is None else list(value.uses())
    if len(readers) == 1:
        node, index = readers[0]
        if node.op_type == "Gemm" and index == 1 and _transposed(node):
            return node
    found = ", ".join(f"input {index} of a {node.op_type}" for node, index in readers)
    raise QuantiseError(
        f"weight '{weight}' is {found or 'read by nothing in this graph'}; expected the weight of "
        "one Gemm with transB, as a linear layer is exported"
    )


def _transposed(gemm: ir.Node) -> bool:
    """True for x @ W.T, whatever its bias."""
    flags = {key: gemm.attributes[key].value for key in gemm.attributes}
    return bool(flags.get("transB", 0)) and not flags.get("transA", 0)


def _require(weight: str, largest: float, value: ir.Value, format: str) -> None:
    if not np.isfinite(largest) or largest < 0:
        raise QuantiseError(
            f"weight '{weight}': the largest activation is {largest}; expected a finite number"
        )
    width = _shape(value)[1]
    if format == "nvfp4" and width % BLOCK:
        raise QuantiseError(
            f"weight '{weight}' is {width} wide; NVFP4 needs a multiple of {BLOCK}: keep it high "
            "in the recipe (quantisation.keep)"
        )
    if _dtype(value) not in (ir.DataType.FLOAT, ir.DataType.BFLOAT16):
        raise QuantiseError(
            f"weight '{weight}' is {_dtype(value).name}; expected BFLOAT16 or FLOAT: a scale may "
            "be smaller than what FP16 holds"
        )


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    shape = ir.Shape(array.shape)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def _declared(graph: ir.Graph, name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    """An initializer whose data comes later."""
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    graph.initializers[name] = value
    return value


def _typed(node: ir.Node, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    output = node.outputs[0]
    output.name, output.dtype, output.shape = name, dtype, shape


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None, f"input {index} of {node.op_type} is there"
    return value


def _name(value: ir.Value | None) -> str:
    return "" if value is None or value.name is None else value.name


def _dtype(value: ir.Value) -> ir.DataType:
    assert value.dtype is not None, f"{value.name} has a type"
    return value.dtype


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None, f"{value.name} has a shape"
    return tuple(int(size) for size in value.shape)  # type: ignore[arg-type]
