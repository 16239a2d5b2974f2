"""Programs that run side by side: start them, notice when one ends early, stop them in order::

    with Children(out / "logs", ros_environment()) as children:
        children.start_module("policy_node", "cosmos3_ros.nodes.policy_node", "--ros-args")
        while working:
            children.check()  # raises ProcessFailed with the log's tail

Leaving the block stops what still runs, the newest first.
"""

from __future__ import annotations

import fcntl
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from cosmos3_ros.resources import resource

# A node that is asked to end closes its files and says goodbye to its peers: seconds on a busy
# machine, never minutes.
STOP_TIMEOUT_S = 15.0
SHARED_MEMORY = Path("/dev/shm")
_SEGMENTS = f"{SHARED_MEMORY}/fastrtps_"
_POLL_S = 0.05
# Reading what a process has mapped takes milliseconds.
_NOTE_PERIOD_S = 1.0
_TAIL_LINES = 15
# Of a shell, what would have its nodes look beyond this machine's loopback interface, or for
# enclaves that ours have none of.
_NOT_OURS = (
    "ROS_DISCOVERY_SERVER",
    "ROS_LOCALHOST_ONLY",
    "ROS_SECURITY_ENABLE",
    "ROS_SECURITY_ENCLAVE_OVERRIDE",
    "ROS_SECURITY_KEYSTORE",
    "ROS_SECURITY_STRATEGY",
    "ROS_STATIC_PEERS",
    "ROS_SUPER_CLIENT",
)


class ProcessFailed(ChildProcessError):
    """A child ended early, with an error, or not at all; the message holds its log's tail."""


