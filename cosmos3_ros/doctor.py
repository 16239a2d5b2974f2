"""``cosmos3 doctor``: what works on this machine, and what to install for what does not.

Each check tries the real thing in a process of its own: a library that crashes is a finding, and
what is wrong with one says nothing about the others.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from cosmos3_ros.resources import resource

TIMEOUT_S = 90.0
SMI_TIMEOUT_S = 30.0
# Debian's and Ubuntu's own Python takes packages from pip only so; an environment does not mind.
PIP = "pip install --break-system-packages"
PROFILE_VARIABLE = "FASTRTPS_DEFAULT_PROFILES_FILE"
# Room for a handful of 720p images; Fast DDS's default holds none.
SEGMENT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Check:
    """Something to try: ``code`` is Python that prints what it found, or fails.

    ``remedy`` says what to install. A ``needed`` check is one the robot cannot do without.
    ``absent``: how a failure begins that means that the thing is not there, besides a missing
    Python package. ``timeout_s``: how long it may take.
    """

    name: str
    code: str
    remedy: str
    needed: bool = False
    absent: str = "ModuleNotFoundError:"
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True)
class Finding:
    """What came of a check. ``works`` None: not there, and nothing is wrong with that."""

    name: str
    works: bool | None
    found: str
    remedy: str = ""
    needed: bool = False


CHECKS = (
    Check(
        "rclpy",
        """
import os, rclpy
from rclpy.utilities import get_rmw_implementation_identifier
context = rclpy.Context()
context.init()
node = rclpy.create_node("cosmos3_doctor", context=context)
node.destroy_node()
context.try_shutdown()
distro = os.environ.get("ROS_DISTRO", "distribution not named")
print(f"ROS 2 {distro} on {get_rmw_implementation_identifier()}, a node starts")
""",
        "source ROS 2 Jazzy's setup.bash, or on a machine without ROS: ./run setup",
        needed=True,
    ),
    Check(
        "messages",
        """
from cosmos3_ros.msg import ActionChunk, PolicyStatus
for kind in (ActionChunk, PolicyStatus):
    kind.__class__.__import_type_support__()
    assert kind.__class__._TYPE_SUPPORT is not None, f"no type support for {kind.__name__}"
print("ActionChunk, PolicyStatus")
""",
        "build them: colcon build, then source install/setup.bash; without ROS: ./run setup",
        needed=True,
    ),
    Check(
        "numpy",
        "import numpy; print(numpy.__version__)",
        f"apt-get install python3-numpy, or {PIP} numpy",
        needed=True,
    ),
    Check(
        "OpenCV",
        """
import cv2, numpy
good, jpeg = cv2.imencode(".jpg", numpy.zeros((8, 8, 3), numpy.uint8))
assert good and cv2.imdecode(jpeg, cv2.IMREAD_COLOR).shape == (8, 8, 3), "no JPEG"
print(f"{cv2.__version__}, JPEG works")
""",
        "apt-get install python3-opencv; where ROS does not come from apt, "
        f"{PIP} opencv-python-headless",
        needed=True,
    ),
    Check(
        "ONNX Runtime",
        """
import onnxruntime
print(f"{onnxruntime.__version__}, {', '.join(onnxruntime.get_available_providers())}")
""",
        f"{PIP} onnxruntime",
        needed=True,
    ),
    Check(
        "tokenizers",
        "import tokenizers; print(tokenizers.__version__)",
        f"{PIP} tokenizers",
        needed=True,
    ),
    Check(
        "PyYAML",
        "import yaml; print(yaml.__version__)",
        f"apt-get install python3-yaml, or {PIP} PyYAML",
        needed=True,
    ),
    Check(
        "TensorRT-RTX",
        """
import tensorrt_rtx
builder = tensorrt_rtx.Builder(tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR))
network = builder.create_network(0)
x = network.add_input("x", tensorrt_rtx.float32, (4,))
network.mark_output(network.add_identity(x).get_output(0))
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(tensorrt_rtx.ComputeCapability.SM120, 0)
assert builder.build_serialized_network(network, config) is not None, "it compiles nothing"
print(f"{tensorrt_rtx.__version__}, compiles engines for compute capability 12.0")
""",
        f"for engines on an RTX GPU: {PIP} tensorrt-rtx-cu13",
    ),
    Check(
        "TensorRT",
        """
