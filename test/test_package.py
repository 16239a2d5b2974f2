"""The package's own files agree with each other, and a fresh checkout builds and installs."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import time
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest

import cosmos3_ros
from cosmos3_ros.resources import resource

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXECUTABLES = {
    "bringup", "controller_node", "cosmos3", "player_node", "policy_node", "recorder_node",
    "sim_node",
}  # fmt: skip
SOURCES = (
    "CMakeLists.txt", "LICENSE", "README.md", "cmake", "config", "cosmos3_ros", "engines", "launch",
    "msg", "package.xml", "pyproject.toml", "setup.py",
)  # fmt: skip


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {normalised(name): version for name, version in pairs}


def run_in_shell(script: str, cwd: Path) -> str:
    done = subprocess.run(["bash", "-ec", script], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A colcon workspace with a copy of this checkout, built as on a robot."""
    pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")
    if shutil.which("colcon") is None:
        pytest.skip("colcon is not in this environment")
    workspace = tmp_path_factory.mktemp("workspace")
    copy = workspace / "src" / "cosmos3_ros"
    copy.mkdir(parents=True)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy2(ROOT / name, copy / name)
    clean = "unset PYTHONPATH; export AMENT_PREFIX_PATH=$VIRTUAL_ENV CMAKE_PREFIX_PATH=$VIRTUAL_ENV"
    run_in_shell(f"{clean}; colcon build --event-handlers console_direct+", workspace)
    return workspace


def in_workspace(workspace: Path, script: str) -> str:
    """Run in a shell that has sourced the workspace, outside it and outside the checkout."""
    clean = "unset PYTHONPATH; export AMENT_PREFIX_PATH=$VIRTUAL_ENV"
    return run_in_shell(f"{clean}; source {workspace}/install/setup.bash; {script}", Path("/"))


def test_versions_agree() -> None:
    manifest = ElementTree.parse(ROOT / "package.xml").getroot()
    assert manifest.findtext("version") == cosmos3_ros.__version__


def test_catkin_pkg_accepts_the_manifest() -> None:
    parser = pytest.importorskip("catkin_pkg.package", reason="catkin_pkg is not here")
    package = parser.parse_package(str(ROOT / "package.xml"))
    package.validate()
    assert package.get_build_type() == "ament_cmake"


def test_manifest_names_every_ros_package_that_the_modules_import() -> None:
    text = (ROOT / "package.xml").read_text()
    sources = [*(ROOT / "cosmos3_ros").rglob("*.py"), *(ROOT / "launch").glob("*.py")]
    pattern = re.compile(
        r"^\s*(?:from|import) (\w+_(?:msgs|srvs|interfaces|ros)|rclpy|launch)\b", re.M
    )
    imported = {name for path in sources for name in pattern.findall(path.read_text())}
    imported -= {"cosmos3_ros"}
    assert {"rclpy", "sensor_msgs", "launch_ros"} <= imported
    missing = {name for name in imported if f">{name}<" not in text}
    assert not missing


def test_every_message_is_built() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text()
    for path in (ROOT / "msg").glob("*.msg"):
        assert f'"msg/{path.name}"' in cmake


def test_every_requirement_is_locked_at_a_version_it_allows() -> None:
    requirements = pytest.importorskip("packaging.requirements")
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *(r for group in extras.values() for r in group)]
    versions = locked()
    for text in wanted:
        requirement = requirements.Requirement(text)
        assert requirement.specifier.contains(versions[normalised(requirement.name)]), text


def test_every_package_folder_is_in_the_wheel() -> None:
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "cosmos3_ros").rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders


def test_dds_profiles_differ_in_where_udp_goes_alone() -> None:
    shm, local = (
        ElementTree.parse(ROOT / "config" / f"fastdds_{name}.xml").getroot()
        for name in ("shm", "local")
    )
    (udp,) = (t for t in local.iter() if any(c.tag.endswith("interfaceWhiteList") for c in t))
    (whitelist,) = (c for c in udp if c.tag.endswith("interfaceWhiteList"))
    assert [address.text for address in whitelist] == ["127.0.0.1"]
    udp.remove(whitelist)
    assert ElementTree.canonicalize(
        ElementTree.tostring(local), strip_text=True
    ) == ElementTree.canonicalize(ElementTree.tostring(shm), strip_text=True)
    (segment,) = (e.text for e in shm.iter() if e.tag.endswith("segment_size"))
    assert int(segment or 0) == 32 * 1024 * 1024


