"""From diffusers' modules to a bundle: four ONNX graphs, a tokenizer, and a manifest."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import onnx
import torch
from diffusers import UniPCMultistepScheduler
from diffusers.configuration_utils import FrozenDict
from diffusers.models.transformers.transformer_cosmos3 import Cosmos3VLTextRotaryEmbedding
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import _ACTION_RESOLUTION_BINS
from diffusers.video_processor import VideoProcessor
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from cosmos3_ros.engine.bundle import (
    FORMAT_VERSION,
    TOKENIZER,
    Bundle,
    GraphSpec,
    Manifest,
    TensorSpec,
    file_sha256,
    load_bundle,
    write_manifest,
)
from cosmos3_ros.engine.export_graphs import DenoiseGraph, FrameGraph, ImageGraph, TextGraph
from cosmos3_ros.engine.export_model import Components, make_components
from cosmos3_ros.engine.recipe import Recipe, RecipeError
from cosmos3_ros.engine.session import Contract, Prompting, Rope, Sampler

_MARK = "\x00caption\x00"
_EXTERNAL_DATA_BYTES = 1_500_000_000


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
    progress: Callable[[str], None] = lambda step: None,
) -> Bundle:
    """Write the bundle of a recipe to ``out`` and return it.

    The folder appears whole or not at all; an earlier bundle there is replaced at the end.
    ``progress`` is called with a word before each step. Raises RecipeError, and OSError where
    ``out`` cannot be written or holds something that is no bundle.
    """
    if out.exists() and not (out / "manifest.json").is_file():
        raise RecipeError(f"'{out}' exists and is no bundle; name another folder for the bundle")
    progress("model")
    components = make_components(recipe, checkpoint)
    contract = make_contract(recipe, body, components)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        graphs = {}
        for name, (module, inputs, outputs) in _graphs(components, contract, recipe).items():
            progress(name)
            graphs[name] = _write_graph(work, name, module, inputs, outputs, recipe.opset)
        progress("manifest")
        components.tokenizer.backend_tokenizer.save(str(work / TOKENIZER))
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=recipe.name,
            source=components.source,
            source_sha256=components.source_sha256,
            precision=recipe.precision,
            contract=contract,
            graphs=graphs,
            files={p.name: file_sha256(p) for p in sorted(work.iterdir())},
            tools={
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "onnx": onnx.__version__,
            },
        )
        write_manifest(work, manifest)
        work.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        work.rename(out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return load_bundle(out)


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
) -> Sampler:
    """Read the sampler's table off a diffusers scheduler by feeding it unit vectors.

    The scheduler's configuration is used with ``shift``; its state is not touched.
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
    return Sampler(
        steps=steps,
        shift=shift,
        guidance=guidance,
        timesteps=tuple(float(t) for t in own.timesteps),
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


_Graph = tuple[nn.Module, dict[str, Tensor], list[str]]


def _graphs(components: Components, contract: Contract, recipe: Recipe) -> dict[str, _Graph]:
    """Module, example inputs and output names of every graph."""
    transformer, vae, c = components.transformer, components.vae, contract
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[recipe.precision]
    for name, parameter in transformer.named_parameters():
        if not name.startswith("time_embedder."):  # kept in float32, as the stock model does
            parameter.data = parameter.data.to(dtype)
    config = transformer.config
    text_shape = (
        config.num_hidden_layers,
        config.num_key_value_heads,
        c.prompting.text_tokens,
        config.head_dim,
    )
    denoise_inputs = {
        "latents": torch.randn(c.latent_shape),
        "rows": torch.randn(c.rows, c.action_dim),
        "noisy_rows": torch.ones(c.rows, 1),
        "timestep": torch.tensor([500.0]),
        "cos": torch.randn(c.tokens, config.head_dim),
        "sin": torch.randn(c.tokens, config.head_dim),
        "keys": torch.randn(text_shape).to(dtype),
        "values": torch.randn(text_shape).to(dtype),
        "text_bias": torch.zeros(c.prompting.text_tokens),
        "domain_id": torch.tensor([c.domain_id]),
    }
    token_ids = torch.zeros(c.prompting.text_tokens, dtype=torch.int64)
    canvas = torch.zeros(c.canvas_height, c.canvas_width, 3, dtype=torch.uint8)
    first_latents = torch.randn(c.latent_shape)[:, :, : c.frame_latents]
    return {
        "text": (
            TextGraph(transformer, c.prompting.text_tokens),
            {"token_ids": token_ids},
            ["keys", "values"],
        ),
        "image": (ImageGraph(vae, c), {"canvas": canvas}, ["latent"]),
        "denoise": (
            DenoiseGraph(transformer, c),
            denoise_inputs,
            ["latent_velocity", "row_velocity"],
        ),
        "frame": (FrameGraph(vae, c), {"latents": first_latents}, ["frames"]),
    }


def _write_graph(
    folder: Path,
    name: str,
    module: nn.Module,
    inputs: dict[str, Tensor],
    outputs: list[str],
    opset: int,
) -> GraphSpec:
    path = folder / f"{name}.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=outputs,
            verbose=False,
        )
    assert program is not None, "dynamo=True returns a program"
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    program.save(str(path), external_data=weights > _EXTERNAL_DATA_BYTES)
    onnx.checker.check_model(str(path))
    graph = onnx.load(str(path), load_external_data=False).graph
    spec = GraphSpec(path.name, _specs(graph.input), _specs(graph.output))
    if list(spec.inputs) != list(inputs) or list(spec.outputs) != outputs:
        raise RuntimeError(
            f"the {name} graph came out with {list(spec.inputs)} -> {list(spec.outputs)}; "
            f"expected {list(inputs)} -> {outputs}"
        )
    return spec


def _specs(values: list[onnx.ValueInfoProto]) -> dict[str, TensorSpec]:
    specs = {}
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(d.dim_value for d in tensor.shape.dim)
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        specs[value.name] = TensorSpec(shape, kind)
    return specs
