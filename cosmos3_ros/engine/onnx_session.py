"""Sessions over ONNX Runtime on the CPU: the embedded default, on any machine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from cosmos3_ros.engine.bundle import Bundle, BundleError, GraphSpec, TensorSpec
from cosmos3_ros.engine.session import GRAPHS, Session


class OnnxSession:
    """One graph. See ``cosmos3_ros.engine.session.Session``."""

    def __init__(self, bundle: Bundle, graph: str, threads: int) -> None:
        """Raises BundleError where ONNX Runtime has no kernels for the graph's types."""
        self._graph = graph
        self._spec: GraphSpec = bundle.manifest.graphs[graph]
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning pools take the cores from the control loop, and from one another.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(
                str(bundle.path / self._spec.file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise BundleError(
                f"bundle '{bundle.path}': ONNX Runtime cannot run the {graph} graph in "
                f"{bundle.manifest.precision} on this CPU ({_first_line(error)}); export the "
                "bundle in fp32, or use a backend that runs this precision"
            ) from error
        found = {i.name: tuple(i.shape) for i in self._session.get_inputs()}
        expected = {name: spec.shape for name, spec in self._spec.inputs.items()}
        if found != expected:
            raise BundleError(
                f"bundle '{bundle.path}': the {graph} graph takes {found}, its manifest says "
                f"{expected}; export the bundle again"
            )
        self._outputs = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if feeds.keys() != self._spec.inputs.keys():
            raise ValueError(
                f"{self._graph} graph: got inputs {sorted(feeds)}, expected "
                f"{sorted(self._spec.inputs)}"
            )
        for name, array in feeds.items():
            _require(self._graph, name, array, self._spec.inputs[name])
        outputs = self._session.run(self._outputs, dict(feeds))
        return dict(zip(self._outputs, outputs, strict=True))


def open_sessions(bundle: Bundle, threads: int) -> dict[str, Session]:
    """Open every graph of a bundle on ``threads`` CPU threads each (0: one a core)."""
    return {graph: OnnxSession(bundle, graph, threads) for graph in GRAPHS}


def _require(graph: str, name: str, array: np.ndarray, spec: TensorSpec) -> None:
    if array.shape != spec.shape or array.dtype.name != spec.type:
        raise ValueError(
            f"{graph} graph: {name} is {array.dtype.name} {array.shape}; expected {spec.type} "
            f"{spec.shape}"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
