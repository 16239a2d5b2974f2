"""What the system grants a thread and what it refuses, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

BEGIN = """
import os, resource
from cosmos3_ros.control.realtime import Scheduling

def locked_kb():
    status = open("/proc/self/status").read()
    return int(status.split("VmLck:")[1].split()[0])
"""


def said(program: str) -> list[str]:
    """The lines a program prints."""
    command = [sys.executable, "-c", BEGIN + program]
    ended = subprocess.run(command, check=True, timeout=90, capture_output=True, text=True)
    return ended.stdout.splitlines()


def test_memory_is_locked_and_unlocked_again() -> None:
    refused, locked, unlocked = said(
        """
asked = Scheduling(lock_memory=True)
print(asked.apply_to_this_thread())
print(locked_kb())
asked.release()
print(locked_kb())
"""
    )
    if refused != "[]":
        pytest.skip(f"locking memory is not granted here: {refused}")
    assert int(locked) > 1000
    assert int(unlocked) == 0


def test_memory_that_may_not_be_locked_is_said_with_a_remedy() -> None:
    (refused,) = said(
        """
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
if os.getuid() == 0:
    os.setuid(65534)
print(*Scheduling(lock_memory=True).apply_to_this_thread())
"""
    )
    assert "locking memory was refused" in refused
    assert "memlock unlimited" in refused


def test_a_thread_that_shares_the_lock_gets_a_priority_one_less_until_it_is_released() -> None:
    refused, policy, priority, after = said(
        """
asked = Scheduling(fifo_priority=10, cpus=(0,), lock_memory=True)
other = asked.of_another_thread()
print(other.apply_to_this_thread())
print(os.sched_getscheduler(0))
print(os.sched_getparam(0).sched_priority)
asked.release()
print(os.sched_getscheduler(0))
"""
    )
    if refused != "[]":
        pytest.skip(f"SCHED_FIFO is not granted here: {refused}")
    assert (int(policy), int(priority)) == (os.SCHED_FIFO, 9)
    assert int(after) == os.SCHED_OTHER


def test_who_asks_for_nothing_keeps_what_the_process_was_given() -> None:
    before, after = said(
        """
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
asked = Scheduling()
print(os.sched_getscheduler(0))
asked.of_another_thread().apply_to_this_thread()
asked.release()
print(os.sched_getscheduler(0))
"""
    )
    assert before == after == str(os.SCHED_BATCH)
