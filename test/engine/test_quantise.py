"""FP8 and NVFP4: how far a weight may move, what stays put, and graphs that TensorRT-RTX builds."""

from __future__ import annotations

import logging
import warnings
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from cosmos3_ros.engine.quantise import (
    FORMATS,
    QuantiseError,
    fp8_weight,
    nvfp4_dequantised,
    nvfp4_weight,
    quantise,
)

BF16 = np.dtype(ml_dtypes.bfloat16)
# Magnitudes from the smallest normal float32 to far beyond any weight.
values = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
weights = arrays(
    np.float32, st.tuples(st.integers(1, 5), st.sampled_from([16, 48])), elements=values
)
ranges = {"q": 3.0, "k": 0.5, "o": 2.0}


class Layer(nn.Module):
    """Two linear layers that read one tensor, and one with a bias that reads another."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q = nn.Linear(width, 64, bias=False)
        self.k = nn.Linear(width, 64, bias=False)
        self.o = nn.Linear(64, width)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.nn.functional.silu(x.to(self.q.weight.dtype))
        return self.o(self.q(h) * self.k(h)).float()


@cache
def traced(dtype: torch.dtype, width: int) -> onnx.ModelProto:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            Layer(width).to(dtype).eval(),
            (torch.zeros(32, width),),
            dynamo=True,
            opset_version=23,
            input_names=["x"],
            output_names=["y"],
            verbose=False,
        )
    assert program is not None
    return ir.to_proto(program.model)


def exported(dtype: torch.dtype = torch.bfloat16, width: int = 64) -> ir.Model:
    return ir.from_proto(traced(dtype, width))


def quantised(format: str, path: Path) -> ir.Model:
    """A quantised graph with its weights, as the export writes it."""
    model = exported()
    stock = {name: data(model, f"{name}.weight").astype(np.float32) for name in ranges}
    converts = quantise(model, {f"{n}.weight": largest for n, largest in ranges.items()}, format)
    for name, convert in converts.items():
        for made, array in convert(stock[name.removesuffix(".weight")]).items():
            value = model.graph.initializers[made]
            tensor = ir.tensor(array, name=made)
            assert (tensor.dtype, tensor.shape) == (value.dtype, value.shape)
            value.const_value = tensor
    ir.save(model, path)
    return model


def data(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def restored_fp8(weight: np.ndarray) -> np.ndarray:
    quantised, scale = fp8_weight(weight, BF16)
    return quantised.astype(np.float32) * scale.astype(np.float32)[:, None]


@settings(deadline=None)
@given(weights)
def test_fp8_moves_a_weight_by_half_a_step_at_most(weight: np.ndarray) -> None:
    largest = np.abs(weight).max(1, keepdims=True)
    # Three bits of mantissa; below 2**-6 of the scale's unit steps are even. BF16 rounds the scale,
    # so that the largest may saturate by half of its eighth bit.
    bound = np.maximum(np.abs(weight) * (2**-4 + 2**-8), largest / 448 * 2**-9)
    assert (np.abs(restored_fp8(weight) - weight) <= bound * 1.01 + 1e-37).all()


@settings(deadline=None)
@given(weights)
def test_nvfp4_moves_a_weight_by_half_a_step_of_its_block_at_most(weight: np.ndarray) -> None:
    blocks = weight.reshape(len(weight), -1, 16)
    largest = np.abs(blocks).max(2, keepdims=True)
    restored = nvfp4_dequantised(*nvfp4_weight(weight)).reshape(blocks.shape)
    # A sixth of the block's largest is half of the widest step; E4M3 rounds the scale by a
    # sixteenth. A block far below the tensor's largest has the smallest scale there is.
    bound = np.maximum(largest * (1 / 6 + 1 / 16), np.abs(weight).max() / 448 * 2**-9)
    assert (np.abs(restored - blocks) <= bound * 1.01 + 1e-35).all()


@settings(deadline=None)
@given(weights)
def test_what_is_quantised_already_does_not_move_again(weight: np.ndarray) -> None:
    once = restored_fp8(weight)
    np.testing.assert_array_equal(restored_fp8(once), once)
    once = nvfp4_dequantised(*nvfp4_weight(weight))
    # The float32 scale is computed anew, and may differ in its last bit.
    np.testing.assert_allclose(nvfp4_dequantised(*nvfp4_weight(once)), once, rtol=1e-6)


def test_rounding_is_to_the_nearest_and_ties_go_to_even() -> None:
    # The largest makes a unit of 1: 448 in FP8, 6 in a block of FP4 with the largest block scale.
    ties = np.zeros((1, 16), np.float32)
    ties[0, :6] = [448, 17, 19, 34, 38, -17]
    assert restored_fp8(ties)[0, :6].tolist() == [448, 16, 20, 32, 40, -16]
    ties[0, :10] = np.array([6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.75, 5.1]) * 448
    restored = nvfp4_dequantised(*nvfp4_weight(ties))[0, :10] / 448
    assert restored.tolist() == [6, 0, 1, 1, 2, 2, 4, 4, -1, 6]


@pytest.mark.parametrize("zero", ["a row", "a block", "everything"])
def test_zeros_stay_zeros_and_nothing_becomes_nan(zero: str) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    hidden = {"a row": np.s_[1], "a block": np.s_[2, 16:], "everything": np.s_[:]}[zero]
    weight[hidden] = 0
    with np.errstate(divide="raise", invalid="raise"):
        both = restored_fp8(weight), nvfp4_dequantised(*nvfp4_weight(weight))
    for restored in both:
        assert np.isfinite(restored).all()
        assert (restored[hidden] == 0).all()


def test_what_exceeds_a_coarse_scale_saturates() -> None:
    # Two bits of mantissa round 1.1 down to 1: the largest is 1.1 * 448 then.
    weight = np.full((1, 16), 1.1 * 448, np.float32)
    quantised, scale = fp8_weight(weight, np.dtype(ml_dtypes.float8_e5m2))
    assert scale.astype(np.float32).tolist() == [1.0]
    assert (quantised.astype(np.float32) == 448).all()


def test_a_row_of_tiny_weights_keeps_its_precision_beside_a_large_one() -> None:
    weight = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    weight[1] *= 1e-6
    error = np.abs(restored_fp8(weight) - weight).max(1) / np.abs(weight).max(1)
    assert error[1] < 2**-4


@pytest.mark.parametrize("format", FORMATS)
def test_layers_that_read_one_tensor_share_its_scale_at_the_largest_range(
    format: str, tmp_path: Path
) -> None:
    model = quantised(format, tmp_path / "q.onnx")
    gemms = [node for node in model.graph if node.op_type == "Gemm"]
    assert len(gemms) == 3
    assert gemms[0].inputs[0] is gemms[1].inputs[0]
    assert gemms[0].inputs[0] is not gemms[2].inputs[0]
    entry = {"fp8": "QuantizeLinear", "nvfp4": "TRT_FP4DynamicQuantize"}[format]
    entries = [node for node in model.graph if node.op_type == entry]
    scales = sorted(float(data(model, str(node.inputs[1].name))) for node in entries)  # type: ignore[union-attr]
    unit = {"fp8": 448, "nvfp4": 6 * 448}[format]
    np.testing.assert_allclose(scales, [2.0 / unit, 3.0 / unit], rtol=2**-8)
    assert not any(name.endswith(".weight") for name in model.graph.initializers)


@pytest.mark.parametrize("format", FORMATS)
def test_a_quantised_graph_is_built_by_tensorrt_rtx(format: str, tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    quantised(format, tmp_path / "q.onnx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    found = parser.parse_from_file(str(tmp_path / "q.onnx"))
    assert found, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM120, 0)
    assert builder.build_serialized_network(network, config) is not None


def test_a_width_that_is_no_multiple_of_sixteen_is_refused_by_name() -> None:
    with pytest.raises(QuantiseError, match=r"'q.weight' is 50 wide; NVFP4 needs a multiple of 16"):
        quantise(exported(width=50), {"q.weight": 1.0}, "nvfp4")


@pytest.mark.parametrize(
    ("weight", "found"), [("o.bias", "input 2 of a Gemm"), ("v.weight", "read by nothing")]
)
def test_what_is_no_linear_layers_weight_is_refused_by_name(weight: str, found: str) -> None:
    with pytest.raises(QuantiseError, match=f"'{weight}' is {found}"):
        quantise(exported(), {weight: 1.0}, "fp8")


def test_fp16_is_refused() -> None:
    with pytest.raises(QuantiseError, match="'q.weight' is FLOAT16; expected BFLOAT16"):
        quantise(exported(torch.float16), {"q.weight": 1.0}, "fp8")


@pytest.mark.parametrize("largest", [float("nan"), float("inf"), -1.0])
def test_a_range_that_is_no_range_is_refused(largest: float) -> None:
    with pytest.raises(QuantiseError, match="the largest activation is"):
        quantise(exported(), {"q.weight": largest}, "fp8")


def test_a_refusal_leaves_the_graph_as_it_was() -> None:
    model = exported()
    before = [node.op_type for node in model.graph]
    with pytest.raises(QuantiseError):
        quantise(model, {"q.weight": 1.0, "nothing.weight": 1.0}, "fp8")
    assert [node.op_type for node in model.graph] == before
