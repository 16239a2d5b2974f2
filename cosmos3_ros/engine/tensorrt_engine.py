"""TensorRT-RTX and TensorRT: compiled engines on an NVIDIA GPU.

Every line of the package that needs a GPU is in this module. CUDA is reached through cuda-python's
``cuda.bindings``, not through torch: the robot's process would load gigabytes of libraries for a
handful of calls. See ``cosmos3_ros.engine.session.Engine`` for what an engine is.

One thread at a time runs on a stream. Programs of the frame graph alone have a stream of their own,
of lower priority, so that decoding a frame never holds up a plan; all others share the plan's. What
is allocated is owned by the engine and freed by ``close``, in the reverse order, by whoever calls
it; nothing may run then.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from threading import Lock
from typing import Any

import numpy as np

from cosmos3_ros.engine.bundle import Bundle, PartSpec, TensorSpec
from cosmos3_ros.engine.compile import compile_bundle, find_target
from cosmos3_ros.engine.engine_key import (
    EngineMismatch,
    compile_command,
    engine_path,
    require_engines,
)
from cosmos3_ros.engine.parts import Run, buffers, runs
from cosmos3_ros.engine.placement import (
    Need,
    aligned,
    host_type,
    piece_offset,
    place,
    tensor_bytes,
)
from cosmos3_ros.engine.session import Program
from cosmos3_ros.engine.tensorrt_library import (
    EngineError,
    Target,
    import_library,
    make_logger,
)

# Kernels that TensorRT-RTX compiled for this GPU and driver, kept beside the engines.
RUNTIME_CACHE = "runtime.cache"
PLAN, FRAME = "plan", "frame"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpu:
    """The GPU that this process uses."""

    name: str
    compute_capability: str


@dataclass
class Stream:
    """A CUDA stream; whoever uses it holds its lock."""

    handle: Any
    lock: Lock = field(default_factory=Lock)


@dataclass
class Prepared:
    """A program, the addresses of its tensors looked up. ``graph``: the CUDA graph it became."""

    name: str
    stream: Stream
    bound: list[tuple[Any, dict[str, int]]]
    warm: bool = False
    graph: Any = None


@dataclass(frozen=True)
class Buffer:
    """A buffer on the device, and the stream of the programs that use it."""

    address: int
    spec: TensorSpec
    stream: Stream


def open_engine(
    bundle: Bundle,
    backend: str,
    rebuild: bool = False,
    cuda_graphs: bool = True,
    report: Callable[[str], None] = _LOG.info,
) -> TensorrtEngine:
    """Load the engines of a bundle on this machine's GPU.

    ``rebuild``: compile those that are missing or do not fit first, which takes minutes.
    ``cuda_graphs``: replay each program as one CUDA graph from its second run on. ``report`` is
    told of memory and of kernels compiled again. Raises EngineError where library, driver, GPU or
    memory are missing, EngineMismatch with the command that mends it where an engine does not fit.
    """
    gpu = find_gpu(backend)
    target = find_target(backend, gpu.compute_capability)
    if rebuild:
        for compiled in compile_bundle(bundle, target):
            if not compiled.skipped:
                report(f"{engine_path(bundle, compiled.part).name} was compiled again")
    require_engines(bundle, target)
    return TensorrtEngine(bundle, target, cuda_graphs, report)


def find_gpu(backend: str) -> Gpu:
    """The GPU that CUDA gives this process. Raises EngineError where there is none."""
    import_library(backend)
    cuda = _cuda_runtime(backend)
    error, count = cuda.cudaGetDeviceCount()
    if error == cuda.cudaError_t.cudaErrorInsufficientDriver:
        _, driver = cuda.cudaDriverGetVersion()
        found = "no CUDA driver found" if driver == 0 else f"CUDA driver {driver} is too old"
        raise EngineError(
            f"{found} for backend '{backend}', which runs on an NVIDIA GPU; install its driver, or "
            "use the backend onnxruntime"
        )
    if error != cuda.cudaError_t.cudaSuccess or count == 0:
        raise EngineError(
            f"no NVIDIA GPU found for backend '{backend}' ({error.name}); nvidia-smi must list "
            "one, or use the backend onnxruntime"
        )
    attribute = cuda.cudaDeviceAttr
    device = _check(cuda, cuda.cudaGetDevice())
    major, minor = (
        _check(cuda, cuda.cudaDeviceGetAttribute(which, device))
        for which in (
            attribute.cudaDevAttrComputeCapabilityMajor,
            attribute.cudaDevAttrComputeCapabilityMinor,
        )
    )
    properties = _check(cuda, cuda.cudaGetDeviceProperties(device))
    return Gpu(properties.name.decode(errors="replace").rstrip("\0"), f"{major}.{minor}")


class TensorrtEngine:
    """A bundle's graphs over buffers in device memory."""

    def __init__(
        self, bundle: Bundle, target: Target, cuda_graphs: bool, report: Callable[[str], None]
    ) -> None:
        """Load every engine. Their keys were compared before (``open_engine``)."""
        self._bundle, self._target, self._report = bundle, target, report
        self._cuda_graphs = cuda_graphs
        self._graphs = bundle.manifest.graphs
        self._library = import_library(target.backend)
        self._cuda = _cuda_runtime(target.backend)
        self._errors: list[str] = []
        self._logger = make_logger(self._library, self._errors)
        self._runtime = self._library.Runtime(self._logger)
        self._device: list[int] = []
        self._engines: dict[str, Any] = {}
        self._contexts: dict[str, Any] = {}
        self._cache: Any = None
        self._cache_lock = Lock()
        self._streams: dict[str, Stream] = {}
        self._buffers: dict[str, Buffer] = {}
        self._pinned: dict[str, tuple[int, np.ndarray]] = {}
        self._programs: dict[str, Prepared] = {}
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def prepare(self, programs: Mapping[str, Program]) -> None:
        specs = buffers(self._graphs, programs.values())
        for name in specs.keys() & self._buffers.keys():
            if specs[name] != self._buffers[name].spec:
                raise ValueError(
                    f"buffer '{name}' is {self._buffers[name].spec} already; expected {specs[name]}"
                )
        new = {name: spec for name, spec in specs.items() if name not in self._buffers}
        placement = place(new)
        base = self._allocate(placement.bytes, "buffers")
        for name, program in programs.items():
            stream = self._streams[_stream_of(program)]
            for buffer in buffers(self._graphs, [program]):
                if buffer in placement.offsets and buffer not in self._buffers:
                    address = base + placement.offsets[buffer]
                    self._buffers[buffer] = Buffer(address, new[buffer], stream)
            bound = [self._bind(run) for run in runs(self._graphs, program)]
            self._forget(name)
            self._programs[name] = Prepared(name, stream, bound)

    def write(self, buffer: str, array: np.ndarray) -> None:
        target, (pinned, staging) = self._buffers[buffer], self._staging(buffer)
        if array.shape != staging.shape or array.dtype != staging.dtype:
            raise ValueError(
                f"buffer '{buffer}': got {array.dtype.name} {array.shape}; expected "
                f"{staging.dtype.name} {staging.shape}"
            )
        np.copyto(staging, array)
        with target.stream.lock:
            self._copy(target.address, pinned, staging.nbytes, "HostToDevice", target.stream)

    def read(self, buffer: str) -> np.ndarray:
        source, (pinned, staging) = self._buffers[buffer], self._staging(buffer)
        with source.stream.lock:
            self._copy(pinned, source.address, staging.nbytes, "DeviceToHost", source.stream)
        return staging.copy()

    def run(self, program: str) -> None:
        prepared = self._programs[program]
        with prepared.stream.lock:
            stream = prepared.stream.handle
            if prepared.graph is None and prepared.warm and self._cuda_graphs:
                prepared.graph = self._capture(prepared)
            if prepared.graph is None:
                self._enqueue(prepared)
            else:
                self._do(self._cuda.cudaGraphLaunch(prepared.graph, stream))
            self._do(self._cuda.cudaStreamSynchronize(stream))
        if not prepared.warm:
            # Every kernel of the program is compiled by now.
            prepared.warm = True
            self._save_cache()

    def close(self) -> None:
        with ExitStack() as idle:
            for stream in self._streams.values():
                idle.enter_context(stream.lock)
            self._free()

    def _free(self) -> None:
        cuda = self._cuda
        for name in list(self._programs):
            self._forget(name)
        self._buffers.clear()
        # A context goes before its engine, an engine before the runtime.
        self._contexts.clear()
        self._cache = None
        self._engines.clear()
        self._runtime = None
        for address, _ in self._pinned.values():
            cuda.cudaFreeHost(address)
        self._pinned.clear()
        while self._device:
            cuda.cudaFree(self._device.pop())
        for stream in self._streams.values():
            cuda.cudaStreamDestroy(stream.handle)
        self._streams.clear()

    def _forget(self, program: str) -> None:
        prepared = self._programs.pop(program, None)
        if prepared is not None and prepared.graph is not None:
            self._cuda.cudaGraphExecDestroy(prepared.graph)

    def _open(self) -> None:
        parts = [(g, p) for g, spec in self._graphs.items() for p in spec.parts]
        sizes = [engine_path(self._bundle, part).stat().st_size for _, part in parts]
        self._require(sum(sizes), "engines")
        lowest, highest = self._do(self._cuda.cudaDeviceGetStreamPriorityRange())
        for name, priority in ((PLAN, highest), (FRAME, lowest)):
            flags = self._cuda.cudaStreamNonBlocking
            self._streams[name] = Stream(
                self._do(self._cuda.cudaStreamCreateWithPriority(flags, priority))
            )
        for _, part in parts:
            self._engines[part.file] = self._load(part)
        scratch = {PLAN: 0, FRAME: 0}
        for graph, part in parts:
            size = int(self._engines[part.file].device_memory_size_v2)
            stream = _stream_of_graph(graph)
            scratch[stream] = max(scratch[stream], aligned(size))
        # Engines on one stream run one after another: they work in the same memory.
        addresses = {
            stream: self._allocate(size, f"scratch memory of the {stream} stream")
            for stream, size in scratch.items()
        }
        for graph, part in parts:
            stream = _stream_of_graph(graph)
            context = self._context(self._engines[part.file])
            if scratch[stream]:
                context.set_device_memory(addresses[stream], scratch[stream])
            self._contexts[part.file] = context

    def _load(self, part: PartSpec) -> Any:
        path = engine_path(self._bundle, part)
        self._errors.clear()
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise EngineMismatch(
                f"bundle '{self._bundle.path}': {self._target.backend} {self._target.version} "
                f"cannot load {path.name} ({'; '.join(self._errors) or 'it does not say why'}); "
                f"run: {compile_command(self._bundle, self._target)} --force"
            )
        return engine

    def _context(self, engine: Any) -> Any:
        """A context whose scratch memory is ours, and whose kernels are kept on disk."""
        user_managed = self._library.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(self._library, "IRuntimeCache"):
            context = engine.create_execution_context(user_managed)
        else:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(user_managed)
            # Programs are captured whole, here: captured engine by engine, they could not be.
            config.cuda_graph_strategy = self._library.CudaGraphStrategy.DISABLED
            if self._cache is None:
                self._cache = self._load_cache(config)
            config.set_runtime_cache(self._cache)
            context = engine.create_execution_context(config)
        if context is None:
            raise EngineError(
                f"bundle '{self._bundle.path}': {self._target.backend} makes no execution context "
                f"({'; '.join(self._errors) or 'it does not say why'})"
            )
        return context

    def _load_cache(self, config: Any) -> Any:
        cache, path = config.create_runtime_cache(), self._bundle.path / RUNTIME_CACHE
        if not path.is_file():
            self._report("no kernels compiled for this GPU yet: the first start takes longer")
        elif not cache.deserialize(path.read_bytes()):
            self._report(f"{path} is of another driver, GPU or version: kernels are compiled again")
        return cache

    def _save_cache(self) -> None:
        if self._cache is None:
            return
        path = self._bundle.path / RUNTIME_CACHE
        partial = path.with_name(f".{path.name}.partial")
        with self._cache_lock:
            content = bytes(self._cache.serialize())
            try:
                if path.is_file() and path.read_bytes() == content:
                    return
                partial.write_bytes(content)
                partial.rename(path)
            except OSError as error:
                self._report(f"kernels are not kept for the next start: {error}")

    def _bind(self, run: Run) -> tuple[Any, dict[str, int]]:
        addresses = {}
        for tensor, piece in {**run.inputs, **run.outputs}.items():
            buffer = self._buffers[piece.buffer]
            addresses[tensor] = buffer.address + piece_offset(piece, buffer.spec)
        return self._contexts[run.part.file], addresses

    def _enqueue(self, prepared: Prepared) -> None:
        """Queue a program's engines. Addresses are set each time: programs share contexts."""
        for context, addresses in prepared.bound:
            for tensor, address in addresses.items():
                if not context.set_tensor_address(tensor, address):
                    raise EngineError(self._failure(prepared, f"refuses tensor '{tensor}'"))
            if not context.execute_async_v3(int(prepared.stream.handle)):
                raise EngineError(self._failure(prepared, "cannot run"))

    def _capture(self, prepared: Prepared) -> Any:
        """The whole program as one CUDA graph. Raises EngineError where it cannot be captured."""
        cuda, stream = self._cuda, prepared.stream.handle
        try:
            for context, _ in prepared.bound:
                capturable = getattr(context, "is_stream_capturable", None)
                if capturable is not None and not capturable(int(stream)):
                    raise EngineError(self._failure(prepared, "has an engine that forbids it"))
            mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            self._do(cuda.cudaStreamBeginCapture(stream, mode))
            try:
                self._enqueue(prepared)
            except BaseException:
                # Ends the capture, without which the stream is of no use.
                cuda.cudaStreamEndCapture(stream)
                raise
            graph = self._do(cuda.cudaStreamEndCapture(stream))
            try:
                return self._do(cuda.cudaGraphInstantiate(graph, 0))
            finally:
                cuda.cudaGraphDestroy(graph)
        except EngineError as error:
            raise EngineError(
                f"program '{prepared.name}' cannot be captured as a CUDA graph: {error}; set "
                "engine_cuda_graphs to false to run it without one, which is slower"
            ) from error

    def _failure(self, prepared: Prepared, what: str) -> str:
        return (
            f"bundle '{self._bundle.path}': program '{prepared.name}' {what} on "
            f"{self._target.backend} {self._target.version} "
            f"({'; '.join(self._errors) or 'it does not say why'})"
        )

    def _staging(self, buffer: str) -> tuple[int, np.ndarray]:
        """Pinned host memory of a buffer's size, made when it is first written or read."""
        if buffer not in self._pinned:
            spec = self._buffers[buffer].spec
            size, dtype = tensor_bytes(spec), host_type(buffer, spec)
            address = int(self._do(self._cuda.cudaHostAlloc(size, self._cuda.cudaHostAllocDefault)))
            self._pinned[buffer] = (address, _view(address, size).view(dtype).reshape(spec.shape))
        return self._pinned[buffer]

    def _copy(self, to: int, source: int, size: int, kind: str, stream: Stream) -> None:
        """Copy and wait: the staging memory is free again, what was copied is there."""
        direction = getattr(self._cuda.cudaMemcpyKind, f"cudaMemcpy{kind}")
        self._do(self._cuda.cudaMemcpyAsync(to, source, size, direction, stream.handle))
        self._do(self._cuda.cudaStreamSynchronize(stream.handle))

    def _allocate(self, size: int, what: str) -> int:
        """Zeroed device memory, freed by ``close``. Raises EngineError where it does not fit."""
        if size == 0:
            return 0
        self._require(size, what)
        address = int(self._do(self._cuda.cudaMalloc(size)))
        self._device.append(address)
        self._do(self._cuda.cudaMemset(address, 0, size))
        self._do(self._cuda.cudaDeviceSynchronize())
        return address

    def _require(self, size: int, what: str) -> None:
        """Report what is about to be allocated. Raises EngineError where it does not fit."""
        free, _ = self._do(self._cuda.cudaMemGetInfo())
        need = Need(what, size, int(free))
        self._report(f"bundle '{self._bundle.path}': {need}")
        if not need.fits:
            raise EngineError(
                f"bundle '{self._bundle.path}': {need}; end what else uses the GPU, or export in a "
                "lower precision"
            )

    def _do(self, result: tuple[Any, ...]) -> Any:
        return _check(self._cuda, result)


def _stream_of(program: Program) -> str:
    return FRAME if all(_stream_of_graph(call.graph) == FRAME for call in program) else PLAN


def _stream_of_graph(graph: str) -> str:
    return FRAME if graph == "frame" else PLAN


def _cuda_runtime(backend: str) -> Any:
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise EngineError(
            f"backend '{backend}' needs the Python package cuda-bindings, which cannot be "
            f"imported ({error}); install it with 'pip install cuda-bindings'"
        ) from error


def _check(cuda: Any, result: tuple[Any, ...]) -> Any:
    """What a CUDA call returns. Raises EngineError with CUDA's own words where it failed."""
    error, *values = result
    if error != cuda.cudaError_t.cudaSuccess:
        _, text = cuda.cudaGetErrorString(error)
        raise EngineError(f"CUDA failed: {error.name}, {text.decode(errors='replace')}")
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def _view(address: int, size: int) -> np.ndarray:
    """Host memory that is not numpy's, as bytes."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
