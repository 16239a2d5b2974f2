"""Stand-ins for CUDA and TensorRT in host memory, for what ``tensorrt_engine`` does with them.

"Device" memory is host memory at real addresses. An "engine" is a file that names its ONNX graph;
its context runs that graph with ONNX Runtime on whatever lies at the addresses it was given, or
notes down to do so while its stream is being captured. So programs, addresses, captures, copies,
streams and the order of freeing are real; what a GPU makes of them is not.
"""

from __future__ import annotations

import ctypes
import itertools
from enum import Enum
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort

VERSION = "0.0.stand-in"
ALIGNMENT = 256
CACHE = b"kernels"


class Error(Enum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100


class HostCuda:
    """Of ``cuda.bindings.runtime`` what the engine calls; counts what is alive."""

    cudaError_t = Error
    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor=0, cudaDevAttrComputeCapabilityMinor=1
    )

    def __init__(self, memory: int = 1 << 30, capability: tuple[int, int] = (12, 0)) -> None:
        self.memory, self.capability = memory, capability
        self.devices = (Error.cudaSuccess, 1)
        self.blocks: dict[int, Any] = {}
        self.sizes: dict[int, int] = {}
        self.priorities: dict[int, int] = {}
        self.captured: dict[int, list[Any]] = {}
        self.graphs: dict[int, list[Any]] = {}
        self.launches: list[int] = []
        self.enqueued: list[int] = []
        self._ids = itertools.count(1000)

    @property
    def leftovers(self) -> int:
        """Allocations, streams and graphs that are alive."""
        return len(self.blocks) + len(self.priorities) + len(self.graphs)

    def cudaGetDeviceCount(self) -> tuple[Error, int]:
        return self.devices

    def cudaDriverGetVersion(self) -> tuple[Error, int]:
        return Error.cudaSuccess, 0

    def cudaGetDevice(self) -> tuple[Error, int]:
        return Error.cudaSuccess, 0

    def cudaGetDeviceProperties(self, device: int) -> tuple[Error, Any]:
        return Error.cudaSuccess, SimpleNamespace(name=b"Host\0\0")

    def cudaDeviceGetAttribute(self, which: int, device: int) -> tuple[Error, int]:
        return Error.cudaSuccess, self.capability[which]

    def cudaGetErrorString(self, error: Error) -> tuple[Error, bytes]:
        return Error.cudaSuccess, error.name.encode()

    def cudaMemGetInfo(self) -> tuple[Error, int, int]:
        return Error.cudaSuccess, self.memory - sum(self.sizes.values()), self.memory

    def cudaMalloc(self, size: int) -> tuple[Error, int]:
        block = ctypes.create_string_buffer(b"\x55" * (size + ALIGNMENT), size + ALIGNMENT)
        address = -(-ctypes.addressof(block) // ALIGNMENT) * ALIGNMENT
        self.blocks[address], self.sizes[address] = block, size
        return Error.cudaSuccess, address

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Error, int]:
        error, address = self.cudaMalloc(size)
        self.sizes[address] = 0
        return error, address

    def cudaFree(self, address: int) -> tuple[Error]:
        del self.blocks[address], self.sizes[address]
        return (Error.cudaSuccess,)

    cudaFreeHost = cudaFree

    def cudaMemset(self, address: int, value: int, size: int) -> tuple[Error]:
        ctypes.memset(address, value, size)
        return (Error.cudaSuccess,)

    def cudaMemcpyAsync(
        self, to: int, source: int, size: int, kind: int, stream: int
    ) -> tuple[Error]:
        ctypes.memmove(to, source, size)
        return (Error.cudaSuccess,)

    def cudaDeviceSynchronize(self) -> tuple[Error]:
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Error]:
        assert stream in self.priorities and stream not in self.captured
        return (Error.cudaSuccess,)

    def cudaDeviceGetStreamPriorityRange(self) -> tuple[Error, int, int]:
        return Error.cudaSuccess, 0, -5

    def cudaStreamCreateWithPriority(self, flags: int, priority: int) -> tuple[Error, int]:
        stream = next(self._ids)
        self.priorities[stream] = priority
        return Error.cudaSuccess, stream

    def cudaStreamDestroy(self, stream: int) -> tuple[Error]:
        del self.priorities[stream]
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Error]:
        self.captured[stream] = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Error, list[Any]]:
        return Error.cudaSuccess, self.captured.pop(stream)

    def cudaGraphInstantiate(self, graph: list[Any], flags: int) -> tuple[Error, int]:
        handle = next(self._ids)
        self.graphs[handle] = list(graph)
        return Error.cudaSuccess, handle

    def cudaGraphDestroy(self, graph: list[Any]) -> tuple[Error]:
        graph.clear()
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, handle: int) -> tuple[Error]:
        del self.graphs[handle]
        return (Error.cudaSuccess,)

    def cudaGraphLaunch(self, handle: int, stream: int) -> tuple[Error]:
        self.launches.append(stream)
        for work in self.graphs[handle]:
            work()
        return (Error.cudaSuccess,)

    def enqueue(self, stream: int, work: Any) -> None:
        if stream in self.captured:
            self.captured[stream].append(work)
        else:
            self.enqueued.append(stream)
            work()


