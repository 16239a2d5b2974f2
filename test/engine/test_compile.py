"""Engines are really compiled here, by TensorRT-RTX for SM 12.0, which needs no GPU."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import psutil
import pytest
from bundles import Exported
from onnx import TensorProto, helper

from cosmos3_ros import cli
from cosmos3_ros.engine.bundle import Bundle, file_sha256, load_bundle, manifest_text
from cosmos3_ros.engine.compile import compile_bundle, estimated_bytes, find_target
from cosmos3_ros.engine.engine_key import (
    EngineMismatch,
    engine_path,
    make_key,
    mismatch,
    read_record,
    record_path,
    require_engines,
    write_record,
)
from cosmos3_ros.engine.tensorrt_library import EngineError, Target

BACKEND, CAPABILITY = "tensorrt_rtx", "12.0"
PRECISIONS = ("tiny", "tiny_bf16", "tiny_fp8", "tiny_nvfp4")


@pytest.fixture(scope="module")
def target() -> Target:
    return find_target(BACKEND, CAPABILITY)


@pytest.fixture
def fresh(tiny: Exported, tmp_path: Path) -> Bundle:
    """The tiny bundle in a folder of the test's own, without engines."""
    return copy_of(tiny.bundle, tmp_path / "bundle")


@pytest.fixture(scope="module")
def step_compiled(
    tiny: Exported, target: Target, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """The tiny bundle with an engine of its smallest graph."""
    bundle = copy_of(tiny.bundle, tmp_path_factory.mktemp("compiled") / "bundle")
    compile_bundle(bundle, target, ["step"])
    return bundle


def copy_of(bundle: Bundle, folder: Path) -> Bundle:
    shutil.copytree(bundle.path, folder, ignore=shutil.ignore_patterns("*.engine", "*.engine.json"))
    return load_bundle(folder)


def command(bundle: Bundle, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "cosmos3_ros.cli", "compile", str(bundle.path), *arguments]


def builder_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The process in which a part is being compiled, once it is well on its way."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in psutil.Process(process.pid).children():
            if any("compile_part" in word for word in child.cmdline()) and child.num_threads() > 1:
                return child
        time.sleep(0.01)
    raise AssertionError("nothing was compiled")


def engines_of(bundle: Bundle) -> set[str]:
    return {path.name for path in bundle.path.iterdir() if ".engine" in path.name}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_graph_compiles_in_every_precision(
    precision: str, target: Target, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle = copy_of(request.getfixturevalue(precision).bundle, tmp_path / "bundle")
    compiled = compile_bundle(bundle, target)
    assert {part.part.file for part in compiled} == {
        "text.onnx", "image.onnx", "denoise.onnx", "step.onnx", "frame.onnx",
    }  # fmt: skip
    require_engines(bundle, target)
    for part in compiled:
        assert part.record is not None and not part.skipped
        assert part.record.key.precision == bundle.manifest.precision
        assert part.record.bytes == engine_path(bundle, part.part).stat().st_size > 100_000
        assert 0 < part.record.build_s < 120
        assert 50e6 < part.record.peak_bytes < 2e9


def test_every_part_of_a_cut_graph_compiles_alone(
    tiny_in_parts: Exported, target: Target, tmp_path: Path
) -> None:
    bundle = copy_of(tiny_in_parts.bundle, tmp_path / "bundle")
    compiled = compile_bundle(bundle, target, ["text", "denoise"])
    assert [engine_path(bundle, part.part).name for part in compiled] == [
        "text.0.engine", "text.1.engine", "denoise.0.engine", "denoise.1.engine",
    ]  # fmt: skip


def test_what_fits_is_skipped_unless_forced(step_compiled: Bundle, target: Target) -> None:
    path = engine_path(step_compiled, step_compiled.manifest.graphs["step"].parts[0])
    before = path.stat().st_mtime_ns
    assert [part.skipped for part in compile_bundle(step_compiled, target, ["step"])] == [True]
    assert path.stat().st_mtime_ns == before
    forced = compile_bundle(step_compiled, target, ["step"], force=True)
    assert [part.skipped for part in forced] == [False]
    assert path.stat().st_mtime_ns > before


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (shorten, "its key says"),
        (change_a_byte, "its SHA-256 differs"),
        (Path.unlink, "step.engine is missing"),
        (lambda path: path.with_name("step.engine.json").unlink(), "has no readable key"),
        (lambda path: path.with_name("step.engine.json").write_text("{"), "has no readable key"),
    ],
)
def test_a_damaged_engine_is_told_and_compiled_again(
    damage: Callable[[Path], None],
    told: str,
    step_compiled: Bundle,
    target: Target,
    tmp_path: Path,
) -> None:
    bundle = load_bundle(shutil.copytree(step_compiled.path, tmp_path / "bundle"))
    part = bundle.manifest.graphs["step"].parts[0]
    damage(engine_path(bundle, part))
    assert told in mismatch(bundle, part, target)
    assert not compile_bundle(bundle, target, ["step"])[0].skipped
    assert mismatch(bundle, part, target) == ""


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("backend", "tensorrt"),
        ("version", "1.6.0.0"),
        ("compute_capability", "8.9"),
        ("precision", "bf16"),
        ("graph_sha256", "0" * 64),
    ],
)
def test_a_key_that_does_not_fit_names_what_differs(
    field: str, other: str, step_compiled: Bundle, target: Target, tmp_path: Path
) -> None:
    bundle = load_bundle(shutil.copytree(step_compiled.path, tmp_path / "bundle"))
    part = bundle.manifest.graphs["step"].parts[0]
    record = read_record(record_path(bundle, part))
    assert record is not None
    write_record(
        record_path(bundle, part), replace(record, key=replace(record.key, **{field: other}))
    )
    told = mismatch(bundle, part, target)
    assert f"compiled for {field.replace('_', ' ')} {other}, expected" in told