import tensorrt
builder = tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))
print(f"{tensorrt.__version__}, compiles engines for this machine's GPU")
""",
        "for engines on a Jetson or a data-centre GPU: comes with JetPack or NVIDIA's packages",
    ),
    Check(
        "CUDA",
        """
import sys
from importlib.metadata import version
from cuda.bindings import runtime
_, driver = runtime.cudaDriverGetVersion()
if not driver:
    sys.exit(f"no CUDA driver; cuda-bindings {version('cuda-bindings')} is there")
error, count = runtime.cudaGetDeviceCount()
assert error == runtime.cudaError_t.cudaSuccess, error.name
print(f"driver for CUDA {driver // 1000}.{driver % 1000 // 10}, {count} GPU in reach, "
      f"cuda-bindings {version('cuda-bindings')}")
""",
        f"to run engines: a GPU with NVIDIA's driver, and {PIP} cuda-bindings; compiling for "
        "an RTX GPU needs neither",
        absent="no CUDA driver",
    ),
    Check(
        "export",
        """
import diffusers, onnx, onnxscript, torch, transformers
print(f"torch {torch.__version__}, diffusers {diffusers.__version__}, onnx {onnx.__version__}")
""",
        f"to export bundles: ./run setup in a checkout, or {PIP} '.[export]' there",
    ),
    Check(
        "MuJoCo",
        """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody/></mujoco>")
with mujoco.Renderer(model, 16, 16) as renderer:
    renderer.update_scene(mujoco.MjData(model))
    renderer.render()
print(f"{mujoco.__version__}, renders")
""",
        f"for the simulated arm: {PIP} mujoco, apt-get install libegl1 libgl1 libgles2 "
        "libgl1-mesa-dri, and MUJOCO_GL=egl in the environment",
    ),
    Check(
        "bags",
        """
from importlib.metadata import version
import av, matplotlib, pyarrow, rosbags.rosbag2
print(f"rosbags {version('rosbags')}, av {av.__version__}, pyarrow {pyarrow.__version__}")
""",
        f"to convert and replay bags: {PIP} rosbags av pyarrow matplotlib tqdm",
    ),
)

# Graphs are opened, not only hashed: a backend may refuse what the file system holds. What no CPU
# runs has to have engines that fit.
BUNDLE_CODE = """
import sys
from cosmos3_ros.engine.backends import BACKENDS, open_backend
from cosmos3_ros.engine.bundle import load_bundle
from cosmos3_ros.engine.engine_key import judge_engine
try:
    bundle = load_bundle(sys.argv[1])
    manifest = bundle.manifest
    if manifest.precision == "fp32":
        open_backend(bundle, BACKENDS[0], 0)
except (ValueError, OSError) as error:
    sys.exit(f"{error}")
told = f"{manifest.name}, {manifest.precision}: {len(manifest.files)} hashes right, "
if manifest.precision == "fp32":
    print(told + f"{len(manifest.graphs)} graphs open on {BACKENDS[0]}")
    sys.exit()
parts = [part for spec in manifest.graphs.values() for part in spec.parts]
judged = [judge_engine(bundle, part) for part in parts]
missing = sum(one is None for one in judged)
if missing:
    lack = f"{missing} of {len(parts)} graphs have no engine"
    sys.exit(told + f"{lack}; no CPU runs {manifest.precision}")
for one in judged:
    if one.mismatch:
        sys.exit(told + one.mismatch)
