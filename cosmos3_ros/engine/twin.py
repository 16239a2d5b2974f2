"""Float32 twins: graphs of reduced precision, made runnable where their types have no kernels.

ONNX Runtime on the CPU has no BF16 and no FP4. The twin of a graph is the same graph with the same
weights, rounded and quantised as they are, in types that run:

- BF16 and FP16 become float32, of weights as of everything else. The arithmetic is float32: what a
  GPU rounds between two operators, the twin does not round.
- FP8 stays FP8: activations are rounded as on the device.
- NVFP4 weights are dequantised, exactly. The quantisation of NVFP4 activations is spelled out in
  standard operators: largest value of a block, its scale rounded to E4M3, values rounded to E2M1.

A twin says what quantisation and rounded weights cost. It says nothing about the speed of a graph.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from cosmos3_ros.engine.bundle import (
    MANIFEST,
    Bundle,
    GraphSpec,
    PartSpec,
    TensorSpec,
    file_sha256,
    load_bundle,
    write_manifest,
)
from cosmos3_ros.engine.quantise import (
    BLOCK,
    E2M1_MAX,
    E4M3_SMALLEST,
    FP4_QUANTIZE,
    TENSORRT_DOMAIN,
    nvfp4_dequantised,
)

_WIDENED = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)
_WIDENED_NAMES = ("bfloat16", "float16")
# Attributes that name a type; their value is a number of ONNX's own.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "precision", "softmax_precision", "stash_type")
# Shapes and the like stay in the graph, where ONNX Runtime reads them before it loads data.
_EXTERNAL_FROM_BYTES = 1024


def twin_bundle(bundle: Bundle, folder: Path) -> Bundle:
    """Write the float32 twin of a bundle to an empty folder: a bundle that every part opens.

    Its name and a warning in its manifest say what it is. On disk it takes four bytes a weight
    (one a weight in FP8); in memory no more than one weight is held at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = bundle.manifest
    written = {part.file for spec in manifest.graphs.values() for part in spec.parts}
    for spec in manifest.graphs.values():
        for part in spec.parts:
            float32_twin(bundle.path / part.file, folder / part.file)
    for name in manifest.files:
        if name not in written and name.removesuffix(".data") not in written:
            shutil.copyfile(bundle.path / name, folder / name)
    warning = (
        f"the float32 twin of '{manifest.name}' in {manifest.precision}: the same graphs and "
        "weights in float32 arithmetic, to be compared on a CPU"
    )
    write_manifest(
        folder,
        replace(
            manifest,
            name=f"{manifest.name} (float32 twin)",
            precision="fp32",
            warnings=(*manifest.warnings, warning),
            graphs={name: _graph_spec(spec) for name, spec in manifest.graphs.items()},
            files={
                p.name: file_sha256(p) for p in sorted(folder.glob("[!.]*")) if p.name != MANIFEST
            },
        ),
    )
    return load_bundle(folder)


def float32_twin(path: Path, out: Path) -> None:
    """Write the float32 twin of an ONNX file, its weights to ``OUT.data`` beside it."""
    model = ir.load(path)
    _restore_nvfp4_weights(model.graph)
    _spell_out_nvfp4_activations(model.graph)
    _expand_attention_masks(model.graph)
    for node in model.graph.all_nodes():
        for key, attribute in list(node.attributes.items()):
            node.attributes[key] = _float32_attribute(attribute)
        for value in node.outputs:
            _widen(value)
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        _widen(value)
    model.graph.opset_imports.pop(TENSORRT_DOMAIN, None)
    ir.save(model, out, external_data=f"{out.name}.data", size_threshold_bytes=_EXTERNAL_FROM_BYTES)


def twin_bytes(path: Path) -> int:
    """Bytes of the weights of an ONNX file's float32 twin."""
    sizes = {ir.DataType.FLOAT8E4M3FN: 1, ir.DataType.INT64: 8}
    values = ir.load(path).graph.initializers.values()
    return sum(
        sizes.get(value.dtype, 4) * int(np.prod(value.shape.numpy(), dtype=np.int64))
        for value in values
        if value.dtype is not None and value.shape is not None
    )


def _widen(value: ir.Value) -> None:
    if value.dtype in _WIDENED:
        value.dtype = ir.DataType.FLOAT
        if value.const_value is not None:
            value.const_value = _float32_tensor(value.const_value)


def _float32_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return _lazy(str(tensor.name), tensor.shape.numpy(), lambda: tensor.numpy().astype(np.float32))


def _lazy(name: str, shape: Sequence[int], make: Callable[[], np.ndarray]) -> ir.LazyTensor:
    """A tensor that is made when it is written, and not kept."""
    return ir.LazyTensor(
        lambda: ir.tensor(make(), name=name),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(shape),
        name=name,
    )


def _float32_attribute(attribute: ir.Attr) -> ir.Attr:
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        if tensor.dtype in _WIDENED:
            return ir.AttrTensor(attribute.name, ir.tensor(tensor.numpy().astype(np.float32)))
    names_type = attribute.name in _TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT
    if names_type and attribute.as_int() in _WIDENED:
        return ir.AttrInt64(attribute.name, int(ir.DataType.FLOAT))
    return attribute