class HostTensorrt:
    """Of ``tensorrt_rtx`` what the engine calls. ``capturable``: whether contexts may be."""

    __version__ = VERSION
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    CudaGraphStrategy = SimpleNamespace(DISABLED="disabled")
    IRuntimeCache = object

    class ILogger:
        ERROR, INTERNAL_ERROR = "error", "internal error"

    def __init__(self, cuda: HostCuda) -> None:
        self.cuda, self.capturable, self.accepts_cache = cuda, True, True
        self.contexts: list[_Context] = []
        self.alive: list[str] = []

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda data: _Engine(self, bytes(data)))


class _Engine:
    device_memory_size_v2 = 1000

    def __init__(self, library: HostTensorrt, content: bytes) -> None:
        self.library = library
        self.session = ort.InferenceSession(content.decode(), providers=["CPUExecutionProvider"])

    def create_runtime_config(self) -> Any:
        return _Config(self.library)

    def create_execution_context(self, config: Any) -> _Context:
        assert config.strategy == "user managed" and config.cuda_graph_strategy == "disabled"
        assert config.cache is not None
        context = _Context(self)
        self.library.contexts.append(context)
        return context


class _Config:
    cuda_graph_strategy = ""
    strategy = ""
    cache: Any = None

    def __init__(self, library: HostTensorrt) -> None:
        self.library = library

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Any:
        return SimpleNamespace(
            deserialize=lambda content: content == CACHE and self.library.accepts_cache,
            serialize=lambda: CACHE,
        )

    def set_runtime_cache(self, cache: Any) -> None:
        self.cache = cache


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine, self.addresses, self.scratch = engine, dict[str, int](), (0, 0)

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % ALIGNMENT == 0 and size >= self.engine.device_memory_size_v2
        self.scratch = (address, size)

    def set_tensor_address(self, tensor: str, address: int) -> bool:
        assert address % ALIGNMENT == 0, f"{tensor} at {address}"
        self.addresses[tensor] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self.engine.library.capturable

    def execute_async_v3(self, stream: int) -> bool:
        session, addresses = self.engine.session, dict(self.addresses)

        def work() -> None:
            binding = session.io_binding()
            for tensor, bind in (
                *((t, binding.bind_input) for t in session.get_inputs()),
                *((t, binding.bind_output) for t in session.get_outputs()),
            ):
                kind = {"tensor(float)": "float32"}.get(tensor.type, tensor.type[7:-1])
                bind(tensor.name, "cpu", 0, kind, tensor.shape, addresses[tensor.name])
            session.run_with_iobinding(binding)

        self.engine.library.cuda.enqueue(stream, work)
        return True
