"""Calibration: how large the inputs of the generation tower's linear layers grow on real plans.

The graphs run as torch modules over hollow stock modules: a layer's weights are read when it runs
and dropped when it has run, so that memory holds one weight at a time, whatever the checkpoint. It
is slow, a read of the whole model for every forward, and is done once for a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cosmos3_ros.engine.export import Calibration
from cosmos3_ros.engine.export_checkpoint import WeightSource
from cosmos3_ros.engine.export_contract import Body, make_contract
from cosmos3_ros.engine.export_graphs import DenoiseGraph, ImageGraph, StepGraph, TextGraph
from cosmos3_ros.engine.export_model import open_components
from cosmos3_ros.engine.recipe import Recipe
from cosmos3_ros.engine.session import Contract, Program


class CalibratingEngine:
    """Runs plans on the processor in float32 and watches the inputs of every linear layer.

    An Engine (see ``cosmos3_ros.engine.session``) for what a plan takes: it has no frame graph.
    """

    contract: Contract

    def __init__(self, recipe: Recipe, body: Body, checkpoint: Path | None) -> None:
        """Reads the headers of the checkpoint alone. Raises RecipeError where it does not fit."""
        components = open_components(replace(recipe, precision="fp32"), checkpoint)
        self.contract = contract = make_contract(recipe, body, components)
        self.tokenizer_json = components.tokenizer.backend_tokenizer.to_str()
        self._ranges: dict[str, float] = {}
        stream(components.vae, components.vae_weights)
        stream(components.transformer, components.transformer_weights)
        for name, layer in components.transformer.named_modules():
            if isinstance(layer, nn.Linear):
                self._watch(f"{name}.weight", layer)
        self._modules: dict[str, TextGraph | ImageGraph | DenoiseGraph | StepGraph] = {
            "text": TextGraph(components.transformer, contract.prompting.text_tokens),
            "image": ImageGraph(components.vae, contract),
            "denoise": DenoiseGraph(components.transformer, contract),
            "step": StepGraph(contract),
        }
        self._programs: dict[str, Program] = {}
        self._buffers: dict[str, Tensor] = {}

    def prepare(self, programs: Mapping[str, Program]) -> None:
        self._programs |= programs
        shapes = _shapes_of_step(self.contract)
        for program in programs.values():
            for call in program:
                for tensor, buffer in call.inputs.items():
                    # Whatever is read before it is written enters the sum of a step.
                    if call.graph == "step" and tensor in shapes:
                        self._buffers.setdefault(buffer, torch.zeros(shapes[tensor]))

    def write(self, buffer: str, array: np.ndarray) -> None:
        self._buffers[buffer] = torch.from_numpy(array.copy())

    def read(self, buffer: str) -> np.ndarray:
        return self._buffers[buffer].numpy().copy()

    @torch.no_grad()
    def run(self, program: str) -> None:
        for call in self._programs[program]:
            module = self._modules[call.graph]
            made = module(*(self._buffers[call.inputs[name]] for name in module.inputs))
            outputs = made if isinstance(made, tuple) else (made,)
            for name, tensor in zip(module.outputs, outputs, strict=True):
                self._buffers[call.outputs[name]] = tensor

    def close(self) -> None:
        self._buffers.clear()

    def calibration(self, source: str, observations: int) -> Calibration:
        """What was seen since the engine was made."""
        return Calibration(source, observations, dict(self._ranges))

    def _watch(self, weight: str, layer: nn.Linear) -> None:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            largest = float(inputs[0].abs().max())
            self._ranges[weight] = max(self._ranges.get(weight, 0.0), largest)

        layer.register_forward_pre_hook(look)


def stream(module: nn.Module, weights: WeightSource) -> None:
    """Have a hollow module read the weights of each of its layers when it runs, in float32.

    Parameters beside layers, such as an embedding that is added, are small and stay.
    """
    for name, layer in list(module.named_modules()):
        hollow = dict(layer.named_parameters(recurse=False))
        names = {key: f"{name}.{key}" if name else key for key in hollow}
        if not hollow:
            continue
        if any(True for _ in layer.children()):
            _read_into(layer, names, weights)
        else:
            _stream_layer(layer, hollow, names, weights)


def _stream_layer(
    layer: nn.Module,
    hollow: Mapping[str, nn.Parameter],
    names: Mapping[str, str],
    weights: WeightSource,
) -> None:
    def fill(*_: object) -> None:
        _read_into(layer, names, weights)

    def drop(*_: object) -> None:
        for key, parameter in hollow.items():
            setattr(layer, key, parameter)

    layer.register_forward_pre_hook(fill)
    layer.register_forward_hook(drop, always_call=True)


def _read_into(layer: nn.Module, names: Mapping[str, str], weights: WeightSource) -> None:
    for key, name in names.items():
        array = weights.read(name).astype(np.float32, copy=False)
        setattr(layer, key, nn.Parameter(torch.from_numpy(array), requires_grad=False))


def _shapes_of_step(contract: Contract) -> dict[str, tuple[int, ...]]:
    """Shapes of what the step graph sums, by tensor name."""
    rows = (contract.rows, contract.action_dim)
    return {
        "latent_history": (contract.history, *contract.latent_shape[1:]),
        "row_history": (contract.history, *rows),
        **{
            f"{branch}_latent": contract.latent_shape for branch in ("conditional", "unconditional")
        },
        **{f"{branch}_row": rows for branch in ("conditional", "unconditional")},
    }
