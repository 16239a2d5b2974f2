"""ONNX Runtime on the CPU: the embedded default, on any machine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from cosmos3_ros.engine.bundle import Bundle, BundleError, PartSpec, TensorSpec
from cosmos3_ros.engine.parts import Piece, buffers, runs
from cosmos3_ros.engine.session import Program


class OnnxEngine:
    """A bundle's graphs over arrays in host memory. See ``cosmos3_ros.engine.session.Engine``.

    Inputs and outputs are bound once, in ``prepare``: a run copies nothing and allocates nothing
    of its own.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        """Open every graph on ``threads`` CPU threads each (0: one a core).

        Raises BundleError where ONNX Runtime has no kernels for a graph's types, and where a graph
        is not what the manifest says.
        """
        self._graphs = bundle.manifest.graphs
        self._sessions = {
            part.file: _open(bundle, part, threads)
            for spec in self._graphs.values()
            for part in spec.parts
        }
        self._arrays: dict[str, np.ndarray] = {}
        self._programs: dict[str, list[tuple[ort.InferenceSession, ort.IOBinding]]] = {}

    def prepare(self, programs: Mapping[str, Program]) -> None:
        for buffer, spec in buffers(self._graphs, programs.values()).items():
            self._arrays.setdefault(buffer, np.zeros(spec.shape, spec.type))
        for name, program in programs.items():
            bound = []
            for run in runs(self._graphs, program):
                session = self._sessions[run.part.file]
                binding = session.io_binding()
                for tensor, piece in run.inputs.items():
                    binding.bind_input(tensor, *self._place(piece))
                for tensor, piece in run.outputs.items():
                    binding.bind_output(tensor, *self._place(piece))
                bound.append((session, binding))
            self._programs[name] = bound

    def write(self, buffer: str, array: np.ndarray) -> None:
        target = self._arrays[buffer]
        if array.shape != target.shape or array.dtype != target.dtype:
            raise ValueError(
                f"buffer '{buffer}': got {array.dtype.name} {array.shape}; expected "
                f"{target.dtype.name} {target.shape}"
            )
        np.copyto(target, array)

    def read(self, buffer: str) -> np.ndarray:
        return self._arrays[buffer].copy()

    def run(self, program: str) -> None:
        for session, binding in self._programs[program]:
            session.run_with_iobinding(binding)

    def close(self) -> None:
        self._programs.clear()
        self._sessions.clear()
        self._arrays.clear()

    def _place(self, piece: Piece) -> tuple[str, int, np.dtype, tuple[int, ...], int]:
        """Device, its id, element type, shape and address, as bindings take them."""
        array = self._arrays[piece.buffer][piece.first : piece.last]
        return "cpu", 0, array.dtype, array.shape, array.ctypes.data


def _open(bundle: Bundle, part: PartSpec, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning pools take the cores from the control loop, and from one another.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = str(bundle.path / part.file)
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BundleError(
            f"bundle '{bundle.path}': ONNX Runtime cannot run {part.file} in "
            f"{bundle.manifest.precision} on this CPU ({_first_line(error)}); export the "
            "bundle in fp32, or use a backend that runs this precision; 'cosmos3 twin' writes what "
            "it computes as a bundle for a CPU"
        ) from error
    for found, expected in (
        (session.get_inputs(), part.inputs),
        (session.get_outputs(), part.outputs),
    ):
        tensors = {node.name: (tuple(node.shape), node.type) for node in found}
        named = {name: (spec.shape, _onnx_type(spec)) for name, spec in expected.items()}
        if tensors != named:
            raise BundleError(
                f"bundle '{bundle.path}': {part.file} has {tensors}, its manifest says {named}; "
                "export the bundle again"
            )
    return session


def _onnx_type(spec: TensorSpec) -> str:
    name = {"float32": "float", "float16": "float16"}.get(spec.type, spec.type)
    return f"tensor({name})"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
