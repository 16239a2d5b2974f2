"""Starting, watching and stopping programs."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cosmos3_ros.processes import (
    SHARED_MEMORY,
    Children,
    ProcessFailed,
    _segments,
    free_domain_id,
    ros_environment,
    take_environment,
)

# Says that it is ready, then when it was interrupted.
PATIENT = """
import signal, sys, time
def leave(*_):
    print("interrupted", time.monotonic(), flush=True)
    time.sleep(0.2)
    sys.exit(0)
signal.signal(signal.SIGINT, leave)
print("ready", flush=True)
time.sleep(60)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path, ros_environment()) as started:
        yield started


def start(children: Children, name: str, program: str) -> None:
    child = children.start(name, sys.executable, "-c", program)
    until(lambda: "ready" in child.log.read_text() or child.process.poll() is not None)


def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_children_are_interrupted_one_after_another_the_newest_first(children: Children) -> None:
    for name in ("first", "second", "third"):
        start(children, name, PATIENT)
    logs = {child.name: child.log for child in children.running}
    children.check()
    endings = children.stop()
    assert [ending.child.name for ending in endings] == ["third", "second", "first"]
    assert all(ending.clean for ending in endings)
    times = [float(logs[e.child.name].read_text().split()[-1]) for e in endings]
    assert times[1] - times[0] > 0.2 and times[2] - times[1] > 0.2
    assert children.running == []


def test_a_child_that_ignores_the_interrupt_is_killed_and_it_is_said(
    children: Children, capfd: pytest.CaptureFixture[str]
) -> None:
    start(children, "stubborn", STUBBORN)
    (ending,) = children.stop(timeout_s=0.3)
    assert (ending.killed, ending.exit_code, ending.clean) == (True, -signal.SIGKILL, False)
    assert "stubborn did not end 0.3 s after SIGINT: killed" in capfd.readouterr().err


def test_one_child_is_ended_or_killed_while_the_others_go_on(children: Children) -> None:
    for name in ("first", "second", "third"):
        start(children, name, PATIENT)
    first, second, third = children.running
    assert children.end(second).clean
    children.kill(third)
    assert third.process.returncode == -signal.SIGKILL
    assert children.running == [first]
    children.stop()
    # What was killed on purpose did not fail to end.
    assert [ending.child.name for ending in children.endings] == ["second", "first"]


def test_the_log_of_a_child_that_is_started_again_goes_on(tmp_path: Path) -> None:
    (tmp_path / "word.log").write_text("of another run")
    with Children(tmp_path, ros_environment()) as children:
        for word in ("one", "two"):
            program = f"print({word!r})"
            children.wait(children.start("word", sys.executable, "-c", program), timeout_s=30)
    assert (tmp_path / "word.log").read_text().split() == ["one", "two"]


def test_a_piped_child_that_may_not_write_files_still_says_why(tmp_path: Path) -> None:
    program = f"""
import pathlib, resource
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
print("no file may grow", flush=True)
pathlib.Path({str(tmp_path / "file")!r}).write_text("x")
"""
    with Children(tmp_path, ros_environment(), piped=True) as children:
        child = children.start("limited", sys.executable, "-c", program)
        until(lambda: "File too large" in child.log.read_text())
    assert child.log.read_text().startswith("no file may grow")


def test_a_child_that_ends_early_is_noticed_with_the_end_of_its_log(children: Children) -> None:
    start(children, "steady", PATIENT)
    program = "print('one'); print('the arm is on fire'); raise SystemExit(3)"
    start(children, "short", program)
    with pytest.raises(ProcessFailed, match="short ended early with exit code 3") as failure:
        children.check()
    assert "the arm is on fire" in str(failure.value)
    assert str(children.logs / "short.log") in str(failure.value)


def test_waiting_ends_with_the_child_and_fails_with_any(children: Children) -> None:
    start(children, "steady", PATIENT)
    children.wait(children.start("quick", sys.executable, "-c", ""), timeout_s=30)
    assert [child.name for child in children.running] == ["steady"]

    failing = children.start("failing", sys.executable, "-c", "raise SystemExit('no bundle')")
    with pytest.raises(ProcessFailed, match=r"failing ended with exit code 1[^$]*no bundle"):
        children.wait(failing, timeout_s=30)

    slow = children.start("slow", sys.executable, "-c", PATIENT)
    with pytest.raises(ProcessFailed, match=r"slow did not end within 0\.2 s"):
        children.wait(slow, timeout_s=0.2)

    start(children, "short", "raise SystemExit(4)")
    with pytest.raises(ProcessFailed, match="short ended early with exit code 4"):
        children.wait(slow, timeout_s=30)


