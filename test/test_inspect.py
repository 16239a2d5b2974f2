"""What a bundle costs: counted by hand, by the contract's own arithmetic, and as it is printed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from bundles import Exported
from onnx import TensorProto, helper

from cosmos3_ros import cli
from cosmos3_ros.engine.bundle import load_bundle
from cosmos3_ros.engine.compile import compile_bundle, find_target
from cosmos3_ros.engine.graph_cost import (
    ATTENTION,
    CONVOLUTION,
    LINEAR,
    GraphCost,
    GraphCostError,
    graph_cost,
    model_cost,
)
from cosmos3_ros.estimate import plan_s, rates_of, run_s

GPU = "RTX PRO 6000 Blackwell"
BF16, FP8, FP4 = TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1


def weight(name: str, *dims: int, kind: int = TensorProto.FLOAT) -> onnx.TensorProto:
    """An initializer without its data, as an export declares it."""
    tensor = TensorProto(name=name, dims=dims, data_type=kind)
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "nowhere"
    return tensor


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, ...]],
    outputs: dict[str, tuple[int, ...] | None],
    weights: list[onnx.TensorProto],
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])


@pytest.mark.parametrize(
    ("node", "inputs", "weights", "kind", "flops"),
    [
        # 5 rows, 7 features to 11: 5 * 11 outputs of 7 products each.
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (5, 7), (7, 11), LINEAR, 2 * 5 * 11 * 7),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), (5, 7), (11, 7), LINEAR, 770),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), (7, 5), (7, 11), LINEAR, 770),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (3, 5, 7), (7, 11), LINEAR, 3 * 770),
        # 8 channels of 10x10 from 4, two groups of 2, by 3x3: 8 * 10 * 10 outputs of 2 * 9.
        (
            helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], group=2),
            (1, 4, 10, 10),
            (8, 2, 3, 3),
            CONVOLUTION,
            2 * 800 * 18,
        ),
    ],
)
def test_products_are_counted_as_by_hand(
    node: onnx.NodeProto,
    inputs: tuple[int, ...],
    weights: tuple[int, ...],
    kind: str,
    flops: int,
) -> None:
    cost = model_cost(model([node], {"x": inputs}, {"y": None}, [weight("w", *weights)]))
    assert dict(cost.flops) == {(kind, ""): flops}
    assert cost.operators == {node.op_type: 1}
    size = 4
    for dim in weights:
        size *= dim
    assert cost.weight_bytes == size


def test_attention_with_shared_keys_is_counted_by_its_queries() -> None:
    shapes = {"q": (1, 32, 10, 128), "k": (1, 8, 20, 128), "v": (1, 8, 20, 128)}
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"])
    cost = model_cost(model([node], shapes, {"y": (1, 32, 10, 128)}, []))
    assert dict(cost.flops) == {(ATTENTION, ""): 2 * 32 * 10 * 20 * (128 + 128)}


def quantised(kind: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["wide"], axis=0),
        helper.make_node("Cast", ["wide"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["x", "cast"], ["y"], transB=1),
    ]
    weights = [weight("w", 16, 32, kind=kind), weight("scale", 16)]
    return model(nodes, {"x": (4, 32)}, {"y": (4, 16)}, weights)


@pytest.mark.parametrize(("kind", "name", "size"), [(FP8, "fp8", 512), (FP4, "nvfp4", 256)])
def test_a_quantised_layer_is_told_by_its_weights(kind: int, name: str, size: int) -> None:
    cost = model_cost(quantised(kind))
    assert dict(cost.flops) == {(LINEAR, name): 2 * 4 * 16 * 32}
    assert cost.weight_bytes == size + 16 * 4


def test_a_graph_whose_shapes_are_unknown_is_refused_by_name(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["a", "b"], ["y"], name="mixing")
    path = tmp_path / "g.onnx"
    onnx.save(model([node], {"a": ("n", 4), "b": ("m", "k")}, {"y": None}, []), path)
    with pytest.raises(GraphCostError, match=r"g.onnx': node 'mixing' \(MatMul\) has tensors of"):
        graph_cost(path)


# The forward of Nano on DROID, from the contract's page: hidden 4096, 8 of 32 heads for keys,
# MLP 12288, 36 layers, 3093 tokens that attend to 512 of text and to each other.
LAYERS, TOKENS, TEXT, HIDDEN, KEYS, MLP = 36, 3093, 512, 4096, 1024, 12288
LINEARS = {
    "q": (HIDDEN, HIDDEN), "k": (KEYS, HIDDEN), "v": (KEYS, HIDDEN), "o": (HIDDEN, HIDDEN),
    "gate": (MLP, HIDDEN), "up": (MLP, HIDDEN), "down": (HIDDEN, MLP),
}  # fmt: skip


def nano_forward(kind: int) -> GraphCost:
    """Of all layers, counted on one of them; its weights are declared and nowhere."""
    nodes, weights, inputs = [], [], {}
    for name, dims in LINEARS.items():
        inputs[f"{name}_in"] = (TOKENS, dims[1])
        wide, weights = name, [*weights, weight(name, *dims, kind=kind)]
        if kind != BF16:
            wide = f"{name}_wide"
            nodes.append(helper.make_node("DequantizeLinear", [name, "scale"], [wide]))
        nodes.append(helper.make_node("Gemm", [f"{name}_in", wide], [f"{name}_out"], transB=1))
    inputs |= {
        "query": (1, 32, TOKENS, 128),
        "keys": (1, 8, TEXT + TOKENS, 128),
        "values": (1, 8, TEXT + TOKENS, 128),
    }
    nodes.append(helper.make_node("Attention", ["query", "keys", "values"], ["mixed"]))
    outputs = {f"{name}_out": (TOKENS, dims[0]) for name, dims in LINEARS.items()}
    outputs["mixed"] = (1, 32, TOKENS, 128)
    weights.append(weight("scale", 1, kind=BF16))
    one = model_cost(model(nodes, inputs, outputs, weights, BF16))
    return GraphCost(
        one.operators,
        LAYERS * one.weight_bytes,
        {key: LAYERS * count for key, count in one.flops.items()},
    )


def test_a_forward_of_nano_costs_what_the_contract_derives() -> None:
    cost = nano_forward(BF16)
    assert cost.of_kind(LINEAR) / 1e12 == pytest.approx(43, abs=0.5)
    # The page counts a caption of usual length; here the padded text is attended to whole.
    assert cost.of_kind(ATTENTION) / 1e12 == pytest.approx(6.3, abs=0.5)
    assert cost.weight_bytes / 2 == pytest.approx(6.95e9, rel=0.01)


@pytest.mark.parametrize(
    ("precision", "kind", "steps_ms"),
    [
        ("bf16", BF16, {(4, 8): 1346, (4, 5): 840, (2, 4): 679}),
        ("fp8", FP8, {(4, 8): 829, (4, 5): 520, (2, 4): 421}),
        ("nvfp4", FP4, {(4, 8): 588, (4, 5): 370, (2, 4): 300}),
    ],
)
def test_plans_of_nano_are_estimated_as_on_the_contracts_page(
    precision: str, kind: int, steps_ms: dict[tuple[int, int], float], tiny: Exported
) -> None:
    rates = rates_of(GPU)
    forward = run_s(nano_forward(kind), precision, rates)
    image = run_s(GraphCost({}, 0, {(CONVOLUTION, ""): int(1.9e12)}), precision, rates)
    assert forward is not None and image is not None
    usual = tiny.bundle.manifest.contract.sampler
    for (steps, forwards), expected in steps_ms.items():
        guided = tuple(step < forwards - steps for step in range(steps))
        sampler = replace(usual, steps=steps, guided=guided)
        assert sampler.forwards == forwards
        found = plan_s({"image": image, "denoise": forward, "step": 0.0}, sampler)
        assert found * 1e3 == pytest.approx(expected, rel=0.04)


def test_a_small_graph_takes_as_long_as_its_weights() -> None:
    rates = rates_of(GPU)
    cost = GraphCost({}, 1_790_000_000, {(LINEAR, ""): 10})
    assert run_s(cost, "bf16", rates) == pytest.approx(1e-3)
    assert run_s(cost, "fp32", rates) is None


def test_inspect_prints_the_bundle_its_graphs_and_an_estimate(
    tiny_fp8: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = load_bundle(
        shutil.copytree(
            tiny_fp8.bundle.path, tmp_path / "bundle", ignore=shutil.ignore_patterns("*.engine*")
        )
    )
    compile_bundle(bundle, find_target("tensorrt_rtx", "12.0"), ["step"])
    assert cli.main(["inspect", str(bundle.path), "--gpu", GPU.lower()]) == 0
    printed = capsys.readouterr().out
    for line in (
        "precision   fp8",
        "quantised   14 linear layers, ranges declared",
        "warning     activation ranges are declared",
        "forwards    8 a plan: step 0 at 999 conditional and unconditional; step 1 at",
        "denoise     denoise.onnx, layers 0 to 1: weights ",
        "linear in fp8 11.35 M",
        "engine for 12.0, tensorrt_rtx 1.",
        f"estimate    a plan on {GPU.lower()}: ",
        "for 8 forwards; not measured",
    ):
        assert line in printed, line
    assert printed.count("no engine") == 4 and printed.count(": fits") == 1

    with (bundle.path / "step.engine").open("ab") as engine:
        engine.write(b"more")
    assert cli.main(["inspect", str(bundle.path)]) == 0
    assert "DOES NOT FIT, step.engine has" in capsys.readouterr().out


def test_the_quantised_layers_of_the_tiny_model_are_counted_as_by_hand(
    tiny_fp8: Exported,
) -> None:
    cost = graph_cost(tiny_fp8.bundle.path / "denoise.onnx")
    # 77 tokens through two layers of q 64x64, k and v 32x64, o 64x64, and three of 128x64.
    assert cost.flops[LINEAR, "fp8"] == 2 * 77 * 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64)
    assert cost.of_kind(ATTENTION) == 2 * (2 * 4 * 77 * (640 + 77) * 32)


def test_float32_gets_no_estimate(tiny: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tiny.bundle.path)]) == 0
    assert f"estimate    none for fp32: no rate is known of it on {GPU}" in capsys.readouterr().out


def test_an_unknown_gpu_is_told_with_those_that_are_known(
    tiny: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(tiny.bundle.path), "--gpu", "Voodoo 2"]) == 1
    assert capsys.readouterr().err == (
        f"cosmos3 inspect: GPU 'Voodoo 2' is not known; expected one of: {GPU}\n"
    )