def test_a_mismatch_is_one_line_with_the_command_that_mends_it(
    fresh: Bundle, target: Target
) -> None:
    with pytest.raises(EngineMismatch) as caught:
        require_engines(fresh, target)
    assert str(caught.value) == (
        f"bundle '{fresh.path}': text.engine is missing; run: cosmos3 compile {fresh.path} "
        "--backend tensorrt_rtx --compute-capability 12.0"
    )


def test_the_weights_are_part_of_the_key(step_compiled: Bundle, target: Target) -> None:
    part = step_compiled.manifest.graphs["denoise"].parts[0]
    data = f"{part.file}.data"
    assert data in step_compiled.manifest.files
    files = {**step_compiled.manifest.files, data: "0" * 64}
    other = replace(step_compiled, manifest=replace(step_compiled.manifest, files=files))
    assert make_key(other, part, target) != make_key(step_compiled, part, target)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_compile_leaves_nothing_that_loads(
    stop: signal.Signals, fresh: Bundle, target: Target
) -> None:
    arguments = command(fresh, "--graph", "step", "--graph", "frame")
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        step = fresh.path / "step.engine.json"
        while not step.is_file():
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.01)
        builder = builder_of(process)
        # Stopped, so that it does not end by itself; half a file is there.
        builder.suspend()
        half = fresh.path / ".frame.engine.partial"
        half.write_bytes(b"half")
        process.send_signal(stop)
        _, said = process.communicate(timeout=90)
    assert process.returncode == (1 if stop == signal.SIGINT else -signal.SIGKILL)
    assert (said.count("\n") == 1 and "interrupted" in said) or stop == signal.SIGKILL
    gone, _ = psutil.wait_procs([builder], timeout=30)
    if not gone:
        builder.kill()
    assert gone
    # What was complete stays; of the other nothing has its name.
    left = {half.name} if stop == signal.SIGKILL else set()
    assert engines_of(fresh) == {"step.engine", "step.engine.json", *left}
    assert mismatch(fresh, fresh.manifest.graphs["step"].parts[0], target) == ""
    with pytest.raises(EngineMismatch):
        require_engines(fresh, target)
    assert [part.skipped for part in compile_bundle(fresh, target, ["step", "frame"])] == [
        True,
        False,
    ]
    assert not half.exists()


