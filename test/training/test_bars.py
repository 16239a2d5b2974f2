"""How far a training is can be seen with a terminal and without one."""

from __future__ import annotations

import os
import sys
import termios

import pytest

from cosmos3_ros.training import bars
from cosmos3_ros.training.bars import Bar


def run_through(done: int) -> None:
    with Bar("policy", "step", 4, done) as bar:
        for _ in range(done, 4):
            bar.update()


def test_a_stage_that_goes_on_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    run_through(done=3)
    assert capsys.readouterr().err == "policy: goes on after 3 of 4 steps\n"
    run_through(done=0)
    assert capsys.readouterr().err == ""


def test_without_a_terminal_there_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars, "PERIOD_S", 0.0)
    run_through(done=1)
    assert capsys.readouterr().err.splitlines() == [
        "policy: goes on after 1 of 4 steps",
        "policy: 2 of 4 steps",
        "policy: 3 of 4 steps",
        "policy: 4 of 4 steps",
    ]


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "PERIOD_S", 0.0)
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with os.fdopen(theirs, "w") as terminal, os.fdopen(ours, "rb", 0) as seen:
        monkeypatch.setattr(sys, "stderr", terminal)
        run_through(done=2)
        shown = ""
        while "4/4" not in shown:
            shown += seen.read(4096).decode()
    assert shown.startswith("policy: goes on after 2 of 4 steps")
    assert "policy: 3 of 4 steps" not in shown