def test_a_killed_node_leaves_no_shared_memory_and_its_domain_is_not_given_away(
    children: Children, tmp_path: Path
) -> None:
    node = children.start_module("sim_node", "cosmos3_ros.sim.sim_node")
    until(lambda: "episode 0" in node.log.read_text())
    children.check()
    held = _segments(node.process.pid)
    assert held and all(path.parent == SHARED_MEMORY for path in held)
    domain_id = int(children.environment["ROS_DOMAIN_ID"])
    assert domain_id not in {free_domain_id() for _ in range(300)}
    with Children(tmp_path / "neighbour", ros_environment()) as neighbours:
        neighbour = neighbours.start_module("sim_node", "cosmos3_ros.sim.sim_node")
        until(lambda: "episode 0" in neighbour.log.read_text())
        # One that is stopped cannot answer an interrupt, nor clean up.
        node.process.send_signal(signal.SIGSTOP)
        (ending,) = children.stop(timeout_s=0.3)
        assert ending.killed
        needed = _segments(neighbour.process.pid)
        assert needed and all(path.exists() for path in needed)
        assert not [path for path in held - needed if path.exists()]


def test_a_domain_whose_first_participant_has_gone_is_not_given_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The second participant of domain 7 listens on its loopback port alone.
    monkeypatch.setattr(random, "sample", lambda population, k: [7, 8])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second:
        second.bind(("127.0.0.1", 7400 + 250 * 7 + 12))
        assert free_domain_id() == 8


def test_no_domain_left_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "sample", lambda population, k: [])
    with pytest.raises(OSError, match="every ROS domain id from 1 to 100 is in use"):
        free_domain_id()


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_program_that_is_ended_ends_its_children_even_from_a_shells_background(
    tmp_path: Path, number: signal.Signals
) -> None:
    background = 'trap "" INT; exec "$@"'  # what a script's & does
    parent, pids = parent_of_two(tmp_path, background)
    parent.send_signal(number)
    assert parent.wait(30) == 128 + number
    require_ended(pids, tmp_path)


def test_a_second_interrupt_leaves_no_child_behind(tmp_path: Path) -> None:
    parent, pids = parent_of_two(tmp_path, 'exec "$@"', PATIENT.replace("0.2", "2.0"))
    parent.send_signal(signal.SIGINT)
    # While it waits for the first of them.
    until(lambda: "interrupted" in (tmp_path / "1.log").read_text())
    parent.send_signal(signal.SIGINT)
    assert parent.wait(30) == 128 + signal.SIGINT
    require_ended(pids, tmp_path)


def test_an_interrupt_while_children_are_stopped_already_leaves_none_behind(tmp_path: Path) -> None:
    patient = PATIENT.replace("0.2", "2.0")
    parent, pids = parent_of_two(tmp_path, 'exec "$@"', patient, then="raise SystemExit(3)")
    until(lambda: "interrupted" in (tmp_path / "1.log").read_text())
    parent.send_signal(signal.SIGINT)
    assert parent.wait(30) == 128 + signal.SIGINT
    require_ended(pids, tmp_path)


def test_nodes_of_ours_look_for_no_server_and_no_enclave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DISCOVERY_SERVER", "TCPv4:[10.0.0.1]:11811")
    monkeypatch.setenv("ROS_SECURITY_ENABLE", "true")
    environment = ros_environment(7)
    assert not environment.keys() & {"ROS_DISCOVERY_SERVER", "ROS_SECURITY_ENABLE"}
    assert environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    monkeypatch.setattr(os, "environ", dict(os.environ))
    take_environment(environment)
    assert environment == os.environ, "as their conductor does"


def test_a_program_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    parent, pids = parent_of_two(tmp_path, 'trap "" HUP; exec "$@"')
    parent.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert parent.poll() is None
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(30) == 128 + signal.SIGTERM
    require_ended(pids, tmp_path)


def parent_of_two(
    logs: Path, shell: str, child: str = PATIENT, then: str = "time.sleep(60)"
) -> tuple[subprocess.Popen[str], list[str]]:
    """A program of ours that a shell starts, and the process ids of its children."""
    program = f"""
import sys, time
from pathlib import Path
from cosmos3_ros.processes import Children, end_on_signals, ros_environment
end_on_signals()
with Children(Path({str(logs)!r}), ros_environment()) as children:
    for name in "01":
        child = children.start(name, sys.executable, "-c", {child!r})
        while "ready" not in child.log.read_text():
            time.sleep(0.02)
    print(*(child.process.pid for child in children.running), flush=True)
    {then}
"""
    parent = subprocess.Popen(
        ["sh", "-c", shell, "sh", sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent.stdout:
        return parent, parent.stdout.readline().split()


def require_ended(pids: list[str], logs: Path) -> None:
    for name, pid in zip("01", pids, strict=True):
        assert not Path(f"/proc/{pid}").exists()
        assert "interrupted" in (logs / f"{name}.log").read_text()
