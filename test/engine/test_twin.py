"""Float32 twins: the same graph and weights in types that a CPU runs."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from bundles import Exported
from onnx import TensorProto, helper

from cosmos3_ros.engine.backends import open_backend
from cosmos3_ros.engine.bundle import BundleError, TensorSpec, load_bundle
from cosmos3_ros.engine.parts import run_graph
from cosmos3_ros.engine.quantise import (
    E4M3_SMALLEST,
    nvfp4_dequantised,
    nvfp4_scale,
    nvfp4_weight,
    quantise,
)
from cosmos3_ros.engine.twin import float32_twin, twin_bundle, twin_bytes

ROWS, WIDTH = 8, 64


def linear(path: Path, weight: np.ndarray, dtype: int = TensorProto.BFLOAT16) -> Path:
    """x @ W.T in BF16, the weight in external data, as the export writes it."""
    numpy_type = helper.tensor_dtype_to_np_dtype(dtype)
    tensor = helper.make_tensor("w", dtype, weight.shape, weight.astype(numpy_type).tobytes(), True)
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=dtype),
        helper.make_node("Gemm", ["h", "w"], ["g"], transB=1),
        helper.make_node("Cast", ["g"], ["y"], to=TensorProto.FLOAT),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, (ROWS, len(weight)))]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (ROWS, WIDTH))],
        outputs,
        [tensor],
        value_info=[helper.make_tensor_value_info("h", dtype, (ROWS, WIDTH))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    ir.save(ir.from_proto(model), path, external_data=f"{path.name}.data", size_threshold_bytes=0)
    return path


def quantised_linear(path: Path, weight: np.ndarray, format: str, largest: float) -> Path:
    model = ir.load(linear(path, weight))
    (convert,) = quantise(model, {"w": largest}, format).values()
    for name, array in convert(weight).items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=0)
    return path


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def nvfp4_activation(x: np.ndarray, largest: float) -> np.ndarray:
    """What TRT_FP4DynamicQuantize makes of x, block by block."""
    scale = nvfp4_scale(largest)
    blocks = x.reshape(len(x), -1, 16)
    ratio = np.minimum(np.abs(blocks).max(2) / (6 * scale), 448)
    block_scale = np.maximum(ratio.astype(ml_dtypes.float8_e4m3fn), E4M3_SMALLEST)
    spread = (block_scale.astype(np.float32) * scale)[..., None]
    values = np.clip(blocks / spread, -6, 6).astype(ml_dtypes.float4_e2m1fn)
    return (values.astype(np.float32) * spread).reshape(x.shape)


@pytest.mark.parametrize("dtype", [TensorProto.BFLOAT16, TensorProto.FLOAT16])
def test_a_half_precision_graph_keeps_its_rounded_weights(dtype: int, tmp_path: Path) -> None:
    weight, x = random(32, WIDTH), random(ROWS, WIDTH)
    path = linear(tmp_path / "linear.onnx", weight, dtype)
    float32_twin(path, tmp_path / "twin.onnx")
    rounded = weight.astype(helper.tensor_dtype_to_np_dtype(dtype)).astype(np.float32)
    np.testing.assert_allclose(run(tmp_path / "twin.onnx", x), x @ rounded.T, atol=1e-4)
    assert np.abs(rounded - weight).max() > 1e-4


def test_fp8_weights_and_activations_are_rounded_as_on_the_device(tmp_path: Path) -> None:
    weight, x = random(32, WIDTH), random(ROWS, WIDTH)
    path = quantised_linear(tmp_path / "linear.onnx", weight, "fp8", 2.0)
    float32_twin(path, tmp_path / "twin.onnx")

    def e4m3(array: np.ndarray, scale: np.ndarray) -> np.ndarray:
        scale = scale.astype(ml_dtypes.bfloat16).astype(np.float32)
        clipped = np.clip(array / scale, -448, 448)
        return clipped.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale

    expected = e4m3(x, np.float32(2.0 / 448)) @ e4m3(weight, np.abs(weight).max(1)[:, None] / 448).T
    np.testing.assert_allclose(run(tmp_path / "twin.onnx", x), expected, atol=1e-4)
    # Beyond the range activations saturate.
    assert np.abs(x).max() > 2.0


@pytest.mark.parametrize("size", [1.0, 1e-3, 30.0])
def test_nvfp4_activations_get_a_scale_for_each_block(size: float, tmp_path: Path) -> None:
    weight, x = random(32, WIDTH), random(ROWS, WIDTH)
    x[:, 16:32] *= size
    x[0, :16] = 0
    path = quantised_linear(tmp_path / "linear.onnx", weight, "nvfp4", 3.0)
    float32_twin(path, tmp_path / "twin.onnx")
    expected = nvfp4_activation(x, 3.0) @ nvfp4_dequantised(*nvfp4_weight(weight)).T
    np.testing.assert_allclose(run(tmp_path / "twin.onnx", x), expected, atol=2e-4 * max(size, 1))


def test_the_size_of_a_twin_is_known_beforehand(tmp_path: Path) -> None:
    path = quantised_linear(tmp_path / "linear.onnx", random(256, WIDTH), "nvfp4", 3.0)
    float32_twin(path, tmp_path / "twin.onnx")
    written = (tmp_path / "twin.onnx.data").stat().st_size
    assert written <= twin_bytes(path) < written * 1.2


@pytest.mark.parametrize("precision", ["bf16", "fp8", "nvfp4"])
def test_a_twin_of_a_bundle_says_what_it_is_and_runs(
    precision: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    original: Exported = request.getfixturevalue(f"tiny_{precision}")
    with pytest.raises(BundleError, match=f"in {precision} on this CPU"):
        open_backend(original.bundle, "onnxruntime", 1)
    twin = twin_bundle(original.bundle, tmp_path / "twin")
    manifest = load_bundle(twin.path).manifest
    assert manifest.name == f"tiny_{precision} (float32 twin)"
    assert manifest.precision == "fp32"
    assert f"the float32 twin of 'tiny_{precision}'" in manifest.warnings[-1]
    assert manifest.quantisation == original.bundle.manifest.quantisation
    assert {spec.type for spec in tensors(manifest.graphs["denoise"].inputs)} == {
        "float32",
        "int64",
    }
    engine = open_backend(twin, "onnxruntime", 2)
    ids = np.arange(manifest.contract.prompting.text_tokens) % 256
    keys = run_graph(engine, manifest.graphs, "text", {"token_ids": ids})["keys"]
    assert np.isfinite(keys).all() and keys.std() > 0.1


def test_the_original_is_left_as_it_was(tiny_fp8: Exported, tmp_path: Path) -> None:
    before = load_bundle(tiny_fp8.bundle.path)
    twin_bundle(tiny_fp8.bundle, tmp_path / "twin")
    assert load_bundle(tiny_fp8.bundle.path) == before


def tensors(specs: object) -> list[TensorSpec]:
    assert isinstance(specs, dict)
    return list(specs.values())
