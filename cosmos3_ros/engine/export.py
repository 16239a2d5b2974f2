"""From diffusers' modules to a bundle: five ONNX graphs, a tokenizer, and a manifest.

The modules are hollow: graphs are traced without weights, which are then streamed from the
checkpoint into the bundle one by one. Memory does not grow with the checkpoint.
"""

from __future__ import annotations

import fnmatch
import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import diffusers
import numpy as np
import onnx
import torch
from diffusers import UniPCMultistepScheduler
from diffusers.configuration_utils import FrozenDict
from diffusers.models.transformers.transformer_cosmos3 import Cosmos3VLTextRotaryEmbedding
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import _ACTION_RESOLUTION_BINS
from diffusers.video_processor import VideoProcessor
from torch import Tensor
from transformers import PreTrainedTokenizerBase

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
from cosmos3_ros.engine.export_folder import require_space, whole_folder
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
    GuidanceSchedule,
    Recipe,
    RecipeError,
    save_recipe,
)
from cosmos3_ros.engine.session import Contract, Prompting, Rope, Sampler

_MARK = "\x00caption\x00"
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


@dataclass(frozen=True)
class Body:
    """What an export needs of an embodiment; sizes are pixels of the composed picture."""

    name: str
    domain_id: int
    width: int
    state_row: bool
    rate_hz: float | None
    picture_width: int
    picture_height: int


def export(
    recipe: Recipe,
    body: Body,
    out: Path,
    checkpoint: Path | None = None,
    progress: Progress = _silent,
    calibration: Calibration | None = None,
) -> Bundle:
    """Write the bundle of a recipe to ``out`` and return it.

    The folder appears whole or not at all; an earlier bundle there is replaced at the end. Raises
    RecipeError where recipe, robot and checkpoint do not fit, FolderError where another export is
    writing this folder or the disk has too little room.
    """
    if out.exists() and not (out / MANIFEST).is_file():
        raise RecipeError(f"'{out}' exists and is no bundle; name another folder for the bundle")
    with whole_folder(out) as work:
        progress("model", 0, 0)
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
    return Bundle(out, manifest, file_sha256(out / MANIFEST))


