"""Exports: whole or not at all, and refused where recipe, checkpoint and robot do not fit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import yaml
from bundles import ENGINES, ROOT, TINY, Exported
from onnx import TensorProto

from cosmos3_ros.engine import export as exporting
from cosmos3_ros.engine.backends import open_backend
from cosmos3_ros.engine.bundle import BundleError, load_bundle
from cosmos3_ros.engine.export import Calibration, export
from cosmos3_ros.engine.export_folder import FolderError, whole_folder
from cosmos3_ros.engine.export_model import make_components, open_components
from cosmos3_ros.engine.export_onnx import Traced, write
from cosmos3_ros.engine.parts import run_graph
from cosmos3_ros.engine.recipe import (
    QuantisationRecipe,
    Recipe,
    RecipeError,
    load_recipe,
)
from cosmos3_ros.export_command import body_of
from cosmos3_ros.policy.embodiment import load_embodiment


class Interrupted(Exception):
    """Stands for whatever ends an export half way."""


def changed_recipe(folder: Path, **changes: object) -> Path:
    recipe = yaml.safe_load(TINY.read_text())
    recipe |= changes
    path = folder / f"{recipe['name']}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


@pytest.fixture
def text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the text graph alone, which take the least time."""
    every = exporting.graph_parts

    def some(*arguments: Any) -> dict[str, Any]:
        return {"text": every(*arguments)["text"]}

    monkeypatch.setattr(exporting, "graph_parts", some)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model written to disk in diffusers' layout."""
    folder = tmp_path_factory.mktemp("checkpoint")
    parts = make_components(load_recipe(TINY), None)
    parts.transformer.save_pretrained(folder / "transformer")
    parts.vae.save_pretrained(folder / "vae")
    parts.scheduler.save_pretrained(folder / "scheduler")
    parts.tokenizer.save_pretrained(folder / "text_tokenizer")
    return folder


def from_checkpoint(folder: Path, **changes: object) -> Path:
    model = yaml.safe_load(TINY.read_text())["model"] | {"tokenizer": "checkpoint"}
    del model["random_seed"]
    return changed_recipe(folder, **({"name": "kept", "model": model} | changes))


def test_a_checkpoint_gives_the_bundle_its_weights_would(
    checkpoint: Path, text_only: None, tiny: Exported, tmp_path: Path
) -> None:
    recipe = load_recipe(from_checkpoint(tmp_path))
    bundle = export(recipe, body_of(tiny.embodiment), tmp_path / "kept", checkpoint)
    assert bundle.manifest.source == checkpoint.name
    assert bundle.manifest.contract == tiny.bundle.manifest.contract
    ids = {"token_ids": np.arange(640) % 256}
    ours, expected = (
        run_graph(open_backend(b, "onnxruntime", 2), b.manifest.graphs, "text", ids)
        for b in (bundle, tiny.bundle)
    )
    assert np.abs(ours["keys"] - expected["keys"]).max() < 1e-6


@pytest.mark.parametrize("last_step", ["model", "manifest"])
def test_an_interrupted_export_leaves_nothing_and_keeps_the_earlier_bundle(
    last_step: str, text_only: None, tiny: Exported, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(tiny.bundle.path, tmp_path / "bundle"))

    def stop(step: str, written: int, size: int) -> None:
        if step == last_step:
            raise Interrupted

    with pytest.raises(Interrupted):
        export(tiny.recipe, body_of(tiny.embodiment), out, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert load_bundle(out).sha256 == tiny.bundle.sha256


def test_an_export_that_is_asked_to_stop_says_so_in_one_line_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "cosmos3_ros.cli", "export", str(TINY)]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "bundle")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TQDM_DISABLE": "1"},
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / ".bundle.partial").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)  # well within the export
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=180)
    finally:
        process.kill()
    assert errors.splitlines()[-1] == ("cosmos3 export: interrupted; nothing was left half written")
    assert not list(tmp_path.iterdir())
    # Where the interrupt hits code that is run from a string, as of a data class while torch is
    # imported, Python dies of the signal at its end, though the interrupt was dealt with.
    assert process.returncode in (1, -signal.SIGINT)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this machine")
