"""A loop that is due at deadlines: it does not drift, makes nothing up, and never falls silent."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from cosmos3_ros.control.loop import DeadlineLoop
from cosmos3_ros.control.realtime import Scheduling

PERIOD_S = 0.02


ORDINARY = Scheduling()


class Run:
    """A loop for some time, with what it did."""

    def __init__(
        self,
        work: Callable[[int], None],
        seconds: float,
        scheduling: Scheduling = ORDINARY,
        meanwhile: Callable[[], object] = lambda: None,
        early: Callable[[DeadlineLoop], object] = lambda loop: None,
        period_s: float = PERIOD_S,
    ) -> None:
        self.moments: list[float] = []
        self.errors: list[Exception] = []
        self.warnings: list[str] = []
        self.threads: set[str] = set()

        def step() -> None:
            self.moments.append(time.monotonic())
            self.threads.add(threading.current_thread().name)
            work(len(self.moments))

        loop = DeadlineLoop(period_s, step, self.errors.append, scheduling, self.warnings.append)
        loop.start()
        time.sleep(seconds / 2)
        meanwhile()
        early(loop)
        time.sleep(seconds / 2)
        loop.stop()
        self.statistics = loop.statistics
        self.count_at_stop = len(self.moments)


def periods_in(run: Run) -> float:
    """From the first run to the last."""
    return (run.moments[-1] - run.moments[0]) / PERIOD_S


def test_work_that_takes_time_does_not_make_the_loop_slower() -> None:
    run = Run(lambda _: time.sleep(0.012), 1.0)
    assert len(run.moments) - 1 + run.statistics.missed == pytest.approx(periods_in(run), abs=1)
    intervals = [b - a for a, b in zip(run.moments, run.moments[1:], strict=False)]
    assert sorted(intervals)[len(intervals) // 2] == pytest.approx(PERIOD_S, rel=0.1)
    assert run.statistics.execution.percentile_ms(50) > 12
    assert run.threads == {"control"}


def test_periods_that_pass_while_it_works_are_skipped_and_counted() -> None:
    def stall_once(count: int) -> None:
        if count == 10:
            time.sleep(0.31)

    run = Run(stall_once, 1.0)
    intervals = [b - a for a, b in zip(run.moments, run.moments[1:], strict=False)]
    assert max(intervals) >= 0.31
    # One late run for the period that is still on, none for the fourteen before it.
    stalled = int(np.argmax(intervals))
    assert run.moments[min(stalled + 7, len(intervals))] - run.moments[stalled + 1] > 4 * PERIOD_S
    assert run.statistics.missed >= 14
    assert len(run.moments) - 1 + run.statistics.missed == pytest.approx(periods_in(run), abs=1)
    assert run.statistics.execution.max_ms >= 310


def test_periods_that_pass_before_it_wakes_are_skipped_and_counted() -> None:
    # A call into C that keeps Python's lock: nobody else's Python runs meanwhile.
    hold_the_lock = ctypes.PyDLL(None).usleep
    run = Run(lambda _: None, 0.5, meanwhile=lambda: hold_the_lock(110_000))
    assert run.statistics.wake_up.max_ms > 80
    assert run.statistics.missed >= 4
    assert len(run.moments) - 1 + run.statistics.missed == pytest.approx(periods_in(run), abs=1)


def test_told_to_advance_it_works_at_once_and_keeps_its_deadlines() -> None:
    asked: list[float] = []

    def ask_between_deadlines(loop: DeadlineLoop) -> None:
        for _ in range(10):
            asked.append(time.monotonic())
            loop.advance()
            time.sleep(2.3 * PERIOD_S)

    run = Run(lambda _: None, 0.5, early=ask_between_deadlines)
    answers = [min(moment - at for moment in run.moments if moment > at) for at in asked]
    assert sorted(answers)[len(answers) // 2] < PERIOD_S / 4, answers
    # One that fell together with a deadline needs no run of its own.
    assert 5 <= run.statistics.early <= 10
    assert run.statistics.periods == len(run.moments) - run.statistics.early
    assert run.statistics.jitter.percentile_ms(50) < 1e3 * PERIOD_S / 10
    regular = run.statistics.periods + run.statistics.missed
    assert regular - 1 == pytest.approx(periods_in(run), abs=1)


def ask_all_the_time(loop: DeadlineLoop) -> None:
    end_s = time.monotonic() + 1.0
    while time.monotonic() < end_s:
        loop.advance()
        time.sleep(PERIOD_S / 40)


def test_however_often_it_is_told_to_advance_there_is_one_more_run_a_period() -> None:
    run = Run(lambda _: None, 0.1, early=ask_all_the_time)
    assert 20 < run.statistics.early <= run.statistics.periods


def test_shortly_before_a_deadline_it_works_with_it_and_is_not_late_for_it() -> None:
    run = Run(lambda _: None, 0.1, early=ask_all_the_time, period_s=0.001)
    assert run.statistics.early == 0 and run.statistics.periods > 100


def test_an_error_is_told_and_the_loop_goes_on() -> None:
    def fail_once(count: int) -> None:
        if count == 3:
            raise RuntimeError("the publisher is gone")

    run = Run(fail_once, 1.5)
    assert [str(error) for error in run.errors] == ["the publisher is gone"]
    assert len(run.moments) > 10


def test_after_stop_there_is_no_work() -> None:
    run = Run(lambda _: None, 0.2)
    time.sleep(0.1)
    assert len(run.moments) == run.count_at_stop


def test_a_priority_the_system_grants_is_the_threads_and_no_others() -> None:
    found = []

    def look(_: int) -> None:
        found.append(os.sched_getscheduler(0))

    run = Run(look, 0.1, Scheduling(fifo_priority=10))
    if run.warnings:
        pytest.skip(f"SCHED_FIFO is not granted here: {run.warnings}")
    assert set(found) == {os.SCHED_FIFO}
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_cpu_is_the_threads_alone() -> None:
    cpu = min(os.sched_getaffinity(0))
    found = []
    run = Run(lambda _: found.append(os.sched_getaffinity(0)), 0.1, Scheduling(cpus=(cpu,)))
    assert not run.warnings
    assert all(cpus == {cpu} for cpus in found) and found


def test_what_the_system_refuses_is_said_with_a_remedy_and_the_loop_runs() -> None:
    run = Run(lambda _: None, 1.0, Scheduling(fifo_priority=100, cpus=(4000,)))
    assert len(run.moments) > 3
    fifo, cpus = run.warnings
    assert "SCHED_FIFO with priority 100 was refused (Invalid argument)" in fifo
    assert "rtprio" in fifo
    assert "CPU 4000" in cpus and "cpu_affinity" in cpus