also = sorted({one.note for one in judged} - {""})
print(told + "; ".join([f"{len(parts)} engines fit, for {judged[0].told}", *also]))
"""
# Of a bundle every byte is read, at this rate at least.
_BYTES_PER_S = 50e6


def attempt(check: Check, *arguments: str) -> Finding:
    """Run a check's code in this interpreter's twin."""
    command = [sys.executable, "-c", check.code, *arguments]
    # MuJoCo looks for a display unless told not to; a node that only tries to start is nobody's
    # business on the network.
    environment = {
        "MUJOCO_GL": "egl",
        **os.environ,
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    }
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=check.timeout_s
        )
    except subprocess.TimeoutExpired:
        return Finding(
            check.name, False, f"no end after {check.timeout_s:g} s", check.remedy, check.needed
        )
    if done.returncode == 0:
        return Finding(check.name, True, _last_line(done.stdout))
    found = _last_line(done.stderr) or f"ended with code {done.returncode}"
    absent = found.startswith(("ModuleNotFoundError", check.absent)) and not check.needed
    if found.startswith("ModuleNotFoundError"):
        found = "not installed"
    return Finding(check.name, None if absent else False, found, check.remedy, check.needed)


def find_gpu() -> Finding:
    """The NVIDIA GPUs, by their driver's own word."""
    remedy = "without one the policy runs on the CPU (backend onnxruntime)"
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding("GPU", None, "no nvidia-smi, so no NVIDIA driver", remedy)
    query = "--query-gpu=name,driver_version,compute_cap,memory.total"
    broken = "check the NVIDIA driver: nvidia-smi must list the GPU"
    try:
        done = subprocess.run(
            [program, query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=SMI_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return Finding("GPU", False, f"nvidia-smi: no end after {SMI_TIMEOUT_S:g} s", broken)
    if done.returncode != 0 or not done.stdout.strip():
        found = _last_line(done.stdout + done.stderr) or f"nvidia-smi ended with {done.returncode}"
        return Finding("GPU", False, found, broken)
    gpus = [", ".join(map(str.strip, line.split(","))) for line in done.stdout.splitlines()]
    return Finding("GPU", True, "; ".join(gpus))


def examine_dds_profile() -> Finding:
    """Whether images fit the shared-memory segments of the DDS profile in force."""
    shipped = resource("config", "fastdds_shm.xml")
    remedy = f"export {PROFILE_VARIABLE}={shipped}; without it images are lost in silence"
    name = os.environ.get(PROFILE_VARIABLE, "")
    if not name:
        return Finding("DDS profile", False, f"{PROFILE_VARIABLE} is not set", remedy)
    try:
        tree = ElementTree.parse(name)
    except (OSError, ElementTree.ParseError) as error:
        return Finding("DDS profile", False, f"{name}: {error}", remedy)
    sizes = [int(e.text or 0) for e in tree.iter() if e.tag.rpartition("}")[2] == "segment_size"]
    if max(sizes, default=0) < SEGMENT_BYTES:
        found = f"{name}: shared-memory segment of {max(sizes, default=0)} bytes"
        return Finding("DDS profile", False, f"{found}, expected {SEGMENT_BYTES} or more", remedy)
    free = shutil.disk_usage("/dev/shm").free
    if free < 2 * max(sizes):
        remedy = "give the machine or container more shared memory (docker run --shm-size=1g)"
        return Finding("DDS profile", False, f"{free >> 20} MB free in /dev/shm", remedy)
    return Finding("DDS profile", True, f"{name}, segments of {max(sizes) >> 20} MB")


def examine(bundle: Path | None) -> list[Finding]:
    """Every finding, in the order to read them."""
    tried = []
    with ThreadPoolExecutor() as pool:
        for finding in pool.map(attempt, CHECKS):
            tried.append(finding)
            # By hand: what draws bars elsewhere may be missing where the doctor is called.
            if sys.stderr.isatty():
                print(f"\rchecked {len(tried)} of {len(CHECKS)}", end="\r", file=sys.stderr)
    findings = [*tried[:2], examine_dds_profile(), *tried[2:7], find_gpu(), *tried[7:]]
    if bundle is not None:
        size = sum(path.stat().st_size for path in bundle.glob("*") if path.is_file())
        check = Check(
            "bundle",
            BUNDLE_CODE,
            f"cosmos3 inspect {bundle} says more; cosmos3 compile makes engines",
            needed=True,
            timeout_s=TIMEOUT_S + round(size / _BYTES_PER_S),
        )
        findings.append(attempt(check, str(bundle)))
    return findings


def report(findings: Sequence[Finding]) -> str:
    """A line a finding, and a line with the remedy under what does not work."""
    words = {True: "works", False: "FAILS", None: "none"}
    lines = [f"cosmos3_ros on Python {platform.python_version()}, {platform.platform()}"]
    for finding in findings:
        lines.append(f"{words[finding.works]:6} {finding.name:13} {finding.found}")
        if not finding.works:
            lines.append(f"{'':21}-> {finding.remedy}")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``cosmos3 doctor``."""
    parser.add_argument("--bundle", type=Path, help="check this bundle too")


def main(args: argparse.Namespace) -> int:
    """Print what works; 1 when something that the robot needs does not."""
    findings = examine(args.bundle)
    print(report(findings))
    broken = [finding.name for finding in findings if finding.needed and not finding.works]
    if broken:
        print(f"\nneeded and not working: {', '.join(broken)}")
        return 1
    return 0


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
