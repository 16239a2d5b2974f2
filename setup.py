"""Packs the checkout for pip; with a ROS 2 at hand, its messages and executables too.

The messages are built by the package's own CMakeLists.txt, in the ROS wheels of the environment
that is installed into or in a sourced ROS. Without a ROS the package exports and checks bundles and
has no nodes. An editable install takes no messages: `./run setup` builds those of a checkout.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
NAME = "cosmos3_ros"
SHARED = ("config", "engines", "launch")


def ros_prefixes() -> list[str]:
    """Prefixes where the message generator may lie: a sourced ROS, and this environment."""
    sourced = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    return [prefix for prefix in [*sourced, sys.prefix] if prefix]


def has_ros() -> bool:
    """Whether messages can be built."""
    share = "share/rosidl_default_generators"
    return any((Path(prefix) / share).is_dir() for prefix in ros_prefixes())


def cmake_install(folder: Path) -> Path:
    """Build the package with CMake in ``folder``; returns the prefix it was installed in."""
    prefixes = os.pathsep.join(ros_prefixes())
    environment = os.environ | {"AMENT_PREFIX_PATH": prefixes, "CMAKE_PREFIX_PATH": prefixes}
    if "pip-build-env" in environment.get("PYTHONPATH", ""):
        # pip's isolated build hides the environment; the generators' Python has to see it.
        del environment["PYTHONPATH"]
    source, build, prefix = folder / "source", folder / "build", folder / "prefix"
    # A copy, since CMake refuses to export include folders of a .venv inside its source folder.
    source.mkdir()
    for name in ("CMakeLists.txt", "package.xml"):
        shutil.copy2(ROOT / name, source / name)
    for name in ("cmake", "msg", NAME, *SHARED):
        shutil.copytree(ROOT / name, source / name)
    options = [
        f"-DCMAKE_INSTALL_PREFIX={prefix}",
        f"-DPython3_EXECUTABLE={sys.executable}",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DBUILD_TESTING=OFF",
    ]
    for command in (
        ["cmake", "-S", str(source), "-B", str(build), *options],
        ["cmake", "--build", str(build), "--parallel", "2"],
        ["cmake", "--install", str(build)],
    ):
        subprocess.run(command, env=environment, check=True)
    return prefix


class BuildWithMessages(build_py):
    """Modules by setuptools; messages, libraries and share/ from CMake's install folder."""

    def run(self) -> None:
        """Build; leaves what goes to the environment's lib/ and share/ in ``data_files``."""
        super().run()
        if self.editable_mode:
            return
        if not has_ros():
            print(f"{NAME}: no ROS 2 found, packed without messages: no nodes, export and verify")
            # Bags are read and written by the definitions of the messages.
            self._share(ROOT, [ROOT / name for name in (*SHARED, "msg")], f"share/{NAME}")
            return
        kept = Path(self.build_lib).resolve().parent / "cmake_install"
        shutil.rmtree(kept, ignore_errors=True)
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(cmake_install(Path(folder)), kept)
        # Beside the modules lie the generated cosmos3_ros/msg and its extension libraries.
        generated = next(kept.glob(f"l*/python3*/site-packages/{NAME}/msg")).parent
        modules = Path(self.build_lib) / NAME
        shutil.copytree(generated / "msg", modules / "msg", dirs_exist_ok=True)
        for library in generated.glob("*.so"):
            shutil.copy2(library, modules / library.name)
        shutil.rmtree(generated.parents[1])
        self._share(kept, [kept / "lib", kept / "share"], "")

    def _share(self, base: Path, folders: list[Path], target: str) -> None:
        found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        # Checkpoints are what bundles are exported from: they stay in the checkout.
        files = [path for path in found if not any(p.match("*_checkpoint") for p in path.parents)]
        by_folder: dict[str, list[str]] = {}
        for path in files:
            place = str(Path(target) / path.parent.relative_to(base))
            by_folder.setdefault(place, []).append(os.path.relpath(path))
        self.distribution.data_files = sorted(by_folder.items())


class MaybeBinary(Distribution):
    """A wheel with messages holds libraries of this platform and this Python."""

    def has_ext_modules(self) -> bool:
        """Whether the wheel is for one platform only."""
        return has_ros()


setup(cmdclass={"build_py": BuildWithMessages}, distclass=MaybeBinary)