@dataclass(frozen=True)
class Child:
    """One started program; what it prints goes to ``log``."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self, lines: int = _TAIL_LINES) -> str:
        """The last lines of the log, indented."""
        text = self.log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join(f"    {line}" for line in text) or "    (nothing was printed)"

    def failure(self, what: str) -> ProcessFailed:
        return ProcessFailed(f"{self.name} {what}; the end of {self.log}:\n{self.tail()}")


@dataclass(frozen=True)
class Ending:
    """How a child ended: its exit code (negative: the signal), and whether it had to be killed."""

    child: Child
    exit_code: int
    killed: bool

    @property
    def clean(self) -> bool:
        return self.exit_code == 0 and not self.killed


@dataclass
class Children:
    """Programs that live and end together; leaving the ``with`` stops what still runs.

    ``logs`` is the folder of the log files ``NAME.log``, ``environment`` the children's whole
    environment. The last one started is the first one stopped. ``piped``: what they print goes
    through this program, so that a child that may not write files still says why. ``endings``: of
    all that were told to end, in that order.
    """

    logs: Path
    environment: Mapping[str, str]
    piped: bool = False
    running: list[Child] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    _begun: set[Path] = field(default_factory=set)
    _shared_memory: set[Path] = field(default_factory=set)
    _noted_s: float = -math.inf

    def __enter__(self) -> Children:
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        except BaseException:
            # An interrupt of the stopping itself: whoever still runs is stopped all the same.
            self.stop()
            raise

    def start(self, name: str, *command: str | Path) -> Child:
        """Start a program in a session of its own: Ctrl-C reaches us, and we stop it in turn.

        The log of one that is started again goes on where it ended.
        """
        log = self.logs / f"{name}.log"
        with log.open("ab" if log in self._begun else "wb") as file:
            process = subprocess.Popen(
                [str(word) for word in command],
                bufsize=0,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if self.piped else file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._begun.add(log)
        if process.stdout is not None:
            threading.Thread(target=_copy, args=(process.stdout, log), daemon=True).start()
        child = Child(name, process, log)
        self.running.append(child)
        return child

    def start_module(self, name: str, module: str, *arguments: str | Path) -> Child:
        """Start a Python module with this interpreter."""
        return self.start(name, sys.executable, "-m", module, *arguments)

    def check(self, but: Child | None = None) -> None:
        """Raise ProcessFailed when a child has ended by itself; ``but`` one may."""
        if time.monotonic() > self._noted_s + _NOTE_PERIOD_S:
            self._note_shared_memory()
        for child in self.running:
            if child is not but and (code := child.process.poll()) is not None:
                raise child.failure(f"ended early with exit code {code}")

    def wait(self, child: Child, timeout_s: float) -> None:
        """Wait until ``child`` has done its work, watching the others.

        Raises ProcessFailed when it, or another one, fails or does not end in time.
        """
        deadline = time.monotonic() + timeout_s
        while (code := child.process.poll()) is None:
            self.check(but=child)
            if time.monotonic() > deadline:
                raise child.failure(f"did not end within {timeout_s:g} s")
            time.sleep(_POLL_S)
        self.running.remove(child)
        if code != 0:
            raise child.failure(f"ended with exit code {code}")

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> list[Ending]:
        """SIGINT, then SIGKILL after ``timeout_s``, one child after another, the newest first.

        A kill is said on stderr. Shared memory that the children leave behind is removed.
        """
        endings = []
        while self.running:
            endings.append(self.end(self.running[-1], timeout_s))
        self._remove_shared_memory()
        return endings

    def end(self, child: Child, timeout_s: float = STOP_TIMEOUT_S) -> Ending:
        """As ``stop``, of one of them."""
        self._note_shared_memory()
        ending = _end(child, timeout_s)
        self.running.remove(child)
        self.endings.append(ending)
        return ending

    def kill(self, child: Child) -> None:
        """SIGKILL at once, as it may befall a program; ``endings`` does not blame it for that."""
        self._note_shared_memory()
        self.running.remove(child)
        _kill(child)

    def _note_shared_memory(self) -> None:
        """Remember the DDS segments that the children hold: a killed one leaves them."""
        self._noted_s = time.monotonic()
        for child in self.running:
            self._shared_memory |= _segments(child.process.pid)

    def _remove_shared_memory(self) -> None:
        # Some are shared with every participant on the machine: not while anybody holds them.
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        for path in self._shared_memory.difference(*map(_segments, pids)):
            path.unlink(missing_ok=True)
            path.with_name(f"sem.{path.name}_mutex").unlink(missing_ok=True)
        self._shared_memory.clear()


def _segments(pid: int) -> set[Path]:
    """Segments and lock files of Fast DDS that a process has open; none where we may not look."""
    proc = Path("/proc") / str(pid)
    with suppress(OSError):
        mapped = (line.split()[-1] for line in (proc / "maps").read_text().splitlines())
        opened = (str(link.readlink()) for link in (proc / "fd").iterdir())
        return {Path(name) for name in (*mapped, *opened) if name.startswith(_SEGMENTS)}
    return set()


def _end(child: Child, timeout_s: float) -> Ending:
    with suppress(ProcessLookupError):
        child.process.send_signal(signal.SIGINT)
    try:
        return Ending(child, child.process.wait(timeout_s), killed=False)
    except subprocess.TimeoutExpired:
        ending = Ending(child, _kill(child), killed=True)
        with suppress(OSError):  # the terminal may be lost
            print(f"{child.name} did not end {timeout_s:g} s after SIGINT: killed", file=sys.stderr)
        return ending


def _kill(child: Child) -> int:
    if child.process.poll() is None:
        # The whole group: a killed program cannot end what it started itself.
        os.killpg(child.process.pid, signal.SIGKILL)
    return child.process.wait()


def _copy(printed: IO[bytes], log: Path) -> None:
    with printed, log.open("ab", buffering=0) as file:
        shutil.copyfileobj(printed, file)


def end_on_signals() -> None:
    """Let SIGINT, SIGTERM and SIGHUP (a lost terminal; not under nohup) unwind this program like an
    exit, so that its children are stopped. A second one does not keep it from that; a third does.

    A shell starts what runs in its background with SIGINT ignored, and children inherit that.
    """
    ending = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ending.append(signal.SIGHUP)

    came = 0

    def leave(number: int, _: FrameType | None) -> None:
        nonlocal came
        came += 1
        if came != 2:
            raise SystemExit(128 + number)

    for number in ending:
        signal.signal(number, leave)


def ros_environment(domain_id: int | None = None) -> dict[str, str]:
    """This environment for ROS nodes that hear each other and nobody else on the machine.

    Traffic stays on loopback. ``domain_id`` None takes one that nobody here uses.
    """
    return {
        **{name: value for name, value in os.environ.items() if name not in _NOT_OURS},
        "FASTRTPS_DEFAULT_PROFILES_FILE": str(resource("config", "fastdds_local.xml")),
        "PYTHONUNBUFFERED": "1",
        "RCUTILS_COLORIZED_OUTPUT": "0",
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": str(free_domain_id() if domain_id is None else domain_id),
    }


def take_environment(environment: Mapping[str, str]) -> None:
    """Make an environment for ROS nodes this program's own, so that it hears them."""
    for name in _NOT_OURS:
        os.environ.pop(name, None)
    os.environ.update(environment)


@contextmanager
def alone_in(folder: Path, refusal: Exception) -> Iterator[None]:
    """Keep other processes of ours from a folder. Raises ``refusal`` where one is at it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        yield
    finally:
        os.close(descriptor)


def free_domain_id() -> int:
    """A DDS domain (1 to 100, below the ephemeral ports) that nobody here has a port of.

    Raises OSError when all are taken.
    """
    for domain_id in random.sample(range(1, 101), 100):
        # RTPS: a domain's 250 ports begin at 7400 + 250 * domain. Its participants take theirs in
        # order, but the first may have gone and left others behind.
        first = 7400 + 250 * domain_id
        if all(_udp_port_is_free(port) for port in range(first, first + 250)):
            return domain_id
    raise OSError("every ROS domain id from 1 to 100 is in use here; end some of their nodes")


def _udp_port_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