def make_contract(recipe: Recipe, body: Body, components: Components) -> Contract:
    """The numbers of a bundle. Raises RecipeError where recipe, body and model do not fit."""
    config, vae = components.transformer.config, components.vae.config
    fps = recipe.fps or body.rate_hz
    if fps is None:
        raise RecipeError(
            f"recipe '{recipe.name}' has no fps and embodiment '{body.name}' no rate_hz; add one"
        )
    if body.width > config.action_dim:
        raise RecipeError(
            f"embodiment '{body.name}' has {body.width} channels, the model's action head "
            f"{config.action_dim}; expected no more"
        )
    if not 0 <= body.domain_id < config.num_embodiment_domains:
        raise RecipeError(
            f"embodiment '{body.name}' has domain {body.domain_id}; the model knows "
            f"0..{config.num_embodiment_domains - 1}"
        )
    if body.picture_width < vae.scale_factor_spatial or (
        body.picture_height < vae.scale_factor_spatial
    ):
        raise RecipeError(
            f"embodiment '{body.name}' has a {body.picture_width}x{body.picture_height} picture; "
            "give it cameras and a canvas before exporting for it"
        )
    canvas_height, canvas_width = _canvas(recipe, body, vae.scale_factor_spatial)
    scale = min(canvas_width / body.picture_width, canvas_height / body.picture_height, 1.0)
    content_height = max(1, int(scale * body.picture_height + 0.5))
    content_width = max(1, int(scale * body.picture_width + 0.5))
    return Contract(
        embodiment=body.name,
        domain_id=body.domain_id,
        width=body.width,
        action_dim=config.action_dim,
        chunk=recipe.chunk,
        state_row=body.state_row,
        fps=fps,
        canvas_height=canvas_height,
        canvas_width=canvas_width,
        content_height=content_height,
        content_width=content_width,
        latent_channels=vae.z_dim,
        latent_frames=recipe.chunk // vae.scale_factor_temporal + 1,
        latent_height=max(content_height // vae.scale_factor_spatial, 1),
        latent_width=max(content_width // vae.scale_factor_spatial, 1),
        patch=config.latent_patch_size,
        temporal_compression=vae.scale_factor_temporal,
        frame_latents=recipe.frame_latents,
        history=recipe.steps,
        prefix=recipe.prefix,
        rope=Rope(
            inverse_frequency=_inverse_frequency(config),
            axes_dim=tuple(config.rope_axes_dim),
            base_fps=float(config.base_fps),
            modulate_fps=bool(config.enable_fps_modulation),
            temporal_margin=int(config.unified_3d_mrope_temporal_modality_margin),
            reset_spatial=bool(config.unified_3d_mrope_reset_spatial_ids),
        ),
        prompting=make_prompting(components.tokenizer, recipe.text_tokens),
        sampler=make_sampler(
            components.scheduler,
            recipe.steps,
            recipe.shift,
            recipe.guidance,
            components.native_flow_schedule,
            recipe.guided,
        ),
    )


def _inverse_frequency(config: FrozenDict) -> tuple[float, ...]:
    """The stock module's own buffer: numpy's power differs from torch's in the last bit."""
    stock = Cosmos3VLTextRotaryEmbedding(config.head_dim, config.rope_theta, config.rope_axes_dim)
    return tuple(stock.inv_freq.tolist())


def make_prompting(tokenizer: PreTrainedTokenizerBase, text_tokens: int) -> Prompting:
    """The tokenizer's chat template, rendered around a caption once and for all.

    Raises RecipeError where the template changes the text it is given.
    """

    def render(content: str) -> str:
        conversation = [{"role": "user", "content": content}]
        rendered: str = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True
        )
        return rendered

    prefix, mark, suffix = render(_MARK).partition(_MARK)
    for probe in ("", '{"fps": 15.0} Touch it!'):
        if not mark or render(probe) != prefix + probe + suffix:
            raise RecipeError(
                "the tokenizer's chat template changes the text it is given; expected one that "
                "puts a fixed text before and after it"
            )
    padding = tokenizer.pad_token_id
    return Prompting(
        prefix=prefix,
        suffix=suffix,
        end_of_sequence_id=tokenizer.eos_token_id,
        start_of_generation_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        padding_id=tokenizer.eos_token_id if padding is None else padding,
        text_tokens=text_tokens,
    )


def make_sampler(
    scheduler: UniPCMultistepScheduler,
    steps: int,
    shift: float,
    guidance: float,
    native_flow_schedule: bool = False,
    guided: GuidanceSchedule | None = None,
) -> Sampler:
    """Read the sampler's table off a diffusers scheduler by feeding it unit vectors.

    The scheduler's configuration is used with ``shift``; its state is not touched. ``guided``: at
    which steps (None: every one). A guidance of 1 is none, at no step.
    """
    own = UniPCMultistepScheduler.from_config(scheduler.config, flow_shift=shift)
    if native_flow_schedule:
        last = 1.0 - 1.0 / own.config.num_train_timesteps
        own.set_timesteps(steps, sigmas=np.linspace(last, 0.0, steps + 1)[:-1])
    else:
        own.set_timesteps(steps)
    basis = torch.eye(1 + steps, dtype=torch.float64)
    sample, table = basis[:1], []
    for index, timestep in enumerate(own.timesteps):
        velocity = basis[1 + index : 2 + index]
        sample = own.step(velocity, timestep, sample, return_dict=False)[0]
        table.append(sample[0].tolist())
    timesteps = tuple(float(t) for t in own.timesteps)
    schedule = guided or GuidanceSchedule()
    return Sampler(
        steps=steps,
        shift=shift,
        guidance=guidance,
        guided=tuple(guidance != 1.0 and schedule.guides(k, t) for k, t in enumerate(timesteps)),
        timesteps=timesteps,
        start=tuple(row[0] for row in table),
        velocity=tuple(tuple(row[1 : 2 + k]) for k, row in enumerate(table)),
    )


def _canvas(recipe: Recipe, body: Body, multiple: int) -> tuple[int, int]:
    """Padded canvas (height, width) [px]: the recipe's own, or the tier's bin of nearest aspect."""
    if recipe.canvas is not None:
        width, height = recipe.canvas
        if width % multiple or height % multiple or min(width, height) <= 0:
            raise RecipeError(
                f"recipe '{recipe.name}': canvas is {width}x{height}; expected positive multiples "
                f"of {multiple}"
            )
        return height, width
    bins = _ACTION_RESOLUTION_BINS[str(recipe.tier)]
    height, width = VideoProcessor.classify_height_width_bin(
        body.picture_height, body.picture_width, ratios=bins
    )
    return int(height), int(width)


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
