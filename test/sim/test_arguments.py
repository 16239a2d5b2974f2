"""What the simulated arm's commands refuse: one line, exit code 1, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

from cosmos3_ros.sim import demo
from cosmos3_ros.sim import eval as evaluation

BOTH = (evaluation.main, demo.main)


@pytest.mark.parametrize(
    ("mains", "words", "said"),
    [
        ((evaluation.main,), ("--episodes", "0"), "'0' is no whole number of at least 1"),
        ((evaluation.main,), ("--episodes", "2.5"), "'2.5' is no whole number of at least 1"),
        ((evaluation.main,), ("--seed", "-1"), "'-1' is no whole number of at least 0"),
        ((evaluation.main,), ("--threads", "many"), "'many' is no whole number of at least 0"),
        ((evaluation.main,), ("--real-time-factor", "0"), "'0' is no finite number above 0"),
        ((evaluation.main,), ("--task", "dance"), "choose from 'touch', 'lift', 'any'"),
        ((demo.main,), ("--seconds", "nan"), "'nan' is no finite number above 0"),
        (BOTH, ("--added-latency-ms", "-1"), "'-1' is no finite number of at least 0"),
        (BOTH, ("--added-latency-ms", "inf"), "'inf' is no finite number of at least 0"),
        (BOTH, ("--strategy", "hope"), "choose from 'sync', 'blend', 'prefix'"),
        (BOTH, ("--state-ahead", "--strategy", "prefix"), "expected one of both"),
        (BOTH, ("--colour", "red"), "unrecognized arguments: --colour red"),
    ],
)
def test_a_bad_value_is_refused_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mains: tuple[object, ...],
    words: tuple[str, ...],
    said: str,
) -> None:
    for main in mains:
        with pytest.raises(SystemExit) as end:
            main(["--out", str(tmp_path / "out"), *words])  # type: ignore[operator]
        assert end.value.code == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and said in error, error
        assert error.startswith("./run ") and "--help" in error
    assert not (tmp_path / "out").exists()
