"""From diffusers' modules to a bundle: five ONNX graphs, a tokenizer, and a manifest.

The modules are hollow: graphs are traced without weights, which are then streamed from the
checkpoint into the bundle one by one. Memory does not grow with the checkpoint.
"""

from __future__ import annotations

import fnmatch
import gc
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import diffusers
import onnx
import torch
from torch import Tensor

from cosmos3_ros.engine.bundle import (
    FORMAT_VERSION,
    MANIFEST,
    TOKENIZER,
    Bundle,
    GraphSpec,
    Manifest,
    PartSpec,
    Quantisation,
    TensorSpec,
    file_sha256,
    write_manifest,
)
from cosmos3_ros.engine.export_checkpoint import FACTS
from cosmos3_ros.engine.export_contract import Body, make_contract
from cosmos3_ros.engine.export_folder import bundle_folder, require_space
from cosmos3_ros.engine.export_graphs import (
    DenoiseGraph,
    FrameGraph,
    Graph,
    ImageGraph,
    StepGraph,
    TextGraph,
    hidden,
)
from cosmos3_ros.engine.export_model import DTYPES, Components, open_components
from cosmos3_ros.engine.export_onnx import Traced, trace, write
from cosmos3_ros.engine.quantise import quantise
from cosmos3_ros.engine.recipe import (
    QUANTISED,
    RECIPE,
    Recipe,
    RecipeError,
    save_recipe,
)
from cosmos3_ros.engine.session import Contract, Sampler

# The layers that are quantised, by the end of their name, and the kind of their range.
_QUANTISABLE = {
    "self_attn.add_q_proj.weight": "attention_in",
    "self_attn.add_k_proj.weight": "attention_in",
    "self_attn.add_v_proj.weight": "attention_in",
    "self_attn.to_add_out.weight": "attention_out",
    "mlp_moe_gen.gate_proj.weight": "mlp_in",
    "mlp_moe_gen.up_proj.weight": "mlp_in",
    "mlp_moe_gen.down_proj.weight": "mlp_down",
}


@dataclass(frozen=True)
class Calibration:
    """The largest absolute activation at the input of a layer, by the name of its weight.

    Seen over ``observations`` observations of ``source``.
    """

    source: str
    observations: int
    ranges: Mapping[str, float]


class Progress(Protocol):
    """Told before each step, and after each tensor: the bytes written, and those to be written.

    The bytes to be written are 0 until they are known.
    """

    def __call__(self, step: str, written: int, size: int) -> None: ...


def _silent(step: str, written: int, size: int) -> None:
    pass


def export(
    recipe: Recipe,
    body: Body,
    out: Path,
    checkpoint: Path | None = None,
    progress: Progress = _silent,
    calibration: Calibration | None = None,
) -> Bundle:
    """Write the bundle of a recipe to ``out`` and return it.

    The folder appears whole or not at all; an earlier bundle there is replaced at the end, what
    else lies beside it stays. Raises RecipeError where recipe, robot and checkpoint do not fit,
    FolderError where the folder is no bundle's, another export is writing it, or the disk has too
    little room.
    """
    written_to = out.resolve()  # the folder one stands in is another afterwards
    with bundle_folder(out) as work:
        progress("model", 0, 0)
        recipe = _as_trained(recipe, checkpoint)
        components = open_components(recipe, checkpoint)
        contract = make_contract(recipe, body, components)
        ranges, quantisation, warnings = _ranges(recipe, components, calibration)
        graphs: dict[str, GraphSpec] = {}
        parts: list[Traced] = []
        for name, stretches in graph_parts(components, contract, recipe).items():
            progress(name, 0, 0)
            traced = [_traced(name, part, components, recipe, ranges) for part in stretches]
            graphs[name] = _graph_spec(traced, stretches)
            parts += traced
        _write_parts(parts, work, progress)
        progress("manifest", 0, 0)
        components.tokenizer.backend_tokenizer.save(str(work / TOKENIZER))
        save_recipe(recipe, work / RECIPE)
        written = sorted(p for p in work.iterdir() if not p.name.startswith("."))
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=recipe.name,
            source=components.source,
            source_sha256=components.source_sha256,
            precision=recipe.precision,
            quantisation=quantisation,
            warnings=warnings,
            forwards=_forwards(contract.sampler),
            contract=contract,
            graphs=graphs,
            files={path.name: file_sha256(path) for path in written},
            tools={
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "onnx": onnx.__version__,
            },
        )
        write_manifest(work, manifest)
    return Bundle(out, manifest, file_sha256(written_to / MANIFEST))


def _as_trained(recipe: Recipe, checkpoint: Path | None) -> Recipe:
    """With what ``cosmos3 train`` says its checkpoint was trained with, if that is another."""
    facts = None if checkpoint is None else checkpoint / FACTS
    if facts is None or not recipe.training or not facts.is_file():
        return recipe
    try:
        training = json.loads(facts.read_text())["training"]
        training["seed"]  # no scene of that seed is evaluated
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"'{facts}' does not say how it was trained ({error!r}); expected it as "
            "'cosmos3 train' writes it: train again in another folder, or remove the file"
        ) from error
    return replace(recipe, training=training)