def test_resource_that_does_not_exist_names_the_places_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AMENT_PREFIX_PATH", "/opt/one:/opt/two")
    with pytest.raises(FileNotFoundError, match=r"'config/nothing.xml' was not found.*/opt/two"):
        resource("config", "nothing.xml")


def test_run_says_what_it_can_do_and_refuses_the_rest() -> None:
    done = subprocess.run([ROOT / "run", "help"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0
    usual = ("setup", "demo", "eval", "faults", "test", "bench", "doctor", "cosmos3", "exec")
    for command in usual:
        assert re.search(rf"^  {command}\b", done.stdout, re.M), command
    wrong = subprocess.run([ROOT / "run", "dance"], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "unknown command 'dance'" in wrong.stderr


@pytest.mark.parametrize("ending", ["exit 3", "exec sleep 300"])
def test_run_leaves_no_process_behind(ending: str, tmp_path: Path) -> None:
    """However the program ends, what it started in sessions of their own is gone after it."""
    program = f"setsid sleep 300 & echo $! >{tmp_path}/pid; {ending}"
    script = f"source {ROOT}/run; attended bash -c '{program}'"
    with subprocess.Popen(["bash", "-c", script]) as process:
        pid = _wait_for_pid(tmp_path / "pid")
        if ending != "exit 3":
            process.terminate()
        assert process.wait(30) == (3 if ending == "exit 3" else 143)
    assert not _is_alive(pid)


def _is_alive(pid: int) -> bool:
    """Whether a process runs: one that has ended and that nobody has asked about does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait_for_pid(path: Path) -> int:
    deadline = time.monotonic() + 10
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline, "the program did not start"
        time.sleep(0.02)
    return int(path.read_text())


def test_run_without_a_supported_python_says_so(tmp_path: Path) -> None:
    """A copy of the script, with nothing set up, told to use a Python that is none."""
    for name in ("run", "constraints.txt", "pyproject.toml"):
        shutil.copy2(ROOT / name, tmp_path / name)
    environment = {**os.environ, "COSMOS3_PYTHON": "/bin/false"}
    done = subprocess.run(
        [tmp_path / "run", "setup"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1
    assert "no Python 3.11 or 3.12 found (looked for /bin/false" in done.stderr


def run_function(script: str) -> str:
    """What functions of the script print."""
    done = subprocess.run(
        ["bash", "-c", f"source {ROOT}/run; {script}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_environment_in_which_pip_was_interrupted_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "bin" / "pip").write_text(f"#!{tmp_path}/bin/python\n")
    make = f'VENV={tmp_path}; step() {{ echo "$1"; }}; make_venv'
    assert run_function(make) == "", "made anew what is whole"
    fails = f"VENV={tmp_path}; step() {{ exit 0; }}; install_python_packages sim"
    run_function(fails)
    assert run_function(make).startswith("virtual environment, Python 3")
    assert not (tmp_path / "bin").exists()


@pytest.mark.parametrize(("said", "stays"), [("no network", False), ("Installing collected", True)])
def test_where_pip_fails_before_it_installs_the_environment_is_as_it_was(
    said: str, stays: bool, tmp_path: Path
) -> None:
    (tmp_path / ".installing").touch()
    said = said.replace("collected", "collected packages: a, b")
    pip = f"bash -c 'echo {said}; exit 1'"
    printed = run_function(f"VENV={tmp_path}; settled {pip} || echo failed")
    assert printed.splitlines() == [said, "failed"]
    assert (tmp_path / ".installing").exists() == stays


@pytest.mark.parametrize(
    ("stamp", "asked", "enough"),
    [
        ("/v ros,sim,faults,export 1f", "ros,sim", True),
        ("/v ros,sim 1f", "ros,sim", True),
        ("/v ros,sim 1f", "ros,sim,faults", False),
        ("/v ros,simulation 1f", "ros,sim", False),
        ("/v ros,sim 1f", "ros 2e", False),
        ("/w ros,sim 1f", "ros", False),
        ("", "ros", False),
    ],
)
def test_what_is_installed_is_enough_for_less(stamp: str, asked: str, enough: bool) -> None:
    extras, _, requirements = asked.partition(" ")
    script = f"VENV=/v; is_installed '{stamp}' '{extras}' '{requirements or '1f'}' && echo enough"
    assert run_function(f"{script} || true") == ("enough\n" if enough else "")


def test_a_library_that_is_there_for_two_architectures_is_not_missing() -> None:
    """As dpkg-query says it: one state after another, with nothing between them."""
    query = """
dpkg() { echo amd64; }
dpkg-query() { case ${!#} in *:amd64) printf installed;; *) printf installedinstalled;; esac; }
has_package libegl1 && echo there
"""
    assert run_function(query) == "there\n"


def test_continuous_integration_runs_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert "./run test" in script.read_text()


@pytest.mark.timeout(1200)
def test_colcon_installs_executables_that_start(workspace: Path) -> None:
    folder = workspace / "install" / "cosmos3_ros" / "lib" / "cosmos3_ros"
    assert {path.name for path in folder.iterdir()} == EXECUTABLES
    assert all(path.stat().st_mode & stat.S_IXUSR for path in folder.iterdir())
    assert "NODE" in in_workspace(workspace, f"{folder}/bringup --help")
    shared = workspace / "install" / "cosmos3_ros" / "share" / "cosmos3_ros" / "engines"
    assert (shared / "pico").is_dir() and not (shared / "pico_checkpoint").exists()
    # An interrupt is how a node ends: exit code 0, and the configuration was found where it lies.
    start = f"timeout --preserve-status -s INT 8 {folder}/controller_node --ros-args -p embodiment"
    in_workspace(workspace, f"{start}:=sim_panda")


@pytest.mark.timeout(1200)
def test_colcon_installs_modules_messages_and_share_as_one_package(workspace: Path) -> None:
    code = """
import cosmos3_ros.policy, sys
from pathlib import Path
from cosmos3_ros.msg import ActionChunk, PolicyStatus
from cosmos3_ros.policy.embodiment import embodiment_names
from cosmos3_ros.resources import resource
assert len(cosmos3_ros.__path__) == 1, cosmos3_ros.__path__
for parts in (("launch", "policy.launch.py"), ("config", "fastdds_shm.xml"), ("engines",)):
    assert "install" in resource(*parts).parts, parts
print(ActionChunk().plan_id, *embodiment_names())
"""
    out = in_workspace(workspace, f"python - <<'END'{code}END\ncosmos3 --help")
    assert "droid_joint_pos" in out
    assert "bag-from-lerobot" in out


@pytest.mark.timeout(1200)
def test_wheel_holds_modules_messages_executables_and_share(
    workspace: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(workspace / "src" / "cosmos3_ros", tmp_path / "checkout")
    wheel = f"{sys.executable} -m pip wheel --no-deps --no-build-isolation --no-index -w wheels ."
    run_in_shell(wheel, copy)
    (path,) = (copy / "wheels").glob("*.whl")
    names = run_in_shell(f"{sys.executable} -m zipfile -l {path}", copy)
    suffix = sysconfig.get_config_var("SOABI").split("-")[1]
    assert f"cp{suffix}" in path.name
    for expected in (
        "cosmos3_ros/nodes/policy_node.py",
        "cosmos3_ros/msg/_action_chunk.py",
        "cosmos3_ros/cosmos3_ros_s__rosidl_typesupport_fastrtps_c.so",
        "data/lib/libcosmos3_ros__rosidl_typesupport_fastrtps_c.so",
        "data/lib/cosmos3_ros/policy_node",
        "data/share/cosmos3_ros/config/embodiments/droid_joint_pos.yaml",
        "data/share/cosmos3_ros/launch/policy.launch.py",
        "data/share/cosmos3_ros/engines/pico/manifest.json",
    ):
        assert expected in names, expected
    assert (copy / "engines" / "pico_checkpoint").is_dir()
    assert "pico_checkpoint" not in names