def test_a_builder_that_crashes_is_one_line(fresh: Bundle) -> None:
    with subprocess.Popen(
        command(fresh, "--graph", "frame"), stderr=subprocess.PIPE, text=True
    ) as process:
        builder_of(process).send_signal(signal.SIGSEGV)
        _, said = process.communicate(timeout=180)
    assert process.returncode == 1
    assert "cannot compile frame.onnx" in said and "crashed with SIGSEGV" in said
    assert said.count("\n") == 1
    assert engines_of(fresh) == set()


def test_an_operator_that_cannot_be_compiled_is_named(fresh: Bundle, target: Target) -> None:
    with_operator(fresh.path, "step.onnx", "unheard_of", "Unique")
    with pytest.raises(EngineError, match=r"node 'unheard_of' \(Unique\)"):
        compile_bundle(load_bundle(fresh.path), target, ["step"])
    assert engines_of(fresh) == set()


def with_operator(folder: Path, file: str, node: str, operator: str) -> None:
    """Replace a graph of a bundle by one of a single operator."""
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], name=node)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), folder / file)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][file] = file_sha256(folder / file)
    (folder / "manifest.json").write_text(manifest_text(manifest))


def test_too_little_memory_is_refused_before_anything_is_compiled(
    fresh: Bundle, target: Target
) -> None:
    with pytest.raises(EngineError) as caught:
        compile_bundle(fresh, target, memory_bytes=0.5e9)
    assert "takes 1.0 GB of memory (estimate" in str(caught.value)
    assert "0.5 GB are available" in str(caught.value)
    assert engines_of(fresh) == set()


def test_a_part_of_many_layers_is_told_to_be_cut(fresh: Bundle, target: Target) -> None:
    # Nano in BF16: 13.9 GB of denoise in 36 layers.
    graphs = dict(fresh.manifest.graphs)
    part = replace(graphs["denoise"].parts[0], layers=(0, 36))
    graphs["denoise"] = replace(graphs["denoise"], parts=(part,))
    nano = replace(fresh, manifest=replace(fresh.manifest, graphs=graphs, precision="bf16"))
    with (fresh.path / f"{part.file}.data").open("r+b") as data:
        data.truncate(13_900_000_000)
    with pytest.raises(EngineError, match="takes 42.7 GB .* layers_per_part 18 or less"):
        compile_bundle(nano, target, ["denoise"], memory_bytes=22e9)


def test_the_estimate_is_what_was_measured_on_the_whole_of_nano() -> None:
    assert estimated_bytes(7_100_000_000, "fp8") == pytest.approx(21.2e9, rel=0.06)
    assert estimated_bytes(3_600_000_000, "nvfp4") == pytest.approx(12.8e9, rel=0.1)


def test_a_bundle_is_compiled_by_one_process_at_a_time(fresh: Bundle, target: Target) -> None:
    folder = os.open(fresh.path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with pytest.raises(EngineError, match="is being compiled by another process"):
            compile_bundle(fresh, target, ["step"])
    finally:
        os.close(folder)


def test_a_gpu_that_the_library_does_not_know_is_told_with_those_it_knows(
    fresh: Bundle,
) -> None:
    for capability in ("9.0", "120", "1.20", "12"):
        with pytest.raises(EngineError, match="7.5, 8.0, 8.6, 8.9, 12.0, 12.1"):
            compile_bundle(fresh, find_target(BACKEND, capability), ["step"])


def test_the_command_says_what_it_did(
    step_compiled: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compile", str(step_compiled.path), "--graph", "step"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step.engine", "is", "there", "and", "fits:", "skipped"]
    assert "compute capability 12.0, tensorrt_rtx" in lines[1]
    assert cli.main(["compile", str(step_compiled.path), "--graph", "step", "--force"]) == 0
    assert capsys.readouterr().out.startswith("step.engine            compiled in ")


@pytest.mark.skipif(
    shutil.which("trtexec") is not None, reason="TensorRT is installed on this machine"
)
def test_a_backend_that_is_not_installed_is_one_line(
    fresh: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compile", str(fresh.path), "--backend", "tensorrt"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "needs the Python package tensorrt" in said and "compiled on the robot" in said