def _forwards(sampler: Sampler) -> tuple[tuple[int, float, str], ...]:
    return tuple(
        (step, timestep, branch)
        for step, timestep in enumerate(sampler.timesteps)
        for branch in sampler.branches(step)
    )


@dataclass(frozen=True)
class Part:
    """A stretch of a graph's layers (first, last + 1) as a module, and examples by name."""

    file: str
    module: Graph
    layers: tuple[int, int]
    examples: Mapping[str, Tensor]

    @property
    def taken(self) -> tuple[Tensor, ...]:
        """An example of each of the module's inputs, in their order."""
        return tuple(self.examples[name] for name in self.module.inputs)


def graph_parts(
    components: Components, contract: Contract, recipe: Recipe
) -> dict[str, list[Part]]:
    """The parts of every graph, by graph, in the order they run."""
    transformer, vae, c = components.transformer, components.vae, contract
    config = transformer.config
    layers = config.num_hidden_layers
    dtype = DTYPES[recipe.precision]
    text_tokens = c.prompting.text_tokens
    text_shape = (config.num_key_value_heads, text_tokens, config.head_dim)
    history = (c.history, *c.latent_shape[1:])
    row_shape = (c.rows, c.action_dim)
    clean_shape = (1, c.latent_channels, 1, c.latent_height, c.latent_width)
    text = {
        "token_ids": torch.zeros(text_tokens, dtype=torch.int64),
    }
    denoise = {
        "latents": torch.zeros(c.latent_shape),
        "rows": torch.zeros(row_shape),
        "noisy_rows": torch.ones(c.rows, 1),
        "timestep": torch.zeros(1),
        "cos": torch.zeros(c.tokens, config.head_dim),
        "sin": torch.zeros(c.tokens, config.head_dim),
        "text_bias": torch.zeros(text_tokens),
        "domain_id": torch.tensor([c.domain_id]),
    }
    step = {
        "start_latents": torch.zeros(c.latent_shape),
        "start_rows": torch.zeros(row_shape),
        "latent_history": torch.zeros(history),
        "row_history": torch.zeros(c.history, *row_shape),
        "conditional_latent": torch.zeros(c.latent_shape),
        "unconditional_latent": torch.zeros(c.latent_shape),
        "conditional_row": torch.zeros(row_shape),
        "unconditional_row": torch.zeros(row_shape),
        "guidance": torch.zeros(1),
        "place": torch.zeros(c.history),
        "coefficients": torch.zeros(1 + c.history),
        "clean_latent": torch.zeros(clean_shape),
        "clean_rows": torch.zeros(row_shape),
        "noisy_rows": torch.ones(c.rows, 1),
        "held_rows": torch.zeros(c.rows, 1),
    }

    def of_stretch(tokens: int, first: int, last: int) -> dict[str, Tensor]:
        # Each a tensor of its own: what is one tensor in the examples is one input in the graph.
        return {
            "keys": torch.zeros(last - first, *text_shape, dtype=dtype),
            "values": torch.zeros(last - first, *text_shape, dtype=dtype),
            hidden(first): torch.zeros(tokens, config.hidden_size, dtype=dtype),
        }

    def whole(name: str, module: Graph, inputs: dict[str, Tensor]) -> list[Part]:
        return [Part(f"{name}.onnx", module, (0, layers), inputs)]

    return {
        "text": [
            Part(
                file,
                TextGraph(transformer, text_tokens, stretch),
                stretch,
                text | of_stretch(text_tokens, *stretch),
            )
            for file, stretch in _stretches("text", layers, recipe)
        ],
        "image": whole(
            "image",
            ImageGraph(vae, c),
            {"canvas": torch.zeros(c.canvas_height, c.canvas_width, 3, dtype=torch.uint8)},
        ),
        "denoise": [
            Part(
                file,
                DenoiseGraph(transformer, c, stretch),
                stretch,
                denoise | of_stretch(c.tokens, *stretch),
            )
            for file, stretch in _stretches("denoise", layers, recipe)
        ],
        "step": whole("step", StepGraph(c), step),
        "frame": whole(
            "frame",
            FrameGraph(vae, c),
            {"latents": torch.zeros(c.latent_shape)[:, :, : c.frame_latents]},
        ),
    }


def _stretches(graph: str, layers: int, recipe: Recipe) -> Iterator[tuple[str, tuple[int, int]]]:
    """File and layers (first, last + 1) of a graph's parts."""
    count = recipe.layers_per_part.get(graph, layers)
    for index, first in enumerate(range(0, layers, count)):
        file = f"{graph}.{index}.onnx" if count < layers else f"{graph}.onnx"
        yield file, (first, min(first + count, layers))


