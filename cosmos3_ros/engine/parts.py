"""From a program of graphs to the runs of their parts: which piece of which buffer each takes.

What every backend does before it allocates anything; see ``cosmos3_ros.engine.session``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from cosmos3_ros.engine.bundle import GraphSpec, PartSpec, TensorSpec
from cosmos3_ros.engine.session import Call, Engine, Program

# Stacked by layer along their first axis: a part takes or gives those of its own layers.
LAYERED = ("keys", "values")


@dataclass(frozen=True)
class Piece:
    """What a tensor of a part is bound to: entries [first, last) of a buffer's first axis.

    ``last`` None: the whole buffer.
    """

    buffer: str
    first: int = 0
    last: int | None = None


@dataclass(frozen=True)
class Run:
    """One run of one part."""

    part: PartSpec
    inputs: Mapping[str, Piece]
    outputs: Mapping[str, Piece]


def runs(graphs: Mapping[str, GraphSpec], program: Program) -> list[Run]:
    """The runs of a program's parts, in order.

    Raises ValueError where a call names a graph or a tensor that is not there, or leaves one out.
    """
    return [run for call in program for run in _runs_of(graphs, call)]


def buffers(graphs: Mapping[str, GraphSpec], programs: Iterable[Program]) -> dict[str, TensorSpec]:
    """Shape and type of every buffer of these programs, those between parts among them.

    Raises ValueError naming the buffer that is bound to tensors of different shape or type.
    """
    specs: dict[str, TensorSpec] = {}
    for program in programs:
        for call in program:
            spec = _graph(graphs, call)
            tensors = {**spec.inputs, **spec.outputs}
            for tensor, buffer in {**call.inputs, **call.outputs}.items():
                _declare(specs, buffer, tensors[tensor], f"{tensor} of {call.graph}")
            for run in _runs_of(graphs, call):
                for tensor, piece in run.outputs.items():
                    if tensor not in spec.outputs:
                        what = f"{tensor} of {run.part.file}"
                        _declare(specs, piece.buffer, run.part.outputs[tensor], what)
    return specs


def run_graph(
    engine: Engine, graphs: Mapping[str, GraphSpec], graph: str, feeds: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Run one graph by itself, in buffers of its own; returns its outputs by name."""
    spec, name = graphs[graph], f"alone.{graph}"
    inputs = {tensor: f"{name}.{tensor}" for tensor in spec.inputs}
    outputs = {tensor: f"{name}.{tensor}" for tensor in spec.outputs}
    engine.prepare({name: [Call(graph, inputs, outputs)]})
    for tensor, buffer in inputs.items():
        engine.write(buffer, feeds[tensor])
    engine.run(name)
    return {tensor: engine.read(buffer) for tensor, buffer in outputs.items()}


def _declare(specs: dict[str, TensorSpec], buffer: str, spec: TensorSpec, what: str) -> None:
    known = specs.setdefault(buffer, spec)
    if known != spec:
        raise ValueError(
            f"buffer '{buffer}' is {known.type} {known.shape} and is bound to {what}, which is "
            f"{spec.type} {spec.shape}; expected one shape and type"
        )


def _graph(graphs: Mapping[str, GraphSpec], call: Call) -> GraphSpec:
    if call.graph not in graphs:
        raise ValueError(f"graph '{call.graph}' is not in the bundle; it has {', '.join(graphs)}")
    spec = graphs[call.graph]
    for kind, given, expected in (
        ("inputs", call.inputs, spec.inputs),
        ("outputs", call.outputs, spec.outputs),
    ):
        if given.keys() != expected.keys():
            raise ValueError(
                f"{call.graph} graph: got {kind} {sorted(given)}, expected {sorted(expected)}"
            )
    return spec


def _runs_of(graphs: Mapping[str, GraphSpec], call: Call) -> list[Run]:
    spec = _graph(graphs, call)
    handed: dict[str, str] = {}
    found = []
    for index, part in enumerate(spec.parts):

        def piece(tensor: str, own: Mapping[str, str], part: PartSpec = part) -> Piece:
            if tensor not in own:
                return Piece(handed[tensor])
            return Piece(own[tensor], *part.layers) if tensor in LAYERED else Piece(own[tensor])

        inputs = {tensor: piece(tensor, call.inputs) for tensor in part.inputs}
        # A buffer for each hand-over: no part writes what it reads.
        for tensor in part.outputs:
            if tensor not in spec.outputs:
                handed[tensor] = f"{call.graph}.{index}.{tensor}"
        outputs = {tensor: piece(tensor, call.outputs) for tensor in part.outputs}
        found.append(Run(part, inputs, outputs))
    return found