def _restore_nvfp4_weights(graph: ir.Graph) -> None:
    """E2M1 weights and their scales become float32 initializers."""
    for node in list(graph):
        values = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if values is None or values.dtype != ir.DataType.FLOAT4E2M1 or values.const_value is None:
            continue
        scales = _producer(node.inputs[1])
        block_scale, scale = (_given(value) for value in scales.inputs)
        name = f"{values.name}_float32"
        tensors = tuple(_data(value) for value in (values, block_scale, scale))
        weight = ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=values.shape,
            const_value=_lazy(name, tensors[0].shape.numpy(), partial(_dequantised, tensors)),
        )
        graph.register_initializer(weight)
        node.outputs[0].replace_all_uses_with(weight)
        graph.remove([node, scales], safe=True)
        for value in (values, block_scale, scale):
            del graph.initializers[str(value.name)]


def _dequantised(tensors: tuple[ir.TensorProtocol, ...]) -> np.ndarray:
    values, block_scale, scale = (tensor.numpy() for tensor in tensors)
    return nvfp4_dequantised(values, block_scale, scale)


def _spell_out_nvfp4_activations(graph: ir.Graph) -> None:
    """Quantisation to NVFP4 and back, in standard operators."""
    for node in list(graph):
        if node.op_type != FP4_QUANTIZE:
            continue
        values, block_scale = node.outputs
        restore = _only_reader(values)
        scales = _only_reader(block_scale)
        write = _Writer(graph, node, f"{values.name}_twin")
        rounded = _nvfp4_rounded(write, _given(node.inputs[0]), _given(node.inputs[1]))
        restore.outputs[0].replace_all_uses_with(rounded)
        graph.remove([restore, scales, node], safe=True)


def _nvfp4_rounded(write: _Writer, x: ir.Value, scale: ir.Value) -> ir.Value:
    """``x`` [..., width] as NVFP4 holds it."""
    shape = [int(size) for size in x.shape]  # type: ignore[union-attr,arg-type]
    blocks = write("Reshape", x, [*shape[:-1], shape[-1] // BLOCK, BLOCK])
    largest = write("ReduceMax", write("Abs", blocks), [-1])
    unrounded = write("Div", largest, write("Mul", scale, E2M1_MAX))
    # A cast to E4M3 saturates. The smallest keeps a block that is all but zero from a scale of 0.
    e4m3 = write("Cast", unrounded, to=ir.DataType.FLOAT8E4M3FN)
    block_scale = write("Max", write("Cast", e4m3, to=ir.DataType.FLOAT), E4M3_SMALLEST)
    spread = write("Mul", block_scale, scale)
    scaled = write("Clip", write("Div", blocks, spread), -E2M1_MAX, E2M1_MAX)
    # E2M1 has steps of 1/2 below 2, of 1 below 4, and of 2 from there to 6.
    size = write("Abs", scaled)
    coarse = write("Where", write("Less", size, 4.0), 1.0, 2.0)
    step = write("Where", write("Less", size, 2.0), 0.5, coarse)
    rounded = write("Mul", write("Round", write("Div", scaled, step)), step)
    return write("Reshape", write("Mul", rounded, spread), shape)


class _Writer:
    """Writes nodes in front of another; numbers among their inputs become constants."""

    def __init__(self, graph: ir.Graph, before: ir.Node, prefix: str) -> None:
        self._graph, self._before, self._prefix, self._count = graph, before, prefix, 0

    def __call__(
        self, op_type: str, *inputs: ir.Value | float | Sequence[int], **attributes: int
    ) -> ir.Value:
        taken = [v if isinstance(v, ir.Value) else self._constant(v) for v in inputs]
        plain = {key: int(value) for key, value in attributes.items()}
        node = ir.node(op_type, taken, plain)
        node.outputs[0].name = self._name()
        self._graph.insert_before(self._before, node)
        return node.outputs[0]

    def _constant(self, number: float | Sequence[int]) -> ir.Value:
        dtype = np.float32 if isinstance(number, float) else np.int64
        array = np.array(number, dtype)
        tensor = ir.tensor(array, name=self._name())
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value

    def _name(self) -> str:
        self._count += 1
        return f"{self._prefix}_{self._count}"


def _expand_attention_masks(graph: ir.Graph) -> None:
    """ONNX Runtime wants a row of the mask for every query, where the operator broadcasts one."""
    for node in list(graph):
        mask = node.inputs[3] if node.op_type == "Attention" and len(node.inputs) > 3 else None
        if mask is None:
            continue
        queries = int(_given(node.inputs[0]).shape[-2])  # type: ignore[index,arg-type]
        shape = [int(size) for size in mask.shape]  # type: ignore[union-attr,arg-type]
        if shape[-2] != queries:
            write = _Writer(graph, node, f"{node.outputs[0].name}_mask")
            expanded = write("Expand", mask, [*shape[:-2], queries, shape[-1]])
            node.replace_input_with(3, expanded)


def _graph_spec(spec: GraphSpec) -> GraphSpec:
    parts = tuple(
        PartSpec(p.file, p.layers, _float32_specs(p.inputs), _float32_specs(p.outputs))
        for p in spec.parts
    )
    return GraphSpec(_float32_specs(spec.inputs), _float32_specs(spec.outputs), parts)


def _float32_specs(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    return {
        name: replace(spec, type="float32") if spec.type in _WIDENED_NAMES else spec
        for name, spec in specs.items()
    }


def _producer(value: ir.Value | None) -> ir.Node:
    node = None if value is None else value.producer()
    assert node is not None, "the scales of NVFP4 blocks are dequantised by a node"
    return node


def _only_reader(value: ir.Value) -> ir.Node:
    (use,) = value.uses()
    return use.node


def _given(value: ir.Value | None) -> ir.Value:
    assert value is not None, "the input is there"
    return value


def _data(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None, "quantised weights are constants"
    return value.const_value
