"""The engine on a GPU: its own logic over stand-ins in host memory, its refusals for real.

Tests marked ``gpu`` run on a machine with one; here they are skipped.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from bundles import Exported
from host_cuda import CACHE, VERSION, Error, HostCuda, HostTensorrt
from tokenizers import Tokenizer

from cosmos3_ros.engine.bundle import Bundle, TensorSpec, load_bundle
from cosmos3_ros.engine.compile import compile_bundle, find_target
from cosmos3_ros.engine.engine_key import (
    EngineMismatch,
    EngineRecord,
    engine_path,
    make_key,
    record_path,
    require_engines,
    write_record,
)
from cosmos3_ros.engine.onnx_engine import OnnxEngine
from cosmos3_ros.engine.parts import Piece
from cosmos3_ros.engine.placement import host_type, piece_offset, place, tensor_bytes
from cosmos3_ros.engine.session import Call, Engine
from cosmos3_ros.engine.tensorrt_engine import (
    RUNTIME_CACHE,
    TensorrtEngine,
    find_gpu,
    open_engine,
)
from cosmos3_ros.engine.tensorrt_library import EngineError, Target
from cosmos3_ros.policy.plan import Observation, Plan, Policy, draw_noise

BACKEND = "tensorrt_rtx"
STAND_IN = Target(BACKEND, VERSION, "12.0")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    """CUDA in host memory, in place of the real one."""
    cuda = HostCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    return cuda


@pytest.fixture
def library(cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> HostTensorrt:
    """TensorRT over ONNX Runtime, in place of the real one."""
    library = HostTensorrt(cuda)
    monkeypatch.setitem(sys.modules, BACKEND, library)
    return library


@pytest.fixture
def compiled(tiny: Exported, tmp_path: Path) -> Bundle:
    """The tiny bundle with engines for the stand-in."""
    return compiled_for_stand_in(tiny.bundle, tmp_path / "bundle")


def compiled_for_stand_in(bundle: Bundle, folder: Path) -> Bundle:
    copy = load_bundle(shutil.copytree(bundle.path, folder))
    for spec in copy.manifest.graphs.values():
        for part in spec.parts:
            content = str(copy.path / part.file).encode()
            engine_path(copy, part).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            record = EngineRecord(make_key(copy, part, STAND_IN), digest, len(content), 0.0, 0)
            write_record(record_path(copy, part), record)
    return copy


def policy_over(exported: Exported, engine: Engine) -> Policy:
    tokenizer = Tokenizer.from_file(str(exported.bundle.path / "tokenizer.json"))
    return Policy(exported.bundle.manifest.contract, exported.embodiment, engine, tokenizer)


def plan_with(policy: Policy, seed: int = 0) -> Plan:
    image = np.random.default_rng(seed).integers(0, 255, (96, 128, 3), np.uint8)
    prompt = policy.prefill("touch the red cube")
    noise = draw_noise(policy.contract, np.random.default_rng(seed))
    return policy.plan(Observation({"exterior": image}, policy.embodiment.offset), prompt, noise)


@pytest.mark.parametrize("bundle", ["tiny", "tiny_in_parts"])
def test_programs_do_what_they_do_on_onnx_runtime(
    bundle: str, library: HostTensorrt, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    exported = request.getfixturevalue(bundle)
    copy = compiled_for_stand_in(exported.bundle, tmp_path / "bundle")
    reference = policy_over(exported, OnnxEngine(exported.bundle, 1))
    policy = policy_over(exported, open_engine(copy, BACKEND))
    for seed in range(3):  # at first plain, then captured, then replayed
        expected, found = plan_with(reference, seed), plan_with(policy, seed)
        assert np.abs(found.rows - expected.rows).max() < 1e-5
        assert np.abs(found.latents - expected.latents).max() < 1e-5
        assert np.abs(expected.rows).max() > 0.01
        frames = policy.predict_frames(found).astype(int)
        assert np.abs(frames - reference.predict_frames(expected)).max() <= 1


def test_a_program_is_one_cuda_graph_from_its_second_run_on(
    tiny: Exported, compiled: Bundle, library: HostTensorrt, cuda: HostCuda
) -> None:
    policy = policy_over(tiny, open_engine(compiled, BACKEND))
    plan_with(policy)
    calls = sum(len(policy.programs[p]) for p in ("plan", "prefill.conditional"))
    assert len(cuda.enqueued) == calls + 1 and not cuda.launches  # one unconditional prompt
    cuda.enqueued.clear()
    plan_with(policy, seed=1)
    plan_with(policy, seed=2)
    assert not cuda.enqueued
    assert len(cuda.launches) == 4  # a prompt and a plan, twice
    assert len(cuda.graphs) == 2


def test_without_cuda_graphs_every_run_is_plain(
    tiny: Exported, compiled: Bundle, library: HostTensorrt, cuda: HostCuda
) -> None:
    policy = policy_over(tiny, open_engine(compiled, BACKEND, cuda_graphs=False))
    plans = [plan_with(policy) for _ in range(3)]
    assert not cuda.launches and not cuda.graphs
    assert (plans[0].rows == plans[2].rows).all()


def test_a_program_that_cannot_be_captured_is_told_and_not_run_otherwise(
    compiled: Bundle, library: HostTensorrt, cuda: HostCuda
) -> None:
    library.capturable = False
    engine = open_engine(compiled, BACKEND)
    engine.prepare({"look": [Call("image", {"canvas": "canvas"}, {"latent": "latent"})]})
    engine.run("look")
    with pytest.raises(EngineError) as caught:
        engine.run("look")
    assert str(caught.value).startswith("program 'look' cannot be captured as a CUDA graph: ")
    assert "set engine_cuda_graphs to false" in str(caught.value)
    assert len(cuda.enqueued) == 1


def test_frames_are_decoded_on_a_stream_of_lower_priority(
    tiny: Exported, compiled: Bundle, library: HostTensorrt, cuda: HostCuda
) -> None:
    policy = policy_over(tiny, open_engine(compiled, BACKEND))
    plan = plan_with(policy)
    of_plan = {cuda.priorities[stream] for stream in cuda.enqueued}
    cuda.enqueued.clear()
    policy.predict_frames(plan)
    assert of_plan == {-5}
    assert [cuda.priorities[stream] for stream in cuda.enqueued] == [0]


def test_engines_of_a_stream_share_their_scratch_memory(
    compiled: Bundle, library: HostTensorrt
) -> None:
    open_engine(compiled, BACKEND)
    scratch = [context.scratch for context in library.contexts]
    assert len(scratch) == 5
    assert len(set(scratch[:4])) == 1 and scratch[4] not in scratch[:4]


def test_closing_frees_everything(
    tiny: Exported, compiled: Bundle, library: HostTensorrt, cuda: HostCuda
) -> None:
    engine = open_engine(compiled, BACKEND)
    policy = policy_over(tiny, engine)
    plan_with(policy)
    policy.predict_frames(plan_with(policy))
    assert cuda.leftovers > 5
    engine.close()
    assert cuda.leftovers == 0


def test_memory_is_told_before_it_is_taken_and_refused_with_figures(
    tiny: Exported, compiled: Bundle, library: HostTensorrt, cuda: HostCuda
) -> None:
    told: list[str] = []
    policy_over(tiny, open_engine(compiled, BACKEND, report=told.append)).prefill("touch it")
    memory = [line for line in told if "of device memory" in line]
    assert ["engines" in line or "scratch" in line for line in memory] == [True] * 3 + [False]
    assert "buffers take 0.00" in memory[-1]

    cuda.memory = sum(cuda.sizes.values()) + 1_000_000
    engine = open_engine(compiled, BACKEND)
    before = cuda.leftovers
    with pytest.raises(EngineError, match=r"buffers take 0.0\d\d GB .* 0.00\d GB are free"):
        policy_over(tiny, engine)
    assert cuda.leftovers == before


def test_engines_that_do_not_fit_are_refused_before_one_is_loaded(
    compiled: Bundle, library: HostTensorrt, cuda: HostCuda
) -> None:
    cuda.memory = 10
    with pytest.raises(EngineError, match="engines take .* GB of device memory, 0.000 GB are free"):
        open_engine(compiled, BACKEND)
    assert cuda.leftovers == 0 and not library.contexts


def told_of_kernels(lines: list[str]) -> bool:
    return any("no kernels compiled" in line or "kernels are" in line for line in lines)


def test_compiled_kernels_are_kept_for_the_next_start(
    compiled: Bundle, library: HostTensorrt
) -> None:
    look = {"look": [Call("image", {"canvas": "canvas"}, {"latent": "latent"})]}
    first: list[str] = []
    engine = open_engine(compiled, BACKEND, report=first.append)
    engine.prepare(look)
    assert not (compiled.path / RUNTIME_CACHE).exists()
    engine.run("look")
    assert (compiled.path / RUNTIME_CACHE).read_bytes() == CACHE
    assert told_of_kernels(first)

    second: list[str] = []
    open_engine(compiled, BACKEND, report=second.append)
    assert not told_of_kernels(second)
    library.accepts_cache = False
    open_engine(compiled, BACKEND, report=second.append)
    assert "of another driver, GPU or version: kernels are compiled again" in " ".join(second)


def test_a_folder_that_cannot_be_written_is_told_and_does_not_stop_a_run(
    compiled: Bundle, library: HostTensorrt
) -> None:
    told: list[str] = []
    engine = open_engine(compiled, BACKEND, report=told.append)
    engine.prepare({"look": [Call("image", {"canvas": "canvas"}, {"latent": "latent"})]})
    (compiled.path / f".{RUNTIME_CACHE}.partial").mkdir()
    engine.run("look")
    assert told[-1].startswith("kernels are not kept for the next start: ")


def test_buffers_are_zero_at_first_and_refuse_what_does_not_fit(
    compiled: Bundle, library: HostTensorrt
) -> None:
    engine = open_engine(compiled, BACKEND)
    engine.prepare({"look": [Call("image", {"canvas": "canvas"}, {"latent": "latent"})]})
    assert not engine.read("canvas").any() and not engine.read("latent").any()
    with pytest.raises(ValueError, match=r"buffer 'canvas': got float32 .*; expected uint8"):
        engine.write("canvas", np.zeros((96, 128, 3), np.float32))
    with pytest.raises(ValueError, match="buffer 'canvas' is .* already; expected"):
        engine.prepare({"frames": [Call("frame", {"latents": "canvas"}, {"frames": "frames"})]})


def test_another_gpu_is_told_before_anything_is_loaded(
    compiled: Bundle, library: HostTensorrt, cuda: HostCuda
) -> None:
    cuda.capability = (8, 9)
    with pytest.raises(EngineMismatch) as caught:
        open_engine(compiled, BACKEND)
    assert str(caught.value) == (
        f"bundle '{compiled.path}': text.engine was compiled for compute capability 12.0, expected "
        f"8.9; run: cosmos3 compile {compiled.path} --backend tensorrt_rtx --compute-capability 8.9"
    )
    assert not library.contexts


@pytest.mark.parametrize(
    ("devices", "told"),
    [
        ((Error.cudaErrorInsufficientDriver, None), "no CUDA driver found for backend"),
        ((Error.cudaErrorNoDevice, None), "no NVIDIA GPU found .*cudaErrorNoDevice"),
        ((Error.cudaSuccess, 0), "no NVIDIA GPU found"),
    ],
)
def test_no_gpu_is_one_clear_line(
    devices: tuple[Error, int | None],
    told: str,
    compiled: Bundle,
    library: HostTensorrt,
    cuda: HostCuda,
) -> None:
    cuda.devices = devices
    with pytest.raises(EngineError, match=told):
        open_engine(compiled, BACKEND)


def has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


@pytest.mark.skipif(has_gpu(), reason="this machine has an NVIDIA driver")
def test_this_machine_without_a_driver_says_so(tiny: Exported) -> None:
    with pytest.raises(EngineError, match="^no CUDA driver found for backend 'tensorrt_rtx'"):
        open_engine(tiny.bundle, BACKEND)


@pytest.mark.skipif(has_gpu(), reason="this machine has an NVIDIA driver")
def test_an_engine_that_tensorrt_cannot_load_is_one_clear_line(
    tiny: Exported, cuda: HostCuda, tmp_path: Path
) -> None:
    bundle = load_bundle(shutil.copytree(tiny.bundle.path, tmp_path / "bundle"))
    graphs = {"step": bundle.manifest.graphs["step"]}
    bundle = replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))
    told: list[str] = []
    # A GPU is pretended: what is missing is compiled, for real, and then cannot be loaded.
    with pytest.raises(EngineMismatch) as caught:
        open_engine(bundle, BACKEND, rebuild=True, report=told.append)
    assert "step.engine was compiled again" in told
    require_engines(bundle, find_target(BACKEND, "12.0"))
    message = str(caught.value)
    assert "cannot load step.engine" in message and "CUDA driver version" in message
    assert message.endswith("--compute-capability 12.0 --force") and "\n" not in message
    assert cuda.leftovers == 0


def test_a_library_that_is_not_installed_is_told(
    tiny: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(EngineError, match="needs the Python package cuda-bindings"):
        open_engine(tiny.bundle, BACKEND)
    monkeypatch.setitem(sys.modules, BACKEND, None)
    with pytest.raises(EngineError, match="needs the Python package tensorrt_rtx"):
        open_engine(tiny.bundle, BACKEND)


def test_the_engine_loads_no_torch() -> None:
    code = "import sys, cosmos3_ros.engine.tensorrt_engine; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_buffers_lie_side_by_side_at_aligned_offsets() -> None:
    placement = place(
        {
            "a": TensorSpec((3,), "uint8"),
            "b": TensorSpec((64, 4), "float32"),
            "c": TensorSpec((1,), "int64"),
        }
    )
    assert placement.offsets == {"a": 0, "b": 256, "c": 256 + 1024}
    assert placement.bytes == 256 + 1024 + 256


def test_a_piece_begins_at_its_layer() -> None:
    keys = TensorSpec((36, 8, 512, 128), "bfloat16")
    assert tensor_bytes(keys) == 36 * 8 * 512 * 128 * 2
    assert piece_offset(Piece("keys"), keys) == 0
    assert piece_offset(Piece("keys", 18, 36), keys) == tensor_bytes(keys) // 2
    with pytest.raises(ValueError, match="begins at byte 6, expected a multiple of 256"):
        piece_offset(Piece("odd", 1, 2), TensorSpec((4, 3), "float16"))


def test_the_host_knows_bfloat16_where_ml_dtypes_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = TensorSpec((2,), "bfloat16")
    assert host_type("keys", spec).itemsize == 2
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ValueError, match="buffer 'keys' is bfloat16"):
        host_type("keys", spec)
    with pytest.raises(ValueError, match="a buffer is float64; expected one of uint8"):
        tensor_bytes(replace(spec, type="float64"))


@pytest.fixture(scope="module")
def on_gpu(tiny: Exported, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle, compiled for this machine's GPU."""
    bundle = load_bundle(
        shutil.copytree(tiny.bundle.path, tmp_path_factory.mktemp("gpu") / "bundle")
    )
    compile_bundle(bundle, find_target(BACKEND, find_gpu(BACKEND).compute_capability))
    return bundle