def test_a_disk_that_fills_up_while_weights_are_written_leaves_nothing(
    text_only: None, tiny: Exported, tmp_path: Path
) -> None:
    def fill_up(step: str, written: int, size: int) -> None:
        data = tmp_path / ".bundle.partial" / "text.onnx.data"
        if step == "text.onnx" and not written:
            data.symlink_to("/dev/full")

    with pytest.raises(FolderError, match="disk full while writing '.*bundle'"):
        export(tiny.recipe, body_of(tiny.embodiment), tmp_path / "bundle", progress=fill_up)
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_told_before_a_weight_is_written(
    text_only: None, tiny: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    steps = []
    with pytest.raises(FolderError, match=r"0.0 GB are to be written .* has 0.0 GB free"):
        export(
            tiny.recipe,
            body_of(tiny.embodiment),
            tmp_path / "bundle",
            progress=lambda step, written, size: steps.append(step),
        )
    assert steps == ["model", "text"]
    assert not list(tmp_path.iterdir())


def test_a_second_export_into_one_folder_is_refused(tiny: Exported, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with whole_folder(out) as work:
        with pytest.raises(FolderError, match="bundle' is being written by another process"):
            export(tiny.recipe, body_of(tiny.embodiment), out)
        assert work.exists()


def test_progress_counts_every_byte_of_the_weights(
    text_only: None, tiny: Exported, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    export(
        tiny.recipe,
        body_of(tiny.embodiment),
        tmp_path / "bundle",
        progress=lambda *step: told.append(step),
    )
    size = (tmp_path / "bundle" / "text.onnx.data").stat().st_size
    counted = [(written, size_told) for step, written, size_told in told if step == "text.onnx"]
    assert counted[0] == (0, size) and counted[-1] == (size, size)
    assert [written for written, _ in counted] == sorted(written for written, _ in counted)


class ManyWeights:
    """A source of weights that makes each when it is asked for."""

    shapes: ClassVar = {f"weight_{index}": (256, 1024) for index in range(32)}

    def read(self, name: str) -> np.ndarray:
        return np.full((256, 1024), int(name.rpartition("_")[2]), np.float32)


def test_memory_holds_one_weight_at_a_time(tmp_path: Path) -> None:
    source = ManyWeights()
    given = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((1024,)))
    weights = [
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
        for name, shape in source.shapes.items()
    ]
    nodes = [ir.node("MatMul", [weight, given]) for weight in weights]
    total = ir.node("Sum", [node.outputs[0] for node in nodes])
    total.outputs[0].name, total.outputs[0].dtype = "y", ir.DataType.FLOAT
    total.outputs[0].shape = ir.Shape((256,))
    graph = ir.Graph(
        [given], total.outputs, nodes=[*nodes, total], opset_imports={"": 18}, name="many"
    )
    for weight in weights:
        graph.initializers[str(weight.name)] = weight
    traced = Traced("many.onnx", ir.Model(graph, ir_version=10), source, tuple(source.shapes), {})
    tracemalloc.start()
    try:
        write(traced, tmp_path, lambda written: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    one = 256 * 1024 * 4
    assert (tmp_path / "many.onnx.data").stat().st_size == 32 * one
    assert peak < 3 * one
    written = onnx.load(tmp_path / "many.onnx")
    last = onnx.numpy_helper.to_array(written.graph.initializer[-1])
    assert (last == 31).all()


def test_a_folder_that_is_no_bundle_is_not_replaced(tiny: Exported, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FolderError, match="exists and is no bundle"):
        export(tiny.recipe, body_of(tiny.embodiment), tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_a_recipe_of_the_released_model_asks_for_its_checkpoint(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "engines" / "nano_droid.yaml")
    body = body_of(load_embodiment(recipe.embodiment))
    with pytest.raises(RecipeError, match=r"'nano_droid' needs weights.*add --checkpoint DIR"):
        export(recipe, body, tmp_path / "nano")


def test_no_graph_says_on_which_machine_it_was_traced(tiny: Exported, pico: Exported) -> None:
    graphs = [g for of in (tiny, pico) for g in of.bundle.path.glob("*.onnx")]
    assert len(graphs) == 10
    for graph in graphs:
        written = graph.read_bytes()
        assert b"stack_trace" not in written and b".py" not in written, graph


def test_a_bundle_says_how_its_checkpoint_was_trained(
    checkpoint: Path, text_only: None, tiny: Exported, tmp_path: Path
) -> None:
    trained = tmp_path / "trained"
    shutil.copytree(checkpoint, trained)
    untold = {"seed": 0, "policy": {"steps": 5}}
    told = {"seed": 7, "policy": {"steps": 3}}
    recipe = replace(load_recipe(from_checkpoint(tmp_path)), training=untold)
    body = body_of(tiny.embodiment)
    for facts, training in ((None, untold), (json.dumps({"training": told}), told)):
        if facts is not None:
            (trained / "training.json").write_text(facts)
        bundle = export(recipe, body, tmp_path / "bundle", trained)
        assert load_recipe(bundle.path / "recipe.yaml").training == training
    for facts in ("cut of", "{}", '{"training": {}}', '{"training": []}'):
        (trained / "training.json").write_text(facts)
        with pytest.raises(RecipeError, match=r"training\.json' does not say how it was trained"):
            export(recipe, body, tmp_path / "bundle", trained)


def test_a_checkpoint_of_another_size_is_refused_by_value(checkpoint: Path, tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "engines" / "nano_droid.yaml")
    body = body_of(load_embodiment(recipe.embodiment))
    with pytest.raises(RecipeError, match="hidden_size is 64, expected 4096"):
        export(recipe, body, tmp_path / "nano", checkpoint)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("transformer", "model.transformer: .*'wings'; expected arguments of diffusers' Cosmos3"),
        ("vae", "model.vae: .*'wings'; expected arguments of diffusers' AutoencoderKLWan"),
        ("scheduler", "scheduler of recipe 'tiny' or its checkpoint: .*'wings'; expected keys of"),
    ],
)
def test_a_key_that_the_stock_classes_do_not_know_is_refused(
    part: str, message: str, tiny: Exported, tmp_path: Path
) -> None:
    config = {**getattr(tiny.recipe.model, part), "wings": 2}
    recipe = replace(tiny.recipe, model=replace(tiny.recipe.model, **{part: config}))
    with pytest.raises(RecipeError, match=message):
        export(recipe, body_of(tiny.embodiment), tmp_path / "out")


def test_a_folder_without_a_transformer_is_no_checkpoint(tiny: Exported, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no transformer/config.json; expected diffusers"):
        export(tiny.recipe, body_of(tiny.embodiment), tmp_path / "out", tmp_path)


def test_a_checkpoint_without_action_head_is_refused(
    checkpoint: Path, tiny: Exported, tmp_path: Path
) -> None:
    folder = tmp_path / "videoonly"
    for part in ("transformer", "vae"):
        (folder / part).mkdir(parents=True)
        config = json.loads((checkpoint / part / "config.json").read_text())
        (folder / part / "config.json").write_text(json.dumps(config | {"action_gen": False}))
    with pytest.raises(RecipeError, match="has no action head"):
        export(tiny.recipe, body_of(tiny.embodiment), tmp_path / "out", folder)


def initializers_of(path: Path) -> dict[str, onnx.TensorProto]:
    graph = onnx.load(path, load_external_data=False).graph
    return {tensor.name: tensor for tensor in graph.initializer}


def operators_of(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def test_weights_lie_outside_their_graph_under_their_stock_names(tiny: Exported) -> None:
    stock = open_components(tiny.recipe, None)
    names = {n for module in (stock.transformer, stock.vae) for n in module.state_dict()}
    for graph in ("text", "image", "denoise", "frame"):
        found = initializers_of(tiny.bundle.path / f"{graph}.onnx")
        weights = {name for name in found if name in names}
        assert weights
        assert all(found[n].data_location == TensorProto.EXTERNAL for n in weights)
        assert all(found[n].data_location != TensorProto.EXTERNAL for n in found.keys() - weights)
    assert not (tiny.bundle.path / "step.onnx.data").exists()


def test_bf16_graphs_are_made_and_refused_by_a_cpu_that_cannot_run_them(
    tiny_bf16: Exported,
) -> None:
    graphs = tiny_bf16.bundle.manifest.graphs
    assert graphs["text"].outputs["keys"].type == "bfloat16"
    assert graphs["denoise"].inputs["latents"].type == "float32"
    assert graphs["image"].outputs["latent"].type == "float32"
    assert graphs["frame"].outputs["frames"].type == "uint8"
    with pytest.raises(BundleError, match="cannot run text.onnx in bf16 on this CPU"):
        open_backend(tiny_bf16.bundle, "onnxruntime", 1)


def test_attention_is_an_operator_in_bf16_and_products_in_float32(
    tiny: Exported, tiny_bf16: Exported
) -> None:
    for graph, count in (("text", 1), ("denoise", 2)):  # the last text layer attends to nothing
        assert operators_of(tiny_bf16.bundle.path / f"{graph}.onnx").count("Attention") == count
        assert operators_of(tiny.bundle.path / f"{graph}.onnx").count("Attention") == 0
    for graph in ("image", "frame"):  # one head: TensorRT has no kernel for it
        assert "Attention" not in operators_of(tiny_bf16.bundle.path / f"{graph}.onnx")
    model = onnx.load(tiny_bf16.bundle.path / "denoise.onnx", load_external_data=False)
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in model.graph.value_info
    }
    attention = next(node for node in model.graph.node if node.op_type == "Attention")
    query, keys = shapes[attention.input[0]], shapes[attention.input[1]]
    assert (query[1], keys[1]) == (4, 2)  # keys are not repeated for the query heads


def test_every_weight_is_bf16_but_the_timestep_embedder(tiny_bf16: Exported) -> None:
    for graph in ("text", "image", "denoise", "frame"):
        found = initializers_of(tiny_bf16.bundle.path / f"{graph}.onnx")
        outside = {n: t for n, t in found.items() if t.data_location == TensorProto.EXTERNAL}
        high = {n for n, tensor in outside.items() if tensor.data_type == TensorProto.FLOAT}
        assert all(name.startswith("time_embedder.") for name in high)
        assert bool(high) == (graph == "denoise")
        others = {tensor.data_type for n, tensor in outside.items() if n not in high}
        assert others == {TensorProto.BFLOAT16}


def test_fp8_quantises_the_layers_of_the_generation_tower_alone(tiny_fp8: Exported) -> None:
    manifest = tiny_fp8.bundle.manifest
    denoise = initializers_of(tiny_fp8.bundle.path / "denoise.onnx")
    fp8 = [
        tensor
        for tensor in denoise.values()
        if tensor.data_type == TensorProto.FLOAT8E4M3FN
        and tensor.data_location == TensorProto.EXTERNAL
    ]
    assert len(fp8) == 2 * 7
    assert all("layers." in t.name and ("add_" in t.name or "_moe_gen" in t.name) for t in fp8)
    assert denoise["proj_in.weight"].data_type == TensorProto.BFLOAT16
    text = initializers_of(tiny_fp8.bundle.path / "text.onnx")
    assert TensorProto.FLOAT8E4M3FN not in {tensor.data_type for tensor in text.values()}
    assert manifest.quantisation is not None
    assert (manifest.quantisation.ranges, manifest.quantisation.layers) == ("declared", 14)
    assert manifest.quantisation.source == "recipe 'tiny_fp8'"
    assert "not calibrated" in manifest.warnings[0]


def ranges_of(recipe: Recipe, calibration: Calibration | None = None) -> Any:
    return exporting._ranges(recipe, open_components(recipe, None), calibration)


FP8 = load_recipe(ENGINES / "tiny_fp8.yaml")


def test_what_the_recipe_keeps_stays_high() -> None:
    keep = ("layers.0.*", "*.to_add_out.weight")
    recipe = replace(FP8, quantisation=replace(FP8.quantisation, keep=keep))
    ranges, record, _ = ranges_of(recipe)
    assert sorted(record.kept) == sorted(
        [f"layers.0.self_attn.{n}.weight" for n in ("add_q_proj", "add_k_proj", "add_v_proj")]
        + [f"layers.0.mlp_moe_gen.{n}_proj.weight" for n in ("gate", "up", "down")]
        + [f"layers.{i}.self_attn.to_add_out.weight" for i in (0, 1)]
    )
    assert record.layers == len(ranges) == 6
    assert all(name.startswith("layers.1.") for name in ranges)


def test_a_calibration_gives_each_layer_its_own_range_and_is_recorded() -> None:
    seen = {name: float(index) for index, name in enumerate(ranges_of(FP8)[0], 1)}
    other = {"layers.0.self_attn.to_q.weight": 9.0}
    ranges, record, warnings = ranges_of(FP8, Calibration("drive.bag", 12, seen | other))
    assert ranges == seen
    assert (record.ranges, record.source, record.observations) == ("calibrated", "drive.bag", 12)
    assert warnings == ()


@pytest.mark.parametrize(
    ("recipe", "calibration", "message"),
    [
        (
            replace(FP8, quantisation=QuantisationRecipe()),
            None,
            "is fp8 and has no ranges; add --calibrate BAG, or declare quantisation.ranges",
        ),
        (
            replace(FP8, quantisation=replace(FP8.quantisation, keep=("layer.0.*",))),
            None,
            r"quantisation.keep 'layer.0.\*' matches no layer; expected a pattern over names such",
        ),
        (
            FP8,
            Calibration("drive.bag", 1, {}),
            "the calibration on 'drive.bag' has no range for 'layers.0",
        ),
        (
            load_recipe(TINY),
            Calibration("drive.bag", 1, {}),
            "'tiny' is fp32: nothing is calibrated; expected precision fp8 or nvfp4",
        ),
    ],
)
def test_ranges_that_do_not_fit_are_refused(
    recipe: Recipe, calibration: Calibration | None, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        ranges_of(recipe, calibration)


def test_a_weight_that_fp16_cannot_hold_is_refused_by_name(
    text_only: None, tiny: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(tiny.recipe, precision="fp16", opset=23)
    components = open_components(recipe, None)
    components.transformer_weights._tensors["layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    monkeypatch.setattr(exporting, "open_components", lambda *_: components)
    with pytest.raises(RecipeError, match="'layers.0.mlp.up_proj.weight' has values beyond"):
        export(recipe, body_of(tiny.embodiment), tmp_path / "bundle")
    components.transformer_weights._tensors["layers.0.mlp.up_proj.weight"][0, 0] = 1.0
    bundle = export(recipe, body_of(tiny.embodiment), tmp_path / "bundle")
    assert bundle.manifest.graphs["text"].outputs["keys"].type == "float16"
    types = {t.data_type for t in initializers_of(bundle.path / "text.onnx").values()}
    assert TensorProto.FLOAT16 in types and TensorProto.BFLOAT16 not in types


def test_several_parts_compute_what_one_does(tiny: Exported, tiny_in_parts: Exported) -> None:
    rng = np.random.default_rng(0)
    for graph in ("text", "denoise"):
        spec = tiny.bundle.manifest.graphs[graph]
        feeds = {
            name: rng.integers(0, 20, tensor.shape)
            if tensor.type == "int64"
            else rng.standard_normal(tensor.shape, np.float32)
            for name, tensor in spec.inputs.items()
        }
        one, several = (
            run_graph(
                open_backend(e.bundle, "onnxruntime", 2), e.bundle.manifest.graphs, graph, feeds
            )
            for e in (tiny, tiny_in_parts)
        )
        for name in spec.outputs:
            assert np.abs(one[name] - several[name]).max() < 2e-6 * max(1, np.abs(one[name]).max())


def test_a_part_holds_its_own_layers_and_hands_on_hidden_states(
    tiny: Exported, tiny_in_parts: Exported
) -> None:
    graphs = tiny_in_parts.bundle.manifest.graphs
    for name, spec in graphs.items():
        assert spec.inputs == tiny.bundle.manifest.graphs[name].inputs
        assert spec.outputs == tiny.bundle.manifest.graphs[name].outputs
    text, denoise = graphs["text"].parts, graphs["denoise"].parts
    assert [part.file for part in text] == ["text.0.onnx", "text.1.onnx"]
    assert [part.layers for part in denoise] == [(0, 1), (1, 2)]
    assert list(text[0].inputs) == ["token_ids"] and list(text[1].inputs) == ["hidden_1"]
    assert list(text[0].outputs) == ["keys", "values", "hidden_1"]
    assert list(text[1].outputs) == ["keys", "values"]
    assert denoise[1].inputs["keys"].shape[0] == 1
    assert list(denoise[0].outputs) == ["hidden_1"]
    assert "latents" not in denoise[1].inputs and "timestep" not in denoise[1].inputs
    held = [set(initializers_of(tiny_in_parts.bundle.path / p.file)) for p in (*text, *denoise)]
    stock = set(open_components(tiny.recipe, None).transformer.state_dict())
    for first, second in ((held[0], held[1]), (held[2], held[3])):
        assert not first & second & stock
        assert not any(name.startswith("layers.1.") for name in first)
        assert not any(name.startswith("layers.0.") for name in second)
    # Keys and values are all that is read of the last layer.
    last = {name for name in held[1] if name.startswith("layers.1.")}
    assert {name.split(".")[2] for name in last} == {"self_attn", "input_layernorm"}
    assert not any("to_q" in name or "to_out" in name for name in last)


def test_the_manifest_lists_the_forwards_of_a_plan(tiny: Exported) -> None:
    manifest = tiny.bundle.manifest
    timesteps = manifest.contract.sampler.timesteps
    assert manifest.contract.history == 4
    assert manifest.forwards == tuple(
        (step, timesteps[step], branch)
        for step in range(4)
        for branch in ("conditional", "unconditional")
    )