def _traced(
    graph: str,
    part: Part,
    components: Components,
    recipe: Recipe,
    ranges: Mapping[str, float],
) -> Traced:
    """A part whose weights are declared, quantised where the recipe says so."""
    of_vae = graph in ("image", "frame")
    stock = components.vae if of_vae else components.transformer
    names = {id(parameter): name for name, parameter in stock.named_parameters()}
    model = trace(part.module, part.taken, names, recipe.opset)
    declared = {n for n, v in model.graph.initializers.items() if v.const_value is None}
    converts = {}
    if graph == "denoise" and ranges:
        held = {name: largest for name, largest in ranges.items() if name in declared}
        converts = quantise(model, held, recipe.precision)
    gc.collect()  # a traced program refers to itself, and holds hundreds of megabytes
    return Traced(
        part.file,
        model,
        components.vae_weights if of_vae else components.transformer_weights,
        tuple(name for name in stock.state_dict() if name in declared - converts.keys()),
        converts,
    )


def _graph_spec(traced: list[Traced], parts: list[Part]) -> GraphSpec:
    """The whole graph's tensors: those of its parts, but what they hand to one another.

    Keys and values are stacked over the parts.
    """
    specs = tuple(
        PartSpec(one.file, part.layers, one.inputs, one.outputs)
        for one, part in zip(traced, parts, strict=True)
    )
    layers = specs[-1].layers[1]
    handed = {hidden(part.layers[1]) for part in specs}

    def joined(tensors: list[Mapping[str, TensorSpec]]) -> dict[str, TensorSpec]:
        found: dict[str, TensorSpec] = {}
        for name, spec in (item for part in tensors for item in part.items()):
            if name in ("keys", "values"):
                found[name] = replace(spec, shape=(layers, *spec.shape[1:]))
            elif name not in handed:
                found[name] = spec
        return found

    return GraphSpec(
        joined([part.inputs for part in specs]), joined([part.outputs for part in specs]), specs
    )


def _write_parts(parts: list[Traced], work: Path, progress: Progress) -> None:
    size = sum(part.bytes for part in parts)
    require_space(work, size)
    written = 0
    for part in parts:

        def count(done: int, file: str = part.file) -> None:
            nonlocal written
            written += done
            progress(file, written, size)

        progress(part.file, written, size)
        write(part, work, count)


def _ranges(
    recipe: Recipe, components: Components, calibration: Calibration | None
) -> tuple[dict[str, float], Quantisation | None, tuple[str, ...]]:
    """Largest activations by weight, how that is recorded, and what a user has to be warned of."""
    if recipe.precision not in QUANTISED:
        if calibration is not None:
            raise RecipeError(
                f"recipe '{recipe.name}' is {recipe.precision}: nothing is calibrated; expected "
                f"precision {' or '.join(QUANTISED)}"
            )
        return {}, None, ()
    kinds = {
        name: kind
        for name in components.transformer_weights.shapes
        for end, kind in _QUANTISABLE.items()
        if name.endswith(end)
    }
    kept = [n for n in kinds if any(fnmatch.fnmatch(n, p) for p in recipe.quantisation.keep)]
    quantised = {name: kind for name, kind in kinds.items() if name not in kept}
    _require_keep(recipe, kinds)
    if calibration is not None:
        missing = [name for name in quantised if name not in calibration.ranges]
        if missing:
            raise RecipeError(
                f"the calibration on '{calibration.source}' has no range for '{missing[0]}'; "
                "calibrate with this recipe and this checkpoint"
            )
        ranges = {name: calibration.ranges[name] for name in quantised}
        source, observations = calibration.source, calibration.observations
        warnings: tuple[str, ...] = ()
    else:
        declared = recipe.quantisation.ranges
        if not declared:
            raise RecipeError(
                f"recipe '{recipe.name}' is {recipe.precision} and has no ranges; add --calibrate "
                "BAG, or declare quantisation.ranges"
            )
        ranges = {name: declared[kind] for name, kind in quantised.items()}
        source, observations = f"recipe '{recipe.name}'", 0
        warnings = (
            "activation ranges are declared by the recipe, not calibrated: export with "
            "--calibrate BAG before this bundle moves a robot",
        )
    how = "declared" if calibration is None else "calibrated"
    record = Quantisation(how, source, observations, len(quantised), tuple(kept))
    return ranges, record, warnings


def _require_keep(recipe: Recipe, quantisable: Mapping[str, str]) -> None:
    """A pattern that matches nothing is a typing error, and would quantise what it names."""
    for pattern in recipe.quantisation.keep:
        if not fnmatch.filter(quantisable, pattern):
            raise RecipeError(
                f"recipe '{recipe.name}': quantisation.keep '{pattern}' matches no layer; "
                f"expected a pattern over names such as '{next(iter(quantisable))}'"
            )