@pytest.fixture
def gpu_engine(on_gpu: Bundle) -> Iterator[TensorrtEngine]:
    engine = open_engine(on_gpu, BACKEND)
    yield engine
    engine.close()


@pytest.mark.gpu
def test_on_a_gpu_plans_equal_those_of_onnx_runtime(
    tiny: Exported, gpu_engine: TensorrtEngine
) -> None:
    reference = policy_over(tiny, OnnxEngine(tiny.bundle, 0))
    policy = policy_over(tiny, gpu_engine)
    for seed in range(3):
        expected, found = plan_with(reference, seed), plan_with(policy, seed)
        assert np.abs(found.rows - expected.rows).max() < 1e-3
        assert np.abs(found.latents - expected.latents).max() < 1e-3
        frames = policy.predict_frames(found).astype(int)
        assert np.abs(frames - reference.predict_frames(expected)).max() <= 1


@pytest.mark.gpu
def test_on_a_gpu_a_replayed_cuda_graph_equals_a_plain_run(
    tiny: Exported, on_gpu: Bundle, gpu_engine: TensorrtEngine
) -> None:
    policy = policy_over(tiny, gpu_engine)
    plan_with(policy)
    plain = open_engine(on_gpu, BACKEND, cuda_graphs=False)
    expected = plan_with(policy_over(tiny, plain), seed=1)
    plain.close()
    for _ in range(2):
        found = plan_with(policy, seed=1)
        assert (found.rows == expected.rows).all() and (found.latents == expected.latents).all()


@pytest.mark.gpu
def test_on_a_gpu_frames_are_decoded_beside_a_plan(
    tiny: Exported, gpu_engine: TensorrtEngine
) -> None:
    policy = policy_over(tiny, gpu_engine)
    plan = plan_with(policy)
    expected = policy.predict_frames(plan)
    found: list[np.ndarray] = []

    def decode() -> None:
        found.extend(policy.predict_frames(plan) for _ in range(20))

    decoder = Thread(target=decode)
    decoder.start()
    plans = [plan_with(policy) for _ in range(10)]
    decoder.join()
    assert all((frames == expected).all() for frames in found) and len(found) == 20
    assert all((again.rows == plan.rows).all() for again in plans)


@pytest.mark.gpu
def test_on_a_gpu_the_second_start_compiles_no_kernels(tiny: Exported, on_gpu: Bundle) -> None:
    first = open_engine(on_gpu, BACKEND)
    policy = policy_over(tiny, first)
    policy.predict_frames(plan_with(policy))
    first.close()
    told: list[str] = []
    second = open_engine(on_gpu, BACKEND, report=told.append)
    assert (on_gpu.path / RUNTIME_CACHE).stat().st_size > 0
    assert not told_of_kernels(told)
    second.close()
