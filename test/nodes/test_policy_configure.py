"""What the policy node refuses when it is configured, in one line, and what it compiles first."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import Exported
from host_cuda import HostCuda
from policy_world import World
from rclpy.lifecycle import TransitionCallbackReturn

from cosmos3_ros.engine.bundle import MANIFEST, load_bundle, manifest_text
from cosmos3_ros.engine.compile import find_target
from cosmos3_ros.engine.engine_key import require_engines


def refusals(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if "not configured: " in line]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"bundle": ""}, "parameter 'bundle' is empty"),
        ({"bundle": "nowhere"}, "'nowhere'"),
        ({"backend": "abacus"}, "parameter 'backend' is 'abacus'"),
        ({"embodiment": "octopus"}, "embodiment 'octopus' is not known"),
        (
            # Said before anything that follows from it.
            {"embodiment": "droid_exterior", "joint_names": ["one"]},
            "does not fit the bundle: embodiment is droid_exterior, expected sim_panda",
        ),
        ({"joint_names": ["one", "two"]}, "parameter 'joint_names' is ['one', 'two']"),
        ({"image_transport": "pigeon"}, "parameter 'image_transport' is 'pigeon'"),
        ({"camera_skew_s": -1.0}, "parameter 'camera_skew_s' is -1.0"),
        ({"predicted_frame_rows": 5}, "parameter 'predicted_frame_rows' is 5"),
        ({"threads": "many"}, "parameter 'threads' is 'many'"),
        ({"state_ahead": True, "strategy": "prefix"}, "parameter 'state_ahead' is true with"),
    ],
)
def test_a_parameter_the_node_cannot_work_with_leaves_it_unconfigured(
    parameters: dict[str, Any],
    said: str,
    make_world: Callable[..., World],
    capfd: pytest.CaptureFixture[str],
) -> None:
    world = make_world(**parameters)
    assert world.transition("configure") == TransitionCallbackReturn.FAILURE
    (line,) = refusals(capfd)
    assert said in line


def test_a_bundle_with_a_changed_byte_leaves_the_node_unconfigured(
    make_world: Callable[..., World],
    tiny: Exported,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bundle = Path(shutil.copytree(tiny.bundle.path, tmp_path / "bundle"))
    data = bytearray((bundle / "denoise.onnx").read_bytes())
    data[1000] ^= 1
    (bundle / "denoise.onnx").write_bytes(data)
    world = make_world(bundle=str(bundle))
    assert world.transition("configure") == TransitionCallbackReturn.FAILURE
    assert "denoise.onnx has SHA-256" in capfd.readouterr().err


def test_what_a_bundle_warns_of_is_said_before_it_moves_a_robot(
    make_world: Callable[..., World],
    tiny: Exported,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bundle = Path(shutil.copytree(tiny.bundle.path, tmp_path / "bundle"))
    data = json.loads((bundle / MANIFEST).read_text()) | {"warnings": ["calibrate it first"]}
    (bundle / MANIFEST).write_text(manifest_text(data))
    world = make_world(bundle=str(bundle))
    assert world.transition("configure") == TransitionCallbackReturn.SUCCESS
    assert "bundle 'tiny': calibrate it first" in capfd.readouterr().err


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    """CUDA in host memory: a GPU of compute capability 12.0 that loads no engine."""
    cuda = HostCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    return cuda


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="an NVIDIA driver is here")
def test_a_backend_without_its_driver_leaves_the_node_unconfigured(
    make_world: Callable[..., World], capfd: pytest.CaptureFixture[str]
) -> None:
    world = make_world(backend="tensorrt_rtx")
    assert world.transition("configure") == TransitionCallbackReturn.FAILURE
    assert "not configured: no CUDA driver found for backend" in capfd.readouterr().err


def test_an_engine_that_does_not_fit_leaves_the_node_unconfigured_with_the_command_that_mends_it(
    make_world: Callable[..., World], pretended_gpu: HostCuda, capfd: pytest.CaptureFixture[str]
) -> None:
    world = make_world(backend="tensorrt_rtx")
    assert world.transition("configure") == TransitionCallbackReturn.FAILURE
    (line,) = refusals(capfd)
    assert "text.engine is missing; run: cosmos3 compile " in line
    assert line.endswith("--backend tensorrt_rtx --compute-capability 12.0")


def test_engines_are_compiled_before_they_are_loaded_where_that_is_asked(
    make_world: Callable[..., World],
    pretended_gpu: HostCuda,
    tiny: Exported,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bundle = load_bundle(shutil.copytree(tiny.bundle.path, tmp_path / "bundle"))
    world = make_world(backend="tensorrt_rtx", bundle=str(bundle.path), engine_rebuild=True)
    assert world.transition("configure") == TransitionCallbackReturn.FAILURE
    said = capfd.readouterr().err
    assert said.count("was compiled again") == 5
    require_engines(bundle, find_target("tensorrt_rtx", "12.0"))
    if shutil.which("nvidia-smi") is None:
        assert "cannot load text.engine" in said
    assert pretended_gpu.leftovers == 0
